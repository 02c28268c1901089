"""Data sets on disk: photographs in their authors' layouts, and what can be wrong with files."""

import numpy as np
import pytest
from PIL import Image

from sginet.data.datasets import check_samples, data_layout, find_labelled, find_samples
from sginet.data.labels import CAMVID, DataError, read_labels
from sginet.data.loaders import rain_dls


def save_map(path, numbers):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(numbers, np.uint8)).save(path)


def save_photo(path, size=(48, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 100, 110)).save(path)


def street(sky, road, size=(48, 40)):
    """A class map with sky above and road below."""
    numbers = np.full(size[::-1], sky, np.uint8)
    numbers[size[1] // 2 :] = road
    return numbers


def test_camvid_with_twelve_classes(shared, capsys):
    dls = rain_dls(shared / "camvid", "both", size=256, bs=2, device="cpu")
    said = capsys.readouterr().out
    assert "'labelled', 367 samples for training, 101 for validation" in said
    rain, clean, labels = dls.one_batch()
    assert rain.shape == clean.shape == (2, 3, 256, 256)
    assert labels.shape == (2, 256, 256)
    assert set(labels.unique().tolist()) <= {*CAMVID.tolist()}
    assert dls.valid.dataset.name(0).endswith(".jpg")
    assert len(dls.train.names(0)) == 2


def test_streets_have_train_ids(shared):
    found = find_samples(shared / "streets", "val")
    assert found.faults == []
    assert found.labels[0].parent.name == "labelTrainIds"
    ids = read_labels(found.labels[0], found.table)
    assert (ids == read_labels(found.labels[0])).all()
    assert set(ids.unique().tolist()) <= {*range(19), 255}


def test_cityscapes(shared, tmp_path):
    assert data_layout(shared / "cityscapes") == "cityscapes"
    found, sizes = check_samples(find_samples(shared / "cityscapes", "train"))
    assert found.faults == []
    assert sizes == [(1024, 2048)] * 2
    dls = rain_dls(
        shared / "cityscapes",
        "200mm",
        valid="train",
        device="cpu",
        cache=tmp_path,
        data_range="1-2/2-2",
    )
    assert len(dls.valid) == 1
    assert len(list(tmp_path.glob("*/*.npy"))) == 4
    rain, clean, labels = next(iter(dls.valid))
    assert rain.shape == (1, 3, 1024, 2048)
    assert {0, 2, 9, 13} <= set(labels.unique().tolist()) <= {*range(19), 255}
    assert not (rain == clean).all()


def test_train_ids_in_labels_are_refused_even_below_twelve(tmp_path):
    for name in "abc":
        save_photo(tmp_path / f"train/images/{name}.png")
        save_map(tmp_path / f"train/labels/{name}.png", street(sky=10, road=0))
    with pytest.raises(DataError, match="name the folder labelTrainIds"):
        find_labelled(tmp_path / "train")
    with pytest.raises(DataError, match="name the folder labelTrainIds"):
        rain_dls(tmp_path, valid="train", decode=False, device="cpu")
    (tmp_path / "train/labels").rename(tmp_path / "train/labelTrainIds")
    dls = rain_dls(tmp_path, size=32, bs=2, valid="train", device="cpu")
    assert set(next(iter(dls.valid))[2].unique().tolist()) == {0, 10}


def test_camvids_numbers_in_labels_are_taken(tmp_path):
    save_photo(tmp_path / "images/a.png")
    save_map(tmp_path / "labels/a.png", street(sky=0, road=3))
    (pair,) = find_labelled(tmp_path)
    assert read_labels(pair[1]).unique().tolist() == [0, 10]


def test_train_ids_beside_camvids_numbers_win_where_complete(tmp_path):
    for name in "ab":
        save_photo(tmp_path / f"images/{name}.png")
        save_map(tmp_path / f"labels/{name}.png", street(sky=0, road=3))
        save_map(tmp_path / f"labelTrainIds/{name}.png", street(sky=10, road=0))
    assert {label.parent.name for _, label in find_labelled(tmp_path)} == {
        "labelTrainIds"
    }
    (tmp_path / "labelTrainIds/b.png").unlink()
    pairs = find_labelled(tmp_path)
    assert {label.parent.name for _, label in pairs} == {"labels"}
    assert read_labels(pairs[1][1]).unique().tolist() == [0, 10]


@pytest.mark.parametrize("folder", ["labels", "labelTrainIds"])
@pytest.mark.parametrize(
    "image, words",
    [
        (Image.new("1", (48, 40), 1), "1-bit mask"),
        (Image.new("L", (48, 40), 77), "holds the value 77"),
        (Image.fromarray(np.full((40, 48), 700, np.uint16)), "holds the value 700"),
        (Image.fromarray(np.full((40, 48), 60000, np.uint16)), "holds the value 60000"),
        (Image.new("RGB", (48, 40)), "one channel of whole numbers"),
        (Image.new("LA", (48, 40)), "one channel of whole numbers"),
    ],
)
def test_what_is_no_class_map_is_an_error_that_names_the_file(
    tmp_path, folder, image, words
):
    save_photo(tmp_path / "train/images/a.png")
    label = tmp_path / f"train/{folder}/a.png"
    label.parent.mkdir()
    image.save(label)
    with pytest.raises(DataError, match=words) as error:
        read_labels(label)
    assert str(label) in str(error.value)
    (fault,) = check_samples(find_samples(tmp_path))[0].faults
    assert str(label) in fault
    assert words in fault


def test_pictures_that_share_a_label_file_are_named(tmp_path):
    for name in ("a.png", "a.jpg", "b.png"):
        save_photo(tmp_path / "images" / name)
    for name in "ab":
        save_map(tmp_path / f"labels/{name}.png", street(0, 3))
    with pytest.raises(DataError) as error:
        find_labelled(tmp_path)
    assert len(error.value.faults) == 2
    assert "a.jpg: another picture has the same name" in str(error.value)


def test_other_files_beside_pictures_do_no_harm(tmp_path):
    for name in ("a.png", "b.png"):
        save_photo(tmp_path / name)
    for name in ("a.txt", "a.pdf", "b.eps", "b.mpg", ".c.png", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"no picture")
    names = [
        p[0].name for s in ("train", "val") for p in find_samples(tmp_path, s).pictures
    ]
    assert sorted(names) == ["a.png", "b.png"]


@pytest.fixture
def camvid(tmp_path):
    """A data set as fastai lays CamVid out, whose file names have spaces and dots."""
    for name in ("a0", "a 1", "a.2", "ä3"):
        save_photo(tmp_path / f"images/{name}.png")
        save_map(tmp_path / f"labels/{name}_P.png", street(0, 2))
    (tmp_path / "codes.txt").write_bytes(b"\xef\xbb\xbfSky\r\nBuilding\r\nRoad\r\n")
    return tmp_path


@pytest.mark.parametrize(
    "listed",
    [
        b"a0.png\na 1.png\na.2.png\n",
        b"\xef\xbb\xbfa0.png\r\na 1.png\r\na.2.png\r\n",  # a byte order mark
        b"images/a0.png\n./images/a 1.png\n/elsewhere/a.2.png",
        b"images\\a0.png\nimages\\a 1.png\nimages\\a.2.png",
        b"a0\na 1\na.2",
        b"  a0.png  \n\n\ta 1.png\na.2.png \n\n",
        "a0.png\na 1.png\na.2.png\n".encode("utf-16"),
        b"a0.png\ra 1.png\ra.2.png",
    ],
)
def test_every_form_of_valid_txt(camvid, listed):
    (camvid / "valid.txt").write_bytes(listed)
    held, rest = find_samples(camvid, "val"), find_samples(camvid, "train")
    assert held.faults == rest.faults == []
    assert [p[0].name for p in held.pictures] == ["a 1.png", "a.2.png", "a0.png"]
    assert [p[0].name for p in rest.pictures] == ["ä3.png"]


def test_a_line_of_valid_txt_that_names_nothing_is_a_fault(camvid):
    (camvid / "valid.txt").write_bytes("a0.png\nb7.png\nä3.png\n".encode())
    (fault,) = find_samples(camvid, "val").faults
    assert "valid.txt" in fault
    assert "'b7.png'" in fault
    with pytest.raises(DataError, match="no picture is called 'b7.png'"):
        rain_dls(camvid, device="cpu")
    (camvid / "valid.txt").write_bytes("ä3.png\n".encode("latin-1"))
    assert "no picture is called" in find_samples(camvid, "val").faults[0]


def test_names_of_files_that_are_not_utf_8(tmp_path):
    save_photo(tmp_path / "a.png")
    strange = tmp_path / "b\udce4.png"
    try:
        (tmp_path / "a.png").rename(strange)
    except (OSError, UnicodeError):
        pytest.skip("this file system takes UTF-8 names alone")
    for i in range(3):
        save_photo(tmp_path / f"{i}.png")
    dls = rain_dls(tmp_path, size=32, bs=1, device="cpu", cache=tmp_path / "cache")
    assert len(list(dls.train)) == 3
