"""Measure a derainer on everything that the card of `tiny` reports.

    python weights/score_tiny.py --shared SHARED --out RUN                      the shipped model
    python weights/score_tiny.py --shared SHARED --out RUN --model derain.pt    a training
    python weights/score_tiny.py --shared SHARED --out RUN --every 8 --only streets

`--model` takes what `SGINet.from_pretrained` takes, or checkpoints of train_tiny.py:
`derain.pt`, and `sem.pt` beside it where that SEM is meant. SHARED holds camvid/, streets/,
cityscapes/, foreign/ and real_rain/. Each picture measured adds a line to
RUN/scores-FINGERPRINT.jsonl, the fingerprint being the model's: the same command goes on
after a stop. On one core of a server it takes about half an hour.
"""

import argparse
import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from sginet.data.labels import CAMVID, CITYSCAPES, read_labels
from sginet.data.rain import render
from sginet.data.scenes import draw_scene
from sginet.images import as_batch, sample_photo
from sginet.metrics import SegmentationScore, psnr_y, ssim_y
from sginet.models.cards import score_lines
from sginet.models.sem import SmallSEM
from sginet.models.sginet import SGINet, pad_to_multiple

RATES = (100, 200)  # mm/h
SHOWN = ("clean", "rain", "coarse", "refined")
# the classes that a set labels well enough to count, by train id; None: all that occur
COUNTED = dict(
    camvid=(0, 1, 2, 4, 5, 7, 8, 10, 11, 12, 13),
    streets=(0, 1, 2, 8, 10, 13),
    scenes=None,
)
SCENES = range(500, 520)
PROTOCOL = (
    "Whole pictures; rain of the preset cityscapes_syn, wind 0, seed = index; weights in "
    "half precision, computed in float32. Mean ± 95 % interval (1.96 s/√n), PSNR-Y in dB "
    "/ SSIM-Y as in `sginet.metrics`, the paper's protocol."
)
BOX, DARKER = (
    15,
    0.25,
)  # side of the mean, and difference in luma, that make a dark blob


# ---- the pictures: each set is a list of (name, function that gives the picture and its labels)


def _photo(file, label=None, table=None):
    """A picture file as `1×3×H×W` in 0..1, and its labels `1×H×W` or None."""
    image = as_batch(file)[0]
    return image, None if label is None else read_labels(label, table)[None]


def _scene(seed):
    """A drawn street and its labels."""
    scene = draw_scene(seed, 256, 512)
    return scene.image, scene.classes


def _folder(root, labels, table):
    """The pictures of a folder with images/ and a folder of labels."""
    for file in sorted((root / "images").iterdir()):
        yield file.stem, (_photo, file, root / labels / f"{file.stem}.png", table)


def _cityscapes(root):
    """The pictures of Cityscapes' own tree, all splits."""
    for file in sorted((root / "leftImg8bit").glob("*/*/*_leftImg8bit.png")):
        stem = file.name.removesuffix("_leftImg8bit.png")
        city = root / "gtFine" / file.parent.relative_to(root / "leftImg8bit")
        yield stem, (_photo, file, city / f"{stem}_gtFine_labelIds.png", CITYSCAPES)


def clean_sets(shared):
    """The sets that rain is rendered on: name → list of (picture, how to read it)."""
    return dict(
        camvid=list(_folder(shared / "camvid/val", "labels", CAMVID)),
        streets=list(_folder(shared / "streets/val", "labelTrainIds", None)),
        cityscapes=list(_cityscapes(shared / "cityscapes")),
        scenes=[(str(seed), (_scene, seed)) for seed in SCENES],
        china=[("china.jpg", (_photo, sample_photo()))],
    )


def foreign_sets(shared):
    """Pairs with other people's rain: name → list of (picture, (rain file, clean file))."""
    return {
        folder.name: [
            (f.stem, (f, folder / "norain" / f.name))
            for f in sorted((folder / "rain").iterdir())
        ]
        for folder in sorted((shared / "foreign").iterdir())
        if folder.is_dir()
    }


# ---- what is measured on one picture: each function gives a dictionary that JSON can hold


def _quality(images):
    """PSNR-Y and SSIM-Y of rain, coarse and refined against clean."""
    clean, shown = images["clean"], ("rain", "coarse", "refined")
    return dict(
        psnr={k: psnr_y(images[k], clean).item() for k in shown},
        ssim={k: ssim_y(images[k], clean).item() for k in shown},
    )


def _confusion(model, images, labels):
    """The confusion matrix, 361 numbers, of SEM on each picture."""
    matrices = {}
    for name, image in images.items():
        score = SegmentationScore()
        score.update(model.sem(image).argmax(1), labels)
        matrices[name] = score.matrix.flatten().tolist()
    return matrices


def measure_rain(model, read, rate, seed):
    """A clean picture under rendered rain."""
    clean, labels = read[0](*read[1:])
    rain = render(clean, rate, seed).rainy
    out = model(rain)
    images = dict(clean=clean, rain=rain, coarse=out.coarse, refined=out.refined)
    found = _quality(images)
    if labels is not None:
        found["confusion"] = _confusion(model, images, labels)
    return found


def measure_dry(model, read):
    """A clean picture, and the same at half its light."""
    clean, _ = read[0](*read[1:])
    full, half = model(clean).refined, model(clean / 2).refined
    return dict(
        psnr=psnr_y(full, clean).item(),
        half_psnr=psnr_y(half, full / 2).item(),
        half_mean=(half.mean() / full.mean()).item(),
    )


def measure_pair(model, files):
    """A pair of files with rain of somebody else."""
    rain, clean = (as_batch(file)[0] for file in files)
    out = model(rain)
    return _quality(
        dict(clean=clean, rain=rain, coarse=out.coarse, refined=out.refined)
    )


def local_luma(x):
    """Luma of `1×3×H×W` averaged over boxes, only pixels inside the picture counting."""
    weights = x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    luma = (x * weights).sum(1, keepdim=True)
    return F.avg_pool2d(luma, BOX, 1, BOX // 2, count_include_pad=False)


def measure_blobs(model, file, out):
    """The share of a real picture that comes out much darker; both are kept, side by side."""
    rain = as_batch(file)[0]
    refined = model(rain).refined
    darker = local_luma(rain) - local_luma(refined)
    both = torch.cat([rain, refined], 3)[0].permute(1, 2, 0)
    out.mkdir(parents=True, exist_ok=True)
    pixels = both.mul(255).round().byte().numpy()
    Image.fromarray(pixels).save(out / f"{file.stem}.png")
    return dict(
        share=(darker > DARKER).double().mean().item(), worst=darker.max().item()
    )


def measure_guidance(model, reads, i):
    """PSNR-Y of the refined picture at 100 mm/h with SEM's map and with other maps in its place."""
    clean, labels = reads[i][0](*reads[i][1:])
    other = reads[i - 1][0](*reads[i - 1][1:])[1][:, None].float()
    out = model(render(clean, RATES[0], i).rainy)
    own, size = out.guidance, clean.shape[-2:]
    truth = torch.where(labels[:, None] == 255, own, labels[:, None].float())
    other = F.interpolate(other, size, mode="nearest")
    maps = {
        "own": own,
        "no map": torch.zeros_like(own),
        "wrong names": (own + 7) % 19,
        "a neighbour's map": torch.where(other == 255, own, other),
        "true labels": truth,
    }
    return {k: _with_guidance(model, clean, i, m) for k, m in maps.items()}


def _with_guidance(model, clean, seed, classes):
    """PSNR-Y where SIM reads these classes, `1×1×H×W`; a hook hands them to SIM."""

    def replace(module, args):
        return (*args[:2], pad_to_multiple(classes))

    hook = model.sim.register_forward_pre_hook(replace)
    try:
        refined = model(render(clean, RATES[0], seed).rainy).refined
    finally:
        hook.remove()
    return psnr_y(refined, clean).item()


# ---- the jobs, and the file that keeps what they found


def jobs(shared, out, every=1):
    """All that there is to measure: (row, picture, function of the model)."""
    found = []
    sets = clean_sets(shared)
    for name, pictures in sets.items():
        for i, (picture, read) in list(enumerate(pictures))[::every]:
            for rate in RATES:
                job = partial(measure_rain, read=read, rate=rate, seed=i)
                found.append((f"{name} {rate} mm/h", picture, job))
            found.append((f"{name} dry", picture, partial(measure_dry, read=read)))
    for name, pairs in foreign_sets(shared).items():
        for picture, files in pairs[::every]:
            job = partial(measure_pair, files=files)
            found.append((f"foreign/{name}", picture, job))
    for file in sorted((shared / "real_rain").iterdir()):  # all: each is looked at
        job = partial(measure_blobs, file=file, out=out / "real_rain")
        found.append(("real_rain", file.stem, job))
    reads = [read for _, read in sets["streets"]]
    for i, (picture, _) in list(enumerate(sets["streets"]))[::every]:
        job = partial(measure_guidance, reads=reads, i=i)
        found.append(("guidance", picture, job))
    return found


def fingerprint(model):
    """Twelve digits that change with any weight of the model."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def read_lines(file):
    """What a file of scores holds, (row, picture) → values, but for a line that a kill cut off."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            row, picture, values = json.loads(line)
        except ValueError:
            continue
        found[row, picture] = values
    return found


def measure(model, shared, out, every=1, only=""):
    """Do the jobs whose row contains `only`, but for those in the file; return what was found."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"scores-{fingerprint(model)}.jsonl"
    found = read_lines(file)
    wanted = [job for job in jobs(shared, out, every) if only in job[0]]
    todo = [job for job in wanted if job[:2] not in found]
    with open(file, "a", encoding="utf-8") as lines, torch.inference_mode():
        lines.write("\n" if file.stat().st_size else "")  # after a cut-off line
        for row, picture, job in tqdm(todo, unit="picture", disable=None):
            found[row, picture] = job(model)
            lines.write(json.dumps([row, picture, found[row, picture]]) + "\n")
            lines.flush()
    return {job[:2]: found[job[:2]] for job in wanted}


# ---- the card


def summary(values):
    """Mean, half of its 95 % interval, and the least of some numbers."""
    values = np.asarray(values, dtype=float)
    facts = dict(mean=round(values.mean(), 4), least=round(values.min(), 4))
    if len(values) > 1:
        facts["half"] = round(1.96 * values.std(ddof=1) / len(values) ** 0.5, 4)
    return facts


def _segmentation(name, found):
    """mIoU, class and pixel accuracy of SEM on each kind of picture."""
    result = {}
    for kind in SHOWN:
        counts = np.sum([f["confusion"][kind] for f in found], 0).reshape(19, 19)
        correct, truth = counts.diagonal(), counts.sum(1)
        classes = [c for c in COUNTED.get(name) or range(19) if truth[c]]
        union = truth + counts.sum(0) - correct
        iou = (correct[classes] / union[classes]).mean()
        accuracy = (correct[classes] / truth[classes]).mean()
        result[kind] = [
            round(float(x), 4) for x in (iou, accuracy, correct.sum() / counts.sum())
        ]
    return result


def _rain_row(row, found):
    """A row of the card: what rain costs, and what is won back."""
    name, *rate = row.removesuffix(" mm/h").rsplit(" ", 1)
    psnr, ssim = (
        {k: [f[score][k] for f in found] for k in ("rain", "coarse", "refined")}
        for score in ("psnr", "ssim")
    )
    refined, coarse, rain = (np.array(psnr[k]) for k in ("refined", "coarse", "rain"))
    facts = dict(
        set=name,
        rate=int(rate[0]) if rate else None,
        pictures=len(found),
        psnr={k: summary(v) for k, v in psnr.items()},
        ssim={k: summary(v) for k, v in ssim.items()},
        gain=summary(refined - rain),
        over_coarse=summary(refined - coarse),
        better=int((refined > coarse).sum()),
    )
    if "confusion" in found[0]:
        facts["segmentation"] = _segmentation(name, found)
    return facts


def _dry_row(row, found):
    """How near a clean picture comes back, and half of its light to half of what comes back."""
    return dict(
        set=row.removesuffix(" dry"),
        pictures=len(found),
        psnr=summary([f["psnr"] for f in found]),
        half_psnr=summary([f["half_psnr"] for f in found]),
        half_mean=round(float(np.mean([f["half_mean"] for f in found])), 4),
    )


def card_scores(found):
    """The scores of a card from what `measure` found."""
    rows = {}
    for (row, picture), values in found.items():
        rows.setdefault(row, {})[picture] = values
    scores = dict(protocol=PROTOCOL, rain=[], clean=[])
    for row, pictures in rows.items():
        values = list(pictures.values())
        if row == "real_rain":
            scores["real_rain"] = {k: round(v["share"], 6) for k, v in pictures.items()}
        elif row == "guidance":
            own = np.array([v["own"] for v in values])
            scores["guidance"] = {
                k: summary(own - [v[k] for v in values])
                for k in values[0]
                if k != "own"
            }
        elif row.endswith(" dry"):
            scores["clean"].append(_dry_row(row, values))
        else:
            scores["rain"].append(_rain_row(row, values))
    return scores


# ---- the model


def from_parts(*files):
    """An `SGINet` from checkpoints that hold `frm`, `sim` and `sem`; averaged weights go first."""
    state = {}
    for file in files:
        saved = torch.load(file, map_location="cpu", weights_only=True)
        if "frm" not in saved and "model" in saved:  # a training of SEM alone
            state["sem"] = saved.get("ema", saved["model"])
            continue
        for part in ("frm", "sim"):
            state[part] = saved.get(f"ema_{part}", saved[part])
        state["guidance"] = saved["guidance"]
        state.setdefault("sem", saved["sem"])
    missing = [part for part in ("frm", "sim", "sem") if not state.get(part)]
    if missing:
        named = ", ".join(map(str, files))
        raise ValueError(f"{named}: no weights of {', '.join(missing)}")
    sem = SmallSEM(len(state["sem"]["stem.0.weight"]))
    width = state["frm"]["d4.weight"].shape[1]
    form = {} if state["guidance"] == "index" else dict(guidance=state["guidance"])
    model = SGINet(width, sem, "scaled", "half", **form)
    for part in ("frm", "sim", "sem"):
        getattr(model, part).load_state_dict(state[part])
    return model.eval()


def load(names):
    """The model of a name, a folder, or files of parts."""
    if all(Path(name).is_file() for name in names):
        return from_parts(*names)
    return SGINet.from_pretrained(names[0])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True, help="the data sets")
    parser.add_argument("--out", type=Path, required=True, help="where results go")
    parser.add_argument("--model", nargs="+", default=["tiny"], help="default: tiny")
    parser.add_argument(
        "--every", type=int, default=1, help="of each set one in so many"
    )
    parser.add_argument("--only", default="", help="rows whose name contains this")
    args = parser.parse_args()
    found = measure(load(args.model), args.shared, args.out, args.every, args.only)
    print(*score_lines(dict(scores=card_scores(found))), sep="\n")


if __name__ == "__main__":
    main()
