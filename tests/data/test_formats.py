"""Which files count as images, whatever their suffix, and the messages about unreadable images and other files."""

import io
import os
import socket
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from encoded import chunk, png, tiff

from unlearn_ext import data
from unlearn_ext.data import formats
from unlearn_ext.data.decode import decode
from unlearn_ext.errors import UserError

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def place(tmp_path):
    """Return a folder with four pictures to forget and four to retain."""
    for side, offset in (("forget", 0), ("retain", 10)):
        (tmp_path / side).mkdir()
        for i in range(4):
            picture(offset + i).save(tmp_path / side / f"{i}.png")
    return tmp_path


def picture(seed=50, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(kind, image=None, **options):
    """Return the bytes of an image file written by Pillow."""
    content = io.BytesIO()
    (image or picture()).save(content, kind, **options)
    return content.getvalue()


def load(place, **options):
    return data.load_folders(place / "forget", place / "retain", size=8, channels=3, **options)


def said(place, name, content):
    """Write a file to the forget folder and return the resulting error message."""
    (place / "forget" / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        load(place)
    return str(raised.value)


@pytest.mark.parametrize("name", ["0a1b2c", "IMG_1.crdownload", "photo.jpg_original", "x.txt"])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "TIFF", "JPEG2000", "PPM", "ICO", "SGI", "PCX", "QOI", "AVIF"])
def test_an_image_is_known_by_its_content(place, kind, name):
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {kind}")
    (place / "forget" / name).write_bytes(encoded(kind))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sets = load(place)
    assert len(sets.forget) + len(sets.forget_validation) == 5


@pytest.fixture
def no_plug_ins(monkeypatch):
    """Remove Pillow's plug-ins for HEIF and JPEG XL."""
    formats.pillow()
    for decoder in ("HEIF", "JXL"):
        monkeypatch.delitem(Image.OPEN, decoder, raising=False)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name in Image.OPEN])


RAW = "it is a raw photograph: export it as TIFF, PNG or JPEG"
PREVIEW = tiff(np.zeros((9, 9), "uint8"), tag_254=1)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.usefixtures("no_plug_ins")
@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a", b"\0\0\0\x18ftypmsf1\0\0\0\0hevc", "it is HEIF: pip install pillow-heif, or convert it to PNG or JPEG"),
        ("a", b"\0\0\0\x1cftypMiHB\0\0\0\0mif1heix", "it is HEIF: pip install pillow-heif"),
        ("a.mov", b"\0\0\0\x18ftypheic\0\0\0\0mif1", "it is HEIF: pip install pillow-heif"),
        ("IMG_1.HIF", b"\1\2\3", "it is HEIF: pip install pillow-heif"),
        ("a", b"\xff\x0a\xfa\x7f", "it is JPEG XL: pip install pillow-jxl-plugin"),
        ("a", b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", RAW),
        ("a", b"FUJIFILMCCD-RAW 0201FF393501", RAW),
        ("a", b"IIRO\x08\0\0\0", RAW),
        ("a", b"IIU\0\x08\0\0\0", RAW),
        ("a", b"II*\0\x10\0\0\0CR\x02\0", RAW),
        ("a.tif", tiff(np.zeros((9, 9), "uint8"), tag_50706=1), RAW),
        ("a.tif", tiff(np.zeros((9, 9), "uint16"), tag_262=32803), "broken, cut off, or of a kind"),
        ("DSC_1.NEF", tiff(np.zeros((9, 9), "uint8")), RAW),
        ("DSC_1.ARW", b"\1\2\3", RAW),
        ("a", PREVIEW, "its first page is a preview of another, as in raw photographs"),
        ("a", b"v/1\x01\2\0\0\0", "it is OpenEXR, which Pillow does not read: convert it to PNG, TIFF or JPEG"),
        ("a", b"II\xbc\x01\x08\0\0\0", "it is JPEG XR, which Pillow does not read"),
        ("a.dcm", bytes(128) + b"DICM", "it is DICOM, which Pillow does not read"),
        ("a", b"8BPS\0\2" + bytes(20), "it looks like PSD (Photoshop), but it is broken, cut off, or of a kind"),
        ("a", encoded("JPEG")[:10], "Truncated File Read"),
        ("a.part", encoded("PNG")[:20], "Truncated File Read"),
        ("a.jpg", b"<html>not found</html>", "its content is text"),
        ("a.jpg", b"", "it is empty"),
        ("a.gif", b"\1\2\3", "its content is of no format that Pillow reads"),
        ("a.svg", b"<svg/>", "it is SVG, which Pillow does not read"),
    ],
)
def test_a_photograph_that_cannot_be_read_is_named(place, name, content, sentence):
    assert f"/{name}: " in said(place, name, content)
    assert sentence in said(place, name, content)


@pytest.mark.usefixtures("no_plug_ins")
def test_images_in_rows_give_the_same_messages(tmp_path):
    with pytest.raises(ValueError, match="it is HEIF: pip install pillow-heif"):
        decode(io.BytesIO(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"), 8, 3)
    with pytest.raises(ValueError, match="its first page is a preview"):
        decode(io.BytesIO(PREVIEW), 8, 3)


def test_a_picture_too_large_to_open_is_not_passed_over(place):
    """The file has no suffix, and Pillow refuses it when it reads the header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 1, 0, 0, 0, 0))
    for content in (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        b"P5 60000 60000 255\n",
    ):
        assert "a: Image size (3600000000 pixels) exceeds limit" in said(place, "a", content)


@pytest.mark.filterwarnings(r"ignore:.*\.txt \(1\)")
def test_a_link_to_nothing_is_not_passed_over(place):
    (place / "forget" / "gone").symlink_to(place / "nowhere")
    (place / "forget" / "notes.txt").symlink_to(place / "nowhere")
    with pytest.raises(UserError, match=r"1 image cannot be read.*\n.*gone: No such file or directory"):
        load(place)


def test_what_is_no_image_is_counted(place):
    (place / "forget" / "deeper").mkdir()
    for name, content in {
        "deeper/a.json": b"{}", "b.json": b"{}", "IMG_1.MOV": b"\0\0\0\x14ftypqt  \0\0\0\0qt  ",
        "notes": b"P5 is a house", "more": b"BMW is a car", "empty": b"", "labels.h5": b"\x89HDF\r\n\x1a\n",
        "measured.tif.bak": b"\1\2\3",
        "Thumbs.db": b"x", "desktop.ini": b"x", "._IMG_1.jpg": b"\0\5\x16\7", ".DS_Store": b"x",
    }.items():  # fmt: skip
        (place / "forget" / name).write_bytes(content)
    with pytest.warns(UserWarning, match="8 entries below .*forget are left out") as caught:
        sets = load(place)
    assert len(caught) == 1
    assert str(caught[0].message).endswith(
        "are left out as hidden or no image: .json (2), no suffix (2), .mov (1), empty file (1), .h5 (1), .bak (1)."
    )
    assert len(sets.forget) + len(sets.forget_validation) == 4


def test_hidden_images_are_counted(place):
    picture().save(place / "retain" / ".a.png")
    (place / "retain" / ".b").write_bytes(encoded("JPEG"))
    (place / "retain" / ".c").write_bytes(b"no picture")
    (place / "retain" / ".thumbnails").mkdir()
    with pytest.warns(UserWarning, match=r"3 entries below .*retain .*: hidden image \(2\), hidden folder \(1\)\."):
        load(place)


def test_of_a_folder_without_images_its_content_is_said(place):
    (place / "films").mkdir()
    for i in range(3):
        (place / "films" / f"{i}.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    with pytest.raises(UserError, match=r"films holds no image \(nor do the folders in it\); it holds \.mp4 \(3\)\."):
        data.load_folders(place / "films", place / "retain", size=8, channels=3)


# ---- pipes, sockets and devices


@pytest.fixture
def pipe(place):
    """Return a function that makes a named pipe; a reader of it would wait for five seconds and get nothing."""
    held = []

    def make(name):
        os.mkfifo(place / name)
        held.append(os.open(place / name, os.O_RDWR | os.O_NONBLOCK))
        threading.Timer(5, os.close, held[-1:]).start()

    return make


@pytest.mark.parametrize("name", ["forget/x.png", "forget/x.heic", "retain/x.nef"])
def test_a_pipe_called_an_image_is_named_and_not_opened(place, pipe, name):
    pipe(name)
    with pytest.raises(UserError, match=rf"1 image cannot be read.*\n.*{name}: it is a named pipe and no file"):
        load(place)


@pytest.mark.parametrize("name", ["x", "x.txt", "x.fifo"])
def test_another_pipe_is_counted_and_not_opened(place, pipe, name):
    pipe(f"forget/{name}")
    with pytest.warns(UserWarning, match=r"1 entry below .* is left out .*: named pipe \(1\)"):
        load(place)


def test_sockets_and_devices_are_named(place, monkeypatch):
    (place / "forget" / "zero.png").symlink_to("/dev/zero")
    monkeypatch.chdir(place / "retain")  # the path of a socket is at most 107 bytes long
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("x.jpg")
        with pytest.raises(
            UserError, match=r"(?s)2 images.*zero\.png: it is a device and no file.*jpg: it is a socket"
        ):
            load(place)


@pytest.mark.parametrize("name", [b"a\nb.png", b"[red]a[bold].png", b"caf\xe9.png", b"\x1b[31m.png", b"\xff"])
def test_any_name_can_be_reported(place, name):
    with open(os.fsencode(place / "forget") + b"/" + name, "wb") as file:
        file.write(encoded("PNG")[:20])
    with pytest.raises(UserError, match="1 image cannot be read"):
        load(place)
    with pytest.warns(UserWarning, match="1 image cannot be read"):
        load(place, skip_bad=True)


# ---- PNGs with large text and profile chunks, and Pillow's plug-ins


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
@pytest.mark.parametrize(
    "notes",
    [
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(3_000_000))),
        chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3_000_000))),
    ],
)
def test_a_png_with_long_texts_is_read(notes, mode):
    plain = encoded("PNG", picture(mode=mode))
    start = 8 + 25  # signature and header
    noted = plain[:start] + notes + plain[start:]
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"):
        Image.open(io.BytesIO(noted)).load()
    assert np.array_equal(decode(io.BytesIO(noted), 8, 3).pixels, decode(io.BytesIO(plain), 8, 3).pixels)


def test_the_orientation_in_a_text_is_kept():
    """XMP metadata is a text chunk in a PNG."""
    half = np.repeat([200, 0], 4)[:, None].repeat(8, axis=1)
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="3"/></x:xmpmeta>'
    content = png(half, 8)
    start = 8 + 25
    content = content[:start] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet) + content[start:]
    assert decode(io.BytesIO(content), 8, 1).pixels[0, :, 0].tolist() == half[::-1, 0].tolist()


def test_a_png_that_is_cut_off_is_named(place):
    content = encoded("PNG", Image.effect_noise((99, 99), 50))
    assert "a: image file is truncated" in said(place, "a", content[: len(content) // 2])


def test_a_plug_in_of_pillow_is_used(place, monkeypatch):
    """A custom format is read under its own suffix, under another suffix, and without one."""
    formats.pillow()
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))
    Image.register_open("MINE", lambda file, name: picture(file.read()[-1]), lambda head: head.startswith(b"MINE"))
    Image.register_extension("MINE", ".mine")
    for shade, name in enumerate(("a.mine", "b.txt", "c")):
        (place / "forget" / name).write_bytes(b"MINE" + bytes([100 + shade]))
    sets = load(place)
    assert len(sets.forget) + len(sets.forget_validation) == 7


def test_heif_is_read_where_its_plug_in_is_installed(place):
    plug_in = pytest.importorskip("pillow_heif")
    for i, name in enumerate(("a.heic", "b.hif", "c")):
        with open(place / "forget" / name, "wb") as file:
            plug_in.from_pillow(picture(100 + i)).save(file, quality=-1)
    formats.pillow.cache_clear()
    sets = load(place)
    assert len(sets.forget) + len(sets.forget_validation) == 7
    assert "it looks like HEIF, but it is broken" in said(place, "d", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
