"""models.inference gives the numbers of the network as written, and steps aside for any change."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from sginet.models import frm, inference, sim
from sginet.models.frm import FRM
from sginet.models.layers import CIG
from sginet.models.sem import class_guidance
from sginet.models.sginet import SGINet, pad_to_multiple
from sginet.models.sim import GUIDANCE_CHANNELS, SIM

FORMS = [
    ("absolute", "instance"),
    ("residual", "half"),
    ("scaled", "half"),
    ("absolute", "half"),
    ("residual", "instance"),
]


def lively(model):
    """No convolution at zero, and batch norms that do something."""
    for p in model.parameters():
        if p.dim() == 4 and p.abs().max() == 0:
            nn.init.normal_(p, std=0.02)
    for b in model.modules():
        if isinstance(b, nn.BatchNorm2d):
            b.running_mean.normal_(0, 0.1)
            b.running_var.uniform_(0.5, 2.0)
            b.weight.data.uniform_(0.5, 1.0)
            b.bias.data.normal_(0, 0.1)
    return model.eval()


def compare_stages(model, rain, float64=False):
    """Coarse, guidance and refined of both paths, each from the plain path's inputs."""
    with torch.no_grad():
        assert float64 or inference.applies(model, rain)
        for one in pad_to_multiple(rain).split(1):
            coarse = model.frm(one)
            error = 255 * (inference._frm(model.frm, one) - coarse).abs()
            assert error.max() <= 0.03
            scores = model.sem(coarse)
            top = scores.topk(2, dim=1).values
            sure = top[:, :1] - top[:, 1:] > 2e-4
            guidance = class_guidance(scores)
            got = inference._guidance(model, coarse)
            if model.sim.guidance == "scores":
                assert (got - scores).abs().max() <= 1e-4
                guidance = scores
            else:
                assert torch.equal(got[sure], guidance[sure])
            refined = model.sim(one, coarse, guidance)
            got = inference._sim(model.sim, one, coarse, guidance)
            error = 255 * (got - refined).abs()
            assert error.max() <= 0.1 and error.mean() <= 0.01, error.max()


@pytest.mark.parametrize("output,norm", FORMS)
@pytest.mark.parametrize("size", [(1, 1), (33, 47), (64, 96)])
def test_small_pictures(size, output, norm):
    """One pixel is a constant picture, whose norms divide rounding errors: in float64."""
    torch.manual_seed(0)
    dtype = torch.float64 if size == (1, 1) else torch.float32
    model = lively(SGINet(width=8, sem="small", output=output, norm=norm)).to(dtype)
    rain = torch.rand(3, 3, *size, dtype=dtype)
    compare_stages(model, rain, float64=dtype == torch.float64)


@pytest.mark.parametrize("guidance", GUIDANCE_CHANNELS)
@pytest.mark.parametrize("sem", ["small", "pspnet50"])
def test_guidance_forms(guidance, sem):
    torch.manual_seed(0)
    model = lively(SGINet(8, sem, "residual", "half", guidance=guidance))
    compare_stages(model, torch.rand(1, 3, 64, 96))


@pytest.mark.slow
@pytest.mark.parametrize(
    "batch,size,width", [(1, (360, 480), 16), (3, (96, 160), 32), (1, (512, 1024), 4)]
)
def test_larger_pictures(batch, size, width):
    torch.manual_seed(0)
    model = SGINet(width=width, sem="pspnet50" if batch == 3 else "small")
    compare_stages(lively(model), torch.rand(batch, 3, *size))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return lively(SGINet(width=8, sem="small", output="residual", norm="half"))


@pytest.fixture(scope="module")
def rain():
    torch.manual_seed(1)
    return torch.rand(2, 3, 40, 70)


def applies(model, rain):
    with torch.no_grad():
        return inference.applies(model, rain)


def test_the_whole_network(model, rain):
    """A batch, sizes that need padding, and memory in any order."""
    with torch.no_grad():
        want = model(rain).refined
        turned = rain.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
        flipped = rain.flip(3).contiguous().flip(3)
        for x in (
            rain,
            rain.contiguous(memory_format=torch.channels_last),
            turned,
            flipped,
        ):
            assert inference.applies(model, x)
            got = inference.refined(model, x)
            assert got.shape == want.shape and 255 * (got - want).abs().max() <= 0.1
            assert not got.requires_grad and not got.is_inference()


def test_weights_are_followed(model, rain):
    """Nothing is kept from call to call: a changed weight is used at once."""
    m = copy.deepcopy(model)
    with torch.no_grad():
        inference.refined(m, rain)
        m.frm.d4.weight.mul_(2)
        m.sim.middle[1].layer2.conv.weight.mul_(-1)
        assert inference.applies(m, rain)
        want = m(rain).refined
        assert 255 * (inference.refined(m, rain) - want).abs().max() <= 0.1
        assert (want - model(rain).refined).abs().max() > 0.01


def swap_gelu(m):
    for cig in [x for x in m.modules() if isinstance(x, CIG)]:
        cig.act = nn.ReLU()


class OwnFRM(FRM):
    pass


class OwnConv(nn.Conv2d):
    def forward(self, x):
        return -super().forward(x)


class OwnModel(SGINet):
    pass


def replaced(path, new):
    def change(m):
        parent, _, name = path.rpartition(".")
        setattr(m.get_submodule(parent), name, new)

    return change


def double(*args):
    return None


CHANGES = {
    "another activation": swap_gelu,
    "the other form of GELU": replaced("frm.e3.act", nn.GELU("tanh")),
    "another norm": replaced("sim.encoder.1.0.norm", nn.Identity()),
    "a smaller middle": replaced("sim.middle", nn.Identity()),
    "another convolution": replaced("frm.d3.conv", OwnConv(32, 8, 3, padding=1)),
    "a dilated convolution": replaced(
        "frm.e3.conv", nn.Conv2d(16, 16, 3, padding=2, dilation=2)
    ),
    "reflecting padding": replaced("frm.e3.conv.padding_mode", "reflect"),
    "another stride": lambda m: setattr(m.sim.encoder[0][2].down, "stride", (1, 1)),
    "no bias": lambda m: setattr(m.frm.e3.conv, "bias", None),
    "a subclass": lambda m: setattr(m, "frm", OwnFRM(8, "residual", "half")),
    "two forms": lambda m: setattr(m, "sim", SIM(8, "residual", "instance")),
    "an overridden forward": replaced("frm.forward", lambda rain: rain),
    "an inner forward": replaced("sim.decoder.2.1.forward", lambda x: x),
    "the model's forward": lambda m: setattr(m, "forward", lambda rain: rain),
    "an inner method": replaced("frm.e1.conv._conv_forward", double),
    "a hook": lambda m: m.sim.sie[3].register_forward_hook(double),
    "a hook before": lambda m: m.frm.e2.conv.register_forward_pre_hook(double),
    "a hook on the model": lambda m: m.register_forward_hook(double),
    "a backward hook": lambda m: m.frm.register_full_backward_hook(double),
    "a parametrization": lambda m: parametrizations.weight_norm(m.frm.e4.conv),
    "a part in training": lambda m: m.sim.train(),
    "half precision": lambda m: m.half(),
    "double precision": lambda m: m.double(),
    "meta weights": lambda m: m.sim.to("meta"),
    "compiled": lambda m: m.frm.compile(),
    "a compiled model": lambda m: m.compile(),
    "an added module": lambda m: m.frm.add_module("more", nn.Identity()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_take_the_plain_path(model, rain, name):
    m = copy.deepcopy(model)
    assert applies(m, rain)
    CHANGES[name](m)
    assert not applies(m, rain)


def test_a_subclass_of_the_model_takes_the_plain_path(rain):
    assert not applies(OwnModel(8, "small").eval(), rain)


@pytest.mark.parametrize("cls", [SGINet, FRM, SIM, CIG, nn.Conv2d, nn.GELU])
def test_a_patched_class_takes_the_plain_path(model, rain, monkeypatch, cls):
    monkeypatch.setattr(cls, "forward", lambda self, *args: args[0])
    assert not applies(model, rain)
    monkeypatch.undo()
    assert applies(model, rain)


def test_a_patched_function_takes_effect(model, rain, monkeypatch):
    for module in frm, sim:
        monkeypatch.setattr(
            module, "output_image", lambda y, base, form: 0 * base + 0.5
        )
    with torch.no_grad():
        assert inference.refined(model, rain).eq(0.5).all()


def test_a_global_hook_takes_the_plain_path(model, rain):
    handle = nn.modules.module.register_module_forward_hook(double)
    try:
        assert not applies(model, rain)
    finally:
        handle.remove()
    assert applies(model, rain)


def test_calls_that_take_the_plain_path(model, rain):
    assert not inference.applies(model, rain)  # gradients are on
    assert not applies(model, rain.double())
    assert not applies(model, rain.to("meta"))
    assert not applies(model, nn.Parameter(rain))
    with torch.autocast("cpu", torch.bfloat16):
        assert not applies(model, rain)
    with torch.inference_mode():
        assert inference.applies(model, rain)


def test_a_hook_on_sem_is_called(model, rain):
    """SEM may be anything: a changed one runs as it is written."""
    m, calls = copy.deepcopy(model), []
    m.sem.register_forward_hook(lambda *args: calls.append(1))
    with torch.no_grad():
        assert inference.applies(m, rain)
        inference.refined(m, rain)
    assert len(calls) == len(rain)


PEAK = """
import sys, torch
from pathlib import Path
from sginet.models.sginet import SGINet
torch.set_num_threads(1)
h, w, width = map(int, sys.argv[1:])
model = SGINet(width, "small").eval()
rain = torch.rand(1, 3, h, w)
model.derain(torch.rand(1, 3, 64, 64))
def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
# forget the peak so far, which began with the parent's
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
model.derain(rain)
print(1024 * (kilobytes("VmHWM") - before), model.bytes_needed(h, w))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("size", [(256, 512), (512, 640)])
def test_memory_is_predicted(size):
    command = [sys.executable, "-c", PEAK, *map(str, size), "16"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    used, predicted = map(int, run.stdout.split())
    assert 0.4 * predicted < used <= predicted
