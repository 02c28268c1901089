"""Evaluation of odd inputs: files beside results, commas in paths, tiny pictures, odd names."""

import csv
import os

import numpy as np
import pytest
import torch
from PIL import Image

from sginet.cli.eval import evaluation
from sginet.data.labels import DataError
from sginet.evaluate.scores import eval_source, evaluate, folder_method
from sginet.evaluate.tables import read_csv, write_csv
from sginet.models.sginet import SGINet


def make_pairs(root, sizes=((64, 96),) * 3):
    """Stored pairs val/100mm/{rain,norain}/0.png, ... of smooth pictures."""
    for kind in ("rain", "norain"):
        folder = root / "val/100mm" / kind
        folder.mkdir(parents=True)
        for i, (h, w) in enumerate(sizes):
            y, x = np.mgrid[:h, :w]
            pixels = np.stack([2 * x, 3 * y, x + y + 5 * i], 2).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return root / "val/100mm/rain"


def scored(out):
    with open(out / "pictures.csv", newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    return {r["method"]: sum(s["method"] == r["method"] for s in rows) for r in rows}


def run_eval(data, results, out):
    options = ["--data", str(data), "--rate", "100", "--out", str(out)]
    for result in results:
        options += ["--results", result]
    return evaluation([*options, "--device", "cpu", "--panel", "1"])


def test_files_beside_results_are_not_looked_at(tmp_path):
    rain = make_pairs(tmp_path / "data")
    for i in range(3):
        (rain.parent / "norain" / f"{i}.txt").write_text("30.1")
    results = [f"ours={rain.parent / 'norain'}"]
    assert run_eval(tmp_path / "data", results, tmp_path / "out") == 0
    assert scored(tmp_path / "out")["ours"] == 3


def test_two_models_of_one_name(tmp_path):
    """a/model and b/model are two rows, by all of their paths."""
    make_pairs(tmp_path / "data", sizes=((64, 96),))
    folders = [tmp_path / name / "model" for name in "ab"]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        SGINet(4, "small4", "residual").save_pretrained(folder)
    models = [option for folder in folders for option in ("--model", str(folder))]
    options = ["--data", str(tmp_path / "data"), "--rate", "100", "--panel", "1"]
    out = tmp_path / "out"
    assert evaluation([*options, *models, "--out", str(out), "--device", "cpu"]) == 0
    assert {str(folder) for folder in folders} <= set(scored(out))


def test_a_comma_in_the_path(tmp_path):
    rain = make_pairs(tmp_path / "Doe, Jane" / "data")
    names = eval_source(tmp_path / "Doe, Jane" / "data", rate=100)[1]
    assert names == [str(rain / f"{i}.png") for i in range(3)]
    data = tmp_path / "Doe, Jane" / "data"
    assert run_eval(data, [f"ours={rain}"], tmp_path / "out") == 0


def test_a_picture_that_is_too_small_is_reported_and_the_rest_goes_on(tmp_path, capsys):
    rain = make_pairs(tmp_path / "data", ((64, 96), (9, 9), (64, 96)))
    assert run_eval(tmp_path / "data", [f"ours={rain}"], tmp_path / "out") != 0
    said = capsys.readouterr().err
    assert "1.png" in said and "Traceback" not in said
    assert scored(tmp_path / "out") == {"Rain": 2, "ours": 2, "No rain": 2}


def test_no_picture_at_all_is_an_error(tmp_path):
    rain = make_pairs(tmp_path / "data", ((9, 9), (8, 8)))
    source, names = eval_source(tmp_path / "data", rate=100)
    with pytest.raises(DataError, match="no picture could be scored"):
        evaluate({"ours": folder_method(rain, names)}, source, names)


def test_every_row_has_a_name_of_its_own(tmp_path, capsys):
    rain = make_pairs(tmp_path / "data")
    data = tmp_path / "data"
    for results in ([f"a={rain}", f"a={rain}"], [f"Rain={rain}"]):
        assert run_eval(data, results, tmp_path / "out") != 0
        assert not (tmp_path / "out").exists()
    assert "given twice" in capsys.readouterr().err
    source, names = eval_source(data, rate=100)
    with pytest.raises(ValueError, match="always there"):
        evaluate({"No rain": lambda rain, name: rain}, source, names)


def test_results_that_do_not_fit_their_pictures(tmp_path):
    for name in ("a.png", "a.jpg", "B.png", "b.png", "c.png"):
        Image.new("RGB", (16, 12)).save(tmp_path / name)
    rain = torch.zeros(1, 3, 12, 16)
    for name in ("a.png", "a.jpg", "B.png", "b.webp"):
        assert folder_method(tmp_path, [name])(rain, name).shape == rain.shape
    for names, fault in (
        (["a.webp"], "a.jpg and a.png: both fit a.webp"),
        (["d.png"], "no picture for d.png"),
        (["x/c.png", "y/c.png"], "would be used for x/c.png and for y/c.png"),
    ):
        with pytest.raises(DataError, match=fault):
            folder_method(tmp_path, names)
    with pytest.raises(ValueError, match="is 16×12, the rain image 12×16"):
        folder_method(tmp_path, ["c.png"])(rain.mT, "c.png")


def test_names_in_any_encoding(tmp_path):
    rows = [{"picture": os.fsdecode(b"caf\xe9.png")}, {"picture": "Straße.png"}]
    write_csv(rows, tmp_path / "table.csv")
    assert read_csv(tmp_path / "table.csv") == rows
