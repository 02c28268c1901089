"""The losses as other programs use them: torchvision's VGG16, copies, pickles, later weights."""

import copy
import pickle
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models import vgg16, vgg16_bn, vgg19

from sginet.losses.sginet_loss import PerceptualLoss, SGINetLoss, vgg16_features
from sginet.metrics import psnr_rgb, psnr_y, ssim_y
from sginet.models.sem import SmallSEM, freeze
from sginet.models.sginet import Derained


@pytest.fixture(scope="module")
def case():
    """A small SEM and VGG, an output, rain and clean."""
    torch.manual_seed(0)
    sem = freeze(SmallSEM(width=8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vgg = vgg16_features(width=8)
    rain, clean, refined, coarse = torch.rand(4, 1, 3, 32, 32)
    return sem, vgg, (Derained(refined, coarse, sem(coarse), None), rain, clean)


def test_torchvisions_vgg16_and_its_features():
    torch.manual_seed(0)
    net, (x, y) = vgg16(), torch.rand(2, 1, 3, 32, 32)
    whole = PerceptualLoss(net)(x, y)
    assert whole > 0
    assert torch.equal(whole, PerceptualLoss(net.features)(x, y))
    assert torch.equal(whole, PerceptualLoss(vgg16_features(net.state_dict()))(x, y))
    assert torch.equal(whole, SGINetLoss(None, net, {"perceptual": 1}).perceptual(x, y))
    loss = PerceptualLoss(net)
    net.features[0].weight.data.zero_()  # a change of the network takes effect
    assert not torch.equal(loss(x, y), whole)


def test_another_network_is_refused():
    with torch.device("meta"):
        others = vgg16_bn(), vgg19(), nn.Linear(3, 3), nn.Sequential(nn.ReLU())
    for other in others:
        with pytest.raises(ValueError, match="torchvision's VGG16"):
            PerceptualLoss(other)


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_are_whole_and_independent(case, again):
    sem, vgg, args = case
    loss = SGINetLoss(sem, vgg)
    want = loss(*args)
    twin = again(loss)
    assert torch.equal(twin(*args), want)
    twin.weights["csd"] = 0
    twin(*args)
    assert "csd" in loss.weights and loss.weights["csd"] == 1
    assert "csd" not in twin.terms
    assert twin.sem[0] is not sem


def test_weights_changed_later_count(case):
    sem, vgg, args = case
    start = dict(ssim=1, perceptual=1, csd=1, residual=0.01)
    loss = SGINetLoss(sem, vgg, start)
    loss.weights = {"residual": 2.0}
    assert torch.equal(loss(*args), 2 * loss.terms["residual"])
    loss.weights["pixel"] = 1
    assert set(loss.terms) == {"residual"}
    loss(*args)
    assert set(loss.terms) == {"residual", "pixel"}
    assert start == dict(ssim=1, perceptual=1, csd=1, residual=0.01)
    loss.weights["typo"] = 1
    with pytest.raises(ValueError, match="unknown losses"):
        loss(*args)
    blind = SGINetLoss(weights={"pixel": 1})
    blind.weights["csd"] = 1
    with pytest.raises(ValueError, match="needs a SEM"):
        blind(*args)


class WithoutFloat64(torch.Tensor):
    """A tensor that says it lies on Apple's MPS, and refuses what MPS refuses."""

    @property
    def device(self):
        return SimpleNamespace(type="mps")

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def double(self):
        raise TypeError("MPS has no float64")


def test_scores_on_a_device_without_float64():
    """Not seen on such a device: what is refused there must not be asked for."""
    pred = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    clean = 0.9 * pred
    pair = pred.as_subclass(WithoutFloat64), clean.as_subclass(WithoutFloat64)
    for score in (psnr_y, ssim_y, psnr_rgb):
        assert torch.equal(score(*pair), score(pred, clean)), score
