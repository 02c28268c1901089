"""Run notebooks in place and keep their outputs: small pictures, no metadata.

Arguments: notebooks; without any, all below nbs/.
"""

import base64
import io
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

from sginet.images import CLASS_COLOURS, DISTINCT_COLOURS

LIMIT = 1.5e6  # bytes a notebook may have


def small(png):
    """The PNG with 256 colours, those of the classes among them, where that is smaller."""
    out, picture, palette = (
        io.BytesIO(),
        Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"),
        Image.new("P", (1, 1)),
    )
    kept = [
        0,
        0,
        0,
        255,
        255,
        255,
        *CLASS_COLOURS.ravel().tolist(),
        *DISTINCT_COLOURS.ravel().tolist(),
    ]
    palette.putpalette(
        kept + picture.quantize(256 - len(kept) // 3).getpalette()[: 768 - len(kept)]
    )
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(
        out, "png", optimize=True
    )
    return min(base64.b64encode(out.getvalue()).decode(), png, key=len)


def run(path):
    nb = nbformat.read(path, 4)
    NotebookClient(
        nb,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
    ).execute()
    for c in nb.cells:  # what libraries warn of names the folders of this machine
        if "outputs" in c:
            c.outputs = [
                o
                for o in c.outputs
                if not (o.get("name") == "stderr" and "site-packages" in o.text)
            ]
    for data in (
        o["data"] for c in nb.cells for o in c.get("outputs", []) if "data" in o
    ):
        data.pop(
            "application/vnd.jupyter.widget-view+json", None
        )  # of no use without its kernel; an explorer has a picture beside it
        if "image/png" in data:
            data["image/png"] = small(data["image/png"])
            data.pop("image/jpeg", None)
    text = nbformat.writes(nb)
    if len(text) > LIMIT:
        sys.exit(
            f"{path}: {len(text) / 1e6:.1f} MB with its outputs, "
            f"more than {LIMIT / 1e6} MB; nothing written"
        )
    path.write_text(text, encoding="utf-8")
    subprocess.run(["nbdev-clean", "--fname", str(path)], check=True)
    print(f"{path}: {len(text) // 1000} kB")


for notebook in map(
    Path,
    sys.argv[1:]
    or sorted(
        p for p in Path("nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
    ),
):
    run(notebook)
