"""What guidance, CSD and FRM are worth: `python weights/ablation.py --data CAMVID --out RUN`.

Trains each variant with each seed and scores it. All variants get the same budget: steps,
batches, rain, first weights, losses and SEM. Every training has a folder RUN/VARIANT-SEED
and continues from its checkpoint; RUN/ablation.csv (a row for each training and rate) and
RUN/pictures.csv (for each picture too) grow with every one that ends. RUN/rain.csv scores
the rain itself. Without --data: drawn scenes.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from fastai.data.core import DataLoaders
from tqdm import tqdm

from sginet.data.loaders import SampleLoader
from sginet.data.sources import drawn_scenes, labelled_photos
from sginet.evaluate.budgeted_training import (
    BudgetedTraining,
    SGINetBaseline,
    budget_learner,
    fit_budget,
)
from sginet.evaluate.scores import Scores
from sginet.evaluate.tables import write_csv
from sginet.images import IGNORE, atomic_write
from sginet.losses.sginet_loss import SGINetLoss, vgg16_features
from sginet.models.sem import class_guidance
from sginet.models.sginet import Derained, SGINet, pad_to_multiple

VARIANTS = {
    "SEM's guidance": "the method: SIM reads SEM's classes of the coarse picture; all losses",
    "no guidance": "the map is 0 everywhere, in training and in use",
    "another's guidance": "the map of another picture of the batch (in use: of the picture "
    "before): a plausible map without information about this picture",
    "true labels": "the map is the labels; SEM's where the labels are void",
    "no CSD": "SEM's map, but the CSD loss has the weight 0",
    "no FRM": "there is no coarse picture: SEM and SIM read the rain; CSD and the residual "
    "loss, which train FRM, have nothing to train",
}
# the shipped model's, but for its last stage
WEIGHTS = dict(ssim=1, perceptual=0.05, csd=0.2, residual=0.02, pixel=0.3)


class WithLabels:
    """A source whose rain images carry their labels as a fourth channel."""

    def __init__(self, source):
        self.source, self.name = source, source.name

    def __len__(self):
        return len(self.source)

    def sample(self, i, size, rng):
        rain, clean, labels = self.source.sample(i, size, rng)
        return torch.cat([rain, labels[None].to(rain)]), clean, labels


def choose_map(variant, own, truth):
    """The map (N×1×H×W) that SIM reads, from SEM's own and the true one."""
    if variant == "no guidance":
        return torch.zeros_like(own)
    if variant == "another's guidance":
        return own.roll(1, 0)
    if variant == "true labels":
        return torch.where(truth == IGNORE, own, truth)
    return own


class Ablated(SGINetBaseline):
    """An SGINet without one thing; reads N×4×H×W, rain in 0..1 and the true classes."""

    def __init__(self, variant, width, sem, vgg):
        # begins best on whole pictures: see the notebook of SGINet
        super().__init__(width, sem, "residual", "instance")
        self.variant = variant
        left_out = {"no CSD": ["csd"], "no FRM": ["csd", "residual"]}.get(variant, [])
        weights = WEIGHTS | dict.fromkeys(left_out, 0)
        self.criterion = [SGINetLoss(self.net.sem, vgg, weights)]
        if variant == "no FRM":
            self.net.frm = None

    def outputs(self, x):
        h, w = x.shape[-2:]
        x = pad_to_multiple(x)
        rain, truth = x[:, :3], x[:, 3:]
        coarse = self.net.frm(rain) if self.net.frm else rain
        scores = self.net.sem(coarse)
        classes = choose_map(self.variant, class_guidance(scores), truth)
        refined = self.net.sim(rain, coarse, classes)
        stages = refined, coarse, scores, classes
        return Derained(*(t[..., :h, :w] for t in stages))

    def loss(self, outputs, rain, clean):
        return super().loss(outputs, rain[:, :3], clean)


def chosen(source, pictures):
    """The numbers of evenly spread pictures."""
    last = len(source) - 1
    return np.linspace(0, last, min(pictures, len(source))).round().astype(int).tolist()


@torch.no_grad()
def evaluated(net, source, pictures, device):
    """Scores of evenly spread pictures, as a dict of lists.

    The variant that reads another picture's map gets the map of the picture before.
    """
    scores, previous = Scores(), None
    for i in [len(source) - 1, *chosen(source, pictures)]:
        sample = source.sample(i, None, np.random.default_rng([0, i]))
        x, clean, labels = (t[None].to(device) for t in sample)
        if previous is not None:
            pair = net.variant == "another's guidance" and x.shape == previous.shape
            derained = net(torch.cat([x, previous]) if pair else x)[:1]
            name = Path(source.name(i)).name
            scores.add(name, derained, clean, labels, net.net.sem)
        previous = x
    matrices = [m.flatten().tolist() for m in scores.matrices]
    lists = dict(names=scores.names, psnr=scores.psnr, ssim=scores.ssim)
    summary = dict(miou=100 * scores.value("miou"))
    return lists | summary | dict(matrices=matrices)


def sources(data, rates, split, **options):
    """The labelled pictures of a split with rain, or drawn scenes."""
    if data is None:
        n, first = (8, 10**6) if split == "val" else (64, 0)
        return WithLabels(drawn_scenes(n, first=first, rates=rates, **options))
    return WithLabels(labelled_photos(Path(data) / split, rates=rates, **options))


def train(folder, variant, seed, s, device):
    """Train one variant with one seed, or continue, and write its result.json."""
    torch.manual_seed(seed)  # the same first weights for all variants
    sem = SGINet.from_pretrained(s["sem"]).sem
    net = Ablated(variant, s["width"], sem, vgg16_features(width=16)).to(device)
    net.criterion[0].to(device)
    train_source = sources(s["data"], (100, 200), "train")
    loader = SampleLoader(train_source, s["batch"], s["crop"])
    dls = DataLoaders(loader, loader, device=device)  # nothing is validated
    budget = f"{s['steps']}steps"
    training = BudgetedTraining(folder / "checkpoint.pt", budget, seed)
    fit_budget(budget_learner(dls, net, training))
    net.eval()
    result = dict(variant=variant, seed=seed, steps=training.steps)
    result |= dict(seconds=training.seconds, losses=training.losses)
    for rate in (100, 200):
        source = sources(s["data"], (rate,), "val", seed=0)
        result[str(rate)] = evaluated(net, source, s["pictures"], device)
    with atomic_write(folder / "result.json") as part:
        part.write_text(json.dumps(result), encoding="utf-8")


@torch.no_grad()
def rain_itself(s, device):
    """Scores of the rain that no network has changed, on the same pictures: a row a rate."""
    sem = SGINet.from_pretrained(s["sem"]).sem.to(device)
    rows = []
    for rate in (100, 200):
        source, scores = sources(s["data"], (rate,), "val", seed=0), Scores()
        for i in chosen(source, s["pictures"]):
            sample = source.sample(i, None, np.random.default_rng([0, i]))
            x, clean, labels = (t[None].to(device) for t in sample)
            scores.add(Path(source.name(i)).name, x[:, :3], clean, labels, sem)
        means = {k: scores.value(k) for k in ("psnr", "ssim")}
        rows.append(dict(rate=rate, pictures=len(scores.names)) | means)
    return rows


def tables(out):
    """Write ablation.csv and pictures.csv of all trainings that have ended."""
    rows, pictures = [], []
    results = [
        json.loads(f.read_text(encoding="utf-8"))
        for f in Path(out).glob("*/result.json")
    ]
    order = list(VARIANTS)
    for r in sorted(results, key=lambda r: (order.index(r["variant"]), r["seed"])):
        for rate in (100, 200):
            s = r[str(rate)]
            head = dict(variant=r["variant"], seed=r["seed"], rate=rate)
            means = {k: np.mean(s[k]) for k in ("psnr", "ssim")} | dict(miou=s["miou"])
            cost = dict(steps=r["steps"], seconds=r["seconds"])
            rows.append(head | dict(pictures=len(s["names"])) | means | cost)
            for name, psnr, ssim in zip(s["names"], s["psnr"], s["ssim"], strict=True):
                scores = dict(psnr=round(psnr, 4), ssim=round(ssim, 5))
                pictures.append(head | dict(picture=name) | scores)
    write_csv(rows, Path(out) / "ablation.csv")
    write_csv(pictures, Path(out) / "pictures.csv")


def run(
    out,
    data=None,
    variants=tuple(VARIANTS),
    seeds=3,
    device="cpu",
    say=print,
    **settings,
):
    """All trainings that are not there yet, seed by seed.

    Raises `ValueError` for a folder that was begun with other settings.
    """
    out = Path(out)
    file = out / "settings.json"
    s = dict(data=data and str(Path(data).absolute()), sem="tiny", width=4, crop=96)
    s |= dict(batch=2, steps=240, pictures=13) | settings
    if file.exists() and (old := json.loads(file.read_text(encoding="utf-8"))) != s:
        raise ValueError(f"{out} was begun with {old}, not {s}")
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as part:
        part.write_text(json.dumps(s), encoding="utf-8")
    if not (out / "rain.csv").exists():
        write_csv(rain_itself(s, device), out / "rain.csv")
    jobs = [(seed, v) for seed in range(seeds) for v in variants]
    for seed, v in tqdm(jobs, unit="training", disable=None):
        folder = out / f"{v.replace(' ', '-')}-{seed}"
        if (folder / "result.json").exists():
            continue
        folder.mkdir(exist_ok=True)
        train(folder, v, seed, s, device)
        tables(out)
        say(f"{v}, seed {seed} is done")


def options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    labelled = "holds {train,val}/{images,labels} with CamVid's classes"
    add("--data", type=Path, help=labelled)
    add("--out", type=Path, required=True)
    add("--seeds", type=int, default=3, help="trainings of each variant")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    defaults = dict(width=4, crop=96, batch=2, steps=240, pictures=13)
    for name, value in defaults.items():
        add(f"--{name}", type=int, default=value, help=f"default: {value}")
    return parser


if __name__ == "__main__":
    try:
        run(say=lambda line: print(line, flush=True), **vars(options().parse_args()))
    except ValueError as fault:
        sys.exit(f"error: {fault}")
    except KeyboardInterrupt:
        print(
            "stopped by Ctrl-C; the same command continues from here", file=sys.stderr
        )
        sys.exit(130)
