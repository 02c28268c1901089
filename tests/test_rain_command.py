"""sginet-rain killed, interrupted or run twice at once makes the set of a single run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sginet.cli.manifest import append_rows, read_manifest
from sginet.cli.rain import rain
from sginet.data.scenes import draw_scene
from sginet.images import save_image

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "import sys; from sginet.cli.rain import rain; sys.exit(rain())"
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
# the command of one process, which stops where a test wants it: after so many listed sources
PAUSED = """
import os, signal, sys
import sginet.cli.rain as command
listed, before = [], command.append_rows
def append_rows(path, rows):
    before(path, rows)
    listed.append(1)
    if len(listed) == {after}:
        os.kill(os.getpid(), signal.{signal})
command.append_rows = append_rows
sys.exit(command.rain())
"""
BUILD = """
import sys
from pathlib import Path
from sginet.data.cache import PixelCache
pixels = PixelCache(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for f in sorted(Path(sys.argv[2]).glob("*.png")):
    print(f.name, int(pixels(f).sum(dtype="int64")))
"""


@pytest.fixture
def clean(tmp_path):
    """A folder of eight clean pictures."""
    for i in range(8):
        save_image(draw_scene(i, 48, 96).image, tmp_path / "clean" / f"{i:02d}.png")
    return tmp_path / "clean"


def pictures(folder):
    files = sorted(folder.rglob("*.png"))
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def straight(clean, out):
    """The set that one undisturbed process makes."""
    assert rain([str(clean), "--out", str(out), "--workers", "1"]) == 0
    return pictures(out)


def begin(code, *args):
    """A command in a session of its own, as a shell would start it."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env=ENV,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def listed(out):
    return [row["file"] for row in read_manifest(out / "manifest.jsonl")]


@pytest.mark.slow
def test_a_killed_and_interrupted_run_goes_on(clean, tmp_path):
    whole, out = straight(clean, tmp_path / "straight"), tmp_path / "broken"
    args = clean, "--out", out, "--workers", 2

    process = begin(PAUSED.format(after=2, signal="SIGSTOP"), *args)
    os.waitid(
        os.P_PID, process.pid, os.WSTOPPED
    )  # stopped by itself, at the second source
    os.killpg(
        process.pid, signal.SIGKILL
    )  # the machine fails, and all processes with it
    process.communicate()
    assert len(listed(out)) == 4
    for f in out.rglob("*.png"):
        Image.open(f).load()  # whatever has its name is whole
    with open(out / "manifest.jsonl", "a", encoding="utf-8") as f:
        f.write('{"file": "train/100mm/rain/0')  # it failed in the middle of a line

    process = begin(PAUSED.format(after=2, signal="SIGINT"), *args)  # Ctrl-C
    _, error = process.communicate(timeout=500)
    assert process.returncode == 130 and "Traceback" not in error, error
    assert "continues from here" in error.splitlines()[-1]
    assert 4 < len(listed(out)) < 16

    assert rain([str(clean), "--out", str(out), "--workers", "1"]) == 0
    assert pictures(out) == whole  # one process or many: the same set
    assert len(listed(out)) == len(set(listed(out))) == 16  # each made once
    assert not list(out.rglob(".*.part"))


@pytest.mark.slow
def test_two_runs_on_one_folder(clean, tmp_path):
    """The second waits for the first, and nothing is made or listed twice."""
    out = tmp_path / "both"
    first = begin(
        PAUSED.format(after=2, signal="SIGSTOP"), clean, "--out", out, "--workers", 1
    )
    os.waitid(os.P_PID, first.pid, os.WSTOPPED)
    second = begin(COMMAND, clean, "--out", out, "--workers", 1)
    assert "waiting for another run" in second.stderr.readline()
    os.kill(first.pid, signal.SIGCONT)
    said = [process.communicate(timeout=500) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    assert "nothing was left to do" in said[1][0]
    assert pictures(out) == straight(clean, tmp_path / "straight")
    assert len(listed(out)) == len(set(listed(out))) == 16


def test_a_manifest_cannot_write_elsewhere(clean, tmp_path, capsys):
    assert rain([str(clean), "--out", str(tmp_path / "A"), "--workers", "1"]) == 0
    row = read_manifest(tmp_path / "A/manifest.jsonl")[0]
    places = [
        "../../escaped/rain/a.png",
        f"{tmp_path}/escaped/rain/a.png",
        "a.png",
        "..\\x/1/rain/a.png",
    ]
    for file in places:
        manifest = tmp_path / "evil.jsonl"
        manifest.unlink(missing_ok=True)
        append_rows(manifest, [row | {"file": file}])
        before = pictures(tmp_path)
        out = tmp_path / "deep" / "out"
        assert (
            rain(["--rebuild", str(manifest), "--out", str(out), "--workers", "1"]) == 1
        )
        assert pictures(tmp_path) == before and not out.exists()
        assert "line 1: file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"rate": "x"},
        {"rate": -1},
        {"seed": None},
        {"shot": {"lens": "x"}},
        {"shot": {"no": 1}},
        {"preset": "x"},
    ],
)
def test_a_manifest_with_wrong_values_is_an_error(change, clean, tmp_path, capsys):
    assert (
        rain([str(clean / "00.png"), "--out", str(tmp_path / "A"), "--workers", "1"])
        == 0
    )
    rows = [row | change for row in read_manifest(tmp_path / "A/manifest.jsonl")]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = [
        "--rebuild",
        str(tmp_path / "m.jsonl"),
        "--out",
        str(tmp_path / "B"),
        "--workers",
        "1",
    ]
    assert rain(args) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error


def test_names_that_differ_in_case(clean, tmp_path, monkeypatch, capsys):
    """Two pictures where the file system tells them apart, an error where it does not."""
    save_image(draw_scene(9, 48, 96).image, clean / "A.png")
    save_image(draw_scene(8, 48, 96).image, clean / "a.png")
    if len(list(clean.iterdir())) == 10:
        assert len(straight(clean, tmp_path / "D")) == 10 * 4
    monkeypatch.setattr("sginet.cli.rain.prepare_folder", lambda folder: True)
    args = [str(clean / "A.png"), str(clean / "a.png"), "--out", str(tmp_path / "E")]
    assert rain(args) == 1
    assert "have one name" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_build_one_cache(clean, tmp_path):
    builders = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", BUILD, tmp_path / "cache", clean],
            env=ENV,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for builder in builders:
        assert builder.stdout.readline() == "ready\n"
    for builder in builders:
        builder.stdin.write("go\n")
        builder.stdin.flush()
    said = [p.communicate(timeout=500)[0] for p in builders]
    truth = "".join(
        f"{f.name} {np.asarray(Image.open(f)).sum(dtype='int64')}\n"
        for f in sorted(clean.glob("*.png"))
    )
    assert [p.returncode for p in builders] == [0, 0] and said == [truth, truth]
    assert len(list(tmp_path.glob("cache/*/*"))) == 8
