"""PSNR-Y and SSIM-Y against GNU Octave's numbers for the paper's protocol."""

import json

import pytest

from sginet.images import as_batch
from sginet.metrics import psnr_y, ssim_y


@pytest.mark.parametrize("name", ["0", "2"])
def test_octave(shared, name):
    folder = shared / "parity/metrics"
    expected = json.loads((folder / "expected.json").read_text())[name]
    pred, clean = (
        as_batch(folder / f"{name}_{kind}.png")[0].double()
        for kind in ("test", "clean")
    )
    errors = (
        abs(psnr_y(pred, clean).item() - expected["psnr_y"]),
        abs(ssim_y(pred, clean).item() - expected["ssim_y"]),
    )
    print(name, "errors", errors)
    assert max(errors) < 1e-6
