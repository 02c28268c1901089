"""sginet-derain in two processes, as torchrun starts them: every file once, and a stopped run goes on."""

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from sginet.images import sample_photo

BIN = Path(sys.executable).parent


def two_processes(*args):
    environ = os.environ | dict(
        OMP_NUM_THREADS="1", PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}"
    )
    return subprocess.run(
        [
            BIN / "torchrun",
            "--nproc-per-node",
            "2",
            BIN / "sginet-derain",
            *map(str, args),
        ],
        capture_output=True,
        text=True,
        env=environ,
        timeout=300,
    )


def test_files_are_divided(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(5):
        sample_photo().resize((64 + 8 * i, 48)).save(tmp_path / "in" / f"{i}.png")
    done = two_processes(tmp_path / "in", "--out", tmp_path / "out", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "3 of 3 pictures" in done.stdout and "2 of 2 pictures" in done.stdout
    assert [Image.open(tmp_path / "out" / f"{i}.png").width for i in range(5)] == [
        64 + 8 * i for i in range(5)
    ]

    (tmp_path / "out" / "3.png").unlink()
    kept = {f: f.stat().st_mtime_ns for f in (tmp_path / "out").iterdir()}
    again = two_processes(
        tmp_path / "in", "--out", tmp_path / "out", "--device", "cpu", "--skip-existing"
    )
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "out" / "3.png").exists() and all(
        f.stat().st_mtime_ns == t for f, t in kept.items()
    )
