"""Existing files in the output folder are replaced only if a run wrote them and ``force`` is given."""

import json
import random
import re
import shutil

import pytest
import tiny
import torch

from unlearn_ext._utils import atomic_io
from unlearn_ext.errors import UserError
from unlearn_ext.models.diffusion import Diffusion
from unlearn_ext.models.mae import MAE
from unlearn_ext.tasks import CenterCrop, Outpaint, RandomMask
from unlearn_ext.unlearning import journal as journals
from unlearn_ext.unlearning import phases
from unlearn_ext.unlearning.identity import identity
from unlearn_ext.unlearning.journal import Journal, check
from unlearn_ext.unlearning.phases import OUTPUTS, sweep
from unlearn_ext.unlearning.schedule import SCHEDULE
from unlearn_ext.unlearning.settings import Settings

QUICK = Settings(steps=3, batch_size=8)
OTHER = Settings(steps=3, batch_size=8, seed=1)
RESULT = "front.csv is the result of a finished run: choose another folder, give --resume"


def swept(out, images, **changed):
    forget, retain = (side[:12] for side in images)
    given = {"task": CenterCrop(0.5), "points": 1, "settings": QUICK}
    return sweep(tiny.model("vqgan"), forget, retain, out=out, **given | changed)


def content(folder):
    """Return the bytes of every file below a folder, except the lock file, which has no content to compare."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_images):
    """Return a folder with a finished sweep; tests must not change it."""
    folder = tmp_path_factory.mktemp("made") / "run"
    swept(folder, tiny_images)
    return folder


@pytest.fixture
def finished(made, tmp_path):
    """Return a copy of ``made`` that tests may change."""
    return shutil.copytree(made, tmp_path / "run")


def models_of(folder):
    return {path.parent.name for path in folder.glob("*/config.json")}


@pytest.mark.parametrize("settings", [QUICK, OTHER])
def test_a_finished_run_is_not_replaced(finished, images, settings):
    before = content(finished)
    with pytest.raises(UserError, match=RESULT):
        swept(finished, images, settings=settings)
    assert content(finished) == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"settings": OTHER}, "seed"),
        ({"points": 2}, "points"),
        ({"epsilons": [0.3]}, "epsilons, points"),
        ({"task": Outpaint(0.5)}, "task"),
        ({"augment": lambda images, draw: images.flip(-1) if draw == 4 else images}, "augmentation"),
        ({"held_out": (torch.zeros(4, 1, 8, 8), torch.ones(4, 1, 8, 8))}, "forget_validation, retain_validation"),
    ],
)
def test_another_run_is_not_resumed(finished, images, changed, named):
    before = content(finished)
    with pytest.raises(UserError, match=f"contains a finished run that differs in: {named};"):
        swept(finished, images, resume=True, **changed)
    assert content(finished) == before


def test_images_that_were_held_out_before_make_another_run(tmp_path, images):
    held_out = tuple(side[40:] for side in images)
    swept(tmp_path, images, held_out=held_out)
    with pytest.raises(UserError, match="differs in: forget_validation, retain_validation;"):
        swept(tmp_path, images, resume=True)


def test_force_replaces_what_the_run_wrote_and_nothing_else(finished, images):
    before = models_of(finished)
    mine = {"notes.txt", "figures/mine.png", "photos/eps-0.3000/cat.png", "eps-notes/a.txt", "least-forgotten.txt"}
    for name in mine:
        (finished / name).parent.mkdir(parents=True, exist_ok=True)
        (finished / name).write_text("mine")
    for name in ("report.html", "metrics.csv", "figures/front.png"):
        (finished / name).parent.mkdir(exist_ok=True)
        (finished / name).write_text("of the run before")
    front = swept(finished, images, settings=OTHER, force=True)
    assert models_of(finished) == {point.name for point in front} != before
    assert all((finished / name).read_text() == "mine" for name in mine)
    assert not any((finished / name).exists() for name in ("report.html", "metrics.csv", "figures/front.png"))


@pytest.mark.parametrize(
    "name",
    ["least-forgotten/notes.txt", "most-forgotten/onnx/model.onnx", "eps-0.1234/cat.png", "anchor-0.1234/cat.png"],
)
def test_force_does_not_touch_a_folder_with_somebodys_files_in_a_model(finished, images, name):
    (finished / name).parent.mkdir(exist_ok=True)
    (finished / name).write_text("mine")
    before = content(finished)
    shown = name.removesuffix("/cat.png")
    with pytest.raises(UserError, match=f"contains {re.escape(shown)}, which no run wrote and this run would replace"):
        swept(finished, images, force=True)
    assert content(finished) == before


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "name", ["eps-0.3000/cat.png", "least-forgotten", "metrics.csv", "report.html", "figures/strip.svg", "front.csv"]
)
def test_somebodys_own_files_are_not_replaced(tmp_path, images, name, force):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="which no run wrote and this run would replace: move it away or choose"):
        swept(tmp_path, images, force=force)
    assert content(tmp_path) == {name: b"mine"}
    assert not (tmp_path / ".lock").exists()


def test_a_link_in_the_place_of_a_model_is_somebodys_own(finished, images, tmp_path):
    (finished / "least-forgotten").rename(tmp_path / "elsewhere")
    (finished / "least-forgotten").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="contains least-forgotten, which no run wrote"):
        swept(finished, images, force=True)
    assert (tmp_path / "elsewhere" / "config.json").exists()


@pytest.mark.parametrize("listed", ["../notes.txt", "/etc/hostname", 3, {"a": 1}])
def test_a_list_of_files_that_leads_elsewhere_is_not_believed(finished, images, listed):
    (finished / "notes.txt").write_text("mine")
    (finished / "least-forgotten" / atomic_io.RECORD).write_text(json.dumps([listed]))
    with pytest.raises(UserError, match="contains least-forgotten"):
        swept(finished, images, force=True)
    assert (finished / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(("given", "said"), [({}, RESULT), ({"resume": True}, "a finished run without its journal")])
def test_a_copy_without_hidden_files_is_not_replaced(finished, images, given, said):
    (finished / ".front.csv.journal").unlink()
    (finished / ".lock").unlink()
    before = content(finished)
    with pytest.raises(UserError, match=said):
        swept(finished, images, **given)
    assert content(finished) == before
    assert not (finished / ".lock").exists()
    assert len(swept(finished, images, settings=OTHER, force=True)) == 6


def test_of_a_copy_without_any_hidden_file_nothing_is_removed(finished, images):
    for path in [*finished.rglob(".*")]:
        path.unlink()
    before = content(finished)
    for given in ({}, {"force": True}):
        with pytest.raises(UserError):
            swept(finished, images, **given)
    assert content(finished) == before


def test_resume_and_force_exclude_each_other(tmp_path, images):
    with pytest.raises(UserError, match="give one of them"):
        swept(tmp_path / "run", images, resume=True, force=True)
    assert not (tmp_path / "run").exists()


class Ended(BaseException):
    """Raised to simulate a killed process."""


@pytest.mark.parametrize("moment", ["before anything is removed", "front.csv", "least-forgotten", "the end"])
def test_a_kill_while_an_earlier_run_is_removed(finished, images, monkeypatch, moment):
    """The folder then belongs to the new run, which removes the remaining files when it is resumed."""
    remove = atomic_io.remove

    def killed(files, root):
        files = list(files)
        whose = [path.relative_to(root).parts[0] for path in files]
        upto = {"before anything is removed": 0, "the end": len(files)}.get(moment)
        remove(files[: whose.index(moment) + 1 if upto is None else upto], root)
        raise Ended

    alone = finished.with_name("alone")
    swept(alone, images, settings=OTHER)
    with monkeypatch.context() as patch:
        patch.setattr(journals, "remove", killed)
        with pytest.raises(Ended):
            swept(finished, images, settings=OTHER, force=True)
    if moment != "the end":
        with pytest.raises(UserError, match="contains an unfinished run: give --resume"):
            swept(finished, images)
        with pytest.raises(UserError, match="an unfinished run that differs in: seed;"):
            swept(finished, images, resume=True)
    swept(finished, images, settings=OTHER, resume=True)
    same = ["history.csv", "samples.npz", *(f"{name}/config.json" for name in models_of(alone))]
    assert models_of(finished) == models_of(alone)
    assert all((finished / name).read_bytes() == (alone / name).read_bytes() for name in same)


def test_a_run_that_failed_at_once_does_not_block_the_next(tmp_path, images):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="f1 did not fall below"):
        swept(tmp_path, images, settings=Settings(steps=1, lr=0.0))
    assert content(tmp_path) == {"notes.txt": b"mine"}
    assert len(swept(tmp_path, images)) == 6


def test_models_of_a_run_that_was_killed_before_its_first_checkpoint(tmp_path, images, monkeypatch):
    """The run's journal records that it wrote these models."""

    def killed(*_):
        raise Ended

    with monkeypatch.context() as patch:
        patch.setattr(phases, "_record_least_forgotten", killed)
        with pytest.raises(Ended):
            swept(tmp_path / "run", images)
    assert len(models_of(tmp_path / "run")) == len(SCHEDULE.anchors)
    for changed in ({}, {"settings": OTHER}):
        with pytest.raises(UserError, match="contains an unfinished run: give --resume"):
            swept(tmp_path / "run", images, **changed)
    with pytest.raises(UserError, match="differs in: seed;"):
        swept(tmp_path / "run", images, resume=True, settings=OTHER)
    assert len(swept(tmp_path / "run", images, resume=True)) == 6


def test_an_unfinished_run_is_replaced_by_force(tmp_path, images, monkeypatch):
    checkpoint = Journal.checkpoint

    def ended(self, state):
        checkpoint(self, state)
        raise Ended

    with monkeypatch.context() as patch:
        patch.setattr(journals, "SECONDS", 0.0)
        patch.setattr(Journal, "checkpoint", ended)
        with pytest.raises(Ended):
            swept(tmp_path, images)
    swept(tmp_path, images, settings=OTHER, force=True)
    with pytest.warns(UserWarning, match="nothing is left to do"):
        swept(tmp_path, images, settings=OTHER, resume=True)


@pytest.mark.parametrize("name", [".eps-0.3000.journal", "reproduction.json"])
@pytest.mark.parametrize("given", [{}, {"force": True}, {"resume": True}])
def test_what_another_command_wrote_is_left_alone(tmp_path, images, name, given):
    (tmp_path / name).write_text("{}")
    command = "run" if "journal" in name else "reproduce"
    message = f"contains the output of `unlearn-ext {command}`, and each command needs a separate folder"
    with pytest.raises(UserError, match=message):
        swept(tmp_path, images, **given)
    assert content(tmp_path) == {name: b"{}"}


def test_a_part_of_the_identity_is_enough_to_refuse(finished):
    check(finished, OUTPUTS, {"seed": 0, "points": 1}, resume=True, force=False)
    check(finished, OUTPUTS, {}, resume=False, force=True)
    check(finished.with_name("new"), OUTPUTS, {"seed": 3}, resume=False, force=False)
    with pytest.raises(UserError, match="differs in: seed;"):
        check(finished, OUTPUTS, {"seed": 3, "points": 1}, resume=True, force=False)
    assert not finished.with_name("new").exists()


@pytest.mark.parametrize("size", [0, 7, 8, 4096])
@pytest.mark.parametrize("force", [False, True])
def test_a_damaged_journal_is_named(finished, images, size, force):
    (finished / ".front.csv.journal").write_bytes(random.Random(size).randbytes(size))
    before = content(finished)
    with pytest.raises(UserError, match=r"front\.csv\.journal is not the journal of a run"):
        swept(finished, images, force=force)
    assert content(finished) == before


def test_an_outcome_depends_on_more_than_weights():
    """The other contents of a checkpoint are part of the identity; the form in which they are saved is not."""
    scheduler = pytest.importorskip("diffusers").DDPMScheduler
    blank = {"forget": torch.zeros(4, 1, 8, 8), "retain": torch.zeros(4, 1, 8, 8)}

    def of(model, task=None):
        return identity(model, blank, task or CenterCrop(0.5), None, QUICK)

    assert of(MAE(tiny.vitmae())) != of(MAE(tiny.vitmae(), mean=(0.4,), std=(0.5,)))
    long, short = (Diffusion(tiny.unet(), scheduler(num_train_timesteps=steps)) for steps in (200, 100))
    assert of(long) != of(short)
    assert of(tiny.model("vqgan")) != of(tiny.model("vqgan"), Outpaint(0.5))
    assert of(short, RandomMask(0.5, 4)) != of(short, RandomMask(0.5, 4, seed=1))


@pytest.mark.parametrize("family", ["vqgan", "autoencoder", "mae", "diffusion"])
def test_a_model_that_was_saved_and_loaded_is_the_same(tmp_path, family):
    from unlearn_ext.models import load

    model = tiny.model(family)
    model.save_pretrained(tmp_path / "there")
    given = {"forget": torch.zeros(4, 1, 8, 8)}, CenterCrop(0.5), None, QUICK
    assert identity(load(family, tmp_path / "there"), *given) == identity(model, *given)


def test_every_file_of_a_run_is_known_to_be_its_own(finished):
    """An unknown file would block the next run, or the next run would not remove it."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    from unlearn_ext.report import write_report

    write_report(finished)
    ours, others = OUTPUTS.find(finished, has_journal=True)
    assert others == []
    known = {str(path.relative_to(finished)) for path in ours}
    assert known == set(content(finished)) - {".front.csv.journal"}
