"""What a training step costs: `python tests/cuda_training.py --out FOLDER` on a CUDA machine.

The release's network (width 32, PSPNet101, batch 4, crops of 512) is trained for 200 steps on
the same batches in the release's way (float32 and TF32, eager) and in ours (bfloat16,
channels_last, compiled). FOLDER gets steps.json (every loss, every time), table.md (seconds a
step, peak memory) and curves.png. On a CPU, with --width 4 --sem small --crop 64 --batch 2
--steps 4, it only proves that it runs.
"""

import argparse
import gc
import json
import time
from pathlib import Path
from statistics import median

import torch
from fastai.callback.core import Callback, CancelValidException
from fastai.data.core import DataLoaders
from matplotlib.figure import Figure

from sginet.data.loaders import SampleLoader
from sginet.data.sources import drawn_scenes
from sginet.images import atomic_write
from sginet.models.sginet import SGINet
from sginet.train.learner import cpu_has_bfloat16
from sginet.train.recipes import recipe
from sginet.train.run import _environment, _make_learner
from sginet.train.sem import load_sem

VARIANTS = {
    "float32": dict(precision="float32"),
    "TF32": dict(precision="float32"),
    "bfloat16": dict(precision="bfloat16"),
    "bfloat16, channels_last": dict(precision="bfloat16", channels_last=True),
    "bfloat16, compiled": dict(precision="bfloat16", compile=True),
    "bfloat16, channels_last, compiled": dict(
        precision="bfloat16", channels_last=True, compile=True
    ),
}


class Kept:
    """Samples that were made once, over and over: reading must not be what is measured."""

    def __init__(self, samples, n):
        self.samples, self.n = samples, n

    def __len__(self):
        return self.n

    def name(self, i, rng=None):
        return f"sample {i % len(self.samples)}"

    def sample(self, i, size, rng):
        return self.samples[i % len(self.samples)]


class Clock(Callback):
    """Loss and seconds of each step; no validation."""

    order = 100

    def before_fit(self):
        self.losses, self.seconds, self.last = [], [], time.perf_counter()

    def before_validate(self):
        raise CancelValidException

    def after_batch(self):
        self.losses.append(self.learn.loss.item())
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now


def measure(name, args, samples):
    """Train one variant; its losses, seconds a step and peak memory in GB."""
    cuda = args.device.startswith("cuda")
    torch.set_float32_matmul_precision("high" if name == "TF32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "TF32"
    settings = recipe(
        "reference",
        width=args.width,
        sem=args.sem,
        batch=args.batch,
        crop=args.crop,
        epochs=1,
        vgg_width=args.vgg_width,
        **VARIANTS[name],
    )
    torch.manual_seed(0)
    net = SGINet(
        args.width,
        args.sem if not args.sem_weights else load_sem(args.sem, args.sem_weights),
        settings["output"],
        settings["norm"],
    )
    dls = DataLoaders(
        *(
            SampleLoader(
                Kept(samples, args.steps * args.batch),
                args.batch,
                train=False,
                device=args.device,
            )
            for _ in range(2)
        ),
        device=args.device,
    )
    learn, clock = _make_learner(settings, net, dls, print), Clock()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, settings["lr"], cbs=clock)
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
    del learn, net, dls
    gc.collect()
    torch.compiler.reset()
    if cuda:
        torch.cuda.empty_cache()
    steady = clock.seconds[min(20, args.steps // 2) :]
    print(
        f"{name}: {median(steady):.4f} s a step (first {clock.seconds[0]:.1f} s), "
        + (f"peak {peak:.2f} GB, " if cuda else "")
        + f"loss {clock.losses[0]:.2f} to {clock.losses[-1]:.2f}",
        flush=True,
    )
    return dict(
        losses=clock.losses,
        seconds=clock.seconds,
        median=median(steady),
        first=clock.seconds[0],
        peak=peak,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu"
    )
    for name, value in dict(
        width=32, batch=4, crop=512, steps=200, vgg_width=64
    ).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--sem", default="pspnet101")
    parser.add_argument(
        "--sem-weights", help="without: an untrained SEM, which costs as much"
    )
    parser.add_argument(
        "--variants",
        nargs="*",
        choices=VARIANTS,
        help="default: all on CUDA; on a CPU those that it can, not compiled",
    )
    args = parser.parse_args()
    possible = [
        v
        for v, s in VARIANTS.items()
        if args.device.startswith("cuda")
        or not s.get("compile")
        and (s["precision"] == "float32" or cpu_has_bfloat16())
    ]
    source = drawn_scenes(
        8 * args.batch, max(256, args.crop), max(512, args.crop), rates=(200,)
    )
    loader = SampleLoader(source, args.batch, args.crop)
    loader.rng.seed(0)
    loader.randomize()
    samples = [loader.create_item(i)[:2] for i in range(len(source))]
    results = {}
    for name in args.variants or possible:
        results[name] = measure(name, args, samples)
        facts = dict(
            settings={k: str(v) for k, v in vars(args).items()}, **_environment()
        )
        with atomic_write(args.out / "steps.json") as half:
            half.write_text(
                json.dumps(dict(results=results, **facts), default=str)
            )  # after each: a crash loses one
    base = results[next(iter(results))]["median"]
    table = [
        "| | s a step | × | first step, s | peak GB | last loss |",
        "|---|---|---|---|---|---|",
    ] + [
        f"| {n} | {r['median']:.4f} | {base / r['median']:.2f} | {r['first']:.1f} | "
        + ("" if r["peak"] is None else f"{r['peak']:.2f}")
        + f" | {r['losses'][-1]:.3f} |"
        for n, r in results.items()
    ]
    with atomic_write(args.out / "table.md") as half:
        half.write_text("\n".join(table) + "\n")
    fig = Figure(figsize=(6, 3.5), layout="constrained")
    ax = fig.subplots()
    for n, r in results.items():
        ax.plot(r["losses"], label=n, lw=1)
    ax.set(xlabel="step", ylabel="total loss", yscale="log")
    ax.legend(fontsize=7)
    with atomic_write(args.out / "curves.png") as half:
        fig.savefig(half, format="png", dpi=110)
    print(*table, sep="\n")


if __name__ == "__main__":
    main()
