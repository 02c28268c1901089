"""All that needs a CUDA device to be seen: `python tests/on_cuda.py --out FOLDER`.

First the checks: the network, rain and losses against the same on the CPU, in which precision
they differ by how much, training of one process by torchrun. Then what a training step costs:
the release's network (width 32, PSPNet101, batch 4, crops of 512) is trained for 200 steps on
the same batches in the release's way (float32 and TF32, eager) and in ours (bfloat16,
channels_last, compiled). FOLDER gets checks.json, steps.json (every loss, every time), table.md
(seconds a step, peak memory) and curves.png. On a CPU, with --width 4 --sem small
--crop 64 --batch 2 --steps 4, it only proves that it runs. It ends with 1 if a check failed.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from statistics import median

import numpy as np
import torch
from fastai.callback.core import Callback, CancelValidException
from fastai.data.core import DataLoaders
from matplotlib.figure import Figure

from sginet.data.loaders import SampleLoader
from sginet.data.rain import render
from sginet.data.scenes import draw_scene
from sginet.data.sources import drawn_scenes
from sginet.images import atomic_write
from sginet.models.sginet import SGINet
from sginet.train.learner import cpu_has_bfloat16
from sginet.train.recipes import recipe
from sginet.train.run import _environment, _make_learner
from sginet.train.sem import load_sem

GOLDEN = Path(__file__).parent / "golden"

# ---- checks: the same on the device as on the CPU


def difference(a, b):
    """The largest absolute difference of two tensors, wherever they are."""
    return (a.detach().double().cpu() - b.detach().double().cpu()).abs().max().item()


def rainy_street():
    """A drawn street at 100 mm/h, 1×3×128×256."""
    return render(draw_scene(0, 128, 256).image, 100).rainy


def check_release(device):
    """The network of width 4, its losses and gradients: the release's stored numbers.

    Each as a share of what tests/test_parity.py allows on a CPU."""
    sys.path.insert(0, str(GOLDEN))
    import make

    got, gold = make.results(make.network().to(device)), np.load(GOLDEN / "width4.npz")
    shares = []
    for name in gold:
        error = difference(got[name], torch.from_numpy(gold[name]))
        if name.startswith(("loss_", "grad_")):
            allowed = (1e-4 if name.startswith("loss_") else 0.01) * abs(gold[name])
        else:
            allowed = 4e-4 if name == "refined" else 1e-4
        shares.append(error / allowed)
    return float(max(shares)), 1


def check_rain(device):
    """Rain drawn on the device: the CPU's to a tenth of a step of 8 bits."""
    clean = torch.cat([draw_scene(seed, 128, 256).image for seed in (0, 1)])
    here, there = render(clean, 200).rainy, render(clean.to(device), 200).rainy
    assert there.device.type == torch.device(device).type
    return difference(here, there), 0.1 / 255


def check_float32(device):
    """The shipped network in float32: the CPU's to half a step of 8 bits."""
    rain, net = rainy_street(), SGINet.from_pretrained("tiny")
    here = net.derain(rain)
    there = net.to(device).derain(rain.to(device))
    assert there.device.type == torch.device(device).type
    return difference(here, there), 0.5 / 255


def check_float64(device):
    """The shipped network in float64, where only the order of sums differs."""
    rain, net = rainy_street().double(), SGINet.from_pretrained("tiny").double()
    here = net.derain(rain)
    return difference(here, net.to(device).derain(rain.to(device))), 1e-9


def check_bfloat16(device):
    """`derain` under bfloat16 against float32 on the CPU: two steps of 8 bits on average."""
    rain, net = rainy_street(), SGINet.from_pretrained("tiny")
    here = net.derain(rain)
    there = net.to(device).derain(rain.to(device), precision=torch.bfloat16)
    return (here - there.cpu()).abs().mean().item(), 2 / 255


def check_one_process(device):
    """A short training that torchrun starts in one process: it ends and writes a model.

    Without a GPU sginet-train takes gloo for NCCL."""
    with tempfile.TemporaryDirectory() as folder:
        run, script = Path(folder) / "run", Path(folder) / "train.py"
        text = "import sys\nfrom sginet.cli.train import train\nsys.exit(train())\n"
        script.write_text(text, encoding="utf-8")
        torchrun = "-m torch.distributed.run --standalone --nproc-per-node 1"
        sizes = "--scenes 8 --crop 64 --batch 2 --epochs 1 --workers 0"
        command = [sys.executable, *torchrun.split(), str(script), *sizes.split()]
        command += ["--device", device, "--out", str(run)]
        done = subprocess.run(command, capture_output=True, text=True)
        print(done.stdout[-2000:], done.stderr[-2000:])
        if done.returncode == 0:
            SGINet.from_pretrained(run / "model")
        return done.returncode, 0


CHECKS = {
    "release": check_release,
    "rain": check_rain,
    "float32": check_float32,
    "float64": check_float64,
    "bfloat16": check_bfloat16,
    "torchrun": check_one_process,
}


def run_checks(args):
    """All checks, each a line and a row of checks.json; False if one failed."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    rows = {}
    for name, check in CHECKS.items():
        try:
            found, limit = check(args.device)
            row = dict(found=found, limit=limit, passed=found <= limit)
        except Exception as error:  # the other checks are worth having
            traceback.print_exc()
            row = dict(error=repr(error), passed=False)
        rows[name] = row
        print(f"{name}: {row}", flush=True)
        with atomic_write(args.out / "checks.json") as half:
            half.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return all(row["passed"] for row in rows.values())


# ---- what a training step costs

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
    kept = Kept(samples, args.steps * args.batch)
    train, valid = (
        SampleLoader(kept, args.batch, train=False, device=args.device)
        for _ in range(2)
    )
    dls = DataLoaders(train, valid, device=args.device)
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


def possible_variants(device):
    """All on CUDA; on a CPU those that it can, not compiled."""
    if device.startswith("cuda"):
        return list(VARIANTS)
    known = ["float32", "bfloat16"] if cpu_has_bfloat16() else ["float32"]
    eager = [name for name, s in VARIANTS.items() if not s.get("compile")]
    return [name for name in eager if VARIANTS[name]["precision"] in known]


def training_samples(args):
    """Drawn streets under 200 mm/h, made once for all variants."""
    height, width = max(256, args.crop), max(512, args.crop)
    source = drawn_scenes(8 * args.batch, height, width, rates=(200,))
    loader = SampleLoader(source, args.batch, args.crop)
    loader.rng.seed(0)
    loader.randomize()
    return [loader.create_item(i)[:2] for i in range(len(source))]


def measure_steps(args):
    """All variants, one after the other; steps.json after each, since one may crash."""
    samples, results = training_samples(args), {}
    settings = {k: str(v) for k, v in vars(args).items()}
    for name in args.variants or possible_variants(args.device):
        results[name] = measure(name, args, samples)
        facts = dict(results=results, settings=settings, **_environment())
        with atomic_write(args.out / "steps.json") as half:
            half.write_text(json.dumps(facts, default=str), encoding="utf-8")
    return results


def step_table(results):
    """A Markdown table, a row for each variant."""
    base = next(iter(results.values()))["median"]
    lines = ["| | s a step | × | first step, s | peak GB | last loss |"]
    lines.append("|---|---|---|---|---|---|")
    for name, r in results.items():
        peak = "" if r["peak"] is None else f"{r['peak']:.2f}"
        cells = [name, f"{r['median']:.4f}", f"{base / r['median']:.2f}"]
        cells += [f"{r['first']:.1f}", peak, f"{r['losses'][-1]:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw_curves(results, file):
    """The loss of every step, a line for each variant."""
    fig = Figure(figsize=(6, 3.5), layout="constrained")
    ax = fig.subplots()
    for name, r in results.items():
        ax.plot(r["losses"], label=name, lw=1)
    ax.set(xlabel="step", ylabel="total loss", yscale="log")
    ax.legend(fontsize=7)
    with atomic_write(file) as half:
        fig.savefig(half, format="png", dpi=110)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = dict(width=32, batch=4, crop=512, steps=200, vgg_width=64)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default=default)
    for name, value in sizes.items():
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
    args.out.mkdir(parents=True, exist_ok=True)
    passed = run_checks(args)
    results = measure_steps(args)
    table = step_table(results)
    with atomic_write(args.out / "table.md") as half:
        half.write_text("\n".join(table) + "\n", encoding="utf-8")
    draw_curves(results, args.out / "curves.png")
    print(*table, sep="\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
