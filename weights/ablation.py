"""What guidance, CSD and FRM are worth: `python weights/ablation.py --data CAMVID --out RUN` trains each variant with each seed, and scores it.

All variants get the same budget: steps, batches, rain, first weights, losses and judge. Every training lives in RUN/VARIANT-SEED and goes on from
its checkpoint; RUN/ablation.csv (a row for each training and rate) and RUN/pictures.csv (for each picture too) grow with every one that ends.
Without --data: drawn scenes.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from sginet.data.datasets import SampleLoader, drawn_scenes, labelled_photos
from sginet.evaluate.compare import Batches, SGINetRow, Training, score, write_csv
from sginet.images import IGNORE, atomic_write
from sginet.losses.sginet_loss import SGINetLoss, vgg16_features
from sginet.metrics import SegmentationScore
from sginet.models.sem import class_guidance
from sginet.models.sginet import Derained, SGINet, pad_to_multiple

VARIANTS = {
    "SEM's guidance": "the method: SIM reads the class that SEM sees in the coarse picture; all losses",
    "no guidance": "the map is 0 everywhere, in training and in use",
    "another's guidance": "the map is that of another picture of the batch (in use: of the picture before), so it looks like one and says nothing",
    "true labels": "the map is the labels; SEM's where the labels are void",
    "no CSD": "SEM's map, but the CSD loss has the weight 0",
    "no FRM": "there is no coarse picture: SEM and SIM read the rain; CSD and the residual loss, which train FRM, have nothing to train",
}
WEIGHTS = dict(
    ssim=1, perceptual=0.05, csd=0.2, residual=0.02, pixel=0.3
)  # with which the shipped model was trained, but for its last stage


class WithLabels:
    """A source whose rain images carry their labels as a fourth channel, which one variant reads."""

    def __init__(self, source):
        self.source, self.name = source, source.name

    def __len__(self):
        return len(self.source)

    def sample(self, i, size, rng):
        rain, clean, labels = self.source.sample(i, size, rng)
        return torch.cat([rain, labels[None].to(rain)]), clean, labels


class Loss(SGINetLoss):
    """The four losses and ours, of pictures whose rain has four channels."""

    def forward(self, out, rain, clean):
        return super().forward(out, rain[:, :3], clean)


def chosen(variant, own, truth):
    """The map (N×1×H×W) that SIM reads, from SEM's own and the true one."""
    if variant == "no guidance":
        return torch.zeros_like(own)
    if variant == "another's guidance":
        return own.roll(1, 0)
    if variant == "true labels":
        return torch.where(truth == IGNORE, own, truth)
    return own


class Ablated(SGINetRow):
    """An SGINet with one thing taken from it; reads N×4×H×W, rain in 0..1 and the true classes."""

    def __init__(self, variant, width, sem, vgg):
        super().__init__(
            width, sem, "residual", "instance"
        )  # which begins best on whole pictures: see 09_model
        self.variant, left_out = (
            variant,
            dict.fromkeys(
                {"no CSD": ["csd"], "no FRM": ["csd", "residual"]}.get(variant, []), 0
            ),
        )
        self.losses = [Loss(self.net.sem, vgg, WEIGHTS | left_out)]
        if variant == "no FRM":
            self.net.frm = None

    def stages(self, x):
        h, w = x.shape[-2:]
        x = pad_to_multiple(x)
        rain, truth = x[:, :3], x[:, 3:]
        coarse = self.net.frm(rain) if self.net.frm else rain
        scores = self.net.sem(coarse)
        read = chosen(self.variant, class_guidance(scores), truth)
        return Derained(
            *(
                t[..., :h, :w]
                for t in (self.net.sim(rain, coarse, read), coarse, scores, read)
            )
        )


def evaluated(net, source, pictures, device):
    """Scores of a net on every so manieth picture, as `compare.score` gives them; the variant that reads another's map gets the last picture's."""
    before = [
        source.sample(len(source) - 1, None, np.random.default_rng(0))[0][None].to(
            device
        )
    ]

    def derain(x, clean):
        both = (
            torch.cat([x, before[0]])
            if net.variant == "another's guidance" and x.shape == before[0].shape
            else x
        )
        before[0] = x
        return net(both)[:1]

    return score(derain, source, pictures, net.net.sem, device)


def sources(data, rates, split, **options):
    """The labelled pictures of a split with rain, or drawn scenes."""
    if data is None:
        return WithLabels(
            drawn_scenes(
                8 if split == "val" else 64,
                first=10**6 if split == "val" else 0,
                rates=rates,
                **options,
            )
        )
    return WithLabels(labelled_photos(data / split, rates=rates, **options))


def train(folder, variant, seed, s, device):
    """Train one variant with one seed, or go on with it, and write its result.json."""
    torch.manual_seed(seed)  # the same first weights for all variants
    sem = SGINet.from_pretrained(s["sem"]).sem
    net = Ablated(variant, s["width"], sem, vgg16_features(width=16)).to(device)
    net.losses[0].to(device)
    loader = SampleLoader(
        sources(s["data"] and Path(s["data"]), (100, 200), "train"),
        s["batch"],
        s["crop"],
    )
    training = Training(
        folder, net, Batches(loader, seed, device), ("steps", s["steps"]), seed
    )
    training.go()
    net.eval()
    result = dict(
        variant=variant,
        seed=seed,
        steps=training.steps,
        seconds=training.seconds,
        losses=training.losses,
    )
    for rate in (100, 200):
        result[str(rate)] = evaluated(
            net,
            sources(s["data"] and Path(s["data"]), (rate,), "val", seed=0),
            s["pictures"],
            device,
        )
    with atomic_write(folder / "result.json") as half:
        half.write_text(json.dumps(result))


def tables(out):
    """Write ablation.csv and pictures.csv of all trainings that have ended."""
    rows, pictures = [], []
    results = [json.loads(f.read_text()) for f in Path(out).glob("*/result.json")]
    for r in sorted(
        results, key=lambda r: ([*VARIANTS].index(r["variant"]), r["seed"])
    ):
        for rate in (100, 200):
            s, seg, head = (
                r[str(rate)],
                SegmentationScore(),
                dict(variant=r["variant"], seed=r["seed"], rate=rate),
            )
            seg.matrix = torch.tensor(s["matrices"]).sum(0).view(19, 19)
            rows.append(
                head
                | dict(
                    pictures=len(s["names"]),
                    psnr=np.mean(s["psnr"]),
                    ssim=np.mean(s["ssim"]),
                    miou=100 * seg.miou,
                    steps=r["steps"],
                    seconds=r["seconds"],
                )
            )
            pictures += [
                head | dict(picture=n, psnr=round(p, 4), ssim=round(q, 5))
                for n, p, q in zip(s["names"], s["psnr"], s["ssim"])
            ]
    (
        write_csv(rows, Path(out) / "ablation.csv"),
        write_csv(pictures, Path(out) / "pictures.csv"),
    )


def run(
    out,
    data=None,
    variants=tuple(VARIANTS),
    seeds=3,
    device="cpu",
    say=print,
    **settings,
):
    """All trainings that are not there yet, seed by seed. Raises `ValueError` for a folder that was begun with other settings."""
    out = Path(out)
    s, file = (
        dict(
            data=data and str(Path(data).absolute()),
            sem="tiny",
            width=4,
            crop=96,
            batch=2,
            steps=240,
            pictures=13,
        )
        | settings,
        out / "settings.json",
    )
    if file.exists() and (old := json.loads(file.read_text())) != s:
        raise ValueError(f"{out} was begun with {old}, not {s}")
    with atomic_write(file) as half:
        half.write_text(json.dumps(s))
    jobs = [(seed, v) for seed in range(seeds) for v in variants]
    for seed, v in tqdm(jobs, unit="training", disable=None):
        folder = out / f"{v.replace(' ', '-')}-{seed}"
        if (folder / "result.json").exists():
            continue
        train(folder, v, seed, s, device)
        tables(out)
        say(f"{v}, seed {seed} is done")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="holds {train,val}/{images,labels} with CamVid's classes",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--seeds", type=int, default=3, help="trainings of each variant"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu"
    )
    for name, value in (
        ("width", 4),
        ("crop", 96),
        ("batch", 2),
        ("steps", 240),
        ("pictures", 13),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=value, help=f"default: {value}"
        )
    try:
        run(say=lambda line: print(line, flush=True), **vars(parser.parse_args()))
    except ValueError as fault:
        sys.exit(f"error: {fault}")
    except KeyboardInterrupt:
        sys.exit("error: stopped by Ctrl-C; the same command goes on from here")
