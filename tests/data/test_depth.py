"""Grey images of more than 8 bits, and transparent colours at depths other than 8 bits."""

import io

import numpy as np
import pytest
from encoded import png, tiff, twelve_bits

pytest.importorskip("PIL.Image")

from unlearn_ext import data
from unlearn_ext.data.decode import decode
from unlearn_ext.errors import UserError

HALF = np.repeat([200, 0], 4)[:, None].repeat(8, axis=1)  # light above, dark below


def ends(content, channels=1):
    """Return the values of the first and the last pixel."""
    pixels = decode(io.BytesIO(content), 8, channels).pixels
    return pixels[0, 0, 0], pixels[0, -1, -1]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(twelve_bits(HALF * 4095 / 255), id="12 bits"),
        pytest.param(tiff((HALF * 257).astype("uint16")), id="16 bits"),
        pytest.param(tiff((HALF * 257).astype("uint16"), order=">"), id="16 bits, big end first"),
        pytest.param(tiff(((255 - HALF) * 257).astype("uint16"), tag_262=0), id="16 bits, white is zero"),
        pytest.param(tiff(np.rint(HALF * 32767 / 255).astype("int16")), id="16 bits with a sign"),
        pytest.param(tiff(np.rint(HALF * 127 / 255).astype("int8")), id="8 bits with a sign"),
        pytest.param(tiff((HALF / 255).astype("float32")), id="floats to 1"),
        pytest.param(tiff((1 - HALF / 255).astype("float32"), tag_262=0), id="floats, white is zero"),
        pytest.param(png(HALF * 257, 16), id="PNG"),
    ],
)
def test_the_range_comes_from_the_file(content):
    light, dark = ends(content)
    assert abs(int(light) - 200) <= 1
    assert dark == 0
    assert decode(io.BytesIO(content), 8, 1).guessed is None


@pytest.mark.parametrize(
    ("pixels", "most"),
    [
        (HALF.astype("int32"), 255),
        (HALF.astype("uint32"), 255),
        ((HALF * 257).astype("int32"), 65535),
        (HALF.astype("float32"), 255),
        ((HALF * 257).astype("float32"), 65535),
    ],
)
def test_whole_numbers_of_unknown_range_are_guessed(pixels, most):
    assert ends(tiff(pixels)) == (200, 0)
    assert decode(io.BytesIO(tiff(pixels)), 8, 1).guessed == most


@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        (np.full((8, 8), 7.5, "float32"), r"from 7\.5 to 7\.5, and the file does not say of what range"),
        (np.full((8, 8), np.nan, "float32"), "from nan to nan"),
        (np.full((8, 8), np.inf, "float32"), "from inf to inf"),
        (np.full((8, 8), 70000, "int32"), "from 70000 to 70000, and the file does not say of what range"),
        (np.full((8, 8), -1, "int32"), "from -1 to -1, and not from 0 to 255"),
        (np.full((8, 8), -5, "int16"), "from -5 to -5, and not from 0 to 32767"),
        (np.full((8, 8), -5, "int8"), "from -5 to -5, and not from 0 to 127"),
        (np.full((8, 8), -0.5, "float32"), r"from -0\.5 to -0\.5, and not from 0 to 1"),
    ],
)
def test_values_of_unknown_range_or_outside_a_known_range_are_refused(pixels, sentence):
    with pytest.raises(ValueError, match=f"its values reach {sentence}"):
        decode(io.BytesIO(tiff(pixels)), 8, 1)


def folders(place, *contents):
    """Write two folders, the first with images of these contents, and load them."""
    for side in ("forget", "retain"):
        (place / side).mkdir()
    for i, content in enumerate(contents):
        (place / "forget" / f"{i}.tif").write_bytes(content)
        (place / "retain" / f"{i}.tif").write_bytes(tiff(np.full((8, 8), 100 + i, "uint8")))
    return data.load_folders(place / "forget", place / "retain", size=8, channels=1)


def test_a_guess_is_mentioned(tmp_path):
    with pytest.warns(UserWarning, match=r"2 images hold whole numbers .* from 0 to 255:\n.*0\.tif\n.*1\.tif"):
        sets = folders(tmp_path, tiff(HALF.astype("int32")), tiff((HALF + 1).astype("int32")))
    assert max(sets.forget.max(), sets.forget_validation.max()) == 201


def test_guesses_that_do_not_agree_are_refused(tmp_path):
    """Otherwise a dark 16-bit picture would become 257 times too bright compared with the others."""
    with pytest.raises(UserError, match=r"seem to be of different ones.*\n.*0\.tif: 0 to 255\n.*1\.tif: 0 to 65535"):
        folders(tmp_path, tiff(HALF.astype("int32")), tiff((HALF * 257).astype("int32")))


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize(
    "make",
    [
        lambda turn: png(HALF * 257, 16, orientation=turn),
        lambda turn: png(HALF * 257, 16, orientation=turn, key=[1]),
        lambda turn: tiff((HALF * 257).astype("uint16"), order=">", tag_274=turn),
        lambda turn: tiff(HALF.astype("int32"), tag_274=turn),
        lambda turn: tiff((HALF / 255).astype("float32"), tag_274=turn),
        lambda turn: tiff(np.rint(HALF * 32767 / 255).astype("int16"), tag_274=turn),
    ],
)
def test_deep_greys_are_turned_too(make, orientation):
    """Orientation 3 (half a turn) moves the light half to the bottom; 6 (a quarter turn) moves it to the right."""
    turned = decode(io.BytesIO(make(orientation)), 8, 1).pixels[0]
    light = turned[-1, 0] if orientation == 3 else turned[0, -1]
    assert abs(int(light) - 200) <= 1
    assert turned[0, 0] == 0


@pytest.mark.parametrize(
    ("pixels", "depth", "key"),
    [
        (HALF * 257, 16, 200 * 257),
        (np.where(HALF, 3, 1), 2, 3),
        (np.where(HALF, 1, 2), 2, 1),
        (np.where(HALF, 12, 0), 4, 12),
        (np.where(HALF, 1, 0), 1, 1),
        (HALF, 8, 200),
    ],
)
def test_the_transparent_grey_is_that_of_the_file(pixels, depth, key):
    """The upper half is transparent and becomes white; the lower half keeps its shade."""
    light, dark = ends(png(pixels, depth, key=[key]))
    assert light == 255
    assert dark == pixels[-1, -1] * 255 // (2**depth - 1)


def test_a_transparent_colour_of_16_bits_is_refused():
    """Pillow reduces 16-bit colours to 8 bits, so other colours would also count as the transparent one."""
    colours = np.full((8, 8, 3), 257)
    with pytest.raises(ValueError, match="16-bit colours, one of them transparent: save it with an alpha channel"):
        decode(io.BytesIO(png(colours, 16, key=[1, 1, 1])), 8, 3)
    assert ends(png(colours, 16), channels=3) == (1, 1)
