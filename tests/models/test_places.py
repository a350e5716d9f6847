"""Missing paths, hub ids, and data sets that cannot be opened: the output is one sentence and nothing else."""

import logging
import os
import socket
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny

from unlearn_ext import data, models
from unlearn_ext.errors import UserError
from unlearn_ext.metrics.extractors import load_extractor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")
hub = pytest.importorskip("huggingface_hub")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def asked(monkeypatch):
    """Refuse all network access; return the list of attempts."""
    questions = []

    def refuse(*question, **_):
        questions.append(question)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return questions


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Use ``tmp_path`` as working and home folder, with one folder `runs` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "runs").mkdir()
    return tmp_path


PATHS = [
    "./nowhere", "../nowhere", "~/nowhere", "/no/where", "a/b/c", "nowhere/", "runs/nowhere", "photos.parquet",
    "weights/x.safetensors", "C:\\nowhere", "fotos/völlig", "a b", "x" * 97,
]  # fmt: skip


@pytest.mark.parametrize("place", [*PATHS, Path("nowhere"), Path("owner/name")])
def test_a_path_that_does_not_exist_is_said_without_the_network(place, asked):
    for load in (data.open_dataset, *(partial(models.load, family) for family in models.FAMILIES)):
        with pytest.raises(UserError, match=r"^there is no (file|folder) "):
            load(place)
    assert not asked


@pytest.mark.parametrize("place", PATHS)
def test_a_path_of_an_extractor_that_does_not_exist_is_said_without_the_network(place, asked):
    with pytest.raises(UserError, match=r"^there is no (file|folder) "):
        load_extractor(f"clip:{place}")
    assert not asked


def test_a_single_word_is_no_model(asked):
    with pytest.raises(UserError, match=r"there is no folder checkpoint; an id of the .* has the form owner/name"):
        models.load("vqgan", "checkpoint")
    assert not asked


def test_the_folder_that_makes_it_a_path_is_named(asked):
    with pytest.raises(
        UserError, match="there is no folder runs/mine; since there is a folder runs, this is not taken"
    ):
        data.open_dataset("runs/mine")
    assert not asked


@pytest.mark.parametrize("given", ["~/model", Path("~/model")])
def test_the_home_folder_is_found(given, here, asked):
    tiny.model("vqgan").save_pretrained(here / "model")
    assert models.load("vqgan", given).size == tiny.SIDE
    rows = datasets.Dataset.from_dict({"label": [1, 2]})
    rows.save_to_disk(here / "rows")
    assert len(data.open_dataset("~/rows")) == 2
    for side in ("ours", "theirs"):
        (here / side).mkdir()
        for i in range(2):
            Image.fromarray(np.full((8, 8), 10 * i + len(side), np.uint8)).save(here / side / f"{i}.png")
    assert len(data.load_folders("~/ours", "~/theirs", size=8, channels=1).forget) == 1
    assert not asked


# ---- ids of the hub


class _Missing(hub.errors.RepositoryNotFoundError):
    def __init__(self):
        Exception.__init__(self, "401")


LOADS = [
    pytest.param(lambda: models.load("vqgan", "owner/name"), "model", id="model"),
    pytest.param(lambda: load_extractor("clip:owner/name"), "model", id="extractor"),
    pytest.param(lambda: data.open_dataset("owner/name"), "dataset", id="data set"),
]


@pytest.mark.parametrize(("load", "kind"), LOADS)
def test_what_the_hub_does_not_have_is_said(load, kind, monkeypatch):
    def answer(repository, *, repo_type, timeout):
        assert (repository, repo_type) == ("owner/name", kind)
        raise _Missing

    monkeypatch.setattr(hub, "repo_info", answer)
    with pytest.raises(UserError, match=f"the Hugging Face hub has no {kind} owner/name that you may read"):
        load()


@pytest.mark.parametrize(("load", "kind"), LOADS)
@pytest.mark.parametrize("how", ["no network", "offline"])
def test_a_silent_hub_is_not_asked_again_and_again(load, kind, how, asked, monkeypatch):
    if how == "offline":
        monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"there is no .*folder.*, and the Hugging Face hub does not answer: "):
        load()
    assert len(asked) <= 2 * (how == "no network")  # the library makes one request for itself first


@pytest.mark.parametrize("place", ["cifar10", "uoft-cs/cifar10"])
def test_a_data_set_in_the_cache_is_opened_without_the_hub(place, asked, monkeypatch):
    def load_dataset(name, split):
        assert datasets.config.HF_HUB_OFFLINE
        return name, split

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert data.open_dataset(place, "test") == (place, "test")
    assert len(asked) <= 2
    assert not datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize("answer", [None, hub.errors.HfHubHTTPError])
def test_what_the_hub_has_is_left_to_the_library(answer, monkeypatch):
    def repo_info(*_, **__):
        if answer:
            raise answer.__new__(answer)

    monkeypatch.setattr(hub, "repo_info", repo_info)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: datasets.config.HF_HUB_OFFLINE)
    assert data.open_dataset("owner/name") is False


# ---- folders that cannot be opened


def lines_of(library, monkeypatch):
    """Return a list that collects the messages which reach the handlers of a library's logger."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    monkeypatch.setattr(logging.getLogger(library), "handlers", [handler])
    return lines


def saved(place):
    datasets.Dataset.from_dict({"label": [1, 2] * 50}).save_to_disk(place)


def cut_json(place):
    datasets.DatasetDict(train=datasets.Dataset.from_dict({"label": [1, 2]})).save_to_disk(place)
    (place / "dataset_dict.json").write_text("{")


def empty_arrow(place):
    saved(place)
    next(place.glob("*.arrow")).write_bytes(b"")


def cut_parquet(place):
    datasets.Dataset.from_dict({"label": [1, 2] * 50}).to_parquet(place / "x.parquet")
    (place / "x.parquet").write_bytes((place / "x.parquet").read_bytes()[:100])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: (p / f"{p.name}.py").write_text("import datasets"), "it has a loading script, which the library"),
        (cut_json, "its JSON files are not what save_to_disk writes: have it saved anew"),
        (lambda p: (saved(p), (p / "state.json").write_text("[]")), "its JSON files are not what save_to_disk writes"),
        (empty_arrow, "a file of it is broken or cut off: "),
        (cut_parquet, "a file of it is broken or cut off: "),
        (lambda p: (p / "x.jsonl").write_text('{"a":1}\n{"a"'), "a file of it is broken or cut off: "),
        (lambda p: (p / "x.zip").write_bytes(b"PK\3\4"), "File is not a zip file"),
        (lambda p: None, "doesn't contain any data files"),
    ],
)
def test_a_folder_that_cannot_be_opened_is_one_sentence(make, sentence, here, asked, monkeypatch):
    (here / "rows").mkdir()
    make(here / "rows")
    lines = lines_of("datasets", monkeypatch)
    with pytest.raises(UserError, match=r"no split `train` of a data set could be opened from .*rows: ") as raised:
        data.open_dataset(here / "rows")
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not lines
    assert not asked


def test_the_log_of_a_data_set_that_opens_is_shown(here, monkeypatch):
    def load_dataset(*_, **__):
        logging.getLogger("datasets.builder").warning("using the latest cached version")
        return datasets.Dataset.from_dict({"label": [1, 2]})

    lines = lines_of("datasets", monkeypatch)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data.open_dataset(here / "runs")
    assert lines == ["using the latest cached version"]


def test_a_file_is_no_data_set(here):
    (here / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"x\.parquet is a file; give the folder that holds the data set"):
        data.open_dataset(here / "x.parquet")


def write_pictures(place, *names):
    for shade, name in enumerate(names):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        with open(place / name, "wb") as file:
            Image.fromarray(np.full((8, 8), shade, np.uint8)).save(file, "PNG")


@pytest.mark.parametrize("name", ["imagefolder", "csv", "text"])
def test_a_folder_may_be_called_as_a_module_of_the_library(name, here):
    write_pictures(here / name, "cat/0.png", "cat/1.png", "dog/2.png")
    assert data.open_dataset(name)["label"] == [0, 0, 1]


def test_images_that_the_library_passes_over_are_counted(here):
    """The library finds images by suffix only; this package also finds them by content."""
    write_pictures(here / "photos", "cat/0.png", "cat/1.png", "dog/2.png", "dog/3.png", "cat/4", "dog/5.jpg_original")
    (here / "photos" / "dog" / "6.hif").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.warns(
        UserWarning, match="3 images below .*photos are in no row of the split `train`, and so in"
    ) as caught:
        rows = data.open_dataset("photos")
    assert len(rows) == 4
    for name in ("cat/4", "dog/5.jpg_original", "dog/6.hif"):
        assert f"\n  {os.path.join('photos', name)}" in str(caught[0].message)
