"""Which images are forgotten, retained or neither, depending on their labels and on the classes that the user types."""

import unicodedata
import warnings

import numpy as np
import pytest

from unlearn_ext import data
from unlearn_ext.data.classes import choose
from unlearn_ext.errors import UserError

datasets = pytest.importorskip("datasets")
Image = pytest.importorskip("PIL.Image")

NFC, NFD = (unicodedata.normalize(form, "naïve café") for form in ("NFC", "NFD"))


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8))


def table(labels, kind=None, column="label"):
    """Return a data set of small pictures, one for each label."""
    columns = {"image": [picture(seed) for seed in range(len(labels))], column: labels}
    features = kind and datasets.Features({"image": datasets.Image(), column: kind})
    return datasets.Dataset.from_dict(columns, features=features)


def counts(labels, classes, kind=None, **options):
    """Return the number of images to forget and the number to retain."""
    rows = labels if isinstance(labels, datasets.Dataset) else table(labels, kind)
    sets = data.load_dataset_columns(rows, classes, size=8, channels=1, **options)
    return len(sets.forget) + len(sets.forget_validation), len(sets.retain) + len(sets.retain_validation)


ANIMALS = datasets.ClassLabel(names=["cat", "dog", "hen"])


@pytest.mark.parametrize(
    ("labels", "classes", "kind"),
    [
        pytest.param([0, 0, 1, 2, -1, None, -1], ["cat"], ANIMALS, id="names"),
        pytest.param([0, 0, 1, 2, -1, -1, None], [0], None, id="numbers from 0"),
        pytest.param([0.0, 0.0, 1.0, 1.0, float("nan"), None, -1.0], ["0"], None, id="floats"),
        pytest.param(["cat", "cat", "dog", "hen", "", None, " "], ["cat"], None, id="words"),
        pytest.param([True, True, False, False, None, None, None], [True], None, id="booleans"),
        pytest.param([[0], [0], [1], [2, 1], [], None, [-1]], "cat", datasets.Sequence(ANIMALS), id="lists of names"),
        pytest.param([["a"], ["a"], ["b"], ["b"], [], [None], [""]], "a", None, id="lists of words"),
        pytest.param([[0], [0], [1], [1, 2], [], [-1], None], [0], None, id="lists of numbers"),
    ],
)
def test_rows_without_a_label_are_in_neither_set(labels, classes, kind):
    with pytest.warns(UserWarning, match="^3 rows without a label are in neither set") as caught:
        assert counts(labels, classes, kind) == (2, 2)
    assert len(caught) == 1


@pytest.mark.parametrize("wanted", [[-1], "-1", ["-1"]])
def test_minus_one_is_a_class_where_none_is_0(wanted):
    assert counts([-1, 1, -1, 1, 1], wanted) == (2, 3)


def test_minus_one_that_means_no_label_cannot_be_forgotten():
    with pytest.raises(UserError, match="in which -1 means no label, has no class -1; it has 0, 1"):
        counts([-1, 1, -1, 1, 0, 0], [-1])


@pytest.mark.parametrize(
    ("labels", "kind", "classes"),
    [
        ([[0], [0, 1], [1], [1, 2], [2]], datasets.Sequence(ANIMALS), ["cat"]),
        ([["x"], ["y", "x"], ["y"], ["y", "z"], ["z"]], None, "x"),
        ([[7], [8, 7], [8], [8, 9], [9]], None, "7"),
    ],
)
def test_an_image_of_several_classes_is_forgotten_if_one_is_to_be(labels, kind, classes):
    assert counts(labels, classes, kind) == (2, 3)


def test_a_column_of_lists_is_found_by_its_type():
    rows = table([[0], [0, 1], [1], [2]], datasets.Sequence(ANIMALS), column="objects")
    assert counts(rows, "cat") == (2, 2)


@pytest.mark.parametrize(
    ("labels", "kind", "sentence"),
    [
        ([[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 1]], None, "lists of zeros and ones, a place for each class"),
        ([[True, False], [False, True]] * 2, None, "lists of zeros and ones"),
        ([[0.0, 1.0], [1.0, 0.0], None, [1.0, 0.0]], None, "lists of zeros and ones"),
        ([{"name": "cat"}, {"name": "dog"}] * 2, None, "must hold names or numbers of classes, or lists of them"),
        ([[["cat"]], [["dog"]]] * 2, None, "must hold names or numbers"),
    ],
)
def test_a_column_that_cannot_be_understood_is_said(labels, kind, sentence):
    with pytest.raises(UserError, match=sentence):
        counts(labels, ["cat"], kind)


@pytest.mark.parametrize(
    ("labels", "typed", "expected"),
    [
        ([3, 3, 5, 5, 7], "3,7", (3, 2)),
        ([3, 3, 5, 5, 7], " 3 , 7", (3, 2)),
        ([3, 3, 5, 5], ["3.0"], (2, 2)),
        ([0.5, 0.5, 1.0, 1.0], "1", (2, 2)),
        ([0.5, 0.5, 1.0, 1.0], "0.5", (2, 2)),
        ([True, True, False, False, False], "true", (2, 3)),
        ([True, True, False, False, False], ["False"], (3, 2)),
        (["3", "3", "5", "5"], [3], (2, 2)),
    ],
)
def test_numbers_and_booleans_as_they_are_typed(labels, typed, expected):
    assert counts(labels, typed) == expected


@pytest.mark.parametrize("typed", ["True", "3_0", "thirty", ""])
def test_text_that_is_no_number_names_no_class(typed):
    with pytest.raises(UserError, match=r"has no class .*; it has 1, 30"):
        counts([1, 1, 30, 30], typed)


def test_a_class_has_a_name_and_a_number():
    labels = [0, 0, 1, 1, 2]
    assert counts(labels, "2,0", ANIMALS) == counts(labels, [2, 0], ANIMALS) == counts(labels, "hen,cat", ANIMALS)


def test_a_name_wins_over_a_number():
    kind = datasets.ClassLabel(names=["1", "0", "2"])
    labels = [0, 0, 0, 1, 1, 2]
    with pytest.warns(UserWarning, match="0 is taken for the name of a class, and not for the position of 1"):
        assert counts(labels, "0", kind) == (2, 4)
    assert counts(labels, [0], kind) == (3, 3)  # in Python, an int is always a number, never a name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("2", kind.names, "x", numbered=True) == ["2"]


# ---- names with commas, and with accents

FOOD = ["apple", "pepper", "salt", "salt, pepper", "tench, Tinca tinca"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("tench, Tinca tinca", ["tench, Tinca tinca"]),
        ("apple,tench, Tinca tinca", ["apple", "tench, Tinca tinca"]),
        ("tench, Tinca tinca,apple", ["apple", "tench, Tinca tinca"]),
        (" tench, Tinca tinca , apple ", ["apple", "tench, Tinca tinca"]),
        ("pepper, salt", ["pepper", "salt"]),
        ("salt,pepper", ["pepper", "salt"]),
        (["salt, pepper", "apple"], ["apple", "salt, pepper"]),
        (["salt", "pepper"], ["pepper", "salt"]),
    ],
)
def test_names_with_commas(typed, meant):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(typed, FOOD, "the menu") == meant


def test_the_longest_name_wins_and_is_mentioned():
    with pytest.warns(UserWarning, match='"salt, pepper" is taken for the one class of that name'):
        assert choose("salt, pepper,apple", FOOD, "the menu") == ["apple", "salt, pepper"]


@pytest.mark.parametrize("typed", ["tench", "tench,Tinca tinca", "Tinca tinca", "apple,,salt", "apple,"])
def test_parts_of_a_name_are_no_class(typed):
    with pytest.raises(UserError, match=r'the menu has no class .*; it has apple, .*"tench, Tinca tinca"\.'):
        choose(typed, FOOD, "the menu")


@pytest.mark.parametrize("typed", [NFC, NFD, [NFC], [NFD], f"{NFD},other"])
@pytest.mark.parametrize("saved", [NFC, NFD])
def test_accents_may_be_composed_or_decomposed(tmp_path, saved, typed):
    for number, name in enumerate((saved, "other", "third")):
        (tmp_path / name).mkdir()
        for i in range(2):
            picture(10 * number + i).save(tmp_path / name / f"{i}.png")
    sets = data.load_class_folders(tmp_path, typed, size=8, channels=1)
    forgotten = len(sets.forget) + len(sets.forget_validation)
    assert forgotten == (4 if "other" in typed else 2)
    kind = datasets.ClassLabel(names=[saved, "other", "third"])
    assert counts([0, 0, 1, 1, 2, 2], typed, kind)[0] == forgotten
    assert counts([saved, saved, "other", "other", "third", "third"], typed)[0] == forgotten


@pytest.mark.parametrize("typed", [NFC, NFD])
def test_classes_that_look_the_same_are_forgotten_together(typed):
    with pytest.warns(UserWarning, match="several classes are named naïve café: one has composed accents"):
        assert counts([NFC, NFD, NFD, "b", "b"], typed) == (3, 2)


@pytest.mark.parametrize("typed", ["3", [3], ["3"]])
def test_folders_may_be_called_by_numbers(tmp_path, typed):
    for name in ("3", "5"):
        (tmp_path / name).mkdir()
        for i in range(3):
            picture(10 * int(name) + i).save(tmp_path / name / f"{i}.png")
    assert len(data.load_class_folders(tmp_path, typed, size=8, channels=1).forget) == 2


def test_images_beside_the_classes_are_in_neither_set(tmp_path):
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for i in range(3):
            picture(10 * number + i).save(tmp_path / name / f"{i}.png")
    picture(100).save(tmp_path / "loose.png")
    picture(101).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").rename(tmp_path / "IMG")
    (tmp_path / "labels.csv").write_text("x")
    (tmp_path / "cat" / "labels.csv").write_text("x")
    with pytest.warns(UserWarning, match="in neither set") as caught:
        sets = data.load_class_folders(tmp_path, "cat", size=8, channels=1)
    said = [str(warning.message) for warning in caught]
    assert said[0] == f"2 entries below {tmp_path} are left out as hidden or no image: .csv (2)."
    assert said[1] == f"2 images lie in {tmp_path} itself, in no class, and so in neither set:\n  IMG\n  loose.png"
    assert len(sets.forget) + len(sets.forget_validation) == len(sets.retain) + len(sets.retain_validation) == 3
