"""Every command and every piece of Python in README.md is run, small.

Drawn streets stand for data sets, a narrow network for PSPNet101.

What cannot be run here, and what is done instead: `make lab` and `make app` serve until they are
stopped, and `make test` would run this test again, so make only says what it would do and the
program is asked for its version. Several processes are tried in the tests of training, so of
torchrun's line only the options are looked up. The reference's checkpoints are its authors', so
that call must fail by naming the missing file.
"""

import configparser
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sginet.data.rain import render
from sginet.data.scenes import draw_scene
from sginet.images import save_image
from sginet.models.export import to_onnx
from sginet.models.sginet import SGINet

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
SMALL = [
    "--epochs",
    "1",
    "--crop",
    "64",
    "--batch",
    "2",
    "--workers",
    "0",
    "--panels",
    "1",
    "--device",
    "cpu",
]
NARROW = [
    "--width",
    "4",
    "--sem",
    "small",
    "--sem-weights",
    "untrained",
    "--vgg-width",
    "8",
]
REPLACED = {
    "CITYSCAPES_SYN": "D",
    "train_epoch_200_psp101.pth": None,
    "1-2975/1-1525": "1-2/1-1",
    "data/test/200mm/rain": "D/test/200mm/rain",
}


def fenced(language):
    """The blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


def commands():
    """Every command line: in blocks, and between backticks in the text and its tables."""
    lines = [
        line.split("  #")[0].strip()
        for block in fenced("sh")
        for line in block.splitlines()
    ]
    text = re.sub(r"```.*?```", "", TEXT, flags=re.S)
    return list(
        dict.fromkeys(
            line
            for line in lines
            + re.findall(r"`((?:sginet-|make |\.venv/bin/|torchrun )[^`]*)`", text)
            if line
        )
    )


def entry(name):
    """The function behind one of the package's commands."""
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    target = dict(
        line.strip().split("=")
        for line in config["DEFAULT"]["console_scripts"].strip().splitlines()
    )[name]
    module, function = target.split(":")
    return getattr(importlib.import_module(module), function)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the README's commands name: pictures, a folder, a data set."""
    place = tmp_path_factory.mktemp("readme")
    streets = [draw_scene(i, 64, 96).image for i in range(2)]
    for split in ("train", "val", "test"):
        for rate in (100, 200):
            for i, clean in enumerate(streets):
                save_image(clean, place / f"D/{split}/{rate}mm/norain/norain-{i}.png")
                save_image(
                    render(clean, rate, seed=i).rainy,
                    place / f"D/{split}/{rate}mm/rain/norain-{i}.png",
                )
    save_image(render(streets[0], 100).rainy, place / "rainy.jpg")
    save_image(render(streets[1], 100).rainy, place / "a_folder/b.png")
    to_onnx(SGINet.from_pretrained("tiny"), place / "tiny.onnx")
    return place


def options_known(words, capsys):
    """Every option of a command line stands in the command's --help."""
    name = next(w for w in words if w.startswith("sginet-"))
    with pytest.raises(SystemExit) as stop:
        entry(name)(["--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0
    for w in words[words.index(name) :]:
        if w.startswith("--"):
            assert re.search(rf"{w}\b", said), f"{name} has no {w}"


def shortened(name, words):
    """The arguments of a command, with small settings and what stands for the real data."""
    args = []
    for w in words:
        w = REPLACED.get(w, w)
        if w is None:
            args.pop()  # the option that names a file we do not have
        else:
            args.append(
                w.replace("runs/ours", "runs/first")
                if "--resume" in words or name == "sginet-eval"
                else w
            )
    if name == "sginet-train" and "--resume" not in words:
        args += SMALL + (NARROW if "--data" in words else ["--scenes", "2"])
    if name == "sginet-eval":
        args += ["--limit", "1", "--device", "cpu"]
    return args


@pytest.mark.slow
@pytest.mark.parametrize("line", commands())
def test_a_command_does_what_it_says(line, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    words = shlex.split(
        line.replace("$(which sginet-train)", "sginet-train").replace(".venv/bin/", "")
    )
    if words[0] == "make":
        make = [
            "make",
            "-f",
            ROOT / "Makefile",
            words[1],
            f"BIN={BIN}",
            f"STAMP={ROOT / 'settings.ini'}",
            f"STAMP_DEV={ROOT / 'settings.ini'}",
        ]
        done = subprocess.run(
            [*make, *([] if words[1] == "demo" else ["-n"])],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if words[1] == "demo":
            assert (place / "out/demo.png").exists()
        else:
            assert str(BIN) in done.stdout or words[1].startswith("test")
    elif words[0] == "jupyter":
        assert (
            subprocess.run(
                [BIN / "jupyter", words[1], "--version"], capture_output=True
            ).returncode
            == 0
        )
    elif words[0] == "torchrun" or "..." in words:
        assert words[0] != "torchrun" or shutil.which("torchrun", path=str(BIN))
        options_known(words, capsys)
    elif len(words) == 1 or words[1:] == ["--help"]:
        options_known([words[0]], capsys)
    else:
        options_known(words, capsys)
        if name_out := next(
            (words[i + 1] for i, w in enumerate(words) if w == "--out"), None
        ):
            shutil.rmtree(place / name_out, ignore_errors=True)
        if "--out" not in words and "--resume" not in words:
            return  # a part of a command, in a table: its options were looked up
        code = entry(words[0])(shortened(words[0], words[1:]))
        assert code in (0, None), capsys.readouterr()
        if name_out:
            assert any((place / name_out).iterdir())


@pytest.mark.parametrize(
    "block", fenced("python"), ids=lambda b: b.strip().splitlines()[-1][:40]
)
def test_python_runs_as_it_stands(block, place, monkeypatch):
    monkeypatch.chdir(place)
    names = {}
    exec("from sginet.models.sginet import SGINet", names)
    if "model_best.pt" in block:
        with pytest.raises(FileNotFoundError, match="model_best.pt"):
            exec(block, names)
    else:
        exec(block, names)
        assert (
            names["picture"].size == (96, 64)
            and names["out"].refined.shape == names["rain"].shape
        )
        assert len([line for line in block.splitlines() if line.strip()]) <= 12


def test_options_in_the_tables_are_options(capsys):
    """The right-hand side of the translation of the release's commands."""
    for table, name in (("main.py", "sginet-train"), ("test.py", "sginet-derain")):
        rows = re.search(rf"\| `{table}` \| here \| \|\n(.*?)\n\n", TEXT, re.S)[
            1
        ].splitlines()[1:]
        used = [
            w
            for row in rows
            for span in re.findall(r"`([^`]*)`", row.split("|")[2])
            for w in span.split()
            if w.startswith("--")
        ]
        assert used
        options_known([name, *used], capsys)
