"""Weights and pictures by formula: the same numbers from the same seed on any machine.

Every tensor is drawn by a generator of its own, seeded by the seed and its key's checksum,
so that the order of the keys does not matter.
"""

import zlib

import numpy as np
import torch

from sginet.models.checkpoints import reference_name


def tensor(key, shape, seed):
    """Values for one entry of a state dict that keep features at a usual size."""
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    if key.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif len(shape) == 4:
        gain = 1.0
        if ".conv3." in key:
            gain = 0.3
        elif key.endswith("cls.4.weight"):  # no saturated scores
            gain = 0.0005
        values = gain * rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif key.endswith("weight"):
        values = rng.uniform(0.8, 1.2, shape)
    else:
        values = 0.1 * rng.standard_normal(shape)
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def state_dict(module, seed, name=str):
    """A whole state dict for `module`, each key under `name(key)`."""
    shapes = {name(k): tuple(v.shape) for k, v in module.state_dict().items()}
    return {k: tensor(k, shape, seed) for k, shape in shapes.items()}


def reference_state_dict(frm, sim, seed):
    """The state dict of the release's SGINet for our FRM and SIM."""
    parts = torch.nn.ModuleDict({"frm": frm, "sim": sim})
    return state_dict(parts, seed, reference_name)


def picture(shape, seed):
    """A smooth random picture with a little noise, N×C×H×W in 0..1."""
    rng = np.random.default_rng([seed, 1])
    n, c, h, w = shape
    y, x = np.mgrid[0:h, 0:w] / 32.0
    total = np.zeros(shape)
    for _ in range(6):
        fy = rng.uniform(-1.5, 1.5, (n, c, 1, 1))
        fx = rng.uniform(-1.5, 1.5, (n, c, 1, 1))
        phase = rng.uniform(0, 6.28, (n, c, 1, 1))
        total += np.sin(6.28 * (fy * y + fx * x) + phase)
    total = (total - total.min()) / (total.max() - total.min()) * 200 + 20
    total += 6 * rng.standard_normal(shape)
    return torch.from_numpy(total.clip(0, 255).astype(np.float32)) / 255
