"""Prompts of images: text files beside them, and columns of data sets."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

from unlearn_ext import data
from unlearn_ext.data.sets import digests
from unlearn_ext.errors import UserError

Image = pytest.importorskip("PIL.Image")
HOW = {"size": 8, "channels": 3, "validation": 0.5}


def write(folder, count, seed=0):
    """Write random images and return their paths."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def place(tmp_path):
    for seed, side in enumerate(("ours", "theirs")):
        for path in write(tmp_path / side, 4, seed)[: 4 - seed]:
            path.with_suffix(".txt").write_text(f"\ufeff a picture of\n{side}, {path.stem} \n", encoding="utf-8")
    return tmp_path


def own(images):
    """Return the prompts of all images by their files."""
    parts = (images.forget, images.forget_validation, images.retain, images.retain_validation)
    known = [digest for part in parts for digest in digests(part)]
    files = [image.file for image in images.listed]
    return {file: images.prompts.get(digest) for file, digest in zip(files, known, strict=True)}


def test_a_text_file_beside_an_image_is_its_prompt(place):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = data.load_folders(place / "ours", place / "theirs", prompts=True, **HOW)
    expected = {str(place / "ours" / f"{n}.png"): f"a picture of ours, {n}" for n in range(4)}
    expected |= {str(place / "theirs" / f"{n}.png"): f"a picture of theirs, {n}" for n in range(3)}
    assert own(images) == expected | {str(place / "theirs" / "3.png"): None}


def test_a_folder_of_classes_has_them_too(place):
    images = data.load_class_folders(place, "ours", prompts=True, **HOW)
    assert sum(prompt is not None for prompt in own(images).values()) == 7


def test_they_are_read_only_when_asked_for(place):
    (place / "ours" / "0.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.warns(UserWarning, match=r"entries below .* left out as hidden or no image: .txt"):
        assert not data.load_folders(place / "ours", place / "theirs", **HOW).prompts


def test_other_text_files_are_still_mentioned(place):
    (place / "ours" / "notes.txt").write_text("notes")
    with pytest.warns(UserWarning, match=r"1 entry below .* is left out .*: .txt \(1\)"):
        data.load_folders(place / "ours", place / "theirs", prompts=True, **HOW)


def test_a_text_file_that_is_not_utf_8_is_named(place):
    (place / "ours" / "0.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"the prompt .*0.txt cannot be read: it is not UTF-8"):
        data.load_folders(place / "ours", place / "theirs", prompts=True, **HOW)


def test_copies_with_different_prompts_are_named(place):
    copy = place / "ours" / "copy.png"
    copy.write_bytes((place / "ours" / "0.png").read_bytes())
    copy.with_suffix(".txt").write_text("something else")
    with pytest.raises(UserError, match=r"the same pixels as another one, but another prompt(.|\n)*copy.png"):
        data.load_folders(place / "ours", place / "theirs", prompts=True, **HOW)


def test_prompts_stay_with_images_that_are_found_again_and_joined(place):
    images = data.load_folders(place / "ours", place / "theirs", prompts=True, **HOW)
    found = data.recover("again", images.listed, [images], 1.0)
    assert own(found) == own(images)
    write(place / "more", 2, seed=5)
    (place / "more" / "1.txt").write_text("one more")
    new = data.load_folders({"ben": place / "more"}, None, prompts=True, **HOW)
    joined = data.join(new, found, 1.0)
    assert joined.prompts == {**found.prompts, **new.prompts}
    assert images.some(0.5, "too many").prompts == images.prompts


def test_a_column_of_a_data_set_has_the_prompts(tmp_path):
    datasets = pytest.importorskip("datasets")
    paths = write(tmp_path / "images", 8)
    columns = {
        "image": [str(path) for path in paths], "label": ["a", "b"] * 4,
        "caption": [f"picture {number}" if number else None for number in range(8)], "number": list(range(8)),
    }  # fmt: skip
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    images = data.load_dataset_columns(dataset, "a", label_column="label", prompt_column="caption", **HOW)
    assert own(images) == {f"row {n}": f"picture {n}" if n else None for n in range(8)}
    for column, sentence in (("number", "must hold texts, the prompts, but one value is 0"), ("text", "no column")):
        with pytest.raises(UserError, match=sentence):
            data.load_dataset_columns(dataset, "a", label_column="label", prompt_column=column, **HOW)


def test_of_copies_in_different_runs_the_newer_prompt_is_kept(place):
    """The images of a run are searched before those of the runs that it continued."""
    newer, older = (data.load_folders(place / "ours", place / "theirs", prompts=True, **HOW) for _ in range(2))
    other = replace(older, prompts=dict.fromkeys(older.prompts, "something else"))
    assert data.recover("", newer.listed, [newer, other], 1.0).prompts == newer.prompts
