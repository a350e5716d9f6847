"""The user's images: what is read, how, and what is refused."""

import warnings

import numpy as np
import pytest
import torch

from unlearn_ext import data
from unlearn_ext.errors import UserError

Image = pytest.importorskip("PIL.Image")

SUFFIXES = ("jpg", "png", "webp", "bmp", "gif", "tif")


def save(path, seed=0, side=16, mode="RGB"):
    """Save a picture that is different for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.fixture
def place(tmp_path):
    """Return a folder with ten pictures to forget and fifty to retain: all formats, several sizes, nested folders."""
    for i in range(60):
        side = "forget" if i < 10 else "retain"
        save(tmp_path / side / ("a/b" if i % 3 else "") / f"{i:02}.{SUFFIXES[i % 6]}", seed=i, side=12 + i)
    return tmp_path


def load(place, **options):
    options = {"size": 8, "channels": 3, **options}
    return data.load_folders(place / "forget", place / "retain", **options)


def test_every_format_is_read_without_a_word(place):
    for junk in ("Thumbs.db", ".DS_Store"):
        (place / "forget" / junk).write_bytes(b"no picture")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sets = load(place)
    assert [len(part) for part in (sets.forget, sets.forget_validation, sets.retain)] == [8, 2, 40]
    assert sets.forget.shape[1:] == (3, 8, 8)
    assert sets.forget.dtype == torch.uint8
    assert sets.name == "forget / retain"


def test_the_order_is_that_of_the_paths(place, monkeypatch):
    from unlearn_ext.data import folders

    walk = folders.os.walk
    monkeypatch.setattr(folders.os, "walk", lambda *a, **k: ((p, d, f[::-1]) for p, d, f in walk(*a, **k)))
    backwards = load(place)
    monkeypatch.undo()
    assert torch.equal(load(place).retain, backwards.retain)
    paths = folders.find_images(place / "retain")
    assert paths == sorted(paths)


def test_an_image_without_a_suffix_is_an_image(place):
    save(place / "forget" / "x.png", seed=100).rename(place / "forget" / "0a1b2c")
    sets = load(place)
    assert len(sets.forget) + len(sets.forget_validation) == 11


def test_linked_folders_are_entered_once(place):
    (place / "elsewhere").mkdir()
    save(place / "elsewhere" / "x.png", seed=100)
    for link in ("link", "twin"):
        (place / "forget" / link).symlink_to(place / "elsewhere")
    (place / "elsewhere" / "back").symlink_to(place / "forget")
    sets = load(place)
    assert len(sets.forget) + len(sets.forget_validation) == 11


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("L", 3), ("RGB", 3), ("RGBA", 3), ("P", 1), ("LA", 1)])
def test_modes_keep_their_shade(tmp_path, mode, channels):
    for side, shade in (("forget", 0), ("retain", 100)):
        (tmp_path / side).mkdir()
        for i in range(4):
            Image.new("L", (20, 10), shade + i).convert(mode).save(tmp_path / side / f"{i}.png")
    assert shades(load(tmp_path, channels=channels)) == {0, 1, 2, 3}


def shades(sets):
    """Return the set of all pixel values of the forget set, 0 to 255."""
    return set(torch.cat([sets.forget, sets.forget_validation]).flatten().tolist())


@pytest.mark.filterwarnings("ignore:1 image in the forget set repeats")
@pytest.mark.parametrize("how", ["RGBA", "LA", "P", "colour key"])
def test_transparency_is_laid_on_white(place, how):
    folder = place / "clear"
    folder.mkdir()
    for i in range(2):
        clear = Image.new("RGBA", (9 + i, 9), (0, 0, 0, 0))
        if how == "colour key":
            clear.convert("RGB").save(folder / f"{i}.png", transparency=(0, 0, 0))
        elif how == "P":
            Image.new("P", (9, 9), 0).save(folder / f"{i}.gif", transparency=0)
        else:
            clear.convert(how).save(folder / f"{i}.png")
    assert shades(data.load_folders(folder, place / "retain", size=8, channels=3)) == {255}


@pytest.mark.parametrize(("dtype", "most", "suffix"), [("uint16", 65535, "png"), ("uint16", 65535, "tif"),
                                                       ("float32", 1, "tif")])  # fmt: skip
def test_deep_grey_is_scaled_not_cut(place, dtype, most, suffix):
    for i in range(4):
        pixels = np.full((9, 9), most * (50 * i) / 255, dtype)
        (place / "deep").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / "deep" / f"{i}.{suffix}")
    assert shades(data.load_folders(place / "deep", place / "retain", size=8, channels=1)) == {0, 50, 100, 150}


def test_exif_orientation_is_followed(tmp_path):
    upright = np.zeros((10, 20), np.uint8)
    upright[:5] = 255
    for i, orientation in enumerate((1, 3)):
        image = Image.fromarray(upright if orientation == 1 else upright[::-1, ::-1])
        exif = image.getexif()
        exif[0x0112] = orientation
        (tmp_path / "forget").mkdir(exist_ok=True)
        image.save(tmp_path / "forget" / f"{i}.png", exif=exif)
        save(tmp_path / "retain" / f"{i}.png", seed=i)
    with pytest.warns(UserWarning, match="1 image in the forget set repeats another"):
        sets = load(tmp_path, channels=1)
    assert torch.equal(sets.forget, sets.forget_validation)
    assert sets.forget[0, 0, 0, 0] == 255


def test_rubbish_for_exif_does_not_make_an_image_unreadable(place):
    Image.new("RGB", (9, 9)).save(place / "forget" / "x.png", exif=b"Exif\0\0rubbish")
    sets = load(place)
    assert len(sets.forget) + len(sets.forget_validation) == 11


def spoil(place):
    cut = place / "forget" / "cut.jpg"
    cut.write_bytes(save(cut, seed=100, side=64).read_bytes()[:900])
    (place / "retain" / "empty.png").write_bytes(b"")
    (place / "retain" / "phone.heic").write_bytes(b"what Pillow does not read")


def test_all_broken_images_are_named_at_once(place):
    spoil(place)
    with pytest.raises(UserError) as caught:
        load(place)
    said = str(caught.value)
    assert said.startswith("3 images cannot be read: ")
    assert "--skip-bad" in said
    assert "cut.jpg: " in said
    assert "empty.png: it is empty" in said
    assert "phone.heic: " in said


def test_broken_images_are_skipped_where_that_is_wanted(place):
    whole = load(place)
    spoil(place)
    with pytest.warns(UserWarning, match="3 images cannot be read, left out:\n.*cut.jpg: "):
        sets = load(place, skip_bad=True)
    assert torch.equal(sets.retain, whole.retain)


def test_of_many_broken_images_ten_are_named(place):
    for i in range(12):
        (place / "forget" / f"broken{i:02}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="12 images cannot be read") as caught:
        load(place)
    assert str(caught.value).count(".png: ") == 10
    assert str(caught.value).endswith("and 2 more")


def test_the_same_picture_in_both_sets_is_named_whatever_its_file(place):
    save(place / "forget" / "mine.png", seed=100)
    save(place / "retain" / "a" / "theirs.bmp", seed=100)
    with pytest.raises(
        UserError, match=r"1 image is in the forget set and in the retain set.*\n.*mine\.png = .*theirs\."
    ):
        load(place)


def test_copies_within_a_set_are_kept_and_mentioned(place):
    for name in ("x", "y", "z"):
        save(place / "retain" / f"{name}.png", seed=100)
    with pytest.warns(UserWarning, match="2 images in the retain set repeat another"):
        sets = load(place)
    assert len(sets.retain) + len(sets.retain_validation) == 53


@pytest.mark.filterwarnings("ignore:1 image in the forget set repeats")
@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_several_frames_the_first_is_used(place, suffix):
    frames = [Image.new("RGB", (9, 9), (shade,) * 3) for shade in (0, 200)]
    (place / "moving").mkdir()
    for i in range(2):
        frames = [Image.new("RGB", (9 + i, 9), (shade,) * 3) for shade in (0, 200)]
        frames[0].save(place / "moving" / f"{i}.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    with pytest.warns(UserWarning, match="2 images have several frames or pages; only the first is used:\n.*0."):
        sets = data.load_folders(place / "moving", place / "retain", size=8, channels=3)
    assert shades(sets) == {0}


@pytest.mark.parametrize(("folder", "sentence"), [("absent", "no folder"), ("blank", "holds no image")])
def test_a_folder_that_cannot_serve_is_a_user_error(place, folder, sentence):
    (place / "blank").mkdir()
    with pytest.raises(UserError, match=sentence):
        data.load_folders(place / folder, place / "retain", size=8, channels=1)


# ---- one folder per class


@pytest.fixture
def animals(tmp_path):
    for i, name in enumerate(("cat", "cow", "dog", "hen")):
        for j in range(5):
            save(tmp_path / name / "deeper" / f"{j}.png", seed=10 * i + j)
    return tmp_path


@pytest.mark.filterwarnings(r"ignore:.*hidden folder \(1\)")
def test_named_classes_are_forgotten_and_all_others_retained(animals):
    (animals / ".cache").mkdir()
    sets = data.load_class_folders(animals, ["cat", "dog"], size=8, channels=3)
    for side, parts in (("forget", ("cat", "dog")), ("retain", ("cow", "hen"))):
        for part in parts:
            (animals / side).mkdir(exist_ok=True)
            (animals / part).rename(animals / side / part)
    same = load(animals)
    assert torch.equal(sets.forget, same.forget)
    assert torch.equal(sets.retain, same.retain)


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (["cat", "cot"], "has no class cot; it has cat, cow, dog, hen"),
        ([], "at least one class"),
        (["cat", "cow", "dog", "hen"], "at least one to retain"),
    ],
)
def test_classes_that_cannot_be_meant_are_a_user_error(animals, classes, sentence):
    with pytest.raises(UserError, match=sentence):
        data.load_class_folders(animals, classes, size=8, channels=3)


def test_of_many_classes_ten_are_listed(tmp_path):
    for i in range(12):
        (tmp_path / f"{i:02}").mkdir()
    with pytest.raises(UserError, match=r"no class x; it has 00, .*, 09 and 2 more\."):
        data.load_class_folders(tmp_path, ["x"], size=8, channels=3)


def test_a_folder_without_classes_is_a_user_error(animals):
    with pytest.raises(UserError, match="no sub-folders"):
        data.load_class_folders(animals / "cat" / "deeper", ["cat"], size=8, channels=3)


# ---- columns of a Hugging Face data set


@pytest.fixture
def table(animals):
    datasets = pytest.importorskip("datasets")
    paths = sorted(animals.rglob("*.png"))
    features = datasets.Features(
        {"img": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "cow", "dog", "hen"])}
    )
    columns = {"img": [str(path) for path in paths], "kind": [path.parts[-3] for path in paths]}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("classes", [["cat", "dog"], [0, 2], ["cat", 2]])
def test_columns_are_found_by_their_type(table, animals, classes):
    sets = data.load_dataset_columns(table, classes, size=8, channels=3)
    same = data.load_class_folders(animals, ["cat", "dog"], size=8, channels=3)
    assert torch.equal(sets.forget, same.forget)
    assert torch.equal(sets.retain, same.retain)


def test_a_column_of_words_is_a_label_too(table):
    words = table.add_column("label", [str(row) for row in range(10)] * 2).remove_columns("kind")
    sets = data.load_dataset_columns(words, ["3", "5"], size=8, channels=3)
    assert len(sets.forget) + len(sets.forget_validation) == 4


def test_rows_that_cannot_be_decoded_are_named(table, animals):
    (animals / "cow" / "deeper" / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1 image cannot be read.*\n  row 6: "):
        data.load_dataset_columns(table, ["cat"], size=8, channels=3)


def test_of_a_saved_data_set_one_split_is_opened(table, tmp_path):
    datasets = pytest.importorskip("datasets")
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=table, test=table.select(range(3))).save_to_disk(tmp_path / "several")
    assert len(data.open_dataset(tmp_path / "one", "any")) == len(data.open_dataset(tmp_path / "several")) == len(table)
    assert len(data.open_dataset(tmp_path / "several", "test")) == 3
    with pytest.raises(UserError, match=r"the data set in .*several has no split `dev`; it has train, test\."):
        data.open_dataset(tmp_path / "several", "dev")


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (lambda t: {"train": t}, {}, r"dataset\['train'\]"),
        (lambda t: t.to_iterable_dataset(), {}, "streaming"),
        (lambda t: t.remove_columns("img"), {}, "no column is of type Image: name one with --image-column"),
        (lambda t: t.remove_columns("kind"), {}, "no column is of type ClassLabel: name one with --label-column"),
        (lambda t: t.add_column("other", t["kind"], feature=t.features["kind"]), {}, "columns kind, other are of type"),
        (lambda t: t, {"image_column": "kind"}, "not of type datasets.Image"),
        (lambda t: t, {"label_column": "sort"}, "no column `sort`; there are img, kind"),
        (lambda t: t, {"forget_classes": ["cot"]}, "no class cot; it has cat, cow"),
        (lambda t: t, {"forget_classes": [4]}, "no class 4; it has cat, cow"),
    ],
)
def test_a_data_set_that_cannot_serve_is_a_user_error(table, change, options, sentence):
    options = {"forget_classes": ["cat"], "size": 8, "channels": 3, **options}
    with pytest.raises(UserError, match=sentence):
        data.load_dataset_columns(change(table), **options)
