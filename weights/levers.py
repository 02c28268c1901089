"""What single choices in the training of tiny are worth: `python weights/levers.py --data CAMVID --out RUN` takes the variants of CHANGES one by one,
each with the same steps, pictures and rain as its first, and adds a row to RUN/levers.csv; what is there already is not done again.

RUN is a folder in which `train_tiny.py` has trained; the losses go on from its weights, on whole pictures, the others begin with nothing, on crops.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_
from train_tiny import derain_learner, in_bfloat16

from sginet.data.datasets import any_weather, labelled_photos
from sginet.evaluate.compare import Batches, write_csv
from sginet.metrics import psnr_y, ssim_y
from sginet.models.frm import FRM
from sginet.models.sim import SIM

# by group, what a variant changes: weights of losses, or `reference`, `width` (of FRM and SIM), `rising`
CHANGES = dict(
    losses={
        "as shipped": {},
        "without SSIM": dict(ssim=0),
        "SSIM ×3": dict(ssim=3),
        "SSIM with the standard constants": dict(reference=False),
        "without pixel": dict(pixel=0),
        "pixel ×3": dict(pixel=0.9),
        "without residual": dict(residual=0),
        "residual ×3": dict(residual=0.06),
        "without CSD": dict(csd=0),
        "CSD ×5": dict(csd=1),
        "with the perceptual loss, random VGG": dict(perceptual=0.05),
    },
    scratch={
        "FRM 8, SIM 8": {},
        "rates that rise during training": dict(rising=True),
        "FRM 10, SIM 6": dict(width=(10, 6)),
        "FRM 6, SIM 10": dict(width=(6, 10)),
        "FRM 12, SIM 8": dict(width=(12, 8)),
        "FRM 8, SIM 12": dict(width=(8, 12)),
    },
)


def train(learn, batches, steps, lr):
    """One cycle of AdamW, as fastai drives it in train_tiny.py; the seconds it took, without those of the first two steps, which compile."""
    params = [p for p in learn.model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        opt, lr, steps, pct_start=0.1, cycle_momentum=False
    )
    for t in range(steps):
        if t == 2:
            start = time.perf_counter()
        rain, clean = batches(t)
        learn.loss_func(learn.model(rain), clean, rain).backward()
        clip_grad_norm_(params, 1.0)
        opt.step(), opt.zero_grad(), schedule.step()
    return time.perf_counter() - start


def scores(model, folder, rate):
    """PSNR-Y and SSIM-Y of every eighth picture of val."""
    source, found = labelled_photos(folder / "val", rates=(rate,), seed=0), []
    for i in range(0, len(source), 8):
        rain, clean = (
            t[None] for t in source.sample(i, None, np.random.default_rng(0))[:2]
        )
        with torch.inference_mode():
            refined = model(rain).refined
        found.append((psnr_y(refined, clean).item(), ssim_y(refined, clean).item()))
    return np.array(found)


def rising(steps, seen):
    """`any_weather` whose rates begin at a quarter and are whole from the middle of the training on; `seen` counts the samples asked for."""

    def weather(rng):
        settings, seen[0] = any_weather(rng), seen[0] + 1
        return settings | dict(
            rate=settings["rate"] * min(1, 0.25 + 1.5 * seen[0] / steps)
        )

    return weather


def measure(args, group, name):
    """Train one variant and score it: a row."""
    change, whole = dict(CHANGES[group][name]), group == "losses"
    learn = derain_learner(args)
    model, loss, loader = learn.model, learn.loss_func, learn.dls.train
    if whole:
        model.load_state_dict(torch.load(args.out / args.start)["model"])
    if width := change.pop("width", None):
        torch.manual_seed(args.seed)
        model.frm, model.sim = (
            make(w, "scaled", "half").to(memory_format=torch.channels_last)
            for make, w in zip((FRM, SIM), width)
        )
        for part in (model.frm, model.sim):
            in_bfloat16(part)
    loss.reference = change.pop("reference", True)
    loader.size, loader.bs, steps = (
        (480, 1, args.whole_steps) if whole else (128, 8, args.crop_steps)
    )
    if change.pop("rising", False):
        loader.source.weather = rising(steps * loader.bs, [0])
    loss.weights |= dict(perceptual=0 if whole else 0.05) | change
    seconds = train(
        learn, Batches(loader, args.seed, "cpu"), steps, 1e-3 if whole else 2e-3
    )
    model.eval()
    row = dict(
        group=group,
        variant=name,
        steps=steps,
        seconds=round(seconds),
        parameters=sum(
            p.numel() for m in (model.frm, model.sim) for p in m.parameters()
        ),
    )
    for rate in (100, 200):
        found = scores(model, args.data, rate)
        row |= {
            f"psnr {rate}": round(found[:, 0].mean(), 3),
            f"ssim {rate}": round(found[:, 1].mean(), 4),
            f"pictures {rate}": " ".join(f"{v:.3f}" for v in found[:, 0]),
        }
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--start",
        default="derain.pt",
        help="the checkpoint in RUN that the losses go on from",
    )
    parser.add_argument("--whole-steps", type=int, default=100)
    parser.add_argument("--crop-steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    file = args.out / "levers.csv"
    rows = (
        list(csv.DictReader(file.open(encoding="utf-8", newline="")))
        if file.exists()
        else []
    )
    for group, variants in CHANGES.items():
        for name in variants:
            if any(r["variant"] == name for r in rows):
                continue
            rows.append(measure(args, group, name))
            write_csv(rows, file)
            print(rows[-1], flush=True)
