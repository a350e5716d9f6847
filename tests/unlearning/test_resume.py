"""A resumed run ends with the same bytes as an uninterrupted run; tests/helpers/kills.py kills real processes."""

import gc
import os
import random
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import tiny
import torch

from unlearn_ext._utils.atomic_io import save_file
from unlearn_ext._utils.file_lock import locked
from unlearn_ext.errors import UserError
from unlearn_ext.tasks import CenterCrop, RandomMask
from unlearn_ext.unlearning import journal as journals
from unlearn_ext.unlearning.journal import Journal, pack, unpacked
from unlearn_ext.unlearning.pareto import ParetoFront
from unlearn_ext.unlearning.phases import sweep
from unlearn_ext.unlearning.settings import Settings

JOURNAL = ".front.csv.journal"


class Ended(BaseException):
    """Raised to simulate a killed process."""


@pytest.fixture
def ending(monkeypatch):
    """Write journals at every step; return a function that ends the run after so many more steps (None: never)."""
    checkpoint, left = Journal.checkpoint, [None]

    def ended(self, state):
        checkpoint(self, state)
        if left[0] is not None:
            left[0] -= 1
            if not left[0]:
                raise Ended

    def at(step):
        left[0] = step

    monkeypatch.setattr(journals, "SECONDS", 0.0)
    monkeypatch.setattr(Journal, "checkpoint", ended)
    return at


def swept(model, images, out, **changed):
    forget, retain = (side[:20] for side in images)
    given = {"task": CenterCrop(0.5), "points": 1, "settings": Settings(steps=4, batch_size=8), "resume": True}
    return sweep(model, forget, retain, out=out, **given | changed)


def bytes_of(folder):
    """Return all bytes that must be equal in two runs: the tables without their times, and the models."""
    tables = {name: (folder / name).read_bytes() for name in ("history.csv", "samples.npz")}
    models = {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/*")}
    front = [vars(point) | {"seconds": 0} for point in ParetoFront.from_csv(folder / "front.csv")]
    return tables | models | {"front": repr(front)}


KINDS = {
    "float16": {"settings": Settings(steps=4, batch_size=8, precision="float16")},
    "bfloat16, augmented": {
        "settings": Settings(steps=4, batch_size=8, precision="bfloat16"),
        "augment": lambda images, draw: images.flip(-1) if draw % 2 else images,
    },
    "sharpness": {"settings": Settings(steps=4, batch_size=8, precision="float16", sharpness=0.05)},
    "random masks": {"task": RandomMask(0.5, 4)},
    "own epsilons": {"epsilons": [0.3, "30%"]},
    "adapter": {"settings": Settings(steps=4, batch_size=8, lora=2)},
}


@pytest.mark.filterwarnings("ignore:ε = ")
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bytes_however_it_is_trained(tmp_path, model, images, ending, kind):
    if kind == "adapter":
        pytest.importorskip("peft")
    swept(model, images, tmp_path / "alone", **KINDS[kind])
    for step in (7, 6, 1):
        ending(step)
        with pytest.raises(Ended):
            swept(model, images, tmp_path / "ended", **KINDS[kind])
    ending(None)
    swept(model, images, tmp_path / "ended", **KINDS[kind])
    assert bytes_of(tmp_path / "ended") == bytes_of(tmp_path / "alone")


@pytest.mark.parametrize("family", ["mae", "diffusion", "autoencoder", "mage"])
def test_the_same_bytes_of_every_family(tmp_path, images, ending, family):
    model, few = tiny.model(family), [side[:12] for side in images]
    quick = Settings(steps=3, batch_size=6)
    swept(model, few, tmp_path / "alone", settings=quick)
    ending(random.Random(family).randrange(1, 12))
    with pytest.raises(Ended):
        swept(model, few, tmp_path / "ended", settings=quick)
    ending(None)
    swept(model, few, tmp_path / "ended", settings=quick)
    assert bytes_of(tmp_path / "ended") == bytes_of(tmp_path / "alone")


def test_parameters_in_another_order_in_memory(tmp_path, model, images, ending):
    model.module.to(memory_format=torch.channels_last)
    swept(model, images, tmp_path / "alone")
    ending(13)
    with pytest.raises(Ended):
        swept(model, images, tmp_path / "ended")
    ending(None)
    swept(model, images, tmp_path / "ended")
    assert bytes_of(tmp_path / "ended") == bytes_of(tmp_path / "alone")


@pytest.fixture
def unfinished(tmp_path, model, images, ending):
    """Return a folder with an unfinished sweep."""
    ending(10)
    with pytest.raises(Ended):
        swept(model, images, tmp_path / "run")
    ending(None)
    return tmp_path / "run"


def test_an_unfinished_run_is_not_replaced(unfinished, model, images):
    before = (unfinished / JOURNAL).read_bytes()
    with pytest.raises(UserError, match="contains an unfinished run: give --resume"):
        swept(model, images, unfinished, resume=False)
    assert (unfinished / JOURNAL).read_bytes() == before


def test_what_differs_is_named(unfinished, model, images):
    other = Settings(steps=5, batch_size=8, seed=1)
    with pytest.raises(UserError, match="that differs in: steps, seed;"):
        swept(model, images, unfinished, settings=other)
    with pytest.raises(UserError, match="that differs in: points, task;"):
        swept(model, images, unfinished, task=CenterCrop(0.3), points=2)
    with pytest.raises(UserError, match="that differs in: augmentation;"):
        swept(model, images, unfinished, augment=lambda images, draw: images.flip(-1))
    with torch.no_grad():
        model.encoder_parameters()[0].mul_(2)
    images[1][0] = 0
    with pytest.raises(UserError, match="that differs in: model, retain;"):
        swept(model, images, unfinished)


def test_the_memory_limit_makes_no_difference(unfinished, model, images):
    swept(model, images, unfinished, settings=Settings(steps=4, batch_size=8, memory=1.0))


def test_a_finished_run_says_so(tmp_path, model, images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        front = swept(model, images, tmp_path)
    before = bytes_of(tmp_path)
    with pytest.warns(UserWarning, match="is finished: nothing is left to do"):
        assert repr(swept(model, images, tmp_path)) == repr(front)
    assert bytes_of(tmp_path) == before
    assert (tmp_path / JOURNAL).stat().st_size < 2000


def test_a_run_without_its_result_is_made_again(tmp_path, model, images):
    swept(model, images, tmp_path)
    before = bytes_of(tmp_path)
    (tmp_path / "front.csv").unlink()
    swept(model, images, tmp_path)
    assert bytes_of(tmp_path) == before


def test_a_file_that_is_no_journal_is_refused(unfinished, model, images):
    (unfinished / JOURNAL).write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not the journal of a run"):
        swept(model, images, unfinished)


HOLDS = """
import sys, pathlib
from unlearn_ext._utils.file_lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_belongs_to_one_process(tmp_path, model, images):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
    )  # fmt: skip
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another process is using"):
        swept(model, images, tmp_path)
    other.kill()
    other.communicate()
    with locked(tmp_path):
        pass


def test_what_a_killed_process_left_half_written_is_removed(tmp_path, model, images):
    def killed(place):
        place.with_name(".tmpA1b2C3").write_text("what a library writes before it renames it")
        os._exit(9)

    child = os.fork()
    if not child:
        try:
            save_file(tmp_path / "front.csv", killed)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 9 << 8
    mine = {"mine.part", "photos.2019.part", "photos.2019.old"}
    for name in mine:
        (tmp_path / name).mkdir()
    assert len(list(tmp_path.iterdir())) == 4
    swept(model, images, tmp_path)
    assert {path.name for path in tmp_path.iterdir() if re.search("part|tmp|old", path.name)} == mine


def test_a_tree_comes_back_as_it_was(tmp_path):
    pytest.importorskip("safetensors")
    tree = {
        "numbers": [1, 2.5, float("nan"), None, True, "ε"],
        "state": {0: {"step": torch.tensor(3.0), "moments": torch.ones(2, 3).t()}},
        "items": {"tensor": torch.tensor([], dtype=torch.bfloat16)},
        "pair": (1, torch.arange(3)),
    }
    pack(tree, tmp_path / "tree")
    back = unpacked((tmp_path / "tree").read_bytes())
    assert repr(back["numbers"]) == repr(tree["numbers"])
    assert torch.equal(back["state"][0]["moments"], torch.ones(3, 2))
    assert back["state"][0]["step"].shape == ()
    assert back["items"]["tensor"].dtype == torch.bfloat16
    assert back["pair"][0] == 1
    assert back["pair"][1].tolist() == [0, 1, 2]
    pack({"nothing": []}, tmp_path / "tree")
    assert unpacked((tmp_path / "tree").read_bytes()) == {"nothing": []}


def test_nothing_is_held_once_it_is_written(tmp_path):
    """The state of a run is larger than its model; a reference cycle would keep it in memory until gc runs."""
    pytest.importorskip("safetensors")

    def held():
        # Not isinstance: it raises for the dead proxies that torch.compile leaves.
        return [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor) and o.shape == (12, 34, 5)]

    gc.disable()
    try:
        pack({"state": [torch.zeros(12, 34, 5)]}, tmp_path / "tree")
        assert not held()
        tree = unpacked((tmp_path / "tree").read_bytes())
        assert len(held()) == 1
        del tree
        assert not held()
    finally:
        gc.enable()
