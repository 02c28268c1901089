"""Where do black blobs on rainy photographs come from? `python weights/blobs.py --help`

    python weights/blobs.py --shared SHARED --out CSV --model tiny --name now

Each photograph of SHARED/real_rain goes through the network as it is, then with one thing
changed: one level of SIM silenced, another class map, the picture upside down, mirrored or at
half the size. A row of CSV says which share of the photograph came out much darker than it
was, as `score_tiny.py` counts it. A JSON file beside it, CSV's name with .json, says where:
for each part of the frame, the share of the photographs that were darkened there. What was
measured under other names stays in both files.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from score_tiny import DARKER, local_luma
from torch import Tensor, nn
from tqdm import tqdm

from sginet.evaluate.tables import read_csv, write_csv
from sginet.images import CLASSES, as_batch
from sginet.models.sginet import SGINet, pad_to_multiple

FRAME = 24, 32  # parts of the frame, down and across
SHOWN = "as it is", "upside down"  # whose maps are written, in thousandths
SIM_PARTS = ("encoder", "sie")  # five levels each; and `middle`


def silenced(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    """A forward hook: zeros in place of the output."""
    return torch.zeros_like(output)


@contextmanager
def hooked(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    """Remove the hook at the end."""
    try:
        yield
    finally:
        handle.remove()


def variants(model: SGINet) -> dict:
    """Name → function from a rainy picture to the refined one, one thing changed."""

    def refined(x: Tensor) -> Tensor:
        return model(x).refined

    def without(part: nn.Module):
        def run(x: Tensor) -> Tensor:
            with hooked(part.register_forward_hook(silenced)):
                return refined(x)

        return run

    def everywhere(class_name: str):
        def run(x: Tensor) -> Tensor:
            classes = torch.full_like(x[:, :1], CLASSES.index(class_name))

            def replace(module: nn.Module, args: tuple) -> tuple:
                return (*args[:2], pad_to_multiple(classes))

            with hooked(model.sim.register_forward_pre_hook(replace)):
                return refined(x)

        return run

    def half_size(x: Tensor) -> Tensor:
        size = x.shape[-2:]
        small = F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)
        return F.interpolate(refined(small), size, mode="bilinear")

    found = {"as it is": refined}
    for part in SIM_PARTS:
        for i, level in enumerate(getattr(model.sim, part)):
            found[f"{part} {i + 1} silent"] = without(level)
    found["middle silent"] = without(model.sim.middle)
    for class_name in ("road", "building", "sky"):
        found[f"all {class_name}"] = everywhere(class_name)
    found["upside down"] = lambda x: refined(x.flip(2)).flip(2)
    found["mirrored"] = lambda x: refined(x.flip(3)).flip(3)
    found["half the size"] = half_size
    return found


def darkened(rain: Tensor, refined: Tensor) -> Tensor:
    """1 where a pixel's surroundings lost more than `DARKER` of full scale, else 0."""
    darker = local_luma(rain) - local_luma(refined)
    return (darker > DARKER).float()


def measure(model: SGINet, photographs: list[Path]) -> tuple[list[dict], dict]:
    """Rows of all photographs and changes, and a map of the frame for each change."""
    rows, where = [], {}
    for file in tqdm(photographs, unit="picture"):
        rain = as_batch(file)[0]
        for change, run in variants(model).items():
            found = darkened(rain, run(rain))
            share = round(found.double().mean().item(), 5)
            rows.append(dict(picture=file.stem, change=change, share=share))
            part = F.adaptive_avg_pool2d(found, FRAME)[0, 0] / len(photographs)
            where[change] = where.get(change, 0) + part
    return rows, where


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True, help="the data sets")
    parser.add_argument("--out", type=Path, required=True, help="the CSV file")
    parser.add_argument("--model", default="tiny", help="a name or a folder")
    parser.add_argument("--name", default="now", help="how its rows are called")
    args = parser.parse_args()
    photographs = sorted((args.shared / "real_rain").iterdir())
    with torch.inference_mode():
        found, where = measure(SGINet.from_pretrained(args.model), photographs)
    rows = read_csv(args.out) if args.out.exists() else []
    rows = [row for row in rows if row["model"] != args.name]
    write_csv(rows + [dict(model=args.name) | row for row in found], args.out)
    beside = args.out.with_suffix(".json")
    maps = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    maps[args.name] = {
        change: (1000 * where[change]).round().int().tolist() for change in SHOWN
    }
    beside.write_text(json.dumps(maps), encoding="utf-8")


if __name__ == "__main__":
    main()
