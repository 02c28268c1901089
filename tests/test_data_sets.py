"""Real photographs in the layouts of their authors: all of the fixtures' pictures are found, read and labelled."""

import torch

from sginet.data.datasets import check, find, layout, rain_dls


def test_camvid_with_twelve_classes(shared, capsys):
    dls = rain_dls(shared / "camvid", "both", size=256, bs=2, device="cpu")
    assert (
        "layout 'labelled', 367 samples for training, 101 for validation"
        in capsys.readouterr().out
    )
    rain, clean, labels = dls.one_batch()
    assert rain.shape == clean.shape == (2, 3, 256, 256) and labels.shape == (
        2,
        256,
        256,
    )
    assert set(labels.unique().tolist()) <= {0, 1, 2, 4, 5, 7, 8, 10, 11, 12, 13, 255}
    assert dls.valid.source.name(0).endswith(".jpg") and len(dls.train.names(0)) == 2


def test_cityscapes(shared, tmp_path):
    assert layout(shared / "cityscapes") == "cityscapes"
    found, sizes = check(find(shared / "cityscapes", "train"))
    assert found.faults == [] and sizes == [(1024, 2048)] * 2
    dls = rain_dls(
        shared / "cityscapes",
        "200mm",
        size=512,
        bs=2,
        valid="train",
        device="cpu",
        cache=tmp_path,
        data_range="1-2/2-2",
    )
    assert len(dls.valid) == 1 and len(list(tmp_path.glob("*/*.npy"))) == 4
    rain, clean, labels = next(iter(dls.valid))
    assert (
        rain.shape == (1, 3, 1024, 2048)
        and {0, 2, 9, 13} <= set(labels.unique().tolist()) <= {*range(19), 255}
        and not torch.equal(rain, clean)
    )
