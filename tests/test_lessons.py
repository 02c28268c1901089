"""What the lessons promise, but for their cells, which `nbdev-test` runs with all solutions."""

import ast
import importlib.util
import os
import re
import subprocess
import sysconfig
import venv
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import importlib
from IPython.core.interactiveshell import InteractiveShell
InteractiveShell.instance().run_cell({cell!r}).raise_error()
importlib.invalidate_caches()
import sginet
print(sginet.__file__)
from sginet.models.pretrained import shipped
print(list(shipped()))
"""
LESSONS = sorted((ROOT / "nbs/lessons").glob("[0-9]*.ipynb"))


def test_there_are_nine():
    assert [p.name[0] for p in LESSONS] == list("123456789")


def first_cells(repository):
    """The badge and the first cell of lesson 1 for a project that lives there."""
    spec = importlib.util.spec_from_file_location("links", ROOT / ".ci/links.py")
    links = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(links)
    return links.cells("1_rain.ipynb", repository, "main")


def test_the_badge_leads_where_the_repository_is():
    """And nowhere as long as settings.ini has a stand-in."""
    made = first_cells("https://github.com/somebody/sginet")
    assert "/github/somebody/sginet/blob/main/nbs/lessons/1_rain.ipynb" in made["badge"]
    assert (
        "pip install --quiet git+https://github.com/somebody/sginet@main"
        in (made["install"])
    )
    stand_in = first_cells("https://github.com/OWNER/sginet")
    assert "http" not in "".join(stand_in.values())


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_lesson_has_what_every_lesson_has(path):
    cells = nbformat.read(path, 4).cells
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    assert re.match(r"# Lesson \d: .+\n\n> .+", cells[0].source)
    assert [cell.id for cell in cells[1:3]] == ["badge", "install"]
    assert "find_spec" in cells[2].source, "the first code cell asks for sginet"
    assert 15 <= int(re.search(r"\*\*Time\*\*: (\d+) minutes", text)[1]) <= 40
    for part in (
        "**What it is for.**",
        "**You need**",
        "**Words.**" if path.name[0] != "1" else "**Two words.**",
        "## Exercises",
        "## What you know now",
        "would break",
    ):
        assert part in text, part
    assert not any(
        re.search(r"^#\| *(export|default_exp)", c.source, re.M) for c in cells
    ), "a lesson exports nothing"
    solved = [c for c in cells if "solution" in c.metadata.get("tags", [])]
    asked = re.findall(r"^### (\d)\. ", text, re.M)
    assert 3 <= len(asked) <= 5 and len(solved) == len(asked)
    for n, cell in zip(asked, solved):
        assert (
            cell.metadata["jupyter"]["source_hidden"] and f"exercise {n}" in cell.source
        )
        assert f"check_{n}(" in cell.source, (
            "the solution is put to the check that the student uses"
        )
        check = cells[cells.index(cell) - 1].source
        assert (
            f"def check_{n}(" in check
            and "# your answer" in check
            and any(isinstance(x, ast.Assert) for x in ast.walk(ast.parse(check)))
        )


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_every_output_is_there_and_no_picture_is_missing(path):
    for c in nbformat.read(path, 4).cells:
        if c.cell_type == "code" and re.search(
            r"^show_images\(|^fig$|^learn\.show_results", c.source, re.M
        ):
            assert any("image/png" in o.get("data", {}) for o in c.outputs), c.source[
                :80
            ]


def test_the_teachers_page_knows_every_lesson():
    page = (ROOT / "nbs/lessons/teacher.md").read_text(encoding="utf-8")
    for path in LESSONS:
        assert f"({path.name})" in page


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_exercises_are_graded_predicted_and_discussed(path):
    cells = nbformat.read(path, 4).cells
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    for line in re.findall(r"^### \d\. .+$", text, re.M):
        assert re.search(r"\((easy|medium|hard)\)$", line), line
    for i, cell in enumerate(cells):
        if "solution" in cell.metadata.get("tags", []):
            assert cells[i + 1].source.startswith("**Discussion.**"), cell.source[:60]
    assert text.count("Predict first") >= text.count("**Discussion.**")
    assert "### Open project" in text and "A good answer" in text


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_cells_are_small_and_terms_are_in_the_glossary(path):
    glossary = (ROOT / "nbs/lessons/glossary.md").read_text(encoding="utf-8")
    titles = re.findall(r"^### (.+)$", glossary, re.M)
    anchors = {title.lower().replace(" ", "-") for title in titles}
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code":
            assert all(len(line) <= 100 for line in cell.source.splitlines())
        for anchor in re.findall(r"glossary\.md#([\w-]+)", cell.source):
            assert anchor in anchors, anchor


@pytest.mark.slow
def test_the_first_cell_installs_where_nothing_is_installed(tmp_path):
    """With all requirements and without sginet; this checkout stands for the public address."""
    if subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True
    ).returncode:
        pytest.skip("not a git checkout")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    (site / "requirements.pth").write_text(
        sysconfig.get_path("purelib") + "\n"
    )  # .pth files in there, an editable sginet's among them, are not followed
    cell = first_cells("https://github.com/somebody/sginet")["install"]
    here = re.sub(r"git\+https?://\S+", f"git+file://{ROOT}", cell)
    assert here != cell
    script = tmp_path / "cell.py"
    script.write_text(SCRIPT.format(cell=here))
    # IPython adds what an activated environment holds
    outside = {"PYTHONPATH", "VIRTUAL_ENV"}
    env = {k: v for k, v in os.environ.items() if k not in outside} | {
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    first, second = (
        subprocess.run(
            [python, script], capture_output=True, text=True, env=env, cwd=tmp_path
        )
        for _ in range(2)
    )
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
    assert str(site) in first.stdout and "tiny" in first.stdout
    assert second.returncode == 0 and second.stdout.endswith(
        first.stdout.strip().split("\n", 1)[-1].split("\n")[-1] + "\n"
    )  # and then does nothing
