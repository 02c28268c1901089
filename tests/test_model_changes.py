"""A change of the network takes effect wherever the network is used, and lasts."""

import copy
import io
import json
import pickle
import threading
from types import MethodType

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from sginet.images import ImageError, as_batch, sample_photo
from sginet.models import inference, memory, sginet
from sginet.models.export import to_program
from sginet.models.layers import HalfInstanceNorm
from sginet.models.memory import available_memory
from sginet.models.sem import SEM, SmallSEM, freeze, make_sem
from sginet.models.sginet import SGINet


@pytest.fixture
def model():
    """A small network with no weight at zero, so that every part matters."""
    torch.manual_seed(0)
    net = SGINet(8, "small8", "scaled", "half").eval()
    for conv in (net.frm.d4, net.sim.last):
        nn.init.normal_(conv.weight, std=0.05)
    return net


@pytest.fixture
def rain():
    return torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def relu_for_gelu(model):
    for m in list(model.modules()):
        for name, child in list(m.named_children()):
            if isinstance(child, nn.GELU):
                setattr(m, name, nn.ReLU())


def tanh_gelu(model):
    model.frm.middle[2].act = nn.GELU(approximate="tanh")


def forward_of_frm(model):
    model.frm.forward = lambda x: 0.5 * x


def bound_forward_of_a_norm(model):
    norm = model.sim.encoder[1][0].norm
    norm.forward = MethodType(lambda self, x: x - x.mean(), norm)


def middle_of_sim(model):
    model.sim.middle = nn.Identity()


def conv_of_frm(model):
    old = model.frm.e2.conv
    model.frm.e2.conv = nn.Conv2d(
        old.in_channels, old.out_channels, 3, padding=1, padding_mode="reflect"
    )


def dilated_conv(model):
    model.frm.middle[0].conv = nn.Conv2d(32, 32, 3, padding=2, dilation=2)


def another_norm(model):
    model.frm.e3.norm = nn.BatchNorm2d(16)


def half_norm_for_another(model):
    class Other(HalfInstanceNorm):
        def forward(self, x):
            return x.flip(1)

    model.sim.sie[2][1].norm = Other()


def subclass_of_sim(model):
    class Mine(type(model.sim)):
        def forward(self, rain, coarse, guidance):
            return 0.25 * coarse

    model.sim.__class__ = Mine


def attention_off(model):
    model.sim.decoder[1][0].context = nn.AdaptiveAvgPool2d(1)


def weight_norm(model):
    conv = model.frm.middle[1].conv
    parametrizations.weight_norm(conv)
    conv.parametrizations.weight.original0.data *= 2


def forward_hook(model):
    model.frm.e4.register_forward_hook(lambda m, i, o: o.flip(2))


def pre_hook(model):
    model.sim.encoder[2].register_forward_pre_hook(lambda m, i: (0 * i[0],))


def hook_on_the_model(model):
    model.register_forward_hook(lambda m, i, o: o._replace(refined=0.5 * i[0]))


def hook_on_sem(model):
    model.sem.register_forward_hook(lambda m, i, o: o.flip(1))


def another_sem(model):
    class Constant(SEM):
        def forward(self, image):
            scores = image.new_zeros(len(image), 19, *image.shape[2:])
            scores[:, 10] = 1
            return scores

    model.sem = freeze(Constant())


def output_form(model):
    model.frm.output = "residual"


CHANGES = [
    relu_for_gelu,
    tanh_gelu,
    forward_of_frm,
    bound_forward_of_a_norm,
    middle_of_sim,
    conv_of_frm,
    dilated_conv,
    another_norm,
    half_norm_for_another,
    subclass_of_sim,
    attention_off,
    weight_norm,
    forward_hook,
    pre_hook,
    hook_on_the_model,
    hook_on_sem,
    another_sem,
    output_form,
]


def test_the_unchanged_model_is_what_its_forward_says(model, rain):
    with torch.no_grad():
        assert (model.derain(rain) - model(rain).refined).abs().max() < 1e-4
        assert inference.applies(model, rain)


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_change_takes_effect_in_derain(change, model, rain):
    before = model.derain(rain)
    torch.manual_seed(2)
    change(model)
    model.eval()
    with torch.no_grad():
        want = model(rain).refined
    got = model.derain(rain)
    assert (got - want).abs().max() < 1e-4
    assert (got - before).abs().max() > 1e-4, "the change changes nothing"


def test_a_subclass_that_overrides_forward(rain):
    class Half(SGINet):
        def forward(self, rain):
            return super().forward(rain)._replace(refined=rain / 2)

    assert torch.equal(Half(4, "small8").eval().derain(rain), rain / 2)


def test_a_global_hook_is_called(model, rain):
    seen = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda m, i, o: seen.append(m)
    )
    try:
        model.derain(rain)
    finally:
        handle.remove()
    assert model.frm.e1 in seen and model.sim.middle[0] in seen


def test_training_uses_the_network_as_written(model, rain):
    """With gradients or in training mode the quick way is never taken."""
    assert not inference.applies(model, rain)
    with torch.no_grad():
        assert not inference.applies(model.train(), rain)


# a frozen SEM


def copies(module):
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    yield copy.deepcopy(module)
    yield pickle.loads(pickle.dumps(module))
    yield torch.load(saved, weights_only=False)


def test_a_copy_has_a_frozen_sem_of_its_own(model, rain):
    with torch.no_grad():
        want = model(rain).refined
    for other in copies(model):
        assert other.sem.eval() is other.sem and other.sem.train() is other.sem
        other.train()
        assert other.training and not any(m.training for m in other.sem.modules())
        assert not any(p.requires_grad for p in other.sem.parameters())
        assert other.state_dict().keys() == model.state_dict().keys()
        with torch.no_grad():
            assert torch.equal(other.eval()(rain).refined, want)
        other.sem.double()
    assert next(model.sem.parameters()).dtype == torch.float32


def test_a_sem_that_is_no_sem_stays_in_evaluation_mode_inside():
    net = SGINet(4, nn.Sequential(nn.Conv2d(3, 19, 1), nn.BatchNorm2d(19)))
    for other in (net, copy.deepcopy(net)):
        other.train()
        assert not other.sem[1].training and other.frm.training


# saving


def test_a_given_sem_is_saved_under_its_name(tmp_path, rain):
    for name in ("small", "small32", "lraspp_mobilenet_v3_large"):
        torch.manual_seed(0)
        net = SGINet(4, make_sem(name), guidance="onehot").eval()
        net.save_pretrained(tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["sem"] == name and config["guidance"] == "onehot"
        again = SGINet.from_pretrained(tmp_path / name)
        with torch.no_grad():
            assert torch.equal(again(rain).refined, net(rain).refined)


@pytest.mark.parametrize(
    "sem", [nn.Conv2d(3, 19, 1), SmallSEM(8, classes=7), type("Own", (SmallSEM,), {})()]
)
def test_a_sem_that_cannot_be_rebuilt_is_refused_before_anything_is_written(
    sem, tmp_path
):
    net = SGINet(4, sem)
    with pytest.raises(ValueError, match="configuration cannot describe"):
        net.save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a").exists()


KEPT = (forward_hook, pre_hook, hook_on_the_model, hook_on_sem)  # not part of a model


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_change_that_a_configuration_cannot_hold_is_not_saved(
    change, model, tmp_path
):
    change(model)
    if change in KEPT:
        model.save_pretrained(tmp_path / "a")
        return
    with pytest.raises(ValueError, match="cannot describe"):
        model.save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_an_earlier_configuration_loads(model, tmp_path, rain):
    """Earlier versions wrote "window": null and no guidance."""
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["guidance"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"window": None}))
    with torch.no_grad():
        assert torch.equal(
            SGINet.from_pretrained(tmp_path)(rain).refined, model(rain).refined
        )
    (tmp_path / "config.json").write_text(json.dumps(config | {"window": 256}))
    with pytest.raises(ValueError, match="unknown options window"):
        SGINet.from_pretrained(tmp_path)


# derain


def test_a_derained_tensor_is_an_ordinary_tensor(model, rain):
    y = model.derain(rain)
    assert not y.is_inference()
    nn.Conv2d(3, 4, 3)(y).sum().backward()
    y.mul_(0.5)


def test_each_module_keeps_its_own_mode(model, rain):
    model.train()
    model.frm.eval()
    model.sim.middle[1].eval()
    modes = {name: m.training for name, m in model.named_modules()}
    model.derain(rain)
    assert modes == {name: m.training for name, m in model.named_modules()}
    with pytest.raises(ValueError):
        model.derain(2 * rain)
    assert modes == {name: m.training for name, m in model.named_modules()}


@pytest.mark.parametrize(
    "dtype, tolerance",
    [(torch.float16, 0.001), (torch.bfloat16, 0.005), (torch.float64, 1e-5)],
)
def test_models_and_inputs_of_every_precision(dtype, tolerance):
    model = SGINet.from_pretrained("tiny")
    x, _ = as_batch(sample_photo().resize((96, 64)))
    other, want = copy.deepcopy(model).to(dtype), model.derain(x)
    for net, picture in ((other, x), (model, x.to(dtype)), (other, x.to(dtype))):
        got = net.derain(picture)
        assert got.dtype == picture.dtype
        assert (got.float() - want).abs().mean() < tolerance
    with torch.no_grad():
        assert other(x.to(dtype)).refined.dtype == dtype


def test_kinds_and_shapes_are_kept(model):
    grey = np.random.default_rng(0).random((40, 50), np.float32)
    for a in (grey, grey[..., None].repeat(3, 2), (255 * grey).astype(np.uint8)):
        b = model.derain(a)
        assert (b.shape, b.dtype) == (a.shape, a.dtype)
    assert model.derain(torch.rand(3, 33, 40)).shape == (3, 33, 40)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_tensor_stays_on_its_device(model, rain):
    assert model.derain(rain.cuda()).is_cuda
    model.cuda()
    assert model.derain(rain.cuda()).is_cuda
    assert not model.derain(rain).is_cuda


def test_prints_of_other_threads_are_left_alone(model, tmp_path, capsys, monkeypatch):
    """While a network is loaded another thread prints, and its line alone is seen."""
    load = SGINet.load_state_dict

    def load_and_print(self, *args, **kwargs):
        thread = threading.Thread(target=print, args=["from another thread"])
        thread.start()
        thread.join()
        return load(self, *args, **kwargs)

    model.save_pretrained(tmp_path)
    monkeypatch.setattr(SGINet, "load_state_dict", load_and_print)
    SGINet.from_pretrained(tmp_path)
    assert capsys.readouterr().out == "from another thread\n"


def test_available_memory_is_no_more_than_a_container_leaves(monkeypatch):
    monkeypatch.setattr(memory, "_container_room", lambda: 12345)
    assert available_memory("cpu") == 12345
    monkeypatch.setattr(memory, "_container_room", lambda: None)
    free = available_memory("cpu")
    assert free is None or free > 2**20


class MeanOfBoth(nn.Module):
    """A SIM that looks at the rain and the coarse picture alone."""

    def forward(self, rain, coarse, guidance):
        assert guidance.shape[1] == 1  # a class map
        return (rain + coarse) / 2


def test_whole_stages_of_another_kind(model, rain, monkeypatch):
    """Modules that have nothing of FRM or SIM but what goes in and out."""
    model.frm = nn.AvgPool2d(3, stride=1, padding=1)
    with torch.no_grad():
        assert torch.equal(model.derain(rain), model(rain).refined)
    model.sim = MeanOfBoth()
    want = (rain + model.frm(rain)) / 2
    assert torch.equal(model.derain(rain), want)
    assert torch.equal(to_program(model).module()(rain)[0], want)
    monkeypatch.setattr(sginet, "available_memory", lambda device: 10**6)
    with pytest.raises(ImageError, match="megapixels would fit"):
        model.derain(rain)
