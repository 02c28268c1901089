"""Weights as a user meets them: names, damaged files, the reference's files, the command; and every text that shows a number of theirs."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sginet.cli.weights import weights
from sginet.models import pretrained as registry
from sginet.models.sginet import SGINet, reference_name

ROOT = Path(__file__).resolve().parent.parent
CARD = registry.read_card(registry.shipped()["tiny"])


@pytest.fixture
def copy(tmp_path):
    """A copy of tiny, with its card."""
    return Path(shutil.copytree(registry.shipped()["tiny"], tmp_path / "copy"))


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


@pytest.mark.parametrize("name", registry.FILES)
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
    (copy / "config.json").write_text(
        json.dumps(config | {"sem": "lraspp_mobilenet_v3_large"})
    )
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


@pytest.mark.parametrize("name", registry.REFERENCE)
def test_a_missing_file_of_the_reference_is_explained(name, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "weight_folders", lambda: [tmp_path])
    with pytest.raises(FileNotFoundError) as said:
        SGINet.from_pretrained(name)
    assert (
        name in str(said.value)
        and "authors' drive" in str(said.value)
        and str(ROOT / "weights") in str(said.value)
    )


def test_the_references_files_load_by_name_once_they_are_there(monkeypatch, tmp_path):
    with torch.device("meta"):
        shapes = SGINet(sem="pspnet50")
    torch.manual_seed(0)
    net = SGINet(sem="pspnet50")
    for name, state in zip(
        ("model_best.pt", "train_epoch_200_psp101.pth"), release(net, net.sem)
    ):
        torch.save(state, tmp_path / name)
    monkeypatch.setattr(registry, "weight_folders", lambda: [tmp_path])
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
    assert all(
        re.search(rf"^{re.escape(n)}  ", said, re.M)
        for n in ("tiny", *registry.REFERENCE)
    )
    assert re.search(
        r"^tiny +shipped +checksum holds +[\d.]+ MB +Apache-2.0", said, re.M
    )
    (
        (copy.parent / "bare").mkdir(),
        shutil.copy(copy / "model.safetensors", copy.parent / "bare"),
    )
    flip(copy / "model.safetensors")
    monkeypatch.setattr(registry, "weight_folders", lambda: [copy.parent])
    assert weights([]) == 1
    out, err = capsys.readouterr()
    assert (
        re.search(r"^copy +own +damaged", out, re.M)
        and re.search(r"^bare +own +no card", out, re.M)
        and str(copy / "model.safetensors") in err
    )


def test_one_card(capsys, copy):
    assert weights(["tiny"]) == 0
    assert capsys.readouterr().out == registry.card_text(CARD) + "\n"
    assert weights([str(copy)]) == 0
    flip(copy / "model.safetensors")
    assert weights([str(copy)]) == 1 and "SHA-256" in capsys.readouterr().err
    assert weights(["tinny"]) == 1 and "did you mean tiny?" in capsys.readouterr().err
    if not registry.reference_file("model_best.pt"):
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


def test_without_onnx_the_way_to_get_it_is_told(tmp_path):
    """In a process of its own, from which the packages are hidden."""
    code = "import sys; sys.modules['onnxruntime'] = None\nfrom sginet.cli.commands import weights; sys.exit(weights(['tiny', '--export', 'a.onnx']))"
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
    for row in registry.short_rows(CARD):
        assert row in readme, f"README.md lacks {row}"
    for line in registry.score_lines(CARD):
        assert line in cards, f"weights/README.md lacks {line}"
    assert (
        f"{CARD['parameters'] / 1e6:.1f} M parameters, {registry.size(CARD['files']['model.safetensors']['bytes'])}"
        in cards
    )


def test_the_card_is_of_what_is_shipped():
    folder, script = (
        registry.shipped()["tiny"],
        runpy.run_path(str(ROOT / "weights/train_tiny.py")),
    )
    assert (
        registry.damages(folder) == []
        and folder == ROOT / "weights/tiny" == script["SHIPPED"]
    )
    assert CARD["parameters"] == sum(
        p.numel() for p in SGINet.from_pretrained("tiny").parameters()
    )
    assert all(
        v.dtype != torch.float32
        for v in load_file(folder / "model.safetensors").values()
        if v.is_floating_point()
    )  # "weights in half precision"
    for r in CARD["scores"]["rates"]:
        assert (
            r["better"] <= r["pictures"]
            and abs(
                r["psnr"]["refined"]["mean"]
                - r["psnr"]["rain"]["mean"]
                - r["gain"]["mean"]
            )
            < 0.02
        )  # the texts round


def test_the_cards_first_pictures_measure_as_the_script_says(shared, tmp_path):
    """Three photographs scored anew by the script's own functions lie in the range of the card's; and a folder of three is written into no text."""
    script = runpy.run_path(str(ROOT / "weights/train_tiny.py"))
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
        for f in sorted((shared / "camvid/val" / part).iterdir())[:3]:
            shutil.copy(f, tmp_path / part)
    got, said = (
        script["at_rate"](SGINet.from_pretrained("tiny"), tmp_path, 100),
        CARD["scores"]["rates"][0],
    )
    assert (
        got["pictures"] == 3
        and said["rate"] == 100
        and got["gain"]["least"] >= said["gain"]["least"] - 1e-3
    )
    assert abs(got["psnr"]["refined"]["mean"] - said["psnr"]["refined"]["mean"]) < 1.5
