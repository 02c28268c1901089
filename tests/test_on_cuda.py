"""tests/on_cuda.py, which waits for a CUDA machine, is kept working on the CPU at a small size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "on_cuda.py"
SMALL = "--width 4 --sem small --crop 64 --batch 2 --steps 3 --vgg-width 8"


@pytest.mark.slow
def test_the_script_runs_and_its_checks_pass(tmp_path):
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), *SMALL.split()]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    done = subprocess.run(
        [*command, "--device", device, "--variants", "float32"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    checks = json.loads((tmp_path / "checks.json").read_text(encoding="utf-8"))
    assert len(checks) == 6 and all(row["passed"] for row in checks.values())
    if device == "cpu":  # the same device twice: nothing may differ
        assert checks["float32"]["found"] == checks["rain"]["found"] == 0
    steps = json.loads((tmp_path / "steps.json").read_text(encoding="utf-8"))
    assert len(steps["results"]["float32"]["losses"]) == 3
    assert "float32" in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert (tmp_path / "curves.png").stat().st_size > 1000
