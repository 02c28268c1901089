"""sginet-rain among processes: killed, interrupted and gone on with, its set is the one that a single run makes. And two builders of one cache."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sginet.cli.rain import rain
from sginet.data import scenes
from sginet.images import save_image

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [
    sys.executable,
    "-W",
    "ignore",
    "-c",
    "import sys; from sginet.cli.commands import rain; sys.exit(rain())",
]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
BUILD = """
import sys
from pathlib import Path
from sginet.data.datasets import Pixels
pixels = Pixels(sys.argv[1])
while not Path(sys.argv[3]).exists(): pass
for f in sorted(Path(sys.argv[2]).glob("*.png")): print(f.name, int(pixels(f).sum(dtype="int64")))
"""


@pytest.fixture
def clean(tmp_path):
    """A folder of sixteen clean pictures."""
    for i in range(16):
        save_image(scenes.draw(i, 192, 384).image, tmp_path / "clean" / f"{i:02d}.png")
    return tmp_path / "clean"


def pictures(folder):
    return {
        str(f.relative_to(folder)): f.read_bytes()
        for f in sorted(folder.rglob("*.png"))
    }


def begin(*args):
    """The command in a session of its own, as a shell would start it."""
    return subprocess.Popen(
        [*COMMAND, *map(str, args)],
        env=ENV,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows(manifest):
    return manifest.read_text().count("\n") if manifest.exists() else 0


def wait_for(condition, process):
    end = time.time() + 500
    while not condition():
        assert process.poll() is None and time.time() < end, process.communicate()
        time.sleep(0.01)


def test_a_killed_and_interrupted_run_goes_on(clean, tmp_path):
    assert (
        rain([str(clean), "--out", str(tmp_path / "straight"), "--workers", "1"]) == 0
    )
    out, manifest = tmp_path / "broken", tmp_path / "broken" / "manifest.jsonl"
    arguments = clean, "--out", out, "--workers", 2

    process = begin(*arguments)
    wait_for(lambda: rows(manifest) >= 2, process)
    os.killpg(
        process.pid, signal.SIGKILL
    )  # the machine stops, and all processes with it
    process.communicate()
    first = rows(manifest)
    assert 2 <= first < 32
    for f in out.rglob("*.png"):
        Image.open(f).load()  # whatever has its name is whole
    with open(manifest, "a") as f:
        f.write(
            '{"file": "train/100mm/rain/0'
        )  # and it stopped in the middle of a line

    process = begin(*arguments)
    wait_for(lambda: rows(manifest) > first, process)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
    said = process.communicate(timeout=500)
    assert (
        process.returncode == 1
        and "goes on from here" in said[1]
        and "Traceback" not in said[1]
    ), said
    assert first < rows(manifest) < 32

    assert (
        rain([str(clean), "--out", str(out), "--workers", "1"]) == 0
    )  # one process or many: the same set
    assert pictures(out) == pictures(tmp_path / "straight")
    listed = [json.loads(line)["file"] for line in manifest.read_text().splitlines()]
    assert len(listed) == len(set(listed)) == 32  # each made once
    assert not list(out.rglob(".*.part"))


def test_two_processes_build_one_cache(clean, tmp_path):
    go = tmp_path / "go"
    builders = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                BUILD,
                tmp_path / "cache",
                clean,
                go,
            ],
            env=ENV,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    time.sleep(5)  # both wait, more or less, for the same moment
    go.touch()
    said = [p.communicate(timeout=500)[0] for p in builders]
    truth = "".join(
        f"{f.name} {np.asarray(Image.open(f)).sum(dtype='int64')}\n"
        for f in sorted(clean.glob("*.png"))
    )
    assert [p.returncode for p in builders] == [0, 0] and said == [truth, truth]
    assert len(list(tmp_path.glob("cache/*/*"))) == 16
