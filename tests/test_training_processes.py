"""Training in two processes on the CPU (gloo), as torchrun starts them."""

import os
import signal
import subprocess
import sys

import psutil  # comes with accelerate
import pytest
import torch
from test_training import SMALL, finish, history, start, wait_for

from sginet.data.scenes import draw
from sginet.images import save_image

TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
]
LEARNER = """
import sys, warnings; warnings.simplefilter("ignore")
import torch
from fastai.callback.core import Callback
from sginet.data.datasets import rain_dls
from sginet.train.learner import sginet_learner
from sginet.losses.sginet_loss import vgg16_features
from sginet.models.sginet import SGINet
from sginet.train.recipes import optimiser, processes, recipe

def one_step(data, batch):
    "The Learner after a step on the first batch, and the gradients it used."
    torch.manual_seed(0)
    net = SGINet(4, "small", "scaled", "half")
    for p in (net.frm.d4.weight, net.sim.last.weight): torch.nn.init.normal_(p, std=.05)  # so that coarse is not rain, where CSD is steep
    dls = rain_dls(data, "both", 64, batch, device="cpu")
    for dl in dls: dl.rng.seed(0)
    grads = {}
    class Keep(Callback):
        order = 100
        def before_step(self): grads.update({n: p.grad.clone() for n, p in self.learn.network.named_parameters() if p.requires_grad})
    learn = sginet_learner(dls, net, vgg16_features(width=8), csd_from=0, clip=None, opt_func=optimiser(recipe()), cbs=Keep())
    with processes(learn), learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    return learn, grads
"""
IN_EACH = (
    LEARNER
    + """
from fastai.torch_core import num_distrib, rank_distrib
from torch import distributed
from sginet.data.datasets import RainTransform
data, out = sys.argv[1:]
learn, grads = one_step(data, 2)
assert num_distrib() == 2 == distributed.get_world_size() and distributed.get_backend() == "gloo"
state = {k: v.clone() for k, v in learn.model.state_dict().items()}
torch.manual_seed(0)
rain = RainTransform()((torch.full((1, 3, 64, 96), .3),))[0]
torch.save(dict(rain=rain, grads=grads, state=state, values=list(map(float, learn.recorder.values[0][:5]))), f"{out}/rank{rank_distrib()}.pt")
distributed.destroy_process_group()
"""
)
# as the command, in a process that reports what it writes
AUDITED = """
import os, sys
folder = sys.argv[sys.argv.index("--out" if "--out" in sys.argv else "--resume") + 1]
def hook(event, args):
    if event == "open" and isinstance(args[0], str) and args[0].startswith(folder) and isinstance(args[1], str) and set(args[1]) & set("wax+"): print("RANK", os.environ["RANK"], "WRITES", flush=True)
sys.addaudithook(hook)
from sginet.cli.train import train
sys.exit(train())
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four pictures to train on, and three, an odd number, to validate on."""
    root = tmp_path_factory.mktemp("data")
    for split, numbers in (("train", range(4)), ("val", range(100, 103))):
        for i in numbers:
            save_image(draw(i, 72, 104).image, root / split / f"street{i}.png")
    return root


def test_two_processes_are_one_with_the_double_batch(data, tmp_path):
    (tmp_path / "each.py").write_text(IN_EACH)
    done = subprocess.run(
        [*TORCHRUN, tmp_path / "each.py", data, tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (
        torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1)
    )
    assert all(
        torch.equal(v, second["state"][k]) for k, v in first["state"].items()
    )  # parameters, bit for bit
    assert all(torch.equal(v, second["grads"][k]) for k, v in first["grads"].items())
    assert not torch.equal(
        first["rain"], second["rain"]
    )  # made on the batch: another rain in each process, though their seed is one
    assert (
        first["values"][1:] == second["values"][1:]
    )  # metrics are those of all pictures, on both
    space = {}
    exec(LEARNER, space)
    learn, grads = space["one_step"](data, 4)
    errors = {
        k: ((g - first["grads"][k]).norm() / g.norm()).item()
        for k, g in grads.items()
        if g.norm() > 1e-3
    }
    print(
        f"{len(errors)} gradients, worst relative difference {max(errors.values()):.2g} ({max(errors, key=errors.get)})"
    )
    assert len(errors) > 100 and max(errors.values()) < 1e-3
    psnrs = [v for v in (learn.recorder.values[0][2], first["values"][2])]
    print(
        "PSNR of validation after the step: one process {:.6f}, two {:.6f}".format(
            *psnrs
        )
    )
    assert (
        abs(psnrs[0] - psnrs[1]) < 1e-3
    )  # three pictures over two processes, each counted once


def test_two_processes_write_once_and_resume(data, tmp_path):
    (tmp_path / "train.py").write_text(AUDITED)
    launcher, settings = (
        [*TORCHRUN, str(tmp_path / "train.py")],
        ["--data", data, "--rate", "both", "--epochs", 3, *SMALL],
    )
    out, _ = finish(start("--out", tmp_path / "whole", *settings, launcher=launcher))
    assert (
        "RANK 0 WRITES" in out
        and "RANK 1 WRITES" not in out
        and out.count("begins: 0 of 3 epochs done, on cpu, 2 process(es)") == 1
    )
    process = start("--out", tmp_path / "killed", *settings, launcher=launcher)
    wait_for(tmp_path / "killed" / "checkpoints" / "epoch_0000.pt", process)
    for p in [*psutil.Process(process.pid).children(recursive=True), process]:
        p.send_signal(signal.SIGKILL)
    process.communicate()
    out, _ = finish(start("--resume", tmp_path / "killed", launcher=launcher))
    assert "RANK 1 WRITES" not in out
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
