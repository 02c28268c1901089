"""Where do black blobs on rainy photographs come from? `python weights/blobs.py --help`

    python weights/blobs.py --shared SHARED --model tiny --name now

Each photograph of SHARED/real_rain goes through the network as it is, then with one thing
changed: a level of SIM silenced, a part of SIM run upside down or padded by reflection,
another class map, or the picture turned, made smaller or continued. nbs/results/blobs.csv
says which share of the photograph came out much darker than it was, as `score_tiny.py`
counts it, and how much of what was dark as it is stayed dark. blobs_where.csv says where in
the frame it was, and what SIM does to textures that are the same everywhere. Rows of other
names stay in the files. On one core it takes about a quarter of an hour.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from score_tiny import DARKER, local_luma
from torch import Tensor, nn
from tqdm import tqdm

from sginet.data.labels import CAMVID, read_labels
from sginet.data.rain import render
from sginet.data.scenes import draw_scene
from sginet.evaluate.tables import read_csv, write_csv
from sginet.images import CLASSES, as_batch, sample_photo, to_pil
from sginet.interpret.interventions import constant_map, refine, sim_inputs
from sginet.models.sginet import SGINet
from sginet.models.sim import SIM

GRID = 12, 16  # cells of a frame
MAPPED = "as it is", "upside down"
TEXTURES = range(8)
LABELS = ("camvid", "labels", CAMVID), ("streets", "labelTrainIds", None)
RESULTS = Path(__file__).resolve().parent.parent / "nbs/results"

# ---- one thing changed inside of SIM


@contextmanager
def silent(module: nn.Module) -> Iterator[None]:
    """Zeros in place of what `module` gives."""
    hook = module.register_forward_hook(lambda _, args, y: torch.zeros_like(y))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def upside_down(modules: list[nn.Module]) -> Iterator[None]:
    """Each of `modules` reads its input upside down; what it gives is turned back."""
    hooks = []
    for m in modules:
        hooks.append(m.register_forward_pre_hook(lambda _, args: args[0].flip(2)))
        hooks.append(m.register_forward_hook(lambda _, args, y: y.flip(2)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def reflecting(module: nn.Module) -> Iterator[None]:
    """The convolutions of `module` pad by reflection instead of zeros."""
    convs = [m for m in module.modules() if isinstance(m, nn.Conv2d) and any(m.padding)]
    for conv in convs:
        conv.padding_mode = "reflect"
    try:
        yield
    finally:
        for conv in convs:
            conv.padding_mode = "zeros"


def changes_in_sim(sim: SIM) -> dict[str, AbstractContextManager]:
    """Name → a block in which one thing in `sim` is changed."""
    found = {f"encoder {i} silent": silent(m) for i, m in enumerate(sim.encoder, 1)}
    found |= {f"sie {i} silent": silent(m) for i, m in enumerate(sim.sie, 1)}
    found["middle silent"] = silent(sim.middle)
    parts = dict(
        encoder=sim.encoder, sie=sim.sie, middle=[sim.middle], decoder=sim.decoder
    )
    for name, levels in parts.items():
        found[f"{name} upside down"] = upside_down(levels)
    found["encoder reflecting"] = reflecting(sim.encoder)
    found["SIM reflecting"] = reflecting(sim)
    return found


# ---- one thing changed about the picture


def half_size(x: Tensor) -> Tensor:
    """Half of height and width."""
    return F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)


def changes_of_picture(x: Tensor) -> dict[str, tuple[Tensor, Callable]]:
    """Name → the changed picture, and the way back to the frame of `x`."""
    height, size = x.shape[-2], x.shape[-2:]
    more = height // 4  # rows
    return {
        "upside down": (x.flip(2), lambda y: y.flip(2)),
        "mirrored": (x.flip(3), lambda y: y.flip(3)),
        "half the size": (
            half_size(x),
            lambda y: F.interpolate(y, size, mode="bilinear"),
        ),
        "more above": (
            F.pad(x, [0, 0, more, 0], mode="reflect"),
            lambda y: y[..., more:, :],
        ),
        "more below": (
            F.pad(x, [0, 0, 0, more], mode="reflect"),
            lambda y: y[..., :height, :],
        ),
    }


def results(model: SGINet, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Name of a change and the picture that comes out; the first is without a change."""
    inputs = sim_inputs(model, x)
    yield "as it is", refine(model, inputs)
    yield "coarse", inputs.cut(inputs.coarse)
    for name, block in changes_in_sim(model.sim).items():
        with block:
            yield name, refine(model, inputs)
    for name in ("road", "building", "sky"):
        guidance = constant_map(inputs.cut(inputs.guidance), CLASSES.index(name))
        yield f"all {name}", refine(model, inputs, guidance)
    for name, (changed, back) in changes_of_picture(x).items():
        yield name, back(model(changed).refined)


# ---- what is measured


def darker(before: Tensor, after: Tensor) -> Tensor:
    """Whether the surroundings of a pixel lost more than `DARKER` of full scale, `1×1×H×W`."""
    return local_luma(before) - local_luma(after) > DARKER


def texture(seed: int, height: int = 384, width: int = 512) -> Tensor:
    """A pale picture that is alike everywhere: noise with the spectrum of photographs."""
    noise = torch.Generator().manual_seed(seed)
    grey = torch.randn(1, height, width, generator=noise)
    noise = grey + 0.3 * torch.randn(3, height, width, generator=noise)
    fy, fx = torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)
    frequency = torch.hypot(fy, fx).clamp(min=1 / width)
    made = torch.fft.ifft2(torch.fft.fft2(noise) / frequency).real
    return (0.65 + 0.15 * made / made.std()).clamp(0, 1)[None]


def cells(x: Tensor) -> Tensor:
    """Means of `1×1×H×W` over the cells of a frame."""
    return F.adaptive_avg_pool2d(x.float(), GRID)[0, 0]


@torch.inference_mode()
def on_textures(model: SGINet, seeds: range = TEXTURES) -> Tensor:
    """How much SIM lightens each cell, averaged over textures."""
    made = (model(texture(seed)) for seed in seeds)
    added = [local_luma(y.refined) - local_luma(y.coarse) for y in made]
    return torch.stack([cells(x) for x in added]).mean(0)


def texture_maps(model: SGINet) -> dict[str, Tensor]:
    """`on_textures` as it is, and with other padding in SIM."""
    found = {"textures": on_textures(model)}
    for name, part in {"encoder": model.sim.encoder, "SIM": model.sim}.items():
        with reflecting(part):
            found[f"textures, {name} reflecting"] = on_textures(model)
    return found


@torch.inference_mode()
def on_photographs(
    model: SGINet, folder: Path, first: int | None = None
) -> tuple[list[dict], dict]:
    """A row for each photograph and change; for those of `MAPPED` where it got darker."""
    rows, where = [], {}
    for file in tqdm(sorted(folder.iterdir()), unit="picture"):
        rain, dark = as_batch(file)[0], None
        for change, refined in islice(results(model, rain), first):
            now = darker(rain, refined)
            dark = now if dark is None else dark
            row = dict(picture=file.name, change=change)
            row["share"] = round(now.double().mean().item(), 5)
            if dark.any():
                row["kept"] = round((now & dark).sum().item() / dark.sum().item(), 4)
            rows.append(row)
            if change in MAPPED:  # in the frame that the network saw
                seen = now.flip(2) if change == "upside down" else now
                where.setdefault(change, []).append(cells(seen))
    return rows, {change: torch.stack(maps).mean(0) for change, maps in where.items()}


def sky(folder: Path, table: np.ndarray | None) -> Tensor:
    """Which part of each cell is sky, averaged over the labels in a folder."""
    maps = [read_labels(file, table) for file in sorted(folder.iterdir())]
    sky = CLASSES.index("sky")
    return torch.stack([cells((m == sky)[None, None]) for m in maps]).mean(0)


def examples() -> dict[str, Tensor]:
    """Two pictures that may be shown: a drawn street, and china.jpg in rain, upside down."""
    china = as_batch(sample_photo().resize((512, 352)))[0]
    rain = render(china.flip(2), 100, seed=1).rainy
    return {
        "a drawn street": draw_scene(3, 352, 512).image,
        "china.jpg upside down, rain": rain,
    }


@torch.inference_mode()
def save_examples(model: SGINet, file: Path) -> None:
    """What `model` makes of the examples, side by side, at half their size."""
    made = torch.cat([half_size(model(x).refined) for x in examples().values()], 3)
    to_pil(made.clamp(0, 1)).save(file, quality=85)


def replace_rows(file: Path, name: str, rows: list[dict]) -> None:
    """Write `rows` to a CSV file in place of those of the model `name`."""
    kept = read_csv(file) if file.exists() else []
    kept = [row for row in kept if row["model"] != name]
    write_csv(kept + [dict(model=name) | row for row in rows], file)


def map_rows(kind: str, values: Tensor) -> list[dict]:
    """A row of CSV for each row of a map; its columns are called 0, 1, 2 and so on."""
    lines = [
        {str(j): round(value, 4) for j, value in enumerate(line)}
        for line in values.tolist()
    ]
    return [dict(map=kind, row=i) | line for i, line in enumerate(lines)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True, help="the data sets")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of CSV files")
    parser.add_argument("--model", default="tiny", help="a name or a folder")
    parser.add_argument("--name", default="now", help="how its rows are called")
    parser.add_argument("--first", type=int, help="so many changes only")
    parser.add_argument("--examples", type=Path, help="a JPEG of two examples")
    args = parser.parse_args()
    model = SGINet.from_pretrained(args.model)
    if args.examples:
        save_examples(model, args.examples)
    rows, where = on_photographs(model, args.shared / "real_rain", args.first)
    where |= texture_maps(model)
    maps = [row for kind, values in where.items() for row in map_rows(kind, values)]
    replace_rows(args.out / "blobs.csv", args.name, rows)
    replace_rows(args.out / "blobs_where.csv", args.name, maps)
    for name, labels, table in LABELS:
        values = sky(args.shared / name / "train" / labels, table)
        replace_rows(args.out / "blobs_where.csv", name, map_rows("sky", values))


if __name__ == "__main__":
    main()
