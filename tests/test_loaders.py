"""Loaders: every way to start workers, every habit of fastai, shared caches, resume."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from sginet.data.cache import PixelCache
from sginet.data.labels import DataError
from sginet.data.loaders import SampleLoader, rain_dls
from sginet.data.sources import drawn_scenes
from sginet.data.weather import Weather, random_exposure, random_weather


def script(text, *arguments, **environment):
    """The standard output of a Python script in a process of its own."""
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-W", "ignore", *arguments]
    done = subprocess.run(command, env=env, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def photos(folder, n=5, size=(60, 50)):
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


WORKERS = """
import multiprocessing, sys
import torch
from sginet.data.loaders import rain_dls

if __name__ == "__main__":
    method, folder, rate, on_batch = sys.argv[1:]
    multiprocessing.set_start_method(method)
    sums = []
    for workers in (0, 2):
        dls = rain_dls(folder or None, rate, 32, 2, num_workers=workers, device="cpu",
                       n_scenes=4, rain_on_batch=on_batch == "1")
        dls.train.rng.seed(1)
        torch.manual_seed(0)
        sums.append([[x.double().sum().item() for x in batch] for batch in dls.train])
    assert sums[0] == sums[1], sums
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize(
    "stored, rate, on_batch",
    [(False, "both", "0"), (True, "any", "0"), (True, "many", "0")],
)
def test_workers_start_in_every_way(tmp_path, method, stored, rate, on_batch):
    file = tmp_path / "train.py"
    file.write_text(WORKERS, encoding="utf-8")
    (tmp_path / "photos").mkdir()
    folder = str(photos(tmp_path / "photos")) if stored else ""
    script("", str(file), method, folder, rate, on_batch)


@pytest.mark.slow
def test_rain_on_the_batch_with_spawned_workers(tmp_path):
    file = tmp_path / "train.py"
    file.write_text(WORKERS, encoding="utf-8")
    script("", str(file), "spawn", "", "any", "1")


CACHE = """
import sys
from pathlib import Path
import numpy as np
from sginet.data.cache import PixelCache
cache = PixelCache(sys.argv[2])
files = sorted(Path(sys.argv[1]).glob("*.png"))
for _ in range(4):
    for f in files:
        assert cache(f).shape == (50, 60, 3)
        for copy in Path(sys.argv[2]).glob("*/*.npy"):  # as another version would
            copy.unlink(missing_ok=True)
            break
print(sum(int(cache(f).sum()) for f in files))
"""


def test_two_processes_share_a_cache(tmp_path):
    folder = photos(tmp_path, 6)
    with ThreadPoolExecutor(2) as pool:
        run = [
            pool.submit(script, CACHE, "-", str(folder), str(tmp_path / "cache"))
            for _ in range(2)
        ]
    truth = sum(int(np.asarray(Image.open(f)).sum()) for f in folder.glob("*.png"))
    assert [int(r.result()) for r in run] == [truth, truth]


@pytest.mark.parametrize("left", [b"", b"\x93NUMPY", None])
def test_a_damaged_copy_is_made_again(tmp_path, left):
    (file,) = photos(tmp_path, 1).glob("*.png")
    cache = PixelCache(tmp_path / "cache")
    truth = cache(file).copy()
    (copy,) = (tmp_path / "cache").glob("*/*.npy")
    copy.write_bytes(copy.read_bytes()[:200] if left is None else left)
    for _ in range(2):
        assert np.array_equal(cache(file), truth)


def test_a_layout_is_reported_where_output_has_few_letters(tmp_path):
    folder = tmp_path / "straße ∞"
    folder.mkdir()
    photos(folder, 3)
    text = f"""from sginet.data.loaders import rain_dls
rain_dls({ascii(str(folder))}, device="cpu")"""
    said = script(text, "-", PYTHONIOENCODING="ascii:strict")
    assert "layout 'clean', 2 samples for training" in said


def dls(**kwargs):
    return rain_dls(size=32, bs=2, n_scenes=4, device="cpu", **kwargs)


def test_the_loaders_have_fastais_habits():
    loaders = dls()
    assert loaders.n_inp == 1
    assert [x.shape[0] for x in loaders.train.new(bs=1).one_batch()] == [1, 1, 1]
    assert len(loaders.train.new(bs=3, shuffle=False, drop_last=False)) == 2
    assert len(loaders.valid.new(shuffle=True)) == 8
    ordered = loaders.train.new(shuffle=False)
    list(ordered)
    assert ordered.order == [0, 1, 2, 3]
    assert loaders.train.order != ordered.order or loaders.train.order == []
    assert len(loaders.train_ds) == 4
    assert loaders.show_batch().axes
    batch = loaders.valid.one_batch()
    for out in (batch[1], (batch[1], batch[0])):
        assert loaders.valid.show_results(batch, out).axes
    assert [len(s) for s in loaders.decode_batch(batch)] == [3]


def test_pictures_of_any_kind_are_a_test_loader(tmp_path):
    photos(tmp_path, 1, (60, 50))
    items = [
        tmp_path / "0.png",
        str(tmp_path / "0.png"),
        Image.new("L", (30, 20)),
        np.zeros((20, 30, 3), np.uint8),
        torch.zeros(3, 20, 30),
    ]
    loader = dls().test_dl(items)
    shapes = [[tuple(x.shape) for x in batch] for batch in loader]
    assert shapes == [[(1, 3, 50, 60)]] * 2 + [[(1, 3, 20, 30)]] * 3
    assert loader.dataset.name(0).endswith("0.png")
    pairs = dls().test_dl([(items[0], items[1])], bs=1, num_workers=0)
    assert [len(batch) for batch in pairs] == [2]


@pytest.mark.parametrize("rate", ["both", "any", "many"])
def test_an_epoch_is_decided_by_the_state_of_rng(rate):
    loader = dls(rate=rate).train
    loader.rng.seed(5)
    list(loader)
    state = loader.rng.getstate()
    expected = list(loader)
    fresh = dls(rate=rate).train
    fresh.rng.setstate(state)
    for a, b in zip(expected, fresh):
        assert all(torch.equal(x, y) for x, y in zip(a, b))
    assert fresh.names(0) == loader.names(0)


def test_two_loaders_of_one_set_keep_their_epochs_apart():
    loader = dls().train
    other = loader.new()
    loader.rng.seed(1)
    other.rng.seed(2)
    expected = [x[0] for x in loader]
    loader.rng.seed(1)
    mixed = []
    for (rain, *_), _ in zip(loader, other):
        mixed.append(rain)
    assert all(torch.equal(a, b) for a, b in zip(expected, mixed))


def test_a_dataset_works_in_plain_torch():
    data = dls().train.dataset
    plain = torch.utils.data.DataLoader(data, batch_size=2, num_workers=0)
    assert [len(batch) for batch in plain] == [3, 3]
    with pytest.raises(IndexError):
        data[len(data)]


def test_several_data_sets(tmp_path):
    for name in ("clean", "labelled/train/images", "labelled/val/images"):
        (tmp_path / name).mkdir(parents=True)
        photos(tmp_path / name, 4)
    for split in ("train", "val"):
        folder = tmp_path / f"labelled/{split}/labelTrainIds"
        folder.mkdir()
        for i in range(4):
            Image.new("L", (60, 50), 13).save(folder / f"{i}.png")
    sets = [tmp_path / "clean", tmp_path / "labelled"]
    loaders = rain_dls(sets, size=32, bs=1, device="cpu")
    assert (len(loaders.train), len(loaders.valid)) == (3 + 4, 1 + 4)
    values = [labels.unique().tolist() for *_, labels in loaders.valid]
    assert values == [[255]] + [[13]] * 4
    shares = {sets[0]: 0, sets[1]: 1, None: 0}
    only = rain_dls(shares, "many", (32, 48), 2, device="cpu", n_scenes=2)
    for b, (rain, clean, labels) in enumerate(only.train):
        assert rain.shape == clean.shape == (2, 3, 32, 48)
        assert (labels == 13).all()
        assert all("labelled" in name for name in only.train.names(b))
    (tmp_path / "clean/0.png").write_bytes(b"")
    (tmp_path / "labelled/train/images/0.png").write_bytes(b"")
    with pytest.raises(DataError) as error:
        rain_dls(sets, device="cpu")
    assert len(error.value.faults) == 2
    with pytest.raises(DataError, match="one data set"):
        rain_dls(sets, data_range="1-2/1-2", device="cpu")


def test_many_makes_cannot_be_made_on_the_batch():
    with pytest.raises(DataError, match="on the batch"):
        dls(rate="many", rain_on_batch=True)


def test_the_mixture_can_be_chosen():
    dry = Weather(1, 0, 0, 0, 0, 0, exposed=0, processed=0)
    for rain, clean, _ in dls(rate="many", weather=dry, scales=(1, 1)).train:
        assert torch.equal(rain, clean)


def test_random_weather_draws_the_pixels_it_always_drew():
    """Sums over two epochs of a seeded loader, as they were before sources became classes."""
    source = drawn_scenes(4, 64, 128, weather=random_weather, expose=random_exposure)
    loader = SampleLoader(source, 2, 32)
    loader.rng.seed(3)
    sums = [round(x[0].mean().item(), 4) for _ in range(2) for x in loader]
    assert sums == pytest.approx(SUMS, abs=2e-4)


SUMS = [0.3664, 0.5021, 0.4749, 0.3724]
