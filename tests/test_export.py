"""The graph of the paper's network, and of a SEM of torchvision; the notebook of the export has tiny's."""

import numpy as np
import pytest
import torch

from sginet.models.export import TOLERANCE, differences, session, to_onnx, to_program
from sginet.models.sginet import SGINet

(
    pytest.importorskip("onnx"),
    pytest.importorskip("onnxscript"),
    pytest.importorskip("onnxruntime"),
)


def test_the_papers_network_at_its_full_width(tmp_path):
    """Width 32 and PSPNet101, weights at random: half a gigabyte, which goes again with this test."""
    torch.manual_seed(0)
    model, file = SGINet().eval(), tmp_path / "full.onnx"
    rows = to_onnx(model, file)
    assert {r["size"] for r in rows} >= {"1×3×64×64", "3×3×33×47", "1×3×1×1"} and max(
        r[k] for r in rows for k in ("coarse", "scores")
    ) < TOLERANCE
    # a picture that is padded to 32×64 has two positions at the bottom of SIM, where the norms blow rounding up, float32 against float64 too
    assert (
        max(r["refined"] for r in rows if r["size"] not in ("1×3×1×1", "1×3×32×32"))
        < TOLERANCE
    )
    assert (
        file.stat().st_size > 0.99 * 4 * sum(p.numel() for p in model.parameters())
    )  # batch norms may be folded and [f.name for f in tmp_path.iterdir()] == ["full.onnx"]
    run = session(file)
    assert [o.name for o in run.get_outputs()] == [
        "refined",
        "coarse",
        "scores",
        "guidance",
    ]
    guidance = run.run(
        ["guidance"],
        {"rain": np.random.default_rng(0).random((1, 3, 40, 70), np.float32)},
    )[0]
    assert guidance.shape == (1, 1, 40, 70) and set(np.unique(guidance)) <= set(
        range(19)
    )
    file.unlink()


@pytest.mark.parametrize(
    "sem, output, norm", [("lraspp_mobilenet_v3_large", "residual", "instance")]
)
def test_a_program_of_another_sem_and_form(sem, output, norm):
    torch.manual_seed(0)
    model = SGINet(4, sem, output, norm).eval()
    rows = differences(model, to_program(model).module())
    assert (
        max(r[k] for r in rows for k in ("refined", "coarse", "scores")) < 1e-4
        and max(r["guidance"] for r in rows) < 0.01
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_program_stays_on_its_card_and_onnx_is_written_from_there(tmp_path):
    model = SGINet.from_pretrained("tiny").cuda()
    rows = differences(model, to_program(model).module())
    assert max(r["refined"] for r in rows) < TOLERANCE
    to_onnx(model, tmp_path / "tiny.onnx")
    assert next(model.parameters()).is_cuda
