"""The network, the losses and their gradients against numbers of the reference release.

The shipped numbers are in tests/golden; where the fixtures of SGINET_SHARED are present,
every pixel is compared too.
"""

import importlib.util
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from sginet.losses.sginet_loss import SGINetLoss, vgg16_features
from sginet.models import inference
from sginet.models.checkpoints import reference_name
from sginet.models.frm import FRM
from sginet.models.sem import PSPNet
from sginet.models.sginet import Derained, SGINet
from sginet.models.sim import SIM

GOLDEN = Path(__file__).parent / "golden"


def _module(name):
    """A file of tests/golden as a module."""
    spec = importlib.util.spec_from_file_location(name, GOLDEN / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


formula, make = _module("formula"), _module("make")


def close(name, got, want, largest, mean=float("inf")):
    """Compare two arrays by their greatest and their mean difference."""
    got = got.detach().double()
    error = (got - torch.from_numpy(np.asarray(want)).double()).abs()
    print(f"{name}: max {error.max():.3g}, mean {error.mean():.3g} (of {largest})")
    assert error.max() <= largest and error.mean() <= mean, name


# a network of width 4, on every machine


def test_the_small_network_gives_the_stored_numbers():
    gold, net = np.load(GOLDEN / "width4.npz"), make.network()
    got = make.results(net)
    assert set(got) == set(gold)
    close("coarse", got["coarse"], gold["coarse"], 1e-4)
    close("scores", got["scores"], gold["scores"], 1e-4)
    close("refined", got["refined"], gold["refined"], 4e-4, 4e-5)
    for key in gold:
        if key.startswith("loss_"):
            assert abs(got[key].item() / gold[key] - 1) <= 1e-4, key
        if key.startswith("grad_"):
            assert abs(got[key].item() / gold[key] - 1) <= 0.01, key


def test_the_quick_way_gives_the_stored_numbers():
    gold, net = np.load(GOLDEN / "width4.npz"), make.network()
    rain = formula.picture((1, 3, 64, 96), 11)
    with torch.no_grad():
        assert inference.applies(net, rain)
        want = net(rain).refined
        close("refined", inference.refined(net, rain), want, 4e-4, 4e-5)
        close("coarse", net(rain).coarse[..., ::2, ::2], gold["coarse"], 1e-4)


# the release's network at full width


@pytest.fixture(scope="module")
def model():
    """SGINet from checkpoints as the release writes them."""
    with torch.device("meta"):
        frm, sim, sem = FRM(), SIM(), PSPNet()
    state = formula.reference_state_dict(frm, sim, 1)
    # the release's SEM: `module.` before each key, inside of 'state_dict'
    own = formula.state_dict(sem, 1)
    wrapped = {"state_dict": {f"module.{k}": v for k, v in own.items()}}
    return SGINet.from_reference(state, wrapped)


@pytest.fixture(scope="module", params=["shipped", "all pixels"])
def gold(request):
    """The reference's numbers, and which pixels of each result they are."""
    if request.param == "shipped":
        return np.load(GOLDEN / "reference.npz"), 4
    file = request.getfixturevalue("shared") / "parity/golden_seed1.npz"
    return np.load(file), 1


@pytest.fixture(scope="module")
def images():
    return tuple(formula.picture((1, 3, 64, 96), seed) for seed in (11, 12))


@pytest.mark.slow
def test_stages(gold, model, images):
    numbers, step = gold

    def thinned(x):
        return x[..., ::step, ::step]

    rain, _ = images
    with torch.no_grad():
        out = model(rain)
        close("coarse", 255 * thinned(out.coarse), numbers["frm_coarse"], 0.03)
        close("sem of rain", thinned(model.sem(rain)), numbers["sem_rain"], 1e-4)
        close("scores", thinned(out.scores), numbers["sem_coarse"], 1e-4)
        refined = model.sim(rain, out.coarse, make.class_map())
        want = numbers["sim_refined_given_map"]
        close("refined, given map", 255 * thinned(refined), want, 0.1, 0.01)
        top = thinned(out.scores).topk(2, dim=1).values
        sure = (top[:, :1] - top[:, 1:2]) >= 1e-4
        classes = torch.from_numpy(np.asarray(numbers["guidance"])).float()
        classes = classes.reshape(thinned(out.guidance).shape)
        assert torch.equal(thinned(out.guidance)[sure], classes[sure])
        if torch.equal(thinned(out.guidance), classes):
            want = numbers["refined"]
            close("refined", 255 * thinned(out.refined), want, 0.1, 0.01)
            assert inference.applies(model, rain)
            quick = inference.refined(model, rain)
            close("the quick way", 255 * thinned(quick), want, 0.1, 0.01)


@pytest.mark.slow
def test_losses_and_gradients(gold, model, images):
    numbers, step = gold
    rain, clean = images
    with warnings.catch_warnings():  # that its weights may be random
        warnings.simplefilter("ignore")
        shapes = vgg16_features()
    state = formula.state_dict(shapes, 1, lambda key: f"features.{key}")
    loss = SGINetLoss(model.sem, vgg16_features(state))
    model.zero_grad()
    out = model(rain)
    refined = out.refined
    if step == 1:
        classes = torch.from_numpy(np.asarray(numbers["guidance"])).float()
        refined = model.sim(rain, out.coarse, classes.reshape(out.guidance.shape))
    out = Derained(refined, out.coarse, out.scores, out.guidance)
    total = loss(out, rain, clean)
    total.backward()
    theirs = dict(ssim="ssim", perceptual="per", csd="csd", residual="mse")
    for ours, name in theirs.items():
        assert abs(loss.terms[ours].item() / numbers[f"loss_{name}"] - 1) <= 1e-4, ours
    assert abs(total.item() / numbers["loss_total"] - 1) <= 1e-4
    norms = dict(zip(map(str, numbers["grad_keys"]), numbers["grad_norms"]))
    trained = [(k, p) for k, p in model.named_parameters() if not k.startswith("sem.")]
    assert set(norms) == {reference_name(k) for k, _ in trained}
    compared = 0
    for key, p in trained:
        want = norms[reference_name(key)]
        if key.endswith("conv.bias") and want < 1e-3:
            continue  # before an instance norm: rounding alone
        compared += 1
        assert abs(p.grad.norm().item() / want - 1) <= 0.01, key
    assert len(norms) - compared == 48


def test_the_formulas_are_those_of_the_fixtures(shared):
    """The shipped formula draws what the fixtures' own module draws."""
    spec = importlib.util.spec_from_file_location(
        "formula_weights", shared / "parity/formula_weights.py"
    )
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    shape = [8, 3, 3, 3]
    for key in ("a.conv3.weight", "cls.4.weight", "a.bias", "bn.running_var"):
        want = torch.from_numpy(theirs.tensor(key, shape, 5))
        assert torch.equal(formula.tensor(key, shape, 5), want)
    want = torch.from_numpy(theirs.image((1, 3, 20, 30), 11)) / 255
    assert torch.equal(formula.picture((1, 3, 20, 30), 11), want)


@pytest.mark.slow
def test_the_files_of_the_release_are_read(tmp_path):
    """From disk, bare or wrapped; another network's file is refused with its keys."""
    with torch.device("meta"):
        frm, sim = FRM(), SIM()
    state = formula.reference_state_dict(frm, sim, 2)
    unused = {"u_net_heavy.up_1.down.weight": torch.zeros(8, 8, 3, 3)}
    files = {
        "model_best.pt": state | unused,
        "vgg.pt": {"features.0.weight": torch.zeros(1)},
    }
    for name, content in files.items():
        torch.save({f"module.{k}": v for k, v in content.items()}, tmp_path / name)
    net = SGINet.from_reference(tmp_path / "model_best.pt", depth=50)
    assert torch.equal(
        net.frm.e1.conv.weight, state["u_net_light.encoder_1.conv.weight"]
    )
    said = (
        r"vgg\.pt does not fit: \d+ missing \(frm\..*unexpected \(features\.0\.weight"
    )
    with pytest.raises(ValueError, match=said):
        SGINet.from_reference(tmp_path / "vgg.pt", depth=50)
    with pytest.raises(ValueError, match="model_best.pt does not fit"):
        SGINet.from_reference(*[tmp_path / "model_best.pt"] * 2, depth=50)
