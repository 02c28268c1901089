"""The networks beside SGINet: their public counts and checkpoints, odd sizes, devices, and a comparison that is interrupted, broken and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from sginet.baselines.base import cost
from sginet.baselines.prenet import load_release
from sginet.evaluate.compare import METHODS, compare, unbroken

# parameters and 10⁹ multiply-adds at 256×256 of the public tables. DetailNet's parameters stand there as 57.73 k: digits changed places, see 15a
PUBLIC = {
    "DetailNet": (57.4e3, 3.79),
    "RESCAN": (150.2e3, 32.5),
    "PReNet": (169.0e3, 66.6),
    "JORDER-E": (4.17e6, None),
    "RCDNet": (2.97e6, 194.5),
    "RLNet": (5.82e6, 68.9),
}
# GFLOP at 512×512 by PyTorch's counter
GFLOP = {
    "DetailNet": 29.44,
    "RESCAN": 257.86,
    "PReNet": 529.99,
    "JORDER-E": 2181.65,
    "RCDNet": 1674.80,
    "RLNet": 547.56,
}
SMALL = {
    "DetailNet": dict(width=4, pairs=2),
    "RESCAN": dict(width=4, looks=2, depth=5),
    "PReNet": dict(width=4, passes=2),
    "JORDER-E": dict(width=4, blocks=1),
    "RCDNet": dict(maps=4, rounds=2, blocks=1),
    "RLNet": dict(c=8, inner=8, fused=4),
}
COMMAND = [
    sys.executable,
    "-W",
    "ignore",
    "-c",
    "import sys; from sginet.evaluate.compare import compare; sys.exit(compare())",
]
SETTINGS = [
    "--crop",
    "32",
    "--batch",
    "1",
    "--pictures",
    "1",
    "--scenes",
    "2",
    "--device",
    "cpu",
    "--threads",
    "1",
]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_counts(name):
    at256, (parameters, gmac) = cost(METHODS[name], 256), PUBLIC[name]
    assert at256.parameters == pytest.approx(
        parameters, abs=5e3 if parameters >= 1e6 else 50
    )  # to the digits that are printed there
    if gmac:
        assert round(at256.macs / 1e9, 2 if gmac < 10 else 1) == gmac
    assert cost(METHODS[name], 512).flop / 1e9 == pytest.approx(GFLOP[name], abs=0.01)


@pytest.mark.parametrize("name", SMALL)
def test_any_size_and_every_device(name):
    torch.manual_seed(0)
    net = METHODS[name](**SMALL[name])
    x = torch.rand(2, 3, 64, 32)
    net.loss(x, x.flip(3)).backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None]
    net.eval()
    with torch.no_grad():
        for h, w in (1, 1), (1, 70), (33, 47):
            y = net(x := torch.rand(2, 3, h, w))
            assert y.shape == x.shape and y.min() >= 0 and y.max() <= 1
            assert torch.allclose(
                net(x[:1]), y[:1], atol=1e-5
            )  # a picture does not depend on its neighbours in the batch
        if torch.cuda.is_available():
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
                False
            )
            assert torch.allclose(net.cuda()(x.cuda()).cpu(), y, atol=1e-4)


def released_prenet():
    """A state dict with the names and shapes of the public release's PReNet."""
    shapes = (
        {"conv0.0": (32, 6), "conv.0": (3, 32)}
        | {f"conv_{g}.0": (32, 64) for g in "ifgo"}
        | {f"res_conv{i}.{j}": (32, 32) for i in range(1, 6) for j in (0, 2)}
    )
    state = {f"{n}.weight": torch.randn(*s, 3, 3) / 20 for n, s in shapes.items()} | {
        f"{n}.bias": torch.randn(s[0]) / 20 for n, s in shapes.items()
    }
    assert sum(v.numel() for v in state.values()) == 168963
    return state


def test_released_prenet_loads(tmp_path):
    torch.save(released_prenet(), tmp_path / "net_latest.pth")
    net = load_release(tmp_path / "net_latest.pth")
    assert not net.training and all(
        torch.equal(net.state_dict()[k], v)
        for k, v in torch.load(tmp_path / "net_latest.pth").items()
    )
    gru = {
        k.replace("conv_i", "conv_z"): v
        for k, v in released_prenet().items()
        if "conv_o" not in k
    }  # of the ablations
    with pytest.raises(ValueError, match="missing"):
        load_release(gru)


def test_interrupted_comparison_goes_on_to_the_same_weights(tmp_path):
    arguments = ["--methods", "DetailNet", "--budget", "60steps", *SETTINGS]
    env = dict(os.environ, OMP_NUM_THREADS="1")
    begun = subprocess.Popen(
        [*COMMAND, "--out", str(tmp_path / "a"), *arguments],
        env=env,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log, end = tmp_path / "a/DetailNet-0/log.txt", time.time() + 240
    while not (log.exists() and "step 20" in log.read_text()):
        assert begun.poll() is None and time.time() < end, begun.communicate()
        time.sleep(0.01)
    os.killpg(begun.pid, signal.SIGINT)  # Ctrl-C
    said = begun.communicate(timeout=240)
    assert (
        begun.returncode == 1
        and "goes on from here" in said[1]
        and "Traceback" not in said[1] + log.read_text()
    ), said
    checkpoint = torch.load(tmp_path / "a/DetailNet-0/checkpoint.pt")
    assert (
        20 <= checkpoint["steps"] < 60
        and not (tmp_path / "a/DetailNet-0/result.json").exists()
    )

    assert compare(["--out", str(tmp_path / "a"), *arguments]) == 0
    assert compare(["--out", str(tmp_path / "b"), *arguments]) == 0
    a, b = (torch.load(tmp_path / f"{k}/DetailNet-0/checkpoint.pt") for k in "ab")
    assert a["losses"] == b["losses"] and len(a["losses"]) == 60
    assert all(torch.equal(v, b["net"][k]) for k, v in a["net"].items())
    assert "goes on after step" in log.read_text() and not list(
        tmp_path.rglob("*.part")
    )


def test_a_stop_waits_for_the_end_of_a_step():
    done = []
    with pytest.raises(KeyboardInterrupt):
        with unbroken():
            signal.raise_signal(signal.SIGINT)
            done.append("the step")
        done.append("what comes after it")
    assert done == ["the step"]


def test_a_method_that_fails_does_not_stop_the_others(tmp_path, capsys):
    arguments = [
        "--out",
        str(tmp_path),
        "--methods",
        "PReNet,DetailNet",
        "--budget",
        "1steps",
        *SETTINGS,
    ]
    (tmp_path / "PReNet-0").mkdir()
    (tmp_path / "PReNet-0/checkpoint.pt").write_bytes(b"half a checkpoint")
    assert compare(arguments) == 1
    assert (
        "PReNet" in capsys.readouterr().err
        and (tmp_path / "DetailNet-0/result.json").exists()
    )
    assert (
        "DetailNet" in (tmp_path / "table.md").read_text()
        and "PReNet" not in (tmp_path / "table.csv").read_text()
    )
    (tmp_path / "PReNet-0/checkpoint.pt").unlink()
    assert compare(arguments) == 0
    assert json.loads((tmp_path / "PReNet-0/result.json").read_text())["steps"] == 1
