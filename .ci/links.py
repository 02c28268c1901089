"""Write the badge and the first code cell of every lesson from settings.ini.

--check: say which lessons differ, and change nothing.
"""

import configparser
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"

INSTALL = """\
# on a machine that has no sginet, such as Colab's, install it; anywhere else this does nothing
# (from where: `repository` in settings.ini, which `make links` writes here)
import importlib.util

if importlib.util.find_spec("sginet") is None:
    %pip install --quiet git+{place}"""


def cells(name):
    """The badge and the installing cell of the lesson in the file `name`."""
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    repository, branch = (
        config["DEFAULT"][key].rstrip("/") for key in ("repository", "branch")
    )
    colab = repository.replace(
        "https://github.com", "https://colab.research.google.com/github"
    )
    place = f"{colab}/blob/{branch}/nbs/lessons/{name}"
    return {
        "badge": f"[![Open this lesson in Colab]({BADGE})]({place})",
        "install": INSTALL.format(place=f"{repository}@{branch}"),
    }


stale = []
for path in sorted((ROOT / "nbs/lessons").glob("[0-9]*.ipynb")):
    nb, wanted = nbformat.read(path, 4), cells(path.name)
    if all(cell.source == wanted.get(cell.id, cell.source) for cell in nb.cells):
        continue
    stale.append(path.name)
    for cell in nb.cells:
        cell.source = wanted.get(cell.id, cell.source)
    if "--check" not in sys.argv:
        path.write_text(nbformat.writes(nb) + "\n", encoding="utf-8")
if stale and "--check" in sys.argv:
    sys.exit(
        f"badge or first cell is not what settings.ini says: {', '.join(stale)}; run make links"
    )
