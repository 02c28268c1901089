"""How weights/tiny was made: `python weights/train_tiny.py STEP --data CAMVID --out RUN`, steps sem, derain, ship, in this order.

CAMVID holds {train,val}/{images,labels} with CamVid's 12 classes. Every step writes RUN/STEP.pt after each epoch and goes on from there.
"""
import argparse
import csv
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from sginet.core import IGNORE
from sginet.sem import SmallSEM

# CamVid: Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist Unlabelled, as Cityscapes train ids
CAMVID = torch.tensor([10, 2, 5, 0, 1, 8, 7, 4, 13, 11, 12] + [IGNORE] * 245)


def labelled(folder):
    """All pictures (N×3×H×W uint8) and class maps (N×H×W int64) of a folder with images/ and labels/, in memory."""
    files = sorted((Path(folder) / "images").iterdir())
    images = torch.stack([torch.from_numpy(np.array(Image.open(f).convert("RGB"))).permute(2, 0, 1) for f in files])
    maps = torch.stack([torch.from_numpy(np.array(Image.open(Path(folder) / "labels" / f"{f.stem}.png"))) for f in files])
    return images, CAMVID[maps.long()]


def save(path, **state):
    """Write a checkpoint under another name first, so that a kill leaves the last good one."""
    torch.save(state, f"{path}.part")
    os.replace(f"{path}.part", path)


def augmented(images, maps, size, rng):
    """A batch of random crops at random scales, flipped and re-exposed, images in 0..1."""
    xs, ys = [], []
    for x, y in zip(images, maps):
        h, w = (int(round(s / rng.uniform(.7, 1.6))) for s in size)
        h, w = min(h, x.shape[1]), min(w, x.shape[2])
        top, left = rng.integers(0, x.shape[1] - h + 1), rng.integers(0, x.shape[2] - w + 1)
        x, y = x[:, top:top + h, left:left + w][None].float() / 255, y[None, None, top:top + h, left:left + w].float()
        x, y = F.interpolate(x, size, mode="bilinear", antialias=True), F.interpolate(y, size, mode="nearest").long()
        if rng.random() < .5: x, y = x.flip(3), y.flip(3)
        x = ((x * rng.uniform(.6, 1.4) + rng.uniform(-.1, .1)).clamp(0, 1)) ** rng.uniform(.7, 1.4)
        if rng.random() < .3: x = (x + rng.uniform(0, .05) * torch.randn(x.shape)).clamp(0, 1)
        xs.append(x), ys.append(y[:, 0])
    return torch.cat(xs), torch.cat(ys)


def train_sem(args):
    """The small SEM on CamVid's labels: cross entropy with rarer classes weighted up, AdamW, one cycle."""
    images, maps = labelled(args.data / "train")
    counts = torch.bincount(maps[maps != IGNORE], minlength=19).float()
    weight = torch.where(counts > 0, (counts.sum() / 11 / counts.clamp(min=1)).sqrt(), 0)
    torch.manual_seed(args.seed)
    model, file, start = SmallSEM(), args.out / "sem.pt", 0
    opt = torch.optim.AdamW(model.parameters(), weight_decay=1e-4)
    steps = len(images) // args.batch
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, 4e-3, total_steps=args.epochs * steps, pct_start=.15)
    if file.exists():
        state = torch.load(file)
        model.load_state_dict(state["model"]), opt.load_state_dict(state["opt"]), sched.load_state_dict(state["sched"])
        start = state["epoch"]
    for epoch in range(start, args.epochs):
        rng, t0, total = np.random.default_rng([args.seed, epoch]), time.time(), 0.
        model.train()
        for batch in torch.from_numpy(rng.permutation(len(images)))[:steps * args.batch].view(steps, -1):
            x, y = augmented(images[batch], maps[batch], (224, 288), rng)
            logits = F.interpolate(model.logits(255 * x), y.shape[-2:], mode="bilinear", align_corners=True)
            loss = F.cross_entropy(logits, y, weight, ignore_index=IGNORE)
            loss.backward(), opt.step(), opt.zero_grad(), sched.step()
            total += loss.item()
        save(file, model=model.state_dict(), opt=opt.state_dict(), sched=sched.state_dict(), epoch=epoch + 1)
        print(f"epoch {epoch + 1}/{args.epochs} loss {total / steps:.3f} {time.time() - t0:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["sem"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train_sem(args)
