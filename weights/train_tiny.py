"""How weights/tiny was made: `python weights/train_tiny.py STEP --data CAMVID --out RUN`, steps sem, derain, ship, in this order.

CAMVID holds {train,val}/{images,labels} with CamVid's 12 classes. The first two write RUN/STEP.pt after each epoch and go on from there; ship
writes weights/tiny with its card, and the scores in weights/README.md. The step score scores what is shipped once more.
"""

import argparse
import os
import re
import shutil
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.learner import Recorder
from fastai.optimizer import Adam

import sginet
from sginet.data.datasets import (
    any_weather,
    find_labelled,
    labelled_photos,
    rain_dls,
    read_labels,
)
from sginet.images import IGNORE, as_batch, atomic_write
from sginet.losses.sginet_loss import vgg16_features
from sginet.metrics import SegmentationScore, psnr_y, ssim_y
from sginet.models.pretrained import (
    FILES,
    card_text,
    read_card,
    score_lines,
    short_rows,
    write_card,
)
from sginet.models.sem import SmallSEM
from sginet.models.sginet import SGINet
from sginet.train.learner import sginet_learner

SHIPPED = Path(__file__).resolve().parent / "tiny"


def labelled(folder):
    """All pictures (N×3×H×W uint8) and class maps (N×H×W int64) of a folder with images/ and labels/, in memory."""
    images, maps = zip(
        *(
            (as_batch(f)[0].mul(255).round().byte(), read_labels(label)[None])
            for f, label in find_labelled(folder)
        )
    )
    return torch.cat(images), torch.cat(maps)


def save(path, **state):
    """Write a checkpoint under another name first, so that a kill leaves the last good one."""
    torch.save(state, f"{path}.part")
    os.replace(f"{path}.part", path)


def augmented(images, maps, size, rng):
    """A batch of random crops at random scales, flipped and re-exposed, images in 0..1."""
    xs, ys = [], []
    for x, y in zip(images, maps):
        h, w = (int(round(s / rng.uniform(0.7, 1.6))) for s in size)
        h, w = min(h, x.shape[1]), min(w, x.shape[2])
        top, left = (
            rng.integers(0, x.shape[1] - h + 1),
            rng.integers(0, x.shape[2] - w + 1),
        )
        x, y = (
            x[:, top : top + h, left : left + w][None].float() / 255,
            y[None, None, top : top + h, left : left + w].float(),
        )
        x, y = (
            F.interpolate(x, size, mode="bilinear", antialias=True),
            F.interpolate(y, size, mode="nearest").long(),
        )
        if rng.random() < 0.5:
            x, y = x.flip(3), y.flip(3)
        x = (
            (x * rng.uniform(0.6, 1.4) + rng.uniform(-0.1, 0.1)).clamp(0, 1)
        ) ** rng.uniform(0.7, 1.4)
        if rng.random() < 0.3:
            x = (x + rng.uniform(0, 0.05) * torch.randn(x.shape)).clamp(0, 1)
        xs.append(x), ys.append(y[:, 0])
    return torch.cat(xs), torch.cat(ys)


def heavier(rng):
    """`any_weather` with 200 mm/h three times as often as 100, which had reached its goal when 200 had not."""
    settings = any_weather(rng)
    return (
        dict(rate=200.0)
        if settings == dict(rate=100.0) and rng.random() < 0.5
        else settings
    )


# side of the crops (480: whole pictures), pictures a batch, epochs, learning rate, weather, and what differs from WEIGHTS. Last on whole pictures,
# whose statistics are what the norms will see in use, and without the features of a random VGG, which pixels can do without (see levers.py)
STAGES = (
    (128, 8, 24, 2e-3, any_weather, {}),
    (480, 1, 3, 1e-3, any_weather, {}),
    (480, 1, 5, 1.5e-3, any_weather, dict(perceptual=0)),
    (
        480,
        1,
        6,
        1.5e-3,
        any_weather,
        dict(perceptual=0, ssim=3, pixel=0.9, residual=0.01),
    ),
    (480, 1, 10, 1.5e-3, heavier, dict(perceptual=0, ssim=3, pixel=0.9, residual=0.01)),
)
# on a random VGG, features are worth less than pixels
WEIGHTS = dict(ssim=1, perceptual=0.05, csd=0.2, residual=0.02, pixel=0.3)


def in_bfloat16(module):
    """Let a module compute in bfloat16 and give back float32, compiled: about half the time on a CPU that has bfloat16."""
    plain = module.forward

    def forward(*args):
        with torch.autocast("cpu", torch.bfloat16):
            return plain(*args).float()

    module.forward = forward
    torch._dynamo.config.recompile_limit = 64  # one for each module, size and gradient mode; beyond it all is interpreted again
    module.compile(dynamic=False)


def derain_learner(args):
    """Width 8, the SEM of the first step, all losses; the perceptual one on a thin random VGG, since its cost would be most of a step."""
    sem = SmallSEM()
    sem.load_state_dict(torch.load(args.out / "sem.pt")["model"])
    torch.manual_seed(args.seed)
    dls = rain_dls(args.data, "any", num_workers=1)
    dls.rng.seed(args.seed)
    learn = sginet_learner(
        dls,
        SGINet(8, sem, "scaled", "half"),
        vgg16_features(width=16),
        WEIGHTS,
        csd_from=0,
        quick=False,
        opt_func=partial(Adam, decouple_wd=True),
        wd=1e-4,
    )
    learn.model.to(memory_format=torch.channels_last)
    for part in (
        learn.model.frm,
        learn.model.sem,
        learn.model.sim,
        learn.loss_func.perceptual,
    ):
        in_bfloat16(part)
    return learn


class EveryEpoch(Callback):
    """Write model and optimiser after each epoch."""

    def __init__(self, file, stage, start):
        self.file, self.stage, self.start = file, stage, start

    def before_epoch(self):
        self.began = time.time()

    def after_epoch(self):
        if self.epoch < self.start:
            return  # fastai only skips through what an earlier run has done
        opt = (
            self.opt.state_dict()
        )  # in plain types, so that it can be read as weights only
        opt = dict(
            state=list(opt["state"]),
            hypers=[
                {k: float(v) if isinstance(v, np.generic) else v for k, v in h.items()}
                for h in opt["hypers"]
            ],
        )
        save(
            self.file,
            model=self.model.state_dict(),
            opt=opt,
            stage=self.stage,
            epoch=self.epoch + 1,
        )
        terms = " ".join(f"{k} {v:.3f}" for k, v in self.learn.terms.items())
        print(
            f"stage {self.stage} epoch {self.epoch + 1}/{self.n_epoch} {terms} {time.time() - self.began:.0f} s",
            flush=True,
        )


def train_derain(args):
    """FRM and SIM with rain made on the fly, in stages of growing crops, one cycle each; goes on after a stop from the last epoch."""
    learn, file, done = derain_learner(args), args.out / "derain.pt", (0, 0)
    learn.create_opt()
    if file.exists():
        state = torch.load(file)
        (
            learn.model.load_state_dict(state["model"]),
            learn.opt.load_state_dict(state["opt"]),
        )
        done = state["stage"], state["epoch"]
    learn.remove_cb(Recorder)
    learn.dls.loaders[1] = []  # whole pictures are scored once, by the last step
    for stage, (size, batch, epochs, lr, weather, weights) in enumerate(STAGES):
        if (stage, epochs) <= done:
            continue
        start = done[1] if stage == done[0] else 0
        learn.dls.train.size, learn.dls.train.bs, learn.loss_func.weights = (
            size,
            batch,
            WEIGHTS | weights,
        )
        learn.dls.train.source.weather = weather
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(
                epochs,
                lr,
                start_epoch=start,
                cbs=EveryEpoch(file, stage, start),
                pct_start=0.1,
            )


def ship(args):
    """Halve the precision, score on all of val what was written, and put model and card into the folder of the shipped model, last of all."""
    state, model = (
        torch.load(args.out / "derain.pt"),
        SGINet(8, "small", "scaled", "half"),
    )
    model.load_state_dict(state["model"])
    new = args.out / "tiny"
    (new / "card.json").unlink(
        missing_ok=True
    )  # of an earlier one, whose checksums would not fit
    model.half().save_pretrained(new)
    write_card(new, **facts(SGINet.from_pretrained(new), args))
    for file in (*FILES, "card.json"):
        (
            shutil.copy(new / file, SHIPPED / f".{file}"),
            os.replace(SHIPPED / f".{file}", SHIPPED / file),
        )
    tell()


def score(args):
    """Score the shipped model anew and write its card."""
    write_card(SHIPPED, **facts(SGINet.from_pretrained(SHIPPED), args))
    tell()


def tell():
    """Write the numbers of the card into weights/README.md, and print what other texts show of them."""
    card, readme = read_card(SHIPPED), SHIPPED.parent / "README.md"
    lines = "\n".join(f"  {line}".rstrip() for line in score_lines(card))
    text, n = re.subn(
        r"(<!-- scores of tiny[^\n]*-->\n).*?( *<!-- end -->)",
        lambda m: f"{m[1]}\n{lines}\n\n{m[2]}",
        readme.read_text(encoding="utf-8"),
        flags=re.S,
    )
    assert n == 1, f"{readme} has no place for the scores of tiny"
    with atomic_write(readme) as half:
        half.write_text(text, encoding="utf-8")
    print(*short_rows(card), card_text(card), sep="\n")


def facts(model, args):
    """What a card says: what the model is, and what it scores on all of val."""
    model.quick = True
    source = labelled_photos(args.data / "val", rates=(100,), seed=0)
    size = "×".join(
        map(str, source.sample(0, None, np.random.default_rng(0))[0].shape[:0:-1])
    )
    protocol = (
        f"CamVid's {len(source)} validation photographs, whole ({size}); rain of the preset cityscapes_syn, wind 0, seed = index; weights in half precision, "
        "computed in float32. Mean ± 95 % interval (1.96 s/√n), PSNR-Y in dB / SSIM-Y as in `sginet.metrics`, the paper's protocol:"
    )
    return dict(
        what="width 8, the small SEM, output scaled, norm half: for a laptop",
        licence="Apache-2.0",
        parameters=sum(p.numel() for p in model.parameters()),
        data="trained on CamVid's training photographs with rain made on the fly; the pictures are not part of it",
        made_by=f"weights/train_tiny.py, seed {args.seed}",
        measured_with=f"sginet {sginet.__version__}, torch {torch.__version__.split('+')[0]}",
        scores=dict(
            protocol=protocol,
            rates=[at_rate(model, args.data / "val", rate) for rate in (100, 200)],
            **unrained(model, source),
        ),
    )


def summary(values):
    """Mean, half of its 95 % interval, and the least of some numbers."""
    values = np.asarray(values)
    return dict(
        mean=round(values.mean(), 4),
        half=round(1.96 * values.std(ddof=1) / len(values) ** 0.5, 4),
        least=round(values.min(), 4),
    )


def at_rate(model, folder, rate):
    """PSNR-Y and SSIM-Y of rain, coarse and refined, and the segmentation of clean, rain, coarse and refined."""
    source, psnr, ssim = (
        labelled_photos(folder, rates=(rate,), seed=0),
        defaultdict(list),
        defaultdict(list),
    )
    scores = {k: SegmentationScore() for k in ("clean", "rain", "coarse", "refined")}
    for i in range(len(source)):
        rain, clean, labels = (
            t[None] for t in source.sample(i, None, np.random.default_rng(0))
        )
        with torch.inference_mode():
            out = model(rain)
            images = dict(
                clean=clean, rain=rain, coarse=out.coarse, refined=out.refined
            )
            for k, x in images.items():
                scores[k].update(model.sem(x).argmax(1), labels)
        for k in ("rain", "coarse", "refined"):
            (
                psnr[k].append(psnr_y(images[k], clean).item()),
                ssim[k].append(ssim_y(images[k], clean).item()),
            )
        print(
            f"\r{rate} mm/h: {i + 1} of {len(source)}",
            end="\n" if i + 1 == len(source) else "",
            flush=True,
        )
    rain, coarse, refined = (np.array(psnr[k]) for k in ("rain", "coarse", "refined"))
    return dict(
        rate=rate,
        pictures=len(source),
        psnr={k: summary(v) for k, v in psnr.items()},
        ssim={k: summary(v) for k, v in ssim.items()},
        gain=summary(refined - rain),
        better=int((refined > coarse).sum()),
        segmentation={
            k: [
                round(float(x), 4) for x in (s.miou, s.class_accuracy, s.pixel_accuracy)
            ]
            for k, s in scores.items()
        },
    )


def unrained(model, source):
    """How near a clean picture comes back, and how near half of its light to half of what comes back."""
    clean_psnr, half_psnr, means = [], [], []
    for i in range(len(source)):
        clean = source.read(i)[0][None]
        with torch.inference_mode():
            whole_light, half = model(clean).refined, model(clean / 2).refined
        (
            clean_psnr.append(psnr_y(whole_light, clean).item()),
            half_psnr.append(psnr_y(half, whole_light / 2).item()),
            means.append((half.mean() / whole_light.mean()).item()),
        )
    return dict(
        clean=dict(pictures=len(source), psnr=summary(clean_psnr)),
        half_light=dict(
            pictures=len(source),
            psnr=summary(half_psnr),
            mean=round(float(np.mean(means)), 4),
        ),
    )


def train_sem(args):
    """The small SEM on CamVid's labels: cross entropy with rarer classes weighted up, AdamW, one cycle."""
    images, maps = labelled(args.data / "train")
    counts = torch.bincount(maps[maps != IGNORE], minlength=19).float()
    weight = torch.where(
        counts > 0, (counts.sum() / 11 / counts.clamp(min=1)).sqrt(), 0
    )
    torch.manual_seed(args.seed)
    model, file, start = SmallSEM(), args.out / "sem.pt", 0
    opt = torch.optim.AdamW(model.parameters(), weight_decay=1e-4)
    steps = len(images) // args.batch
    sched = torch.optim.lr_scheduler.OneCycleLR(
        opt, 4e-3, total_steps=args.epochs * steps, pct_start=0.15
    )
    if file.exists():
        state = torch.load(file)
        (
            model.load_state_dict(state["model"]),
            opt.load_state_dict(state["opt"]),
            sched.load_state_dict(state["sched"]),
        )
        start = state["epoch"]
    for epoch in range(start, args.epochs):
        rng, t0, total = np.random.default_rng([args.seed, epoch]), time.time(), 0.0
        model.train()
        for batch in torch.from_numpy(rng.permutation(len(images)))[
            : steps * args.batch
        ].view(steps, -1):
            x, y = augmented(images[batch], maps[batch], (224, 288), rng)
            logits = F.interpolate(
                model.logits(255 * x), y.shape[-2:], mode="bilinear", align_corners=True
            )
            loss = F.cross_entropy(logits, y, weight, ignore_index=IGNORE)
            loss.backward(), opt.step(), opt.zero_grad(), sched.step()
            total += loss.item()
        save(
            file,
            model=model.state_dict(),
            opt=opt.state_dict(),
            sched=sched.state_dict(),
            epoch=epoch + 1,
        )
        print(
            f"epoch {epoch + 1}/{args.epochs} loss {total / steps:.3f} {time.time() - t0:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    steps = {"sem": train_sem, "derain": train_derain, "ship": ship, "score": score}
    parser.add_argument("step", choices=steps)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40, help="of the SEM")
    parser.add_argument("--batch", type=int, default=8, help="of the SEM")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    steps[args.step](args)
