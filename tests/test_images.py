"""Picture files as cameras, editors and other programs write them: nothing is lost silently."""

import os
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from sginet.cli.rain import rain
from sginet.data.datasets import check_samples, find_samples
from sginet.data.labels import DataError, read_labels
from sginet.images import (
    PICTURE_SUFFIXES,
    ImageError,
    as_batch,
    atomic_write,
    check_writable,
    open_image,
    sample_photo,
    save_image,
)
from sginet.interpret.session import read_upload

SMALL = Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3))
DEEP = np.linspace(0, 65535, 48 * 64 * 4).reshape(48, 64, 4).astype(np.uint16)


def exif_block(entries, order="<"):
    """An EXIF block of (tag, type, count, four bytes), with the orientation 6 before them."""
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    orientation = struct.pack(order + "H", 6) + b"\0\0"
    entries = [(0x112, 3, 1, orientation), *entries]
    block = mark + struct.pack(order + "LH", 8, len(entries))
    for tag, kind, count, data in entries:
        block += struct.pack(order + "HHL", tag, kind, count) + data
    return b"Exif\0\0" + block + bytes(4)


ODD = {
    "XMP as text": [(0x2BC, 2, 4, b"<x/>")],
    "offset behind the end": [(0x10F, 2, 4000, b"\xff\xff\xff\xff")],
    "unknown type": [(0x10F, 77, 1, b"abcd")],
    "rational at nowhere": [(0x11A, 5, 1, b"\xf0\xff\xff\xff")],
    "GPS directory is text": [(0x8825, 2, 4, b"text")],
    "EXIF directory is itself": [(0x8769, 4, 1, struct.pack("<L", 8))],
    "huge count": [(0x132, 12, 0xFFFFFFFF, bytes(4))],
    "orientation twice": [(0x112, 3, 1, b"\1\0\0\0")],
}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("name", [n for n in ODD if n != "orientation twice"])
def test_odd_exif_turns_and_is_kept(tmp_path, name, suffix):
    """Whatever the other entries are, the orientation is obeyed and the picture is written."""
    SMALL.save(tmp_path / f"in{suffix}", exif=exif_block(ODD[name]))
    img = open_image(tmp_path / f"in{suffix}")
    assert img.size == (48, 64)
    for out in ".jpg", ".png", ".tif", ".webp":
        save_image(img, tmp_path / f"out{out}")
        assert open_image(tmp_path / f"out{out}").size == (48, 64)


def test_damaged_exif_is_no_traceback(tmp_path):
    """Cut and random blocks: the picture is read, or one ImageError names the file."""
    rng = np.random.default_rng(0)
    whole = exif_block(ODD["XMP as text"], ">")
    for n in range(0, len(whole), 3):
        blocks = whole[:n], whole[:n] + rng.integers(0, 256, 60, np.uint8).tobytes()
        for i, block in enumerate(blocks):
            path = tmp_path / f"{n}-{i}.jpg"
            SMALL.save(path, exif=block)
            try:
                assert {*open_image(path).size} == {48, 64}
            except ImageError as fault:
                assert str(path) in str(fault)


def test_profile_and_exif_are_kept(tmp_path):
    """A photograph keeps its colour profile and camera; the rotation is applied once."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[274], exif[271], exif[306] = 8, "a camera", "2026:01:02 03:04:05"
    SMALL.save(tmp_path / "in.jpg", exif=exif.tobytes(), icc_profile=profile)
    x, back = as_batch(tmp_path / "in.jpg")
    assert x.shape == (1, 3, 64, 48)
    for suffix in ".jpg", ".png", ".tif", ".webp":
        save_image(back(x), tmp_path / f"out{suffix}")
        with Image.open(tmp_path / f"out{suffix}") as img:
            assert img.size == (48, 64)
            assert img.info["icc_profile"] == profile
            kept = img.getexif()
            assert (kept.get(274, 1), kept[271]) == (1, "a camera")


def test_cmyk_is_converted_and_carries_no_wrong_profile(tmp_path):
    SMALL.convert("CMYK").save(tmp_path / "in.jpg", quality=100)
    x, back = as_batch(tmp_path / "in.jpg")
    assert (back(x).mode, "icc_profile" in back(x).info) == ("RGB", False)
    assert np.abs(np.asarray(back(x)).astype(int) - np.asarray(SMALL)).mean() < 12


def cmyk_profile():
    """An ICC profile (version 2.4, a table of 2⁴ colours) in which black ink alone counts."""
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    ramp = bytes(range(256))
    colours = b"".join(bytes([127 if i % 2 else 255, 128, 128]) for i in range(16))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity
    table += ramp * 4 + colours + ramp * 3
    white = struct.pack(">3i", 63190, 65536, 54061)
    tags = {b"A2B0": table, b"wtpt": b"XYZ " + bytes(4) + white}
    entries, body, start = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        entries += name + struct.pack(">2I", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4xI", start + len(body), 0x02400000) + b"prtrCMYKLab "
    head = (head + bytes(12) + b"acsp" + bytes(28) + white).ljust(128, b"\0")
    return head + struct.pack(">I", len(tags)) + entries + body


def test_cmyk_is_converted_by_its_profile(tmp_path):
    ink = Image.new("CMYK", (2, 1))
    ink.putpixel((0, 0), (255, 255, 0, 0))
    ink.putpixel((1, 0), (0, 0, 0, 128))
    ink.save(tmp_path / "own.tif", icc_profile=cmyk_profile())
    ink.save(tmp_path / "none.tif")
    own, none = open_image(tmp_path / "own.tif"), open_image(tmp_path / "none.tif")
    assert (own.mode, own.info.get("icc_profile")) == ("RGB", None)
    assert own.getpixel((0, 0)) == (255, 255, 255)  # no black ink
    # lightness 75, where the darkest ink is 50 and becomes black
    assert own.getpixel((1, 0)) == pytest.approx((162,) * 3, abs=2)
    assert none.getpixel((0, 0)) == (0, 0, 255)


def test_lab_is_converted(tmp_path):
    lightness, red = Image.new("L", (2, 1), 128), Image.new("L", (2, 1), 128)
    red.putpixel((1, 0), 200)
    pixels = Image.merge("LAB", [lightness, red, Image.new("L", (2, 1), 128)])
    pixels.save(tmp_path / "a.tif")
    image = open_image(tmp_path / "a.tif")
    assert (image.mode, image.info.get("icc_profile")) == ("RGB", None)
    assert image.getpixel((0, 0)) == pytest.approx((120,) * 3, abs=2)
    r, g, b = image.getpixel((1, 0))
    assert r > b > g


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_stay(tmp_path, channels, suffix):
    """Grey, grey with alpha, RGB and RGBA of 16 bits go through files unchanged."""
    from sginet.image_codecs import _picture, _samples_of

    deep = np.ascontiguousarray(DEEP[..., :channels])
    save_image(_picture(deep), tmp_path / f"in{suffix}")
    if (channels, suffix) == (2, ".tif"):  # written as RGBA
        deep, channels = deep[..., [0, 0, 0, 1]], 4
    assert np.array_equal(_samples_of(open_image(tmp_path / f"in{suffix}")), deep)
    x, back = as_batch(tmp_path / f"in{suffix}")
    save_image(back(x), tmp_path / f"out{suffix}")
    again = _samples_of(open_image(tmp_path / f"out{suffix}"))
    assert np.array_equal(again, deep)
    darker = back(x / 2)
    assert darker.size == (64, 48)
    half = _samples_of(darker)[..., : 1 if channels < 3 else 3]
    assert np.abs(half - deep[..., : half.shape[2]] / 2).max() <= 0.5


def test_sixteen_bits_in_other_writers_forms(tmp_path):
    """Compressed, big-endian, interlaced: the decoder's other byte is found in each."""
    from sginet.image_codecs import _samples_of

    deep = DEEP[..., :3]
    rows = [b"\0" + row.astype(">u2").tobytes() for row in deep]

    def chunk(name, data):
        check = struct.pack(">L", zlib.crc32(name + data))
        return struct.pack(">L", len(data)) + name + data + check

    header = struct.pack(">2L5B", 64, 48, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(rows)))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b""))
    assert np.array_equal(_samples_of(open_image(tmp_path / "a.png")), deep)
    tags = [
        (256, 3, 1, 64),
        (257, 3, 1, 48),
        (258, 3, 3, 134),
        (259, 3, 1, 8),
        (262, 3, 1, 2),
        (273, 4, 1, 140),
        (277, 3, 1, 3),
        (278, 3, 1, 48),
        (279, 4, 1, 0),
    ]
    data = zlib.compress(deep.astype(">u2").tobytes())
    tags[-1] = (279, 4, 1, len(data))
    file = b"MM\0*" + struct.pack(">LH", 8, len(tags))
    for tag, kind, count, value in tags:
        short = kind == 3 and count == 1
        packed = struct.pack(
            ">HH" if short else ">L", *((value, 0) if short else (value,))
        )
        file += struct.pack(">HHL", tag, kind, count) + packed
    file = (file + bytes(4)).ljust(134, b"\0") + struct.pack(">3H", 16, 16, 16) + data
    (tmp_path / "a.tif").write_bytes(file)
    assert np.array_equal(_samples_of(open_image(tmp_path / "a.tif")), deep)


@pytest.mark.parametrize("form", ["gif", "tiff", "png", "webp"])
def test_several_frames_are_refused(tmp_path, form):
    frames = [Image.new("RGB", (64, 48), (60 * i, 90, 120)) for i in range(3)]
    frames[0].save(tmp_path / f"a.{form}", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match=rf"a\.{form}: holds 3 frames or pages"):
        open_image(tmp_path / f"a.{form}")


def test_a_preview_is_not_a_second_frame(tmp_path):
    """A reduced copy inside a TIFF file, and a phone's second JPEG (MPO), are left aside."""
    reduced = SMALL.resize((16, 12))
    options = {"save_all": True, "append_images": [reduced]}
    SMALL.save(tmp_path / "two pages.tif", **options)
    with pytest.raises(ImageError, match="2 frames"):
        open_image(tmp_path / "two pages.tif")
    reduced.encoderinfo = {"tiffinfo": {254: 1}}
    SMALL.save(tmp_path / "with preview.tif", **options)
    SMALL.save(tmp_path / "phone.jpg", "MPO", **options)
    for name in "with preview.tif", "phone.jpg":
        assert open_image(tmp_path / name).size == (64, 48)


@pytest.mark.parametrize(
    "head", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"%PDF-1.4\n", b"\0\0\1\xb3"]
)
def test_a_name_does_not_make_a_picture(tmp_path, head, monkeypatch):
    """PostScript, PDF and video named .png are refused before any other program starts."""
    monkeypatch.setattr(subprocess, "Popen", None)
    box = b"%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (tmp_path / "a.png").write_bytes(head + box + bytes(64))
    with pytest.raises(ImageError, match=r"a\.png: not a picture that can be read"):
        open_image(tmp_path / "a.png")
    assert not PICTURE_SUFFIXES & {".eps", ".ps", ".pdf", ".mpg", ".wmf"}


def test_nor_does_it_in_an_upload_or_as_labels(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "Popen", None)
    box = b"%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n" + box + bytes(64)
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps/a.png").write_bytes(postscript)
    with pytest.raises(ImageError, match=r"^a\.png: not a picture that can be read"):
        read_upload("a.png", postscript)
    with pytest.raises(DataError, match=r"a\.png: no class map that can be read"):
        read_labels(tmp_path / "maps/a.png")
    SMALL.save(tmp_path / "a.png")
    options = ["--labels", str(tmp_path / "maps"), "--out", str(tmp_path / "out")]
    assert rain([str(tmp_path / "a.png"), *options]) == 1
    assert "maps/a.png: no class map that can be read" in capsys.readouterr().err


def test_large_labels_are_read(tmp_path, monkeypatch):
    """Pillow's limit on the size of a picture is for pictures of strangers."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for folder in ("images", "labels"):
        (tmp_path / "train" / folder).mkdir(parents=True)
    SMALL.save(tmp_path / "train/images/a.png")
    Image.new("L", SMALL.size, 3).save(tmp_path / "train/labels/a.png")
    for decode in (True, False):
        samples, sizes = check_samples(find_samples(tmp_path), decode=decode)
        assert (samples.faults, sizes) == ([], [(48, 64)])


def test_pillows_own_limit(tmp_path):
    """None takes any size, a number takes that size, and Pillow's limit is as it was afterwards."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = 100  # as if the small picture were a huge one
    try:
        SMALL.save(tmp_path / "a.png")
        assert open_image(tmp_path / "a.png", max_pixels=None).size == (64, 48)
        assert open_image(tmp_path / "a.png", max_pixels=5000).size == (64, 48)
        with pytest.raises(ImageError, match="64×48 is more than 0.003 megapixels"):
            open_image(tmp_path / "a.png", max_pixels=3000)
        with pytest.raises(ImageError, match="more than"):
            open_image(tmp_path / "a.png", max_pixels=90)
        seen = []
        several = [
            threading.Thread(
                target=lambda: seen.append(open_image(tmp_path / "a.png", None).size)
            )
            for _ in range(8)
        ]
        for thread in several:
            thread.start()
        for thread in several:
            thread.join()
        assert seen == [(64, 48)] * 8
        assert Image.MAX_IMAGE_PIXELS == 100
    finally:
        Image.MAX_IMAGE_PIXELS = before


def test_lossy_formats_do_not_undo_the_work(tmp_path):
    photo = sample_photo()
    floor = {".png": np.inf, ".webp": np.inf, ".tif": np.inf, ".jpg": 42}
    for suffix, least in floor.items():
        save_image(photo, tmp_path / f"a{suffix}")
        with Image.open(tmp_path / f"a{suffix}") as img:
            error = np.asarray(img.convert("RGB")).astype(float) - np.asarray(photo)
        mse = np.square(error).mean()
        assert (10 * np.log10(255**2 / mse) if mse else np.inf) >= least, suffix


ARRAYS = {
    "bgr": lambda a: a[..., ::-1],
    "upside down": lambda a: a[::-1],
    "np.flip": lambda a: np.flip(a, 1),
    "Fortran order": np.asfortranarray,
    "transposed": lambda a: a.transpose(1, 0, 2),
    "every other pixel": lambda a: a[::2, ::2],
    "big-endian": lambda a: (a / 255).astype(">f4"),
    "big-endian uint16": lambda a: (a.astype(np.uint16) * 257).astype(">u2"),
    "longdouble": lambda a: (a / 255).astype(np.longdouble),
    "half": lambda a: (a / 255).astype(np.float16),
    "int32": lambda a: a.astype(np.int32),
    "big-endian int64": lambda a: a.astype(">i8"),
    "read-only": lambda a: np.frombuffer(a.tobytes(), np.uint8).reshape(a.shape),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("grey", [False, True])
def test_arrays_of_any_layout(name, grey):
    """Any memory and byte order is the same picture, and comes back in its type and shape."""
    a = ARRAYS[name](np.asarray(SMALL))
    a = a[..., 0] if grey else a
    x, back = as_batch(a)
    plain = np.array(a.tolist(), np.float64)
    plain = plain / {"u": 255 if a.dtype.itemsize == 1 else 65535, "i": 255}.get(
        a.dtype.kind, 1
    )
    plain = np.stack([plain] * 3, 2) if grey else plain
    assert np.allclose(x[0].permute(1, 2, 0).numpy(), plain, atol=1e-6)
    same = back(x)
    assert (same.shape, same.dtype) == (a.shape, a.dtype)
    assert np.allclose(same.astype(float), a.astype(float), atol=1e-6)


def test_grey_stays_grey(tmp_path):
    grey = SMALL.convert("L")
    for suffix in ".png", ".jpg", ".tif", ".bmp":
        grey.save(tmp_path / f"a{suffix}")
        x, back = as_batch(tmp_path / f"a{suffix}")
        save_image(back(x), tmp_path / f"b{suffix}")
        with Image.open(tmp_path / f"b{suffix}") as img:
            assert img.mode == "L"
    assert back(torch.zeros_like(x)).getpixel((0, 0)) == 0


def test_what_cannot_be_written_is_known_before(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "a.png").touch()
    os.mkfifo(tmp_path / "pipe.png") if hasattr(os, "mkfifo") else None
    for path, kind in {
        tmp_path / "a.xyz": ImageError,
        tmp_path / "a": ImageError,
        tmp_path / "a.png": FileExistsError,
        tmp_path / "pipe.png": FileExistsError,
        tmp_path / "file" / "b.png": OSError,
    }.items():
        with pytest.raises(kind):
            check_writable(path)
    with pytest.raises(FileExistsError):
        check_writable(tmp_path / "pipe.png", overwrite=True)
    with pytest.raises(ImageError, match="16383 pixels a side"):
        check_writable(tmp_path / "b.webp", size=(20000, 4))
    with pytest.raises(ImageError, match="65500"):
        save_image(Image.new("1", (65501, 1)), tmp_path / "b.jpg")
    assert not (tmp_path / "b.jpg").exists()


def test_long_names_are_written(tmp_path):
    name = "ä" * 125 + ".png"  # 254 bytes
    save_image(SMALL, tmp_path / name)
    with atomic_write(tmp_path / name) as part:
        assert len(os.fsencode(part.name)) <= 255
        assert f".{os.getpid()}-" in part.name
        part.write_bytes(b"")
    assert [f.name for f in tmp_path.iterdir()] == [name]


def test_import_is_light():
    code = "import sys, sginet.images; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert not loaded & {"matplotlib", "torchvision", "fastai", "scipy", "sklearn"}
