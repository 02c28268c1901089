"""Does rain cost what the paper's data set says?

`python tests/test_calibration.py FOLDER` prints the table of nbs/data/03_rain.ipynb, on
all photographs of the fixtures: FOLDER (or SGINET_SHARED) holds
cityscapes/leftImg8bit and camvid/val/images."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sginet.data.rain import render
from sginet.images import as_batch
from sginet.metrics import psnr_y, ssim_y

PUBLISHED = {
    100: (21.88, 0.756),
    200: (16.80, 0.422),
}  # PSNR-Y, SSIM-Y of the rainy pictures of Cityscapes_syn's test split


def cityscapes(shared):
    return [
        Image.open(f) for f in sorted(shared.glob("cityscapes/leftImg8bit/*/*/*.png"))
    ]


def camvid(shared):
    return [Image.open(f) for f in sorted(shared.glob("camvid/val/images/*"))]


def upscaled(pictures):
    """Their middle, twice as wide as high, at Cityscapes' size."""
    for p in pictures:
        h = p.width // 2
        top = (p.height - h) // 2
        yield p.crop((0, top, p.width, top + h)).resize(
            (2048, 1024), Image.Resampling.BICUBIC
        )


def score(picture, rate, seed):
    """PSNR-Y, plain SSIM-Y, SSIM-Y after the protocol's down-sampling, of rain against clean."""
    clean = as_batch(picture)[0]
    rain = render(clean, rate, seed).rainy
    return [
        s.item()
        for s in (
            psnr_y(rain, clean),
            ssim_y(rain, clean, downsample=False),
            ssim_y(rain, clean),
        )
    ]


@pytest.mark.slow
def test_rain_at_cityscapes_size_costs_what_was_published(shared):
    pictures = cityscapes(shared) + list(upscaled(camvid(shared)[::13]))
    assert len(pictures) == 10
    for rate, (psnr, ssim) in PUBLISHED.items():
        mean = np.mean([score(p, rate, seed) for seed, p in enumerate(pictures)], 0)
        assert abs(mean[0] - psnr) < 1.5 and abs(mean[1] - ssim) < 0.05, (rate, mean)


def test_rain_at_camvids_size(shared):
    for rate, psnr in ((100, 21.5), (200, 17)):
        mean = np.mean(
            [score(p, rate, seed)[0] for seed, p in enumerate(camvid(shared)[::10])]
        )
        assert abs(mean - psnr) < 1.5, (rate, mean)


def test_more_rain_is_worse_on_every_photograph(shared):
    for seed, p in enumerate(camvid(shared)[::25]):
        values = [
            score(p, rate, seed)[0] for rate in (5, 10, 25, 50, 100, 150, 200, 300)
        ]
        assert (np.diff(values) < 0).all(), values


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rain_on_a_gpu_is_the_rain_of_the_cpu():
    clean = torch.rand(2, 3, 200, 300, generator=torch.Generator().manual_seed(0))
    a, b = (
        render(clean.to(device), [100, 200], 3, wind=3.0) for device in ("cpu", "cuda")
    )
    again = render(clean.cuda(), [100, 200], 3, wind=3.0)
    for x, y, z in zip(a[:-1], b, again):
        assert y.is_cuda and torch.equal(y, z)
        assert (
            ((x - y.cpu()).abs() > 1e-4).float().mean() < 1e-4
        )  # a pixel on a streak's very edge may fall to either side
    assert a.drops == b.drops


if __name__ == "__main__":
    shared = Path(os.environ.get("SGINET_SHARED", sys.argv[-1]))
    sets = {
        "cityscapes, 1024×2048": cityscapes(shared) * 4,
        "camvid/val, upscaled to 1024×2048": upscaled(camvid(shared)),
        "camvid/val, 360×480": camvid(shared),
    }
    for name, pictures in sets.items():
        scores = np.array(
            [
                [score(p, rate, seed) for rate in PUBLISHED]
                for seed, p in enumerate(pictures)
            ]
        )
        for j, rate in enumerate(PUBLISHED):
            mean, spread = scores[:, j].mean(0), scores[:, j].std(0, ddof=1)
            text = f"{name}, {len(scores)} pictures or seeds, {rate} mm/h: "
            text += f"PSNR-Y {mean[0]:.2f} (spread {spread[0]:.2f}) dB, SSIM-Y "
            text += f"{mean[1]:.3f}, after the protocol's down-sampling {mean[2]:.3f}"
            print(text, flush=True)
