"""Make the shipped weights: `python weights/train_tiny.py STEP --shared SHARED --out RUN`.

    sem      train the small SEM on CamVid, streets and drawn scenes
    derain   train FRM and SIM under rain of many makes, guided by labels first, then by SEM
    ship     write weights/tiny in half precision, with its card and the scores of its README
    score    measure what is shipped and write its card anew

SHARED holds camvid/ and streets/, and for scores what score_tiny.py names. The steps are taken
in this order; the first two write a checkpoint after each epoch to RUN/STEP, and the same
command goes on from there. RUN/sem.pt and RUN/derain.pt hold the averaged weights so far, for
`score_tiny.py --model`. With --start a trained model goes on instead of a new one; said to
ship too, what is shipped is halfway between that model and what became of it. On one core
with bfloat16 units, beside other work, sem takes about an hour and a quarter and derain two
hours and a half with the defaults.
"""

import argparse
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import score_tiny
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelValidException
from fastai.callback.schedule import ParamScheduler, combined_cos
from fastai.callback.training import GradientClip
from torch import Tensor

import sginet
from sginet.data.loaders import rain_dls
from sginet.data.weather import Weather
from sginet.images import atomic_write
from sginet.models.cards import (
    MODEL_FILES,
    card_text,
    read_card,
    score_lines,
    write_card,
)
from sginet.models.frm import FRM
from sginet.models.sem import SmallSEM, make_sem
from sginet.models.sginet import SGINet
from sginet.models.sim import SIM
from sginet.train.callbacks import LearnerLoss
from sginet.train.checkpoints import Checkpoints
from sginet.train.learner import DerainLearner, cpu_has_bfloat16, sginet_learner
from sginet.train.recipes import optimiser
from sginet.train.sem import SegmentationLoss, sem_learner

SHIPPED = Path(__file__).resolve().parent / "tiny"
SEM_WIDTH, WIDTH, GUIDANCE = 32, 8, "onehot"
SHARES = {"camvid": 0.3, "streets": 0.5, None: 0.2}  # None: drawn scenes
SEM_SHARES = {"camvid": 0.25, "streets": 0.4, None: 0.35}
SCALES = 0.5, 1.6  # of the pictures, before the crop
N_SCENES = 150
# FRM and SIM learn from pixels and structure; a random VGG's features measured worse
WEIGHTS = dict(pixel=0.9, ssim=3, csd=0.0)
COARSE = 0.45  # weight of the coarse picture's mean absolute error, on 0..255


# ---- callbacks of both steps


class AverageWeights(Callback):
    """Keep an exponential moving average of all weights, and write it to a file each epoch."""

    order = 80  # before the checkpoint, which holds the average

    def __init__(self, file: Path, saved: Callable[[dict], dict], decay: float = 0.998):
        self.file, self.saved, self.decay = file, saved, decay
        self.average, self.steps = None, 0

    def after_step(self):
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        state = self.learn.network.state_dict()
        if self.average is None:
            self.average = {k: v.clone() for k, v in state.items()}
        for k, v in state.items():
            if v.is_floating_point():
                self.average[k].lerp_(v, 1 - decay)
            else:
                self.average[k].copy_(v)

    def after_epoch(self):
        with atomic_write(self.file) as part:
            torch.save(self.saved(self.average), part)

    def state_dict(self) -> dict:
        return dict(average=self.average, steps=self.steps)

    def load_state_dict(self, state: dict) -> None:
        self.average, self.steps = state["average"], state["steps"]


class LabelGuidance(Callback):
    """In training, let SIM read the labels instead of SEM's map, while `epochs` last."""

    def __init__(self, epochs: int):
        self.epochs = epochs

    def before_fit(self):
        self.hook = self.learn.network.sim.register_forward_pre_hook(self._replace)

    def after_fit(self):
        self.hook.remove()

    def _replace(self, module, args: tuple) -> tuple:
        if not self.training or self.epoch >= self.epochs or len(self.yb) < 2:
            return args
        labels = self.yb[1][:, None].to(args[0].dtype)  # 255 belongs to no class
        return (*args[:2], labels)


def _grey(x: Tensor) -> Tensor:
    """Luma of `N×3×H×W`, one channel."""
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, True)


class StrongColours(Callback):
    """In training, vary light, gamma, saturation, white balance, sharpness and noise."""

    order = -4  # after the batch holds (clean; labels)

    def before_batch(self):
        if self.training:
            varied = [self._vary(x[None]) for x in self.xb[0]]
            self.learn.xb = (torch.cat(varied),)

    def _vary(self, x: Tensor) -> Tensor:
        def between(low: float, high: float, n: int = 1) -> Tensor:
            return (low + (high - low) * torch.rand(n)).to(x.device)

        x = (x * between(0.5, 1.5) + between(-0.15, 0.15)).clamp(0, 1)
        x = x ** between(0.6, 1.6)
        x = _grey(x) + between(0, 1.6) * (x - _grey(x))
        x = (x.clamp(0, 1) * between(0.8, 1.2, 3).view(1, 3, 1, 1)).clamp(0, 1)
        if torch.rand(()) < 0.25:
            size, share = x.shape[-2:], between(0.35, 0.9).item()
            small = [max(8, int(n * share)) for n in size]
            x = F.interpolate(x, small, mode="bilinear", antialias=True)
            x = F.interpolate(x, size, mode="bilinear")
        if torch.rand(()) < 0.2:
            x = (x + between(0, 0.04) * torch.randn_like(x)).clamp(0, 1)
        return x


# ---- the two trainings


def loaders(
    args: argparse.Namespace, size: tuple[int, int], bs: int, shares: dict, **kwargs
):
    """Seeded DataLoaders of all three sets."""
    sets = {name and args.shared / name: share for name, share in shares.items()}
    more = dict(n_scenes=N_SCENES, scales=args.scales, decode=False)
    dls = rain_dls(sets, "many", size, bs, **more, **kwargs)
    for dl in dls:
        dl.rng.seed(args.seed)
    return dls


class NoValidation(Callback):
    """Leave validation out: score_tiny.py measures."""

    def before_validate(self):
        raise CancelValidException


def fit(
    learn: DerainLearner,
    epochs: int,
    lr: float,
    final: float,  # share of the learning rate at the end
    *cbs: Callback,
) -> None:
    """All epochs that are left, with a short rise and a cosine to `final` of the rate."""
    if cpu_has_bfloat16() or torch.cuda.is_available():
        learn.to_bf16()
    learn.network.to(memory_format=torch.channels_last)
    rate = combined_cos(0.02, lr / 10, lr, lr * final)
    with learn.no_bar():
        learn.fit(epochs, lr, cbs=[ParamScheduler({"lr": rate}), NoValidation(), *cbs])


def class_weights(dl, batches: int = 40) -> Tensor:
    """Weights of the 19 classes: rarer ones count more, absent ones not at all."""
    counts = torch.zeros(19)
    for i, (_, _, labels) in enumerate(dl):
        counts += torch.bincount(labels.flatten().cpu(), minlength=256)[:19]
        if i + 1 == batches:
            break
    counts /= counts.sum()
    weight = torch.where(counts > 0, counts.clamp(min=1e-4) ** -0.4, 0.0)
    return weight / (weight * counts).sum()


def train_sem(args: argparse.Namespace) -> None:
    """The small SEM on clean pictures; it never sees rain, which CSD contrasts."""
    none = dict.fromkeys(("preset", "renderer", "linear", "veil", "noise"), 0.0)
    dry = Weather(dry=1.0, processed=0.0, **none)
    dls = loaders(args, (224, 288), 8, SEM_SHARES, weather=dry)
    torch.manual_seed(args.seed)
    weight = class_weights(dls.train)
    dls.train.rng.seed(args.seed)
    torch.manual_seed(args.seed)
    average = AverageWeights(args.out / "sem.pt", _sem_file)
    sem = SmallSEM(SEM_WIDTH)
    if args.start:
        started = SGINet.from_pretrained(args.start)
        sem = make_sem(started.configuration()["sem"])
        sem.load_state_dict(started.sem.state_dict())
    learn = sem_learner(
        dls,
        sem,
        loss_func=SegmentationLoss(weight=weight, smoothing=0.02).to(dls.device),
        cbs=[StrongColours(), GradientClip(5.0), average],
        opt_func=optimiser(dict(optimiser="adamw", decay=1e-4), dls.device),
    )
    learn.add_cb(Checkpoints(args.out / args.step))
    fit(learn, args.epochs, args.lr or 3e-3, 0.01)


def _sem_file(average: dict[str, Tensor]) -> dict:
    """What sem.pt holds."""
    return dict(model={k.removeprefix("sem."): v for k, v in average.items()})


class Loss(LearnerLoss):
    """The losses, and the coarse picture's mean absolute error."""

    def _loss(self, out, rain: Tensor, clean: Tensor) -> Tensor:
        coarse = 255 * F.l1_loss(out.coarse.float(), clean)
        return super()._loss(out, rain, clean) + COARSE * coarse


def derain_learner(
    args: argparse.Namespace,
    widths: tuple[int, int] = (WIDTH, WIDTH),  # of FRM and SIM
    guidance: str = "",  # a form of guidance for a SIM that begins anew
    **changes: float,  # of the weights of the losses
) -> DerainLearner:
    """A Learner of FRM and SIM, with the SEM of the first step, or with those of --start."""
    torch.manual_seed(args.seed)
    if args.start:
        model = SGINet.from_pretrained(args.start).train()
    else:
        model = SGINet(
            WIDTH, SmallSEM(SEM_WIDTH), "scaled", "half", guidance=GUIDANCE
        ).train()
    trained = args.out / "sem.pt"
    if trained.exists() or not args.start:
        state = torch.load(trained, weights_only=True)
        model.sem.load_state_dict(state["model"])
    if widths != (WIDTH, WIDTH):
        model.frm = FRM(widths[0], "scaled", "half")
        model.sim = SIM(widths[1], "scaled", "half", guidance=GUIDANCE)
    if guidance:
        model.sim = SIM(WIDTH, "scaled", "half", guidance=guidance)
    weights = WEIGHTS | changes
    learn = sginet_learner(
        loaders(args, (224, 224), 3, SHARES),
        model,
        weights=weights,
        csd_from=0,
        clip=2.0,
        cbs=[LabelGuidance(2 * args.epochs // 3)],
        opt_func=optimiser(dict(optimiser="adamw", decay=1e-4)),
    )
    learn.loss_func = Loss(model.sem, weights=weights).to(learn.dls.device)
    if not args.eager:
        torch._dynamo.config.recompile_limit = 64  # one for each size and gradient mode
        for part in (model.frm, model.sim):
            part.compile(dynamic=False)
    return learn


def train_derain(args: argparse.Namespace) -> None:
    """FRM and SIM; SIM reads the labels in the first two thirds of the epochs."""
    learn = derain_learner(args)
    learn.add_cb(AverageWeights(args.out / "derain.pt", _derain_file))
    learn.add_cb(Checkpoints(args.out / args.step))
    fit(learn, args.epochs, args.lr or 1.5e-3, 0.1)


def _derain_file(average: dict[str, Tensor]) -> dict:
    """What derain.pt holds: the parts, as score_tiny.py reads them."""
    parts = {}
    for part in ("frm", "sim", "sem"):
        prefix = f"{part}."
        chosen = {k: v for k, v in average.items() if k.startswith(prefix)}
        parts[part] = {k.removeprefix(prefix): v for k, v in chosen.items()}
    return dict(parts, guidance=GUIDANCE)


# ---- shipping


def halfway(model: SGINet, start: SGINet) -> None:
    """Put FRM and SIM halfway between the weights that a training went on from and its own.

    Better on pictures of all sets than either end. Wortsman et al., CVPR 2022."""
    for part in ("frm", "sim"):
        trained, before = getattr(model, part), getattr(start, part).state_dict()
        own = trained.state_dict()
        trained.load_state_dict({k: before[k].lerp(own[k], 0.5) for k in own})


def ship(args: argparse.Namespace) -> None:
    """Halve the precision, measure what was written, and put it into weights/tiny last of all."""
    model = score_tiny.from_parts(*(args.model or [args.out / "derain.pt"]))
    if args.start:
        halfway(model, SGINet.from_pretrained(args.start))
    new = args.out / "tiny"
    (new / "card.json").unlink(missing_ok=True)  # of an earlier one
    model.half().save_pretrained(new)
    write_card(new, **card_facts(SGINet.from_pretrained(new), args))
    for file in (*MODEL_FILES, "card.json"):
        shutil.copy(new / file, SHIPPED / f".{file}")
        os.replace(SHIPPED / f".{file}", SHIPPED / file)
    show_scores()


def score(args: argparse.Namespace) -> None:
    """Measure the shipped model anew and write its card."""
    write_card(SHIPPED, **card_facts(SGINet.from_pretrained(SHIPPED), args))
    show_scores()


def card_facts(model: SGINet, args: argparse.Namespace) -> dict:
    """What a card says: what the model is, and what it scores on all sets."""
    began = time.time()
    found = score_tiny.measure(model, args.shared, args.out, args.every)
    print(f"measured in {(time.time() - began) / 60:.0f} min", flush=True)
    shape = ", ".join(f"{k} {v}" for k, v in model.configuration().items())
    return dict(
        what=f"{shape}: for a laptop",
        terms="research and teaching",
        parameters=sum(p.numel() for p in model.parameters()),
        data="trained on the training photographs of CamVid and of many other cities, and on "
        "drawn streets, with rain of many makes; the pictures are not part of it",
        made_by=f"weights/train_tiny.py, seed {args.seed}",
        measured_with=f"sginet {sginet.__version__}, torch {torch.__version__.split('+')[0]}",
        scores=score_tiny.card_scores(found),
    )


def show_scores() -> None:
    """Write the scores of the card into weights/README.md, and print the card."""
    card, readme = read_card(SHIPPED), SHIPPED.parent / "README.md"
    lines = "\n".join(f"  {line}".rstrip() for line in score_lines(card))
    text, n = re.subn(
        r"(<!-- scores of tiny[^\n]*-->\n).*?( *<!-- end -->)",
        lambda m: f"{m[1]}\n{lines}\n\n{m[2]}",
        readme.read_text(encoding="utf-8"),
        flags=re.S,
    )
    if n != 1:
        raise ValueError(f"{readme} has no place for the scores of tiny")
    with atomic_write(readme) as part:
        part.write_text(text, encoding="utf-8")
    print(card_text(card))


EPOCHS = dict(sem=13, derain=18)  # of as many pictures as the sets hold together


def main() -> None:
    steps = {"sem": train_sem, "derain": train_derain, "ship": ship, "score": score}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=steps)
    parser.add_argument("--shared", type=Path, required=True, help="the data sets")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--epochs", type=int, help=f"default: {EPOCHS}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", help="a trained model to go on from, such as tiny")
    parser.add_argument(
        "--scales",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        default=SCALES,
        help=f"of the pictures, before the crop (default: {SCALES}); 3.2 is the size of "
        "Cityscapes",
    )
    parser.add_argument("--lr", type=float, help="the highest learning rate")
    parser.add_argument(
        "--eager", action="store_true", help="do not compile FRM and SIM"
    )
    parser.add_argument(
        "--every", type=int, default=1, help="measure one picture in so many"
    )
    parser.add_argument("--model", nargs="+", type=Path, help="checkpoints to ship")
    args = parser.parse_args()
    args.epochs = args.epochs or EPOCHS.get(args.step)
    args.out.mkdir(parents=True, exist_ok=True)
    steps[args.step](args)


if __name__ == "__main__":
    main()
