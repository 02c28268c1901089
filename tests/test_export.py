"""The graph of the paper's network and of a SEM of torchvision."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sginet.cli.derain import derain
from sginet.evaluate.speed import _network, _peak_on_cpu
from sginet.images import sample_photo, save_image
from sginet.models.export import (
    TOLERANCE,
    OnnxNetwork,
    differences,
    onnx_session,
    to_onnx,
    to_program,
)
from sginet.models.sginet import SGINet

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)


@pytest.mark.slow
def test_the_papers_network_at_its_full_width(tmp_path):
    """Width 32 and PSPNet101, random weights: half a gigabyte, deleted afterwards."""
    torch.manual_seed(0)
    model, file = SGINet().eval(), tmp_path / "full.onnx"
    rows = to_onnx(model, file)
    sizes = {r["size"] for r in rows}
    assert sizes >= {"1×3×64×64", "3×3×33×47", "1×3×1×1"}
    assert max(r[k] for r in rows for k in ("coarse", "scores")) < TOLERANCE
    # a picture padded to 32×64 has two positions at the bottom of SIM, where the norms
    # magnify rounding, float32 against float64 too
    large = [r for r in rows if r["size"] not in ("1×3×1×1", "1×3×32×32")]
    assert max(r["refined"] for r in large) < TOLERANCE
    # batch norms may be folded into convolutions
    assert file.stat().st_size > 0.99 * 4 * sum(p.numel() for p in model.parameters())
    assert [f.name for f in tmp_path.iterdir()] == ["full.onnx"]
    run = onnx_session(file)
    names = [o.name for o in run.get_outputs()]
    assert names == ["refined", "coarse", "scores", "guidance"]
    rain = np.random.default_rng(0).random((1, 3, 40, 70), np.float32)
    guidance = run.run(["guidance"], {"rain": rain})[0]
    assert guidance.shape == (1, 1, 40, 70)
    assert set(np.unique(guidance)) <= set(range(19))
    file.unlink()


def test_a_program_of_another_sem_and_form():
    torch.manual_seed(0)
    model = SGINet(4, "lraspp_mobilenet_v3_large", "residual").eval()
    rows = differences(model, to_program(model).module())
    assert max(r[k] for r in rows for k in ("refined", "coarse", "scores")) < 1e-4
    assert max(r["guidance"] for r in rows) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("guidance", ["onehot", "scores"])
def test_onnx_of_each_guidance_form(guidance, tmp_path):
    torch.manual_seed(0)
    model = SGINet(4, "small8", "scaled", "half", guidance).eval()
    nn.init.normal_(model.sim.last.weight, std=0.05)  # else SIM changes nothing
    rows = to_onnx(model, tmp_path / "a.onnx")
    assert max(r["coarse"] for r in rows) < TOLERANCE


def test_a_change_inside_a_stage_is_exported():
    torch.manual_seed(0)
    model = SGINet(4, "small8").eval()
    program = to_program(model).module()
    model.frm.middle[0].act = nn.ReLU()
    changed = to_program(model).module()
    rain = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        want = model(rain).coarse
        assert (changed(rain)[1] - want).abs().max() < 1e-5
        assert (program(rain)[1] - want).abs().max() > 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_program_stays_on_its_card_and_onnx_is_written_from_there(tmp_path):
    model = SGINet.from_pretrained("tiny").cuda()
    rows = differences(model, to_program(model).module())
    assert max(r["refined"] for r in rows) < TOLERANCE
    to_onnx(model, tmp_path / "tiny.onnx")
    assert next(model.parameters()).is_cuda


@pytest.mark.slow
def test_a_graph_derains_a_folder(tmp_path, capsys):
    """sginet-derain --model FILE.onnx writes what the network's own derain gives."""
    torch.manual_seed(0)
    # guided by scores: in a class map, rounding could decide between two equal classes
    model = SGINet(4, "small8", "scaled", "half", "scores").eval()
    for conv in (model.frm.d4, model.sim.last):
        nn.init.normal_(conv.weight, std=0.05)  # else nothing changes
    to_onnx(model, tmp_path / "net.onnx")
    picture = sample_photo().resize((150, 100))
    save_image(picture, tmp_path / "in" / "a.png")
    command = [str(tmp_path / "in"), "--model", str(tmp_path / "net.onnx"), "--out"]
    assert derain([*command, str(tmp_path / "out")]) == 0
    made = np.asarray(Image.open(tmp_path / "out" / "a.png")).astype(int)
    assert abs(made - np.asarray(model.derain(picture))).max() <= 1
    assert abs(made - np.asarray(picture)).mean() > 1
    command[2] = str(tmp_path / "nothing.onnx")
    assert derain([*command, str(tmp_path / "out")]) == 1
    assert "nothing.onnx: no such file" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "width 32"])
def test_a_graph_needs_no_more_memory_than_it_says(name, tmp_path):
    """Both the peak of a process of its own, which is refused before it is too large."""
    file = tmp_path / "net.onnx"
    to_onnx(_network(name, "cpu"), file)
    peak = _peak_on_cpu(name, "onnxruntime", (256, 512), file)
    assert 0.4 < peak / OnnxNetwork(file).bytes_needed(256, 512) < 1
    file.unlink()
