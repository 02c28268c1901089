"""Rain of many makes: the order of random numbers is fixed, and all values stay in range."""

import numpy as np
import pytest
import torch

from sginet.data.weather import Weather, noise_streaks, random_processing, veil

# seed, make, mean of rain and of clean, the next random number: as the training of the
# shipped weights drew them, on a ramp of 3×72×96 and its window (8, 16, 48, 64)
DRAWN = [
    (0, "dry", 0.4815, 0.4815, 0.935072),
    (1, "preset", 0.5692, 0.4815, 0.948649),
    (2, "noise", 0.5448, 0.4948, 0.973084),
    (3, "dry", 0.1871, 0.1871, 0.586799),
    (4, "noise", 0.5376, 0.4815, 0.728173),
    (5, "renderer", 0.5054, 0.4815, 0.844231),
    (9, "renderer", 0.4867, 0.4815, 0.784610),
    (10, "noise", 0.5824, 0.5326, 0.852690),
    (12, "preset", 0.5688, 0.4815, 0.179291),
    (14, "linear", 0.5366, 0.4815, 0.398759),
    (21, "linear", 0.5469, 0.4801, 0.441394),
    (31, "linear", 0.5385, 0.4815, 0.239684),
    (38, "veil", 0.5291, 0.4815, 0.039525),
    (61, "linear", 0.5320, 0.4815, 0.238904),
    (68, "linear", 0.5440, 0.4815, 0.310847),
]


@pytest.mark.parametrize("seed, make, rain, clean, following", DRAWN)
def test_a_seed_draws_what_it_always_drew(seed, make, rain, clean, following):
    rng, weather = np.random.default_rng(seed), Weather()
    ramp = weather.expose(torch.linspace(0, 1, 3 * 72 * 96).view(3, 72, 96), rng)
    wet, dry, name = weather(ramp, (8, 16, 48, 64), rng)
    assert name == make
    assert wet.mean().item() == pytest.approx(rain, abs=3e-3)
    assert dry.mean().item() == pytest.approx(clean, abs=3e-3)
    assert rng.random() == pytest.approx(following, abs=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (2, 200), (64, 40)])
def test_values_stay_in_range_at_any_size(size):
    weather = Weather()
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(3, *size, generator=generator)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        for picture in weather(clean, (0, 0, *size), rng)[:2]:
            assert picture.shape == clean.shape
            assert picture.isfinite().all()
            assert 0 <= picture.min() <= picture.max() <= 1


def test_veil_and_streaks_are_independent():
    """Where the renderer's streaks are, the veil has a rate of its own."""
    grey = torch.full((3, 64, 96), 0.5)
    grey[:, :4] = 1.0  # a sky
    only = Weather(0, 0, 1, 0, 0, 0, processed=0, exposed=0)
    base = []
    for seed in range(30):
        rain, *_ = only(grey, (0, 0, 64, 96), np.random.default_rng(seed))
        # the darkest pixel of far rows has hardly any streak: it shows the veil
        base.append(rain[:, 24:32].amin().item())
    assert min(base) < 0.505  # streaks without a veil
    assert max(base) > 0.55  # and with a strong one


def test_noise_streaks_of_any_size_and_seed():
    for seed in range(40):
        streaks = noise_streaks(48, 64, np.random.default_rng(seed))
        assert streaks.shape == (1, 48, 64)
        assert 0 <= streaks.min() <= streaks.max() <= 1


def test_processing_leaves_a_dry_pair_alike():
    """What is equal before the camera is equal after it."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand(3, 40, 56, generator=generator)
    for seed in range(30):
        rain, dry = random_processing(clean, clean, np.random.default_rng(seed))
        assert torch.equal(rain, dry)


def test_a_veil_alone_has_no_streak():
    flat = torch.full((3, 40, 60), 0.4)
    veiled = veil(flat, 200.0, (0, 0, 40, 60))
    assert torch.allclose(veiled, flat, atol=1e-6)  # the air has the picture's colour
