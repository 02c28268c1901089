"""The sdist, the wheel built from it, its commands, and the texts that must agree."""

import configparser
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import setuptools

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib  # Python 3.10; comes with build

ROOT = Path(__file__).resolve().parent.parent
# setuptools' name of each field of [project]; requires-python is in pyproject.toml itself
FIELDS = {
    "version": "version",
    "description": "description",
    "long_description": "readme",
    "author": "authors",
    "license": "license",
    "keywords": "keywords",
    "classifiers": "classifiers",
    "install_requires": "dependencies",
    "url": "urls",
    "project_urls": "urls",
    "extras_require": "optional-dependencies",
    "entry_points": "scripts",
}
# as a user would: nothing of the source tree is seen, and a wheel without a module fails
IMPORT_ALL = """
import importlib, pathlib, sys
target = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(target))
for name in sys.argv[2:]:
    module = importlib.import_module(name)
    assert target in pathlib.Path(module.__file__).parents, f"{name} came from {module.__file__}"
from sginet.models.pretrained import shipped
print(*shipped().values(), sep="\\n")
"""


def settings(key):
    """The lines of a setting."""
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return (
        config["DEFAULT"][key].split("\n")[1:]
        if "\n" in config["DEFAULT"][key]
        else [config["DEFAULT"][key]]
    )


def shipped_folders():
    """The shipped models that the tree holds."""
    return [
        name
        for name in settings("shipped_weights")
        if (ROOT / "weights" / name / "model.safetensors").exists()
    ]


def run(*command, **kwargs):
    """Its standard output; a failure shows both streams."""
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, **kwargs
    )
    assert done.returncode == 0, (
        f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of `python -m build`, from a copy of the tree that has a private model too."""
    top = tmp_path_factory.mktemp("build")
    tree = top / "tree"
    tree.mkdir()
    for name in (
        "settings.ini",
        "setup.py",
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Makefile",
    ):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(
        ROOT / "sginet", tree / "sginet", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(
        ROOT / "weights",
        tree / "weights",
        ignore=lambda folder, names: [
            n
            for n in names
            if n == "__pycache__"
            or (
                Path(folder) == ROOT / "weights"
                and (Path(folder) / n).is_dir()
                and n not in shipped_folders()
            )
        ],
    )
    (tree / "weights" / "private").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tree / "weights" / "private" / name).write_text("{}")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", top / "dist", tree)
    [built] = (top / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel, and nothing else, installed."""
    target = tmp_path_factory.mktemp("installed")
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--disable-pip-version-check",
        "--target",
        target,
        wheel,
    )
    return target


@pytest.mark.slow
def test_wheel_holds_all_modules_and_only_the_shipped_weights(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    modules = {f.relative_to(ROOT).as_posix() for f in (ROOT / "sginet").rglob("*.py")}
    beside = {
        f"sginet/weights/{f.name}"
        for f in (ROOT / "weights").iterdir()
        if f.name == "README.md" or f.suffix == ".py"
    }
    models = {
        f"sginet/weights/{folder}/{f.name}"
        for folder in shipped_folders()
        for f in (ROOT / "weights" / folder).iterdir()
        if f.name in ("card.json", "config.json", "model.safetensors")
    }
    assert all(
        f"sginet/weights/{folder}/card.json" in names for folder in shipped_folders()
    )
    static = {
        f.relative_to(ROOT).as_posix()
        for f in (ROOT / "sginet/interpret/static").glob("*")
        if f.is_file()
    }
    assert names == modules | beside | models | static


@pytest.mark.slow
def test_wheel_says_what_settings_say(wheel):
    with zipfile.ZipFile(wheel) as z:
        info = {Path(n).name: z.read(n) for n in z.namelist() if ".dist-info/" in n}
    meta = message_from_bytes(info["METADATA"])
    assert (
        meta["Version"] == settings("version")[0]
        and meta["Summary"] == settings("description")[0]
        and meta["Author"] == settings("author")[0]
    )
    assert (
        settings("license")[0] in (meta["License"], meta["License-Expression"])
        and "LICENSE" in info
    )
    assert [
        r for r in meta.get_all("Requires-Dist") if "extra ==" not in r
    ] == settings("requirements")
    extras = {
        e: [
            r.split(";")[0].strip()
            for r in meta.get_all("Requires-Dist")
            if re.search(rf"extra == .{e}.", r)
        ]
        for e in ("dev", "export", "notebooks")
    }
    assert extras == {
        "notebooks": settings("notebook_requirements"),
        "export": settings("export_requirements"),
        "dev": settings("notebook_requirements")
        + settings("export_requirements")
        + settings("dev_requirements"),
    }
    assert (
        meta.get_payload(decode=True).decode().strip()
        == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    )
    scripts = [
        line.replace(" ", "")
        for line in info["entry_points.txt"].decode().splitlines()
        if "=" in line
    ]
    assert sorted(scripts) == sorted(settings("console_scripts"))


@pytest.mark.slow
def test_installed_wheel_imports_away_from_the_tree(installed, tmp_path):
    modules = [
        ".".join(f.relative_to(installed).with_suffix("").parts)
        for f in (installed / "sginet").rglob("*.py")
        if not f.stem.startswith("_") and f.parent.name != "weights"
    ]
    assert "sginet.models.sginet" in modules
    found = run(
        sys.executable, "-I", "-c", IMPORT_ALL, installed, *modules, cwd=tmp_path
    )
    assert sorted(found.split()) == sorted(
        str(installed / "sginet" / "weights" / name) for name in shipped_folders()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [line.split("=")[0] for line in settings("console_scripts")]
)
def test_installed_command_explains_itself(installed, tmp_path, command):
    said = run(
        installed / "bin" / command,
        "--help",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )
    assert said.startswith(f"usage: {command} ")


def test_setup_and_pyproject_name_the_same_fields(monkeypatch):
    """A field that setup.py sets and `dynamic` does not list is lost with only a warning."""
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **kwargs: given.update(kwargs))
    runpy.run_path(str(ROOT / "setup.py"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    assert {FIELDS[name] for name in given if name in FIELDS} == set(project["dynamic"])
    assert set(given["entry_points"]) == {
        "console_scripts"
    }  # any other group would need "entry-points" in dynamic
    assert (
        given["name"] == project["name"]
        and given["python_requires"] == project["requires-python"]
    )


def test_readme_is_the_index_notebook_and_its_links_lead_somewhere():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == run(sys.executable, ROOT / ".ci/readme.py")
    links = re.findall(r"\]\(([^)#]+)", readme)
    assert [
        link
        for link in links
        if not link.startswith("http") and not (ROOT / link).exists()
    ] == []


def test_make_installs_once_and_again_only_when_the_metadata_change(tmp_path):
    for name in ("Makefile", "settings.ini", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    }  # of the make that may run this test

    def installs(target, *variables):
        said = run("make", "-n", target, *variables, cwd=tmp_path, env=env)
        return re.findall(r"install\.py (.*)", said)

    assert installs("demo") == [" .[notebooks]"] or "notebooks" in installs("demo")[0]
    assert "dev" in installs("test")[0]
    assert "--extra-index-url X" in installs("demo", "TORCH_INDEX=X")[0]
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").touch()
    run("make", "-t", "demo", cwd=tmp_path, env=env)
    assert not installs("demo") and installs("test")  # the checks need more
    run("make", "-t", "test", cwd=tmp_path, env=env)
    assert not installs("demo") and not installs("test")
    # nbdev-export writes it anew with the same text
    os.utime(tmp_path / "pyproject.toml", (2**32, 2**32))
    assert not installs("demo")
    with open(tmp_path / "settings.ini", "a", encoding="utf-8") as f:
        f.write("    sginet-new=sginet.cli.new:new\n")
    assert installs("demo")


def test_a_failing_check_does_not_keep_the_others_from_running(tmp_path):
    """.ci/test with programs that only note that they were called; the first two fail."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/test", tmp_path / ".ci")
    programs = dict(ruff=1, python=0)
    programs["nbdev-test"] = 1
    (tmp_path / "bin").mkdir()
    for name, code in [*programs.items(), ("../.ci/sync", 0)]:
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\necho called {name} $@\nexit {code}\n")
        program.chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [tmp_path / ".ci/test"],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout.rstrip().endswith("FAILED: lint notebooks")
    called = "called python -m pytest -q -n 2 --dist loadfile -m not slow"
    assert called in done.stdout


def test_line_ends_are_pinned():
    """A clone by Git for Windows must not change what checksums and shell scripts depend on."""
    if subprocess.run(["git", "-C", ROOT, "rev-parse"], capture_output=True).returncode:
        pytest.skip("not a git checkout")
    files = "weights/tiny/config.json", "weights/tiny/card.json", ".ci/sync", "Makefile"
    said = run("git", "-C", ROOT, "check-attr", "eol", *files)
    assert [line.split()[-1] for line in said.splitlines()] == ["lf"] * 4
    said = run("git", "-C", ROOT, "check-attr", "text", "nbs/images/demo.png")
    assert said.split()[-1] == "unset"
