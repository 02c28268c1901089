"""The hooks before a commit, in a repository of their own; they fetch nothing."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    if not shutil.which("git"):
        pytest.skip("no git")
    tree = tmp_path_factory.mktemp("hooks") / "tree"
    tree.mkdir()
    for name in (
        ".pre-commit-config.yaml",
        "settings.ini",
        "setup.py",
        "pyproject.toml",
    ):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / ".ci", tree / ".ci")
    for name in (
        "nbs/index.ipynb",
        "nbs/losses/01_csd.ipynb",
        "sginet/losses/csd.py",
        "sginet/losses/__init__.py",
        "sginet/__init__.py",
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)

    def run(*command):
        done = subprocess.run(
            command, cwd=tree, capture_output=True, text=True, env=env()
        )
        return done.stdout

    run("git", "init", "-q")
    run("git", "config", "user.email", "a@b")
    run("git", "config", "user.name", "a")
    run("nbdev-export")
    (tree / "README.md").write_text(run(sys.executable, ".ci/readme.py"))
    run("git", "add", "-A")
    return tree


def env():
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PIP_NO_INDEX": "1",
    }


def hook(tree, name, file=None):
    command = [
        sys.executable,
        "-m",
        "pre_commit",
        "run",
        name,
        *(["--files", file] if file else ["--all-files"]),
    ]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, env=env())
    return done.returncode, done.stdout + done.stderr


def test_a_tree_that_is_right_passes(tree):
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", "--all-files"],
        cwd=tree,
        capture_output=True,
        text=True,
        env=env(),
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_notebook_with_metadata_is_cleaned_and_the_commit_stopped(tree):
    path = tree / "nbs/losses/01_csd.ipynb"
    before = path.read_bytes()
    nb = nbformat.read(path, 4)
    nb.cells[0].metadata["scrolled"] = True
    nbformat.write(nb, path)
    code, said = hook(tree, "clean", "nbs/losses/01_csd.ipynb")
    assert code == 1 and "cleaned" in said
    assert "scrolled" not in path.read_text(encoding="utf-8")
    path.write_bytes(before)


def test_a_notebook_saved_in_jupyterlab_keeps_its_metadata(tree):
    """`make lab` leaves out what JupyterLab adds to a notebook that is run and saved."""
    from jupyter_server.services.contents.largefilemanager import LargeFileManager

    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--LabApp.news_url=None" in makefile  # and no news pop up
    hook = re.search(r"--ContentsManager.pre_save_hook=(\S+)", makefile)[1]
    path = tree / "nbs/losses/01_csd.ipynb"
    before = path.read_text(encoding="utf-8")
    content = json.loads(before)
    content["metadata"]["kernelspec"]["display_name"] = "Python 3 (ipykernel)"
    content["metadata"]["language_info"] = {"name": "python", "version": "3.11.2"}
    for i, cell in enumerate(content["cells"]):
        cell["metadata"]["execution"] = {"iopub.status.busy": "now"}
        if cell["cell_type"] == "code":
            cell["execution_count"] = i
    manager = LargeFileManager(root_dir=str(tree), pre_save_hook=hook)
    model = {"type": "notebook", "format": "json", "content": content}
    manager.save(model, "nbs/losses/01_csd.ipynb")
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(before)
    path.write_text(before, encoding="utf-8")


def test_a_module_edited_by_hand_is_stopped(tree):
    path = tree / "sginet/losses/csd.py"
    before = path.read_text(encoding="utf-8")
    path.write_text(before + "\nx = 1\n", encoding="utf-8")
    code, said = hook(tree, "export", "sginet/losses/csd.py")
    path.write_text(before, encoding="utf-8")
    assert code == 1 and "is not what nbs/ exports" in said


def test_a_large_file_is_stopped_and_named(tree):
    (tree / "large.bin").write_bytes(b"0" * 1_600_000)
    subprocess.run(["git", "add", "large.bin"], cwd=tree, check=True)
    code, said = hook(tree, "size", "large.bin")
    subprocess.run(["git", "rm", "-qf", "large.bin"], cwd=tree, check=True)
    assert code == 1 and "large.bin: 1600000 bytes" in said


def test_code_that_is_not_formatted_is_stopped(tree):
    path = tree / "odd.py"
    path.write_text("x=1\nimport os\n", encoding="utf-8")
    subprocess.run(["git", "add", "odd.py"], cwd=tree, check=True)
    code, said = hook(tree, "lint", "odd.py")
    subprocess.run(["git", "rm", "-qf", "odd.py"], cwd=tree, check=True)
    assert code == 1 and "not formatted" in said
    assert "`os` imported but unused" in said
