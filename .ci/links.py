"""Write the badge and the first code cell of every lesson from settings.ini.

As long as `repository` holds the stand-in OWNER there is nothing to link to: the lessons
then say how to run them from a copy of the project.

--check: say which lessons differ, and change nothing.
"""

import configparser
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"

STAND_IN = "OWNER"
RUN = "To run this lesson: `make lab` in a copy of the project."
INSTALLED = """\
import importlib.util

assert importlib.util.find_spec("sginet"), "`make lab` in a copy of sginet installs it"
"""
INSTALL = """\
# on a machine that has no sginet, such as Colab's, install it; anywhere else this does nothing
# (from where: `repository` in settings.ini, which `make links` writes here)
import importlib.util

if importlib.util.find_spec("sginet") is None:
    %pip install --quiet git+{place}"""


def cells(name: str, repository: str, branch: str) -> dict[str, str]:
    """The badge and the first code cell of the lesson in the file `name`."""
    if STAND_IN in repository:
        return {"badge": RUN, "install": INSTALLED.rstrip()}
    colab = repository.replace(
        "https://github.com", "https://colab.research.google.com/github"
    )
    place = f"{colab}/blob/{branch}/nbs/lessons/{name}"
    return {
        "badge": f"[![Open this lesson in Colab]({BADGE})]({place})",
        "install": INSTALL.format(place=f"{repository}@{branch}"),
    }


def main() -> None:
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    place = [config["DEFAULT"][key].rstrip("/") for key in ("repository", "branch")]
    check, stale = "--check" in sys.argv, []
    for path in sorted((ROOT / "nbs/lessons").glob("[0-9]*.ipynb")):
        nb, wanted = nbformat.read(path, 4), cells(path.name, *place)
        if all(cell.source == wanted.get(cell.id, cell.source) for cell in nb.cells):
            continue
        stale.append(path.name)
        for cell in nb.cells:
            cell.source = wanted.get(cell.id, cell.source)
        if not check:
            path.write_text(nbformat.writes(nb) + "\n", encoding="utf-8")
    if stale and check:
        names = ", ".join(stale)
        sys.exit(
            f"badge or first cell is not what settings.ini says: {names}; run make links"
        )


if __name__ == "__main__":
    main()
