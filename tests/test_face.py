"""`from sginet import ...` is quick, complete and without a second home for a name."""

import ast
import subprocess
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest

import sginet

PACKAGE = Path(sginet.__file__).parent
MOST_PUBLIC_NAMES = 150

FACE = [
    "SGINet",
    "Derained",
    "FRM",
    "SEM",
    "PSPNet",
    "SIM",
    "SGINetLoss",
    "csd_loss",
    "psnr_y",
    "ssim_y",
    "SegmentationScore",
    "render",
    "Weather",
    "draw_scene",
    "rain_dls",
    "sginet_learner",
    "sem_learner",
    "Taps",
    "intervene",
    "attribute",
    "RainExplorer",
    "GuidanceExplorer",
    "AttributionExplorer",
    "TrainingMonitor",
    "app",
    "CLASSES",
    "ImageError",
]


def public_names():
    """Module to the names in its `__all__`, read without importing anything."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        if module in ("__init__", "all", "_modidx"):
            continue  # these collect the names of others
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(target, ast.Name) and target.id == "__all__":
                found[module] = ast.literal_eval(node.value)
    return found


def test_the_list_is_complete():
    assert sorted(FACE) == sorted(sginet.__all__)
    assert set(FACE) <= set(dir(sginet))


@pytest.mark.parametrize("name", FACE)
def test_each_name_resolves(name):
    value = getattr(sginet, name)
    home = import_module(f"sginet.{sginet._HOMES[name]}")
    assert value is getattr(home, name)


def test_unknown_names_raise():
    with pytest.raises(AttributeError, match="no attribute 'SGINett'"):
        sginet.SGINett  # noqa: B018
    with pytest.raises(ImportError):
        exec("from sginet import SGINett")


def test_type_checkers_see_the_same_names():
    """The imports under TYPE_CHECKING agree with the table that is used at run time."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If))
    seen = {a.asname: n.module for n in block.body for a in n.names}
    assert seen == sginet._HOMES


def test_import_loads_neither_torch_nor_fastai():
    code = "import sys, sginet; print(*{'torch', 'fastai', 'numpy'} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == ""


def test_few_public_names():
    names = public_names()
    total = sum(map(len, names.values()))
    longest = sorted(names, key=lambda m: -len(names[m]))[:8]
    most = {m: len(names[m]) for m in longest}
    assert total <= MOST_PUBLIC_NAMES, f"{total} public names; most in {most}"


def test_each_name_has_one_home():
    homes = defaultdict(list)
    for module, names in public_names().items():
        for name in names:
            homes[name].append(module)
    assert {n: m for n, m in homes.items() if len(m) > 1} == {}


def test_all_has_some_sixty_names():
    """`from sginet.all import *`: the face, what lessons use, and four libraries."""
    names = import_module("sginet.all").__all__
    assert set(FACE) | {"torch", "nn", "np", "plt"} <= set(names)
    assert len(names) == len(set(names)) and 50 <= len(names) <= 75


def test_the_first_picture_needs_no_compiler():
    """PyTorch's compiler takes a second to load, and nothing here compiles."""
    code = (
        "import sys\n"
        "from sginet import SGINet, render\n"
        "from sginet.images import sample_photo\n"
        "photo = sample_photo().resize((96, 64))\n"
        "SGINet.from_pretrained('tiny').derain(photo)\n"
        "print(*{'torch._dynamo', 'fastai', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "\n", done.stdout + done.stderr


ELSEWHERE = """
import importlib, math, pkgutil, sys
from pathlib import Path

sys.modules["resource"] = sys.modules["fcntl"] = None  # Windows has neither
read = Path.read_text

def read_text(path, *args, **kwargs):
    if str(path).startswith(("/proc", "/sys")):
        raise FileNotFoundError(path)
    return read(path, *args, **kwargs)

Path.read_text = read_text
import sginet
for module in pkgutil.walk_packages(sginet.__path__, "sginet."):
    importlib.import_module(module.name)
from sginet.cli.manifest import append_rows
from sginet.evaluate.compare import _peak_mb
from sginet.evaluate.speed import machine_info
from sginet.models.memory import available_memory
from sginet.models.sginet import SGINet
assert available_memory("cpu") is None
assert math.isnan(_peak_mb("cpu"))
machine_info()
append_rows(Path(sys.argv[1]), [{"file": "a"}])
assert '"file": "a"' in Path(sys.argv[1]).read_text(encoding="utf-8")
import torch
assert SGINet(4, "small4").eval().derain(torch.rand(3, 40, 50)).shape == (3, 40, 50)
"""


def test_systems_without_proc_and_locks(tmp_path):
    """Every module is imported and the ones that ask the system run without what Linux has."""
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "manifest.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
