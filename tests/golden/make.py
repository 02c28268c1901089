"""Write width4.npz: `python tests/golden/make.py`; see README.md before doing so."""

import warnings
from pathlib import Path

import formula
import numpy as np
import torch

from sginet.losses.sginet_loss import SGINetLoss, vgg16_features
from sginet.models.checkpoints import from_reference_names
from sginet.models.sginet import Derained, SGINet

HERE = Path(__file__).parent


def network():
    """SGINet of width 4 with a small SEM, in evaluation mode."""
    net = SGINet(4, "small8").eval()
    state = from_reference_names(formula.reference_state_dict(net.frm, net.sim, 1))
    net.load_state_dict(state, strict=False)
    net.sem.load_state_dict(formula.state_dict(net.sem, 1))
    return net


def class_map():
    """A class map of noise, 1×1×64×96."""
    classes = np.random.default_rng([1, 2]).integers(0, 19, (1, 1, 64, 96))
    return torch.from_numpy(classes).float()


def results(net):
    """What the golden file holds, by name: thinned pictures, losses, gradient norms.

    Computed where the network's parameters are."""
    device = next(net.parameters()).device
    pictures = (formula.picture((1, 3, 64, 96), seed) for seed in (11, 12))
    rain, clean = (picture.to(device) for picture in pictures)
    classes = class_map().to(device)
    with torch.no_grad():
        coarse = net.frm(rain)
        refined, scores = net.sim(rain, coarse, classes), net.sem(coarse)
    found = {"coarse": coarse[..., ::2, ::2], "refined": refined[..., ::2, ::2]}
    found["scores"] = scores[..., ::4, ::4]
    with warnings.catch_warnings():  # that it is a random network
        warnings.simplefilter("ignore")
        vgg = vgg16_features(width=8)
    vgg.load_state_dict(formula.state_dict(vgg, 1))
    loss = SGINetLoss(net.sem, vgg).to(device)
    net.zero_grad()
    coarse = net.frm(rain)
    out = Derained(net.sim(rain, coarse, classes), coarse, net.sem(coarse), None)
    loss(out, rain, clean).backward()
    found |= {f"loss_{k}": v for k, v in loss.terms.items()}
    for key, p in net.named_parameters():
        if p.grad is not None and not key.endswith("conv.bias"):
            found[f"grad_{key}"] = p.grad.norm()
    return found


if __name__ == "__main__":
    found = {k: v.detach().numpy() for k, v in results(network()).items()}
    np.savez_compressed(HERE / "width4.npz", **found)
