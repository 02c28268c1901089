"""How weights/tiny was made: `python weights/train_tiny.py STEP --data CAMVID --out RUN`, steps sem, derain, ship, in this order.

CAMVID holds {train,val}/{images,labels} with CamVid's 12 classes. Every step writes RUN/STEP.pt after each epoch and goes on from there.
"""
import argparse
import csv
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.learner import Recorder
from fastai.optimizer import Adam

from sginet.core import IGNORE, as_batch
from sginet.data import find_labelled, labelled_photos, rain_dls, read_labels
from sginet.learner import sginet_learner
from sginet.losses import vgg16_features
from sginet.metrics import SegmentationScore, psnr_y, ssim_y
from sginet.model import SGINet
from sginet.sem import SmallSEM

def labelled(folder):
    """All pictures (N×3×H×W uint8) and class maps (N×H×W int64) of a folder with images/ and labels/, in memory."""
    images, maps = zip(*((as_batch(f)[0].mul(255).round().byte(), read_labels(label)[None]) for f, label in find_labelled(folder)))
    return torch.cat(images), torch.cat(maps)


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


# side of the crops (480: whole pictures), pictures a batch, epochs, learning rate, weight of the perceptual loss. Last on whole pictures,
# whose statistics are what the norms will see in use, and at the end without the features of a random VGG, which cost a third of the time
STAGES = (128, 8, 24, 2e-3, .05), (480, 1, 3, 1e-3, .05), (480, 1, 5, 1.5e-3, 0)
# on a random VGG, features are worth less than pixels
WEIGHTS = dict(ssim=1, perceptual=.05, csd=.2, residual=.02, pixel=.3)


def in_bfloat16(module):
    """Let a module compute in bfloat16 and give back float32, compiled: about half the time on a CPU that has bfloat16."""
    plain = module.forward
    def forward(*args):
        with torch.autocast("cpu", torch.bfloat16): return plain(*args).float()
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
    learn = sginet_learner(dls, SGINet(8, sem, "scaled", "half"), vgg16_features(width=16), WEIGHTS, csd_from=0,
                           opt_func=partial(Adam, decouple_wd=True), wd=1e-4)
    learn.model.to(memory_format=torch.channels_last)
    for part in (learn.model.frm, learn.model.sem, learn.model.sim, learn.loss_func.perceptual): in_bfloat16(part)
    return learn


class EveryEpoch(Callback):
    """Average the weights, and write model, average and optimiser after each epoch."""
    def __init__(self, file, stage, start, average): self.file, self.stage, self.start, self.average = file, stage, start, average

    def after_step(self):
        with torch.no_grad():  # over about the last 300 steps
            for name, p in self.model.named_parameters():
                if p.requires_grad: self.average.setdefault(name, p.clone()).lerp_(p, 1 / 300)

    def before_epoch(self): self.began = time.time()

    def after_epoch(self):
        if self.epoch < self.start: return  # fastai only skips through what an earlier run has done
        opt = self.opt.state_dict()  # in plain types, so that it can be read as weights only
        opt = dict(state=list(opt["state"]), hypers=[{k: float(v) if isinstance(v, np.generic) else v for k, v in h.items()} for h in opt["hypers"]])
        save(self.file, model=self.model.state_dict(), average=self.average, opt=opt, stage=self.stage, epoch=self.epoch + 1)
        terms = " ".join(f"{k} {v:.3f}" for k, v in self.learn.terms.items())
        print(f"stage {self.stage} epoch {self.epoch + 1}/{self.n_epoch} {terms} {time.time() - self.began:.0f} s", flush=True)


def train_derain(args):
    """FRM and SIM with rain made on the fly, in stages of growing crops, one cycle each; goes on after a stop from the last epoch."""
    learn, file, done, average = derain_learner(args), args.out / "derain.pt", (0, 0), {}
    learn.create_opt()
    if file.exists():
        state = torch.load(file)
        learn.model.load_state_dict(state["model"]), learn.opt.load_state_dict(state["opt"])
        average, done = state["average"], (state["stage"], state["epoch"])
    learn.remove_cb(Recorder)
    learn.dls.loaders[1] = []  # whole pictures are scored once, by the last step
    for stage, (size, batch, epochs, lr, perceptual) in enumerate(STAGES):
        if (stage, epochs) <= done: continue
        start = done[1] if stage == done[0] else 0
        learn.dls.train.size, learn.dls.train.bs, learn.loss_func.weights["perceptual"] = size, batch, perceptual
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(epochs, lr, start_epoch=start, cbs=EveryEpoch(file, stage, start, average), pct_start=.1)


def ship(args):
    """Halve the precision, write the folder of the shipped model, and score what was written on all of val."""
    state, model = torch.load(args.out / "derain.pt"), SGINet(8, "small", "scaled", "half")
    model.load_state_dict(state["model"] | state["average"])
    model.half().save_pretrained(Path(__file__).parent / "tiny")
    evaluate(SGINet.from_pretrained("tiny"), args.data / "val")


def evaluate(model, folder):
    """Print PSNR-Y and SSIM-Y of rain, coarse and refined, and the segmentation of clean, rain, coarse and refined, at both rates."""
    for rate in (100, 200):
        source = labelled_photos(folder, rates=(rate,), seed=0)
        rows, scores = [], {k: SegmentationScore() for k in ("clean", "rain", "coarse", "refined")}
        for i in range(len(source)):
            rain, clean, labels = (t[None] for t in source.sample(i, None, np.random.default_rng(0)))
            with torch.inference_mode(): out = model(rain)
            images = dict(clean=clean, rain=rain, coarse=out.coarse, refined=out.refined)
            rows.append([m(images[k], clean).item() for k in ("rain", "coarse", "refined") for m in (psnr_y, ssim_y)])
            with torch.inference_mode():
                for k, x in images.items(): scores[k].update(model.sem(x).argmax(1), labels)
        rows = np.array(rows)
        mean, half = rows.mean(0), 1.96 * rows.std(0, ddof=1) / len(rows) ** .5
        print(f"{rate} mm/h, {len(rows)} pictures:", ", ".join(f"{k} {mean[2*j]:.2f} ± {half[2*j]:.2f} dB / {mean[2*j+1]:.3f}" for j, k in enumerate(("rain", "coarse", "refined"))), flush=True)
        gain = rows[:, 4] - rows[:, 0]
        print(f"  gain {gain.mean():.2f} dB, worst picture {gain.min():.2f}; refined beats coarse on {(rows[:, 4] > rows[:, 2]).sum()}")
        print("  mIoU / class accuracy / pixel accuracy:", ", ".join(f"{k} {s.miou:.3f} / {s.class_accuracy:.3f} / {s.pixel_accuracy:.3f}" for k, s in scores.items()), flush=True)


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
    steps = {"sem": train_sem, "derain": train_derain, "ship": ship}
    parser.add_argument("step", choices=steps)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40, help="of the SEM")
    parser.add_argument("--batch", type=int, default=8, help="of the SEM")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    steps[args.step](args)
