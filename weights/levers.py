"""What single choices in the training of tiny are worth.

    python weights/levers.py --shared SHARED --out RUN

RUN is a folder in which `train_tiny.py sem` has ended, or --start names a trained model. Each
variant of CHANGES is trained for the same number of steps on the same pictures and rain,
measured on every eighth picture of CamVid's and the streets' validation, and adds a row to
RUN/levers.csv; what is there already is not done again. `--only guidance --seeds 3` trains a
new SIM of each form of guidance with three seeds.
"""

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import score_tiny
import torch
from train_tiny import SCALES, derain_learner, fit

from sginet.evaluate.tables import read_csv, write_csv
from sginet.train.callbacks import StopAfter

# what a variant changes: weights of the losses, `widths` of FRM and SIM, or the guidance
CHANGES = {
    "as shipped": {},
    "without SSIM": dict(ssim=0),
    "SSIM ×3": dict(ssim=9),
    "without pixel": dict(pixel=0),
    "pixel ×3": dict(pixel=2.7),
    "with residual": dict(residual=0.01),
    "with CSD": dict(csd=0.2),
    "with CSD ×5": dict(csd=1),
    "FRM 10, SIM 6": dict(widths=(10, 6)),
    "FRM 6, SIM 10": dict(widths=(6, 10)),
    "FRM 12, SIM 8": dict(widths=(12, 8)),
    "FRM 8, SIM 12": dict(widths=(8, 12)),
    "guidance index": dict(guidance="index"),
    "guidance onehot": dict(guidance="onehot"),
    "guidance scores": dict(guidance="scores"),
}
SETS = ("camvid", "streets")


def scores(model: torch.nn.Module, shared: Path) -> dict:
    """PSNR-Y and SSIM-Y at both rates, over every eighth picture of both sets."""
    sets, row = score_tiny.clean_sets(shared), {}
    for rate in score_tiny.RATES:
        found = [
            score_tiny.measure_rain(model, read, rate, i)
            for name in SETS
            for i, (_, read) in list(enumerate(sets[name]))[::8]
        ]
        psnr, ssim = ([f[k]["refined"] for f in found] for k in ("psnr", "ssim"))
        row[f"psnr {rate}"] = round(float(np.mean(psnr)), 3)
        row[f"ssim {rate}"] = round(float(np.mean(ssim)), 4)
        row[f"pictures {rate}"] = " ".join(f"{v:.3f}" for v in psnr)
    return row


def measure(args: argparse.Namespace, name: str) -> dict:
    """Train one variant and score it: a row."""
    learn = derain_learner(args, **CHANGES[name])
    began, model = time.perf_counter(), learn.network
    epochs = 1 + args.steps // len(learn.dls.train)
    fit(learn, epochs, 2e-3, 0.1, StopAfter(args.steps))
    seconds, parts = time.perf_counter() - began, (model.frm, model.sim)
    facts = dict(
        variant=name,
        seed=args.seed,
        steps=args.steps,
        seconds=round(seconds),
        parameters=sum(p.numel() for part in parts for p in part.parameters()),
    )
    with torch.inference_mode():
        return facts | scores(model.eval(), args.shared)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True, help="the data sets")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--steps", type=int, default=200, help="of each variant")
    parser.add_argument("--seeds", type=int, default=1, help="of each variant")
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--start", help="a trained model to go on from, such as tiny")
    parser.add_argument(
        "--eager", action="store_true", help="do not compile FRM and SIM"
    )
    args = parser.parse_args()
    args.epochs, args.scales = 1, SCALES
    file = args.out / "levers.csv"
    rows = read_csv(file) if file.exists() else []
    done = {(row["variant"], row["seed"]) for row in rows}
    names = [name for name in CHANGES if args.only in name]
    for seed, name in itertools.product(range(args.seeds), names):
        if (name, seed) not in done:
            args.seed = seed
            rows.append(measure(args, name))
            write_csv(rows, file)
            print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
