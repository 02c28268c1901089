"""Weights as a user meets them: names, damaged files, the reference's files, the command.

Every text that shows a number of a shipped model is compared with its card."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sginet.cli.weights import weights
from sginet.data.rain import render
from sginet.images import as_batch
from sginet.metrics import psnr_y
from sginet.models import pretrained
from sginet.models.cards import (
    MODEL_FILES,
    card_text,
    damages,
    read_card,
    score_lines,
    short_rows,
    size,
    weight_terms,
    write_card,
)
from sginet.models.checkpoints import reference_name
from sginet.models.pretrained import REFERENCE, locate, shipped
from sginet.models.sginet import SGINet

ROOT = Path(__file__).resolve().parent.parent
CARD = read_card(shipped()["tiny"])


@pytest.fixture
def copy(tmp_path):
    """A copy of tiny, with its card."""
    return Path(shutil.copytree(shipped()["tiny"], tmp_path / "copy"))


def flip(file, at=-1):
    """Turn over one bit of a file."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def release(sginet, sem):
    """State dicts as the release saves them, of a network of ours."""
    state = {
        reference_name(k): v
        for k, v in sginet.state_dict().items()
        if not k.startswith("sem.")
    }
    return state, {
        "state_dict": {f"module.{k}": v for k, v in sem.state_dict().items()}
    }


@pytest.mark.parametrize("name", MODEL_FILES)
def test_one_turned_bit_is_noticed_and_the_file_named(copy, name):
    SGINet.from_pretrained(copy)
    flip(copy / name)
    with pytest.raises(ValueError, match=re.escape(str(copy / name))):
        SGINet.from_pretrained(copy)


def test_a_file_that_was_cut_off_is_noticed_with_and_without_a_card(copy):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(
        ValueError, match=f"{re.escape(str(file))}: .* bytes instead of"
    ):
        SGINet.from_pretrained(copy)
    (copy / "card.json").unlink()
    with pytest.raises(ValueError, match=f"{re.escape(str(copy))}: .*damaged"):
        SGINet.from_pretrained(copy)


def test_weights_of_another_network_are_refused_not_filled_up(copy):
    """The hub's loader alone would leave what is missing as it was drawn at random."""
    (copy / "card.json").unlink()
    config = json.loads((copy / "config.json").read_text())
    other = config | {"sem": "lraspp_mobilenet_v3_large"}
    (copy / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="another network"):
        SGINet.from_pretrained(copy)


@pytest.mark.parametrize(
    "slip, meant",
    [
        ("tinny", "tiny"),
        ("Tiny", "tiny"),
        ("model_bets.pt", "model_best.pt"),
        ("resnet101", "resnet101_v2.pth"),
    ],
)
def test_a_slip_of_the_finger_gets_an_answer(slip, meant):
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"did you mean {meant}?")
    ) as said:
        SGINet.from_pretrained(slip)
    assert "shipped model (tiny)" in str(said.value)


@pytest.mark.parametrize("name", REFERENCE)
def test_a_missing_file_of_the_reference_is_explained(name, monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "weight_folders", lambda: [tmp_path])
    with pytest.raises(FileNotFoundError) as said:
        SGINet.from_pretrained(name)
    assert (
        name in str(said.value)
        and "authors' drive" in str(said.value)
        and str(ROOT / "weights") in str(said.value)
    )


@pytest.mark.slow
def test_the_references_files_load_by_name_once_they_are_there(monkeypatch, tmp_path):
    with torch.device("meta"):
        shapes = SGINet(sem="pspnet50")
    torch.manual_seed(0)
    net = SGINet(sem="pspnet50")
    for name, state in zip(
        ("model_best.pt", "train_epoch_200_psp101.pth"), release(net, net.sem)
    ):
        torch.save(state, tmp_path / name)
    monkeypatch.setattr(pretrained, "weight_folders", lambda: [tmp_path])
    back = SGINet.from_pretrained("model_best.pt", depth=50)
    assert not back.training and back.state_dict().keys() == shapes.state_dict().keys()
    assert all(
        torch.equal(a, b)
        for a, b in zip(back.state_dict().values(), net.state_dict().values())
    )
    with pytest.raises(ValueError, match="no SGINet"):
        SGINet.from_pretrained("train_epoch_200_psp101.pth")
    (tmp_path / "train_epoch_200_psp101.pth").unlink()
    with pytest.raises(FileNotFoundError, match="a SEM is missing"):
        SGINet.from_pretrained(tmp_path / "model_best.pt")


def test_the_hub_is_asked_last_and_says_so():
    with pytest.raises(
        FileNotFoundError,
        match="nobody/nothing: no such folder, and no such model on the hub",
    ):
        SGINet.from_pretrained("nobody/nothing", local_files_only=True)


def test_the_list_names_everything_and_fails_only_for_damage(capsys, monkeypatch, copy):
    assert weights([]) == 0
    said = capsys.readouterr().out
    for name in ("tiny", *REFERENCE):
        assert re.search(rf"^{re.escape(name)}  ", said, re.M)
    terms = re.escape(weight_terms(CARD))
    line = rf"^tiny +shipped +checksum holds +[\d.]+ MB +{terms}"
    assert re.search(line, said, re.M)
    (copy.parent / "bare").mkdir()
    shutil.copy(copy / "model.safetensors", copy.parent / "bare")
    flip(copy / "model.safetensors")
    monkeypatch.setattr(pretrained, "weight_folders", lambda: [copy.parent])
    assert weights([]) == 1
    out, err = capsys.readouterr()
    assert re.search(r"^copy +own +damaged", out, re.M)
    assert re.search(r"^bare +own +no card", out, re.M)
    assert str(copy / "model.safetensors") in err


def test_one_card(capsys, copy):
    assert weights(["tiny"]) == 0
    assert capsys.readouterr().out == card_text(CARD) + "\n"
    assert weights([str(copy)]) == 0
    flip(copy / "model.safetensors")
    assert weights([str(copy)]) == 1 and "SHA-256" in capsys.readouterr().err
    assert weights(["tinny"]) == 1 and "did you mean tiny?" in capsys.readouterr().err
    if not pretrained.reference_file("model_best.pt"):
        assert (
            weights(["model_best.pt"]) == 1
            and "authors' drive" in capsys.readouterr().err
        )


def test_the_command_says_what_it_cannot_do(capsys, tmp_path):
    for args, said in (
        (["tiny", "--export", "tiny.txt"], ".onnx or .pt2"),
        (["--export", "a.onnx"], "needs the name"),
        (["tinny", "--export", "a.onnx"], "did you mean"),
    ):
        assert weights(args) == 1 and said in capsys.readouterr().err
    (tmp_path / "a.onnx").write_text("mine")
    assert (
        weights(["tiny", "--export", str(tmp_path / "a.onnx")]) == 1
        and "exists" in capsys.readouterr().err
    )
    assert (tmp_path / "a.onnx").read_text() == "mine"


@pytest.mark.slow
def test_without_onnx_the_way_to_get_it_is_told(tmp_path):
    """In a process of its own, from which the packages are hidden."""
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from sginet.cli.weights import weights\n"
        "sys.exit(weights(['tiny', '--export', 'a.onnx']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        },
    )
    assert (
        done.returncode == 1
        and "pip install 'sginet[export]'" in done.stderr
        and not list(tmp_path.iterdir())
    )


def test_every_text_shows_the_cards_numbers():
    """After another `ship` the rows printed by it go into nbs/index.ipynb."""
    readme, cards = (
        (ROOT / f).read_text(encoding="utf-8")
        for f in ("README.md", "weights/README.md")
    )
    for row in short_rows(CARD):
        assert row in readme, f"README.md lacks {row}"
    for line in score_lines(CARD):
        assert line in cards, f"weights/README.md lacks {line}"
    megabytes = size(CARD["files"]["model.safetensors"]["bytes"])
    assert f"{CARD['parameters'] / 1e6:.1f} M parameters, {megabytes}" in cards


def test_the_card_is_of_what_is_shipped():
    folder = shipped()["tiny"]
    assert damages(folder) == [] and folder == ROOT / "weights/tiny"
    model = SGINet.from_pretrained("tiny")
    assert CARD["parameters"] == sum(p.numel() for p in model.parameters())
    state = load_file(folder / "model.safetensors")
    floats = [v for v in state.values() if v.is_floating_point()]
    assert all(v.dtype != torch.float32 for v in floats)  # "in half precision"
    for r in CARD["scores"]["rain"]:
        psnr = {stage: r["psnr"][stage]["mean"] for stage in r["psnr"]}
        gain = psnr["refined"] - psnr["rain"]
        assert r["better"] <= r["pictures"]
        assert abs(gain - r["gain"]["mean"]) < 0.02  # the texts round


@pytest.mark.slow
def test_three_photographs_measure_as_the_card_says(shared):
    """The first three of CamVid's validation set lie in the range of the card's."""
    rows = [
        r for r in CARD["scores"]["rain"] if (r["set"], r["rate"]) == ("camvid", 100)
    ]
    [said], model, gains = rows, SGINet.from_pretrained("tiny"), []
    files = sorted((shared / "camvid/val/images").iterdir())[:3]
    for seed, file in enumerate(files):
        clean, _ = as_batch(file)
        rain = render(clean, 100, seed=seed).rainy
        gains.append((psnr_y(model.derain(rain), clean) - psnr_y(rain, clean)).item())
    assert min(gains) >= said["gain"]["least"] - 0.01
    assert abs(sum(gains) / 3 - said["gain"]["mean"]) < 2


def with_crlf(file):
    """The line ends that Git for Windows writes."""
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))


def test_line_ends_of_a_windows_clone_damage_nothing(copy):
    want = SGINet.from_pretrained(copy).configuration()
    for name in ("config.json", "card.json"):
        with_crlf(copy / name)
    assert damages(copy) == []
    assert SGINet.from_pretrained(copy).configuration() == want
    assert write_card(copy)["files"]["config.json"] == CARD["files"]["config.json"]
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace("8", "9", 1))
    assert len(damages(copy)) == 1


@pytest.fixture
def run(copy):
    """A training's folder with its model, as sginet-train leaves it."""
    folder = copy.parent / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text('{"settings": {}}')
    torch.save({"model": {"a": torch.zeros(1)}}, folder / "checkpoints/epoch_0000.pt")
    shutil.copytree(copy, folder / "model")
    return folder


def test_a_training_is_its_model(run):
    assert locate(run) == locate(f"{run}/") == ("folder", run / "model")
    assert SGINet.from_pretrained(run).configuration()["width"]
    flip(run / "model/model.safetensors")
    with pytest.raises(ValueError, match="SHA-256"):
        SGINet.from_pretrained(run)
    shutil.rmtree(run / "model")
    with pytest.raises(FileNotFoundError, match="without a saved model yet"):
        SGINet.from_pretrained(run)


@pytest.mark.parametrize(
    "name, said",
    [
        ("checkpoints/epoch_0000.pt", "is a checkpoint of a training"),
        ("model/model.safetensors", "is a file of a saved model; give its folder"),
        ("model/config.json", "is a file of a saved model; give its folder"),
        ("net.onnx", "is an exported graph"),
        ("net.pt2", "is an exported graph"),
        ("lone.safetensors", "weights alone"),
        ("x.png", "is a file; a saved model is a folder"),
        ("own.pt", "does not fit"),
    ],
)
def test_each_wrong_kind_of_file_is_told_from_the_others(name, said, run):
    file = run / name
    if name == "own.pt":
        torch.save({"a": torch.zeros(1)}, file)
        torch.save({"a": torch.zeros(1)}, run / "pspnet_best.pt")
    file.touch()
    with pytest.raises(ValueError, match=said) as fault:
        SGINet.from_pretrained(file)
    assert str(file) in str(fault.value) and "\n" not in str(fault.value)


def test_the_terms_of_weights_differ_from_the_codes_licence(copy):
    card = write_card(copy, terms="research and teaching")
    assert weight_terms(card) == "research and teaching"
    text = card_text(card)
    assert "terms of the weights**: research and teaching" in text
    assert "licence of the code**: Apache-2.0" in text


def test_a_slash_after_a_name_changes_nothing():
    assert locate("tiny/") == locate("tiny")
