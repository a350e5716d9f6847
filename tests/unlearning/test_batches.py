import errno
import itertools
import os
import threading
from pathlib import Path

import pytest
import tiny
import torch

import unlearn_ext as ux
from unlearn_ext import demo
from unlearn_ext._utils import draws
from unlearn_ext.data import augment, storage
from unlearn_ext.errors import UserError
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning.batches import Shuffled, Side, ahead, pairs, pixels
from unlearn_ext.unlearning.settings import Settings

TASK = CenterCrop(0.5)


def sides(model, images, **options):
    return (Side(side, model, TASK, **options) for side in images)


@pytest.mark.parametrize(("count", "size"), [(10, 3), (10, 10), (4, 9)])
def test_every_image_comes_once_before_any_comes_again(count, size):
    batches = Shuffled(count, size, torch.Generator().manual_seed(0))
    drawn = torch.cat([next(batches) for _ in range(count)])
    for epoch in drawn[: len(drawn) // count * count].split(count):
        assert epoch.sort().values.tolist() == list(range(count))


def test_what_is_made_ahead_is_the_same_and_made_by_another_thread():
    makers = []

    def made():
        for number in range(5):
            makers.append(threading.get_ident())
            yield number

    assert list(ahead(made())) == list(range(5))
    assert len(set(makers)) == 1
    assert makers[0] != threading.get_ident()


def test_one_is_made_while_another_is_used_and_no_more():
    made = []
    things = ahead(made.append(number) or number for number in itertools.count())
    for taken in range(3):
        assert next(things) == taken
    things.close()
    assert made == [0, 1, 2, 3]


def test_what_goes_wrong_ahead_is_raised_where_it_is_asked_for():
    def made():
        yield 1
        raise UserError("the disk is gone.")

    things = ahead(made())
    assert next(things) == 1
    with pytest.raises(UserError, match="the disk is gone"):
        next(things)


def test_minibatches_are_the_corrupted_images_and_the_seed_decides_which(model, images):
    forget, retain = next(pairs(*sides(model, images), size=8, seed=0))
    known = {image.numpy().tobytes() for image in TASK(images[0])}
    assert {image.numpy().tobytes() for image in forget.inputs[0]} < known
    again, other = (next(pairs(*sides(model, images), size=8, seed=seed)) for seed in (0, 1))
    assert torch.equal(again[1].inputs[0], retain.inputs[0])
    assert not torch.equal(other[1].inputs[0], retain.inputs[0])


@pytest.mark.parametrize("family", demo.CHOICES)
def test_what_goes_to_a_gpu_can_be_pinned(family, images):
    """Expanded tensors cannot be pinned because their elements share memory."""
    forget, _ = sides(tiny.model(family), images, noises=1)
    batch = forget.batch(torch.arange(8), draw=1)
    assert all(tensor.is_contiguous() for tensor in (*batch.inputs, *batch.noise))


def test_bytes_are_the_same_images_as_floats(model):
    shades = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert pixels(shades).min() == -1
    assert pixels(shades).max() == 1
    assert torch.equal(((pixels(shades) + 1) * 127.5).round().to(torch.uint8), shades)


# ---- random numbers per image


def test_what_is_drawn_is_the_images_own_in_whatever_batch_it_comes(images):
    whole = draws.normal(images[0], "noise", 3)
    parts = torch.cat([draws.normal(part, "noise", 3) for part in images[0].split(5)])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, draws.normal(images[0], "noise", 4))
    assert len({noise.numpy().tobytes() for noise in whole}) == len(whole)
    assert abs(whole.mean()) < 0.1
    assert abs(whole.std() - 1) < 0.1


def test_augmentation_is_new_in_every_step_and_not_for_evaluation(model, images):
    side, _ = sides(model, images, augment=augment.shift)
    index = torch.arange(8)
    first, again, second = (side.batch(index, draw).inputs[0] for draw in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(side.batch(index).inputs[0], TASK(images[0][:8]))


def test_a_flipped_image_is_mirrored_or_not(images):
    flipped = augment.flip(images[0], 1)
    mirrored = [torch.equal(f, i.flip(-1)) for f, i in zip(flipped, images[0], strict=True)]
    assert all(m or torch.equal(f, i) for m, f, i in zip(mirrored, flipped, images[0], strict=True))
    assert 10 < sum(mirrored) < 38


def test_a_shifted_image_is_moved_by_at_most_an_eighth():
    point = torch.zeros(64, 1, 16, 16)
    point[:, 0, 8, 8] = 1
    point += torch.rand(64, 1, 1, 1) / 4  # identical images would all be shifted alike
    places = augment.shift(point, 5).flatten(1).argmax(1)
    rows, columns = places // 16, places % 16
    assert set(rows.tolist()) == set(columns.tolist()) == {6, 7, 8, 9, 10}


def test_augmentations_follow_each_other_and_none_is_none(images):
    both = augment.parse(["flip", "shift"])
    assert torch.equal(both(images[0], 1), augment.shift(augment.flip(images[0], 1), 1))
    assert augment.parse([]) is None
    with pytest.raises(UserError, match="there is no augmentation `rotate`; known: flip, shift"):
        augment.parse(["rotate"])


# ---- memory and disk


def test_past_the_limit_a_tensor_is_a_file_that_has_no_name(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_EXT_CACHE", str(tmp_path))
    kept = storage.empty((3, 1 << 20), torch.float32, limit=0.001)
    if os.path.exists("/proc/self/maps"):
        assert Path("/proc/self/maps").read_text().count(str(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []
    kept[:] = torch.arange(3.0)[:, None]
    assert storage.gather(kept, torch.tensor([2, 0]), limit=0)[:, 7].tolist() == [2.0, 0.0]
    assert storage.empty((3, 5), torch.float32, limit=1).shape == (3, 5)


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("UNLEARN_EXT_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match=r"1.0 GiB are needed on the disk of .*: No space left on device; free some"):
        storage.empty((1 << 30,), torch.uint8, limit=0.5)


def test_targets_on_disk_make_the_same_model(model, images):
    in_memory, on_disk = (
        ux.unlearn(model, *images, task=TASK, epsilon=0.1, settings=Settings(steps=5, memory=memory))
        for memory in (1.0, 0.0)
    )
    for p, q in zip(in_memory.encoder_parameters(), on_disk.encoder_parameters(), strict=True):
        assert torch.equal(p, q)


def test_bytes_make_the_same_model_as_the_floats_that_they_are(model, images):
    as_bytes = [((side + 1) * 127.5).round().to(torch.uint8) for side in images]
    quick = {"task": TASK, "epsilon": 0.1, "settings": Settings(steps=3)}
    a, b = (ux.unlearn(model, *both, **quick) for both in (as_bytes, map(pixels, as_bytes)))
    for p, q in zip(a.encoder_parameters(), b.encoder_parameters(), strict=True):
        assert torch.equal(p, q)
