"""One set of all images below a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from unlearn_ext import data
from unlearn_ext.errors import UserError

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a flat grey image in a sub-folder, and one beside it."""
    (tmp_path / "a").mkdir()
    Image.new("L", (6, 8), 40).save(tmp_path / "a" / "1.pgm")
    Image.new("RGB", (6, 8), (90, 90, 90)).save(tmp_path / "b.png")
    return tmp_path


def test_all_images_below_a_folder_are_one_set(folder: Path) -> None:
    images = data.load_images(folder, size=4)
    assert (images.shape, images.dtype) == ((2, 1, 4, 4), torch.uint8)
    assert images.flatten(1).unique(dim=1).tolist() == [[40], [90]], "in the order of their paths"


def test_one_colour_makes_all_images_rgb_unless_channels_are_given(folder: Path) -> None:
    Image.new("RGB", (6, 8), (90, 90, 91)).save(folder / "c.ppm")
    assert data.load_images(folder, size=4).shape == (3, 3, 4, 4)
    assert data.load_images(folder, size=4, channels=1).shape == (3, 1, 4, 4)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"P5 # a comment\n2 2\n255\n" + bytes([80] * 4), 80),
        (b"P2\n2 2\n255\n80 80\n80 80\n", 80),
        (b"P5 2 2 65535\n" + (80 * 257).to_bytes(2, "big") * 4, 80),
        (b"P5 2 2 100\n" + bytes([100] * 4), 255),
        (b"P4 2 2\n" + bytes([0, 0]), 255),
    ],
    ids=["binary", "text", "16 bits", "another range", "bitmap"],
)
def test_every_kind_of_netpbm_is_read(tmp_path: Path, content: bytes, value: int) -> None:
    (tmp_path / "image.pgm").write_bytes(content)
    images = data.load_images(tmp_path, size=2)
    np.testing.assert_array_equal(images.numpy(), np.full((1, 1, 2, 2), value))


def test_what_cannot_be_read_stops_unless_it_may_be_skipped(folder: Path) -> None:
    (folder / "broken.pgm").write_bytes(b"P5 2 2 255\n\0")
    with pytest.raises(UserError, match=r"1 image cannot be read: .*skip_bad=True"):
        data.load_images(folder, size=4)
    with pytest.warns(UserWarning, match="left out"):
        assert len(data.load_images(folder, size=4, skip_bad=True)) == 2
    for name in ("a/1.pgm", "b.png"):
        (folder / name).unlink()
    with pytest.warns(UserWarning, match="left out"), pytest.raises(UserError, match="holds no image that can be read"):
        data.load_images(folder, size=4, skip_bad=True)
    (folder / "broken.pgm").unlink()
    with pytest.raises(UserError, match="holds no image"):
        data.load_images(folder, size=4)
