"""Training in two processes on the CPU (gloo), as torchrun starts them."""

import os
import subprocess
import sys

import pytest
import torch
from test_training import SMALL, finish, history, start

from sginet.data.scenes import draw_scene
from sginet.images import save_image

pytestmark = pytest.mark.slow
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
]
LEARNER = """
import sys, warnings

warnings.simplefilter("ignore")
import torch
from fastai.callback.core import Callback
from sginet.data.loaders import rain_dls
from sginet.losses.sginet_loss import vgg16_features
from sginet.models.sginet import SGINet
from sginet.train.learner import sginet_learner
from sginet.train.processes import distributed_training
from sginet.train.recipes import optimiser, recipe


class KeepGradients(Callback):
    order = 100

    def __init__(self):
        self.kept = {}

    def before_step(self):
        for name, p in self.learn.network.named_parameters():
            if p.requires_grad:
                self.kept[name] = p.grad.clone()


def one_step(data, batch):
    "The Learner after a step on the first batch, and the gradients it used."
    torch.manual_seed(0)
    net = SGINet(4, "small", "scaled", "half")
    # so that coarse is not rain, where CSD is steep
    for p in (net.frm.d4.weight, net.sim.last.weight):
        torch.nn.init.normal_(p, std=0.05)
    dls = rain_dls(data, "both", 64, batch, device="cpu")
    for dl in dls:
        dl.rng.seed(0)
    keep, vgg = KeepGradients(), vgg16_features(width=8)
    learn = sginet_learner(
        dls, net, vgg, csd_from=0, clip=None, opt_func=optimiser(recipe()), cbs=keep
    )
    with distributed_training(learn), learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    return learn, keep.kept
"""
IN_EACH = (
    LEARNER
    + """
from fastai.torch_core import num_distrib, rank_distrib
from torch import distributed
from sginet.data.weather import RainTransform

data, out = sys.argv[1:]
learn, grads = one_step(data, 2)
assert num_distrib() == 2 == distributed.get_world_size()
assert distributed.get_backend() == "gloo"
state = {k: v.clone() for k, v in learn.model.state_dict().items()}
torch.manual_seed(0)
rain = RainTransform()((torch.full((1, 3, 64, 96), 0.3),))[0]
values = list(map(float, learn.recorder.values[0][:5]))
found = dict(rain=rain, grads=grads, state=state, values=values)
torch.save(found, f"{out}/rank{rank_distrib()}.pt")
distributed.destroy_process_group()
"""
)
# as the command, in a process that reports what it writes
AUDITED = """
import os, sys

arguments = sys.argv
folder = arguments[arguments.index("--out" if "--out" in arguments else "--resume") + 1]


def hook(event, args):
    if event != "open" or not isinstance(args[0], str) or not args[0].startswith(folder):
        return
    if isinstance(args[1], str) and set(args[1]) & set("wax+"):
        print("RANK", os.environ["RANK"], "WRITES", flush=True)


sys.addaudithook(hook)
from sginet.cli.train import train

sys.exit(train())
"""
KILLED = """
import os, signal
from fastai.callback.core import Callback
from fastai.learner import defaults

class Kill(Callback):
    def after_batch(self):
        if self.training and self.epoch == 1 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

defaults.callbacks.append(Kill)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four pictures to train on, and three, an odd number, to validate on."""
    root = tmp_path_factory.mktemp("data")
    for split, numbers in (("train", range(4)), ("val", range(100, 103))):
        for i in numbers:
            save_image(draw_scene(i, 72, 104).image, root / split / f"street{i}.png")
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
    assert len(errors) > 100 and max(errors.values()) < 1e-3
    psnrs = [v for v in (learn.recorder.values[0][2], first["values"][2])]
    # three pictures over two processes, each counted once, in the loss as in the metrics
    assert abs(psnrs[0] - psnrs[1]) < 1e-3
    losses = learn.recorder.values[0][1], first["values"][1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


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
    # process 1 is killed in the second epoch; torchrun then ends the other one
    (tmp_path / "killed.py").write_text(KILLED + AUDITED)
    killed = [*TORCHRUN, str(tmp_path / "killed.py")]
    process = start("--out", tmp_path / "killed", *settings, launcher=killed)
    finish(process, 1)
    out, _ = finish(start("--resume", tmp_path / "killed", launcher=launcher))
    assert "RANK 1 WRITES" not in out
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
