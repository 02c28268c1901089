"""sginet-derain: bad pictures among good ones, colliding names, runs as models, two processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sginet.cli.derain import derain
from sginet.cli.weights import weights
from sginet.images import sample_photo
from sginet.models.pretrained import shipped

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


@pytest.mark.slow
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
    assert (tmp_path / "out" / "3.png").exists()
    assert all(f.stat().st_mtime_ns == t for f, t in kept.items())


@pytest.fixture
def odd(tmp_path):
    """Good pictures, and one of each kind that a decoder fails on or that holds several."""
    folder = tmp_path / "in"
    folder.mkdir()
    frames = [Image.new("RGB", (64, 48), (60 * i, 90, 120)) for i in range(3)]
    for name in ("a.png", "m.jpg", "z.png"):
        frames[0].save(folder / name)
    for name in ("pages.tif", "moving.webp", "moving.png", "turning.gif"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    whole = (folder / "m.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "vector.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    )
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(90))
    frames[0].save(folder / "exif.jpg", exif=exif)
    return folder


def test_a_bad_picture_is_one_line_and_the_others_are_made(odd, tmp_path, capsys):
    assert derain([str(odd), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.splitlines()
    made = {f.name for f in (tmp_path / "out").iterdir()}
    assert {"a.png", "m.jpg", "z.png"} <= made
    for name in ("cut.jpg", "empty.png", "vector.png"):
        assert [line for line in error if name in line] and name not in made
    for name in ("pages.tif", "moving.webp", "moving.png", "turning.gif"):
        assert [line for line in error if name in line and "frames" in line]
    assert len(made) + len(error) == len(list(odd.iterdir()))
    assert all(line.startswith("error: ") for line in error)


def test_results_that_would_be_one_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    names = ("x.png", "x.gif", "A.png", "a.png")
    for i, name in enumerate(names):
        Image.new("RGB", (64, 48), (9 * i, 90, 9)).save(tmp_path / "in" / name)
    there = len(list((tmp_path / "in").iterdir()))
    assert derain([str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 1
    assert len(list((tmp_path / "out").iterdir())) == there - 1  # x.gif would be x.png
    assert len(capsys.readouterr().err.splitlines()) == 1
    monkeypatch.setattr("sginet.cli.derain.prepare_folder", lambda folder: True)
    args = [str(tmp_path / "in" / n) for n in ("A.png", "a.png")]
    assert derain([*args, "--out", str(tmp_path / "new")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_is_a_model(tmp_path, capsys):
    """--model RUN finds RUN/model; each wrong kind of place is named as what it is."""
    picture = tmp_path / "x.png"
    Image.new("RGB", (64, 48)).save(picture)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    command = [str(picture), "--out", str(tmp_path / "out"), "--overwrite", "--model"]
    assert derain([*command, str(run)]) == 1
    assert "without a saved model" in capsys.readouterr().err
    (run / "checkpoints" / "epoch_0000.pt").write_bytes(b"x")
    assert derain([*command, str(run / "checkpoints" / "epoch_0000.pt")]) == 1
    shutil.copytree(shipped()["tiny"], run / "model")
    assert derain([*command, str(run)]) == 0
    assert derain([*command, "tiny/"]) == 0
    assert weights([str(run)]) == 0
