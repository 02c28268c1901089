"""Training as a whole: killed, out of disk, stopped, resumed, by each recipe; evaluation."""

import csv
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from sginet.cli.eval import evaluation
from sginet.cli.train import train as train_command
from sginet.data.labels import CAMVID
from sginet.data.scenes import draw_scene
from sginet.images import save_image
from sginet.models.sginet import SGINet

pytestmark = pytest.mark.slow
COMMAND = "import sys; from sginet.cli.train import train; sys.exit(train())"
# the command, in a process to which something happens at an exact moment of its training
AT_A_MOMENT = """
import os, signal, sys
from fastai.callback.core import Callback
from fastai.learner import defaults

class Event(Callback):
    order = 95  # after the run's folder

    def happens(self):
        {event}

    def {when}(self):
        if {condition}:
            self.happens()

defaults.callbacks.append(Event)
from sginet.cli.train import train
sys.exit(train())
"""
IN_SECOND_EPOCH = "self.training and self.epoch == 1 and self.iter == 2"


def at_a_moment(event, when="after_batch", condition=IN_SECOND_EPOCH):
    """The command that runs `AT_A_MOMENT` with these."""
    code = AT_A_MOMENT.format(event=event, when=when, condition=condition)
    return sys.executable, "-c", code


SMALL = [
    "--width",
    "4",
    "--sem",
    "small",
    "--sem-weights",
    "untrained",
    "--crop",
    "64",
    "--batch",
    "2",
    "--vgg-width",
    "8",
    "--lr",
    "4e-3",
    "--csd-from",
    "2",
    "--panels",
    "1",
    "--device",
    "cpu",
]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten small streets to train on, three to validate on, with CamVid's twelve classes."""
    root, known = (
        tmp_path_factory.mktemp("data"),
        {train_id: number for number, train_id in enumerate(CAMVID)},
    )
    for split, numbers in (("train", range(10)), ("val", range(100, 103))):
        for i in numbers:
            scene = draw_scene(i, 72, 104)
            save_image(scene.image, root / split / "images" / f"street{i}.png")
            (root / split / "labels").mkdir(exist_ok=True)
            Image.fromarray(
                np.vectorize(lambda c: known.get(c, 11))(
                    scene.classes[0].numpy()
                ).astype(np.uint8)
            ).save(root / split / "labels" / f"street{i}.png")
    return root


def start(*args, launcher=()):
    """A training in a process group of its own."""
    return subprocess.Popen(
        [*(launcher or (sys.executable, "-c", COMMAND)), *map(str, args)],
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process, code=0):
    """Both its streams, when it has ended with this exit code."""
    out, err = process.communicate(timeout=400)
    assert process.returncode == code, (
        f"exit code {process.returncode}\n{out[-3000:]}\n{err[-3000:]}"
    )
    return out, err


def history(run):
    """The rows of history.csv, but for the seconds."""
    with open(run / "history.csv", encoding="utf-8") as f:
        return [row[:-1] for row in csv.reader(f)]


def train(*args):
    """The command, in this process; its exit code."""
    return train_command([*map(str, args)])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the processes that are killed: the number of threads is in the last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def settings(data):
    return ["--data", data, "--rate", "both", "--epochs", 3, *SMALL]


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """A run that nobody disturbed."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert train("--out", run, *settings) == 0
    return run


def test_a_run_leaves_everything(whole):
    assert sorted(f.name for f in whole.iterdir()) == [
        "checkpoints",
        "config.json",
        "curves.png",
        "history.csv",
        "log.txt",
        "model",
        "panels",
        "start",
    ]
    assert [f.name for f in sorted((whole / "checkpoints").iterdir())] == [
        "epoch_0001.pt",
        "epoch_0002.pt",
    ]
    assert len(list((whole / "panels").iterdir())) == 3 and not list(whole.rglob(".*"))
    rows = history(whole)
    assert len(rows) == 4 and {
        "l_ssim",
        "l_perceptual",
        "l_csd",
        "l_residual",
        "l_total",
        "psnr",
        "miou_rain",
        "miou_clean",
    } <= set(rows[0])
    card = (whole / "model" / "README.md").read_text()
    best = max(float(r[rows[0].index("psnr")]) for r in rows[1:])
    assert (
        "The perceptual loss used a fixed random VGG16" in card
        and f"psnr {best:.4g}" in card
    )
    assert not SGINet.from_pretrained(whole / "model").training
    config = (whole / "config.json").read_text()
    for fact in ('"seed": 0', '"torch"', '"commit"', '"command"'):
        assert fact in config


def test_killed_in_the_middle_of_an_epoch_and_resumed(whole, settings, tmp_path):
    run = tmp_path / "killed"
    kill = at_a_moment("os.kill(os.getpid(), signal.SIGKILL)")
    # with workers, where the undisturbed run read by itself
    process = start("--out", run, *settings, "--workers", 2, launcher=kill)
    finish(process, -signal.SIGKILL)
    assert [f.name for f in (run / "checkpoints").iterdir()] == ["epoch_0000.pt"]
    assert train("--resume", run) == 0
    log = (run / "log.txt").read_text()
    assert "a fixed random VGG16 (width 8, seed 0)" in log
    assert log.count("goes on: 1 of 3 epochs done") == 1
    assert history(run) == history(whole)  # all digits
    states = (SGINet.from_pretrained(r / "model").state_dict() for r in (run, whole))
    assert all(map(torch.equal, *(state.values() for state in states)))


def test_a_full_disk_leaves_the_last_good_checkpoint(whole, settings, tmp_path):
    pytest.importorskip("resource")
    run = tmp_path / "full"
    limit = (
        "import resource; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY)); "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
    )
    full = at_a_moment(limit)  # from then on nothing larger can be written
    _, err = finish(start("--out", run, *settings, launcher=full), 1)
    assert "could not be written" in err
    assert "what was written before is complete" in err
    assert f"sginet-train --resume {run}" in err
    assert not list(run.rglob(".*"))
    for file in (run / "checkpoints").iterdir():
        torch.load(file, weights_only=True)
    SGINet.from_pretrained(run / "model")
    assert train("--resume", run) == 0
    assert history(run) == history(whole)


def test_ctrl_c_says_how_to_go_on(settings, tmp_path):
    run = tmp_path / "stopped"
    press = at_a_moment("os.kill(os.getpid(), signal.SIGINT)")
    _, err = finish(start("--out", run, *settings, launcher=press), 130)
    assert "stopped by Ctrl-C" in err
    assert "in epoch 1; 1 of 3 epochs are finished and saved" in err
    assert f"sginet-train --resume {run}" in err and "Traceback" not in err
    assert not list(run.rglob(".*"))


def test_relative_paths_are_resumed_from_another_folder(data, tmp_path, monkeypatch):
    monkeypatch.chdir(data.parent)
    run = tmp_path / "run"
    settings = ["--data", data.name, *SMALL, "--epochs", 2]
    stop = at_a_moment("os._exit(3)")
    finish(start("--out", run, *settings, launcher=stop), 3)
    monkeypatch.chdir("/")
    assert train("--resume", run) == 0
    assert len(history(run)) == 3


@pytest.mark.parametrize("rank, size", [("0", "4"), ("2", "4"), ("", "")])
def test_a_jobs_rank_leaves_no_work_undone(data, tmp_path, monkeypatch, rank, size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    run = tmp_path / "run"
    assert train("--out", run, "--data", data, *SMALL, "--epochs", 1) == 0
    assert "1 process(es)" in (run / "log.txt").read_text()
    assert (run / "model" / "config.json").exists() and len(history(run)) == 2
    assert os.environ["RANK"] == rank


SPAWNING = """
import multiprocessing, sys
from sginet.cli.train import train

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv.pop(1))
    sys.exit(train())
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_however_processes_start(method, tmp_path):
    (tmp_path / "main.py").write_text(SPAWNING)
    launcher = sys.executable, tmp_path / "main.py", method
    options = ["--scenes", 4, *SMALL, "--epochs", 1, "--workers", 2]
    finish(start("--out", tmp_path / "run", *options, launcher=launcher))
    assert len(history(tmp_path / "run")) == 2


def test_the_lowest_loss_is_the_best(data, tmp_path):
    run = tmp_path / "run"
    options = ["--data", data, *SMALL, "--epochs", 3, "--best", "valid_loss"]
    assert train("--out", run, *options) == 0
    rows = history(run)
    losses = [float(r[rows[0].index("valid_loss")]) for r in rows[1:]]
    assert min(losses) < max(losses)
    best = losses.index(min(losses))
    assert f"of epoch {best} with valid_loss" in (run / "log.txt").read_text()


def test_weights_that_are_not_finite_are_said(tmp_path, capsys):
    run = tmp_path / "run"
    options = [o if o != "4e-3" else "1e30" for o in SMALL]
    assert train("--out", run, "--scenes", 4, "--epochs", 2, *options) == 1
    err = capsys.readouterr().err
    assert "are not finite any more; a lower learning rate" in err
    assert "Traceback" not in err and "Exception occured" not in err
    assert not list((run / "checkpoints").iterdir())


def test_batches_that_explode_are_named_and_end_the_training(
    data, settings, tmp_path, capsys
):
    assert (
        train("--out", tmp_path / "run", *settings, "--skip", "1e-12", "--epochs", 9)
        == 1
    )
    said = capsys.readouterr()
    assert (
        "epoch 1, batch 0: the loss is" in said.out
        and str(data / "train" / "images") in said.out
    )
    assert (
        "20 batches in a row were skipped" in said.err
        and "Exception occured" not in said.err
    )


def test_the_reference_recipe(data, tmp_path):
    run = tmp_path / "reference"
    assert (
        train(
            "--out",
            run,
            "--recipe",
            "reference",
            "--data",
            data,
            *SMALL,
            "--epochs",
            1,
            "--csd-from",
            0,
            "--data-range",
            "2-5/1-2",
            "--weights",
            "1*SSIM+1*PER+1*SEG+0.01*MSE",
        )
        == 0
    )
    rows = history(run)
    state = torch.load(run / "checkpoints" / "epoch_0000.pt", weights_only=True)
    assert "psnr_release" in rows[0] and state["callbacks"]["run_folder"][
        "best"
    ] == float(rows[1][rows[0].index("psnr_release")])
    for group in state["optimiser"]["param_groups"]:  # FRM, SIM
        constants = [group[k] for k in ("lr", "betas", "eps", "weight_decay")]
        assert constants == [4e-3, (0.9, 0.999), 1e-8, 0]
    assert state["train_iter"] == 2
    assert '"output": "absolute"' in (run / "model" / "config.json").read_text()


def test_accumulated_and_low_precision(data, tmp_path):
    from sginet.train.learner import cpu_has_bfloat16

    options = ["--data", data, *SMALL, "--epochs", 2, "--accumulate", 2] + (
        ["--precision", "bfloat16"] if cpu_has_bfloat16() else []
    )
    assert train("--out", tmp_path / "run", *options) == 0
    state = torch.load(
        tmp_path / "run" / "checkpoints" / "epoch_0001.pt", weights_only=True
    )
    assert (
        state["train_iter"] == 10 and state["optimiser"]["state"][0]["step"] == 4
    )  # five batches are two steps an epoch, none over its end


def test_any_segmentation_network_of_torchvision_judges(data, tmp_path):
    run = tmp_path / "run"
    options = [o if o != "small" else "lraspp_mobilenet_v3_large" for o in SMALL]
    assert (
        train("--out", run, "--data", data, "--epochs", 1, *options, "--sem-learns")
        == 0
    )
    before, after = (
        SGINet.from_pretrained(run / f).sem.state_dict() for f in ("start", "model")
    )
    moved = [k for k in before if not torch.equal(before[k], after[k])]
    assert moved and not [
        k for k in moved if "running" in k or "num_batches" in k
    ]  # weights learn, statistics stay


def test_vgg_that_cannot_be_fetched_is_random_and_said(tmp_path):
    code = (
        "from sginet.losses.sginet_loss import vgg16_features; "
        "print(vgg16_features(download=True).source)"
    )
    env = {
        **ENV,
        "TORCH_HOME": str(tmp_path),
        **{k: "http://127.0.0.1:9" for k in ("HTTPS_PROXY", "https_proxy")},
        "NO_PROXY": "",
        "no_proxy": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True
    )
    assert (
        "downloading VGG16, 528 MB" in done.stdout
        and "a fixed random VGG16 (width 64, seed 0)" in done.stdout
        and "could not be downloaded" in done.stderr
    )


def test_evaluation_of_stored_pairs_and_of_other_programs(data, tmp_path):
    """At both rates: stored rain, a model, and the pictures of another program."""
    from sginet.data.rain import render
    from sginet.images import as_batch

    for rate in (100, 200):
        for i, clean in enumerate(sorted((data / "val" / "images").iterdir())):
            x = as_batch(clean)[0]
            rain = render(x, rate, i).rainy
            for kind, image in (("rain", rain), ("norain", x)):
                save_image(
                    image, tmp_path / "pairs" / "val" / f"{rate}mm" / kind / clean.name
                )
            save_image((x + rain) / 2, tmp_path / "other" / f"{rate}mm" / clean.name)
    out = tmp_path / "eval"
    assert (
        evaluation(
            [
                *map(
                    str,
                    [
                        "--model",
                        "tiny",
                        "--results",
                        f"half={tmp_path}/other/{{rate}}",
                        "--data",
                        tmp_path / "pairs",
                        "--out",
                        out,
                        "--device",
                        "cpu",
                    ],
                )
            ]
        )
        == 0
    )
    with open(out / "table.csv", encoding="utf-8") as f:
        rows = [r for r in csv.DictReader(f) if r["source"] == "measured"]
    assert [(r["condition"], r["method"]) for r in rows] == [
        (c, m)
        for c in ("100 mm/h", "200 mm/h")
        for m in ("Rain", "tiny", "half", "No rain")
    ]
    for r in rows:
        assert r["method"] == "No rain" or float(r["psnr_low"]) <= float(
            r["psnr"]
        ) <= float(r["psnr_high"])
    for c in (0, 4):
        assert float(rows[c + 2]["psnr"]) == pytest.approx(
            float(rows[c]["psnr"]) + 6.02, abs=0.15
        )  # half the error
    text = (out / "table.md").read_text()
    assert (
        text.count("## Measured") == 2
        and text.count("## Published") == 2
        and "mIoU" not in text.split("## Published")[0]
    )  # no labels here
    (tmp_path / "other" / "100mm" / "street101.png").write_bytes(b"no picture")
    assert (
        evaluation(
            [
                *map(
                    str,
                    [
                        "--results",
                        f"half={tmp_path}/other/{{rate}}",
                        "--data",
                        tmp_path / "pairs",
                        "--rate",
                        100,
                        "--out",
                        tmp_path / "again",
                        "--device",
                        "cpu",
                    ],
                )
            ]
        )
        == 1
    )
    assert (
        "2 pictures" in (tmp_path / "again" / "table.md").read_text()
    )  # the broken one is left out of all rows
