"""What holds for every command: quick help, one line per error, exit codes, any locale."""

import configparser
import importlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from sginet.cli.derain import derain

ROOT = Path(__file__).resolve().parent.parent


def scripts():
    """The commands of settings.ini: name, and (module, function)."""
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    lines = config["DEFAULT"]["console_scripts"].split()
    return {line.split("=")[0]: line.split("=")[1].split(":") for line in lines}


COMMANDS = scripts()


def start(command, *args, before="", **env):
    """A command as a program of its own; an environment value of None removes the variable."""
    module, function = COMMANDS[command]
    code = f"import sys\n{before}\nfrom {module} import {function}\n"
    code += f"sys.argv[0] = {command!r}\nsys.exit({function}())"
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(os.fspath, args)],
        env={name: value for name, value in environ.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(command, *args, **env):
    """Exit code, standard output and standard error of a command."""
    process = start(command, *args, **env)
    out, error = process.communicate(timeout=300)
    assert b"Traceback" not in error, error.decode(errors="replace")
    return process.returncode, out, error.decode(errors="replace")


@pytest.fixture
def picture(tmp_path):
    """A small picture."""
    path = tmp_path / "in" / "x.png"
    path.parent.mkdir()
    Image.new("RGB", (64, 48), (90, 120, 30)).save(path)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_library(command):
    loaded = "import atexit\natexit.register(lambda: print(sorted(sys.modules)))"
    code, out, _ = run(command, "--help", before=loaded)
    assert code == 0 and out.startswith(b"usage: " + command.encode())
    modules = set(
        out.decode().splitlines()[-1].strip("[]").replace("'", "").split(", ")
    )
    assert not modules & {"torch", "numpy", "PIL", "matplotlib", "fastai", "tqdm"}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("rank", ["", "x", "3"])
def test_help_under_a_jobs_variables(command, rank):
    code, _, _ = run(command, "--help", RANK=rank, WORLD_SIZE=rank, LOCAL_RANK=rank)
    assert code == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_help_in_ascii(command):
    code, _, _ = run(command, "--help", PYTHONIOENCODING="ascii:strict")
    assert code == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_one_line(command):
    code, _, error = run(command, "--out", "x", "--no-such-option")
    assert code == 2 and len(error.splitlines()) == 1 and error.startswith("error: ")


WRONG = [
    ("sginet-derain", 2, "--work-megapixels", "-1"),
    ("sginet-derain", 2, "--work-megapixels", "nan"),
    ("sginet-derain", 2, "--max-megapixels", "0"),
    ("sginet-derain", 1, "--device", "xpu"),
    ("sginet-derain", 1, "--device", "cuda:99"),
    ("sginet-derain", 1, "--device", ""),
    ("sginet-derain", 1, "--device", "meta"),
    ("sginet-derain", 1, "--model", "tinny"),
    ("sginet-derain", 1, "--model", ""),
    ("sginet-derain", 1, "--model", "{picture}"),
    ("sginet-derain", 1, "--model", "{folder}"),
    ("sginet-derain", 1, "--shard", "0/2"),
    ("sginet-derain", 1, "{missing}"),
    ("sginet-derain", 1, "a" * 300 + ".png"),
    ("sginet-derain", 1, "--out", "{picture}"),
    ("sginet-derain", 1, "--out", "{picture}/below"),
    ("sginet-demo", 1, "--out", "{folder}/x"),
    ("sginet-demo", 1, "--out", "{folder}/x.exe"),
    ("sginet-demo", 1, "{missing}"),
    ("sginet-demo", 2, "--rate", "nan"),
    ("sginet-rain", 2, "--workers", "0"),
    ("sginet-rain", 1, "--split", "../x"),
    ("sginet-rain", 1, "--rebuild", "{missing}"),
    ("sginet-rain", 1, "--rebuild", "{picture}"),
    ("sginet-rain", 1, "--depth", "{missing}"),
    ("sginet-rain", 1, "--exposure", "0"),
    ("sginet-train", 1, "--epochs", "0"),
    ("sginet-train", 2, "--epochs", "1.5"),
    ("sginet-train", 1, "--out", "{folder}"),
    ("sginet-train", 1, "--out", "{picture}/run"),
    ("sginet-train", 1, "--resume", "{missing}"),
    ("sginet-eval", 1, "--model", "tinny"),
    ("sginet-eval", 2, "--limit", "0"),
    ("sginet-eval", 1, "--results", "x"),
    ("sginet-eval", 1, "--model", "tiny", "--out", "{folder}"),
    ("sginet-weights", 1, "tinny"),
    ("sginet-weights", 1, "{folder}"),
    ("sginet-weights", 1, "owner/name"),
    ("sginet-weights", 1, "tiny", "--export", "{folder}"),
    ("sginet-weights", 1, "tiny", "--export", "{folder}/x"),
    ("sginet-weights", 1, "--export", "x.onnx"),
    ("sginet-bench", 2, "--size", "100x100"),
    ("sginet-bench", 1, "--device", "abacus"),
    ("sginet-compare", 1, "--methods", "none"),
    ("sginet-compare", 2, "--rate", "50mm"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda c: " ".join(c[:1] + c[2:])[:60])
def test_what_cannot_be_done_is_an_error_and_no_traceback(
    case, picture, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    command, expected, *args = case
    places = dict(picture=picture, folder=picture.parent, missing=tmp_path / "none")
    args = [arg.format(**places) for arg in args]
    if command in ("sginet-derain", "sginet-rain") and args[0].startswith("-"):
        args = [str(picture), *args]
    needs_out = command in (
        "sginet-derain",
        "sginet-rain",
        "sginet-eval",
        "sginet-compare",
    )
    if (
        needs_out
        and "--out" not in args
        or command == "sginet-train"
        and not {"--out", "--resume"} & set(args)
    ):
        args += ["--out", str(tmp_path / "new")]
    module, function = COMMANDS[command]
    try:
        code = getattr(importlib.import_module(module), function)(args)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert code == expected and lines and "Traceback" not in error
    assert not any(
        line.split(": ")[1] in ("TypeError", "KeyError", "AttributeError")
        for line in lines
    )
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="no users here")
def test_folders_that_may_not_be_used(picture, tmp_path):
    """Root may read everything: the command becomes nobody, after it has loaded its libraries."""
    drop = "import sginet.cli.derain\nfrom sginet.models.sginet import SGINet\n"
    drop += "SGINet.from_pretrained('tiny')\nimport os\n"
    drop += "if os.geteuid() == 0:\n    os.setgid(65534)\n    os.setuid(65534)"
    temporary = Path(tempfile.gettempdir())
    for folder in tmp_path, *tmp_path.parents:
        if temporary in folder.parents:
            folder.chmod(0o755)
    private, shared = tmp_path / "private", tmp_path / "shared"
    private.mkdir()
    shared.mkdir()
    shared.chmod(0o777)
    private.chmod(0)
    denied = f"error: {private}: Permission denied"
    code, _, error = run("sginet-derain", private, "--out", shared / "o", before=drop)
    assert code == 1 and error.splitlines() == [denied]
    code, _, error = run("sginet-derain", picture, "--out", private, before=drop)
    assert code == 1 and error.splitlines() == [denied]


def test_a_job_that_sets_rank_still_does_all(picture, tmp_path):
    for i in range(3):
        Image.new("RGB", (64, 48), (9 * i, 9, 9)).save(picture.parent / f"{i}.png")
    out = tmp_path / "out"
    code, said, _ = run(
        "sginet-derain", picture.parent, "--out", out, RANK="0", WORLD_SIZE="4"
    )
    assert code == 0 and b"4 of 4" in said and len(list(out.iterdir())) == 4


def test_names_in_any_encoding(picture, tmp_path):
    """A name that is not UTF-8, one in Chinese, one with a line break: made, and printed."""
    names = [b"gr\xfcn.png", "雨.png".encode(), b"a\nb.png"]
    for name in names:
        (tmp_path / "in" / os.fsdecode(name)).write_bytes(picture.read_bytes())
    broken = os.fsdecode(b"\xff.png")
    (tmp_path / "in" / broken).write_bytes(b"")
    args = [tmp_path / "in", "--out", tmp_path / "out"]
    code, said, error = run("sginet-derain", *args, PYTHONIOENCODING="cp1252")
    assert code == 1 and b"4 of 5" in said and len(error.splitlines()) == 1
    made = {os.fsencode(f.name) for f in (tmp_path / "out").iterdir()}
    assert made == {b"x.png", *names}
    args = [tmp_path / "in", "--out", tmp_path / "D", "--rate", "50", "--workers", "1"]
    code, _, error = run("sginet-rain", *args, PYTHONIOENCODING="ascii")
    assert code == 1 and len(error.splitlines()) == 1
    again = ["--rebuild", tmp_path / "D" / "manifest.jsonl", "--out", tmp_path / "E"]
    assert run("sginet-rain", *again, "--workers", "1", LC_ALL="C")[0] == 0
    first, second = (
        {f.relative_to(d): f.read_bytes() for f in d.rglob("*.png")}
        for d in (tmp_path / "D", tmp_path / "E")
    )
    assert first == second and len(first) == 8


@pytest.mark.slow
def test_data_with_names_in_any_encoding(tmp_path):
    """Evaluation and training on pictures whose names are not UTF-8."""
    for split in "train", "val":
        (tmp_path / "data" / split).mkdir(parents=True)
        for i in range(2):
            name = os.fsdecode(b"gr\xfcn%d.png" % i)
            Image.new("RGB", (96, 64), (90, 120, 30 * i)).save(
                tmp_path / "data" / split / name
            )
    data = ["--data", tmp_path / "data"]
    ascii_only = dict(LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    args = ["--model", "tiny", "--rate", "100", "--out", tmp_path / "tables"]
    code, _, error = run("sginet-eval", *data, *args, **ascii_only)
    assert code == 0, error
    assert b"gr\xfcn1.png" in (tmp_path / "tables" / "pictures.csv").read_bytes()
    args = ["--rate", "both", "--epochs", "1", "--sem", "small", "--width", "4"]
    args += ["--sem-weights", "untrained", "--crop", "64", "--batch", "2"]
    args += ["--vgg-width", "8", "--out", tmp_path / "run"]
    code, _, error = run("sginet-train", *data, *args, **ascii_only)
    assert code == 0, error
    assert (tmp_path / "run" / "model" / "config.json").exists()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_cards_print_in_any_encoding(encoding):
    assert run("sginet-weights", "tiny", PYTHONIOENCODING=encoding)[0] == 0


@pytest.mark.slow
def test_tables_print_in_any_encoding(tmp_path):
    args = ["--model", "tiny", "--limit", "1", "--rate", "100", "--out", tmp_path / "t"]
    assert run("sginet-eval", *args, PYTHONIOENCODING="cp1252")[0] == 0
    assert "∞" in (tmp_path / "t" / "table.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_noticed(picture, tmp_path):
    module, function = COMMANDS["sginet-weights"]
    code = f"import sys; from {module} import {function}; sys.exit({function}())"
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1 and "No space left" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


OFFLINE = """
import socket
def refuse(*args, **kwargs):
    raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = refuse
"""


def test_a_home_that_cannot_be_written_and_no_network(picture, tmp_path):
    args = [picture, "--out", tmp_path / "out"]
    home = dict(
        HOME="/proc/nothing", XDG_CACHE_HOME=None, MPLCONFIGDIR=None, HF_HOME=None
    )
    code, _, error = run("sginet-derain", *args, before=OFFLINE, **home)
    assert code == 0 and not error.strip()


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached(picture, tmp_path):
    args = [picture, "--out", tmp_path / "out", "--model", "owner/name"]
    code, _, error = run("sginet-derain", *args, before=OFFLINE)
    assert code == 1 and len(error.splitlines()) == 1


STAGES = [
    "torch._C",
    "torch.nn",
    "numpy",
    "PIL.Image",
    "sginet.models.sginet",
    "sginet.images",
]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_while_libraries_are_loaded(stage, picture, tmp_path):
    """The signal comes when a certain module begins to be imported, not after some time."""
    trap = f"""
import os, signal
class Trap:
    def find_spec(self, name, path=None, target=None):
        if name == {stage!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Trap())
"""
    process = start("sginet-derain", picture, "--out", tmp_path / "out", before=trap)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 130 and b"Traceback" not in error
    assert error.decode().splitlines() == ["error: stopped by Ctrl-C"]


@pytest.mark.slow
def test_ctrl_c_while_pictures_are_made(picture, tmp_path):
    """What is written is complete, the rest is not there, and the exit code says 130."""
    for i in range(200):
        (tmp_path / "in" / f"{i:03d}.png").write_bytes(picture.read_bytes())
    trap = """
import os, signal
from sginet.models.sginet import SGINet
made, before = [], SGINet.derain
def derain(self, *args, **kwargs):
    made.append(1)
    if len(made) == 5:
        os.kill(os.getpid(), signal.SIGINT)
    return before(self, *args, **kwargs)
SGINet.derain = derain
"""
    out = tmp_path / "out"
    process = start("sginet-derain", tmp_path / "in", "--out", out, before=trap)
    _, error = process.communicate(timeout=300)
    lines = error.decode().splitlines()
    assert process.returncode == 130 and "Traceback" not in error.decode()
    assert "stopped by Ctrl-C" in lines[-1] and "--skip-existing" in lines[-1]
    made = sorted(out.iterdir())
    assert 1 <= len(made) < 10 and not [f for f in made if f.suffix == ".part"]
    for f in made:
        Image.open(f).load()
    assert derain([str(tmp_path / "in"), "--out", str(out), "--skip-existing"]) == 0
    assert len(list(out.iterdir())) == 201


@pytest.mark.slow
def test_ctrl_c_after_the_work(picture, tmp_path):
    """At the interpreter's end there is nothing to stop, and still no traceback."""
    trap = "import atexit, os, signal\n"
    trap += "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))"
    process = start("sginet-derain", picture, "--out", tmp_path / "out", before=trap)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 130 and b"Traceback" not in error
    assert (tmp_path / "out" / "x.png").exists()


def test_a_reader_that_has_seen_enough(tmp_path):
    """Such as `sginet-weights | head -1`."""
    process = start("sginet-weights")
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(300) in (0, 1, -signal.SIGPIPE)
    assert b"Traceback" not in error and b"Exception ignored" not in error
