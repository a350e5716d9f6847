"""A disk that is full, read-only or gone: one error message, no damage to existing files, and --resume works."""

from __future__ import annotations

import errno
import os

import pytest
import tiny
import torch

from unlearn_ext._utils import atomic_io
from unlearn_ext._utils.atomic_io import save_folder, write_atomically
from unlearn_ext.errors import UserError
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning import journal
from unlearn_ext.unlearning.phases import sweep
from unlearn_ext.unlearning.settings import Settings

WHY = {
    errno.ENOSPC: "No space left on device; free some space",
    errno.EROFS: "Read-only file system; make it writable or choose another folder",
    errno.EACCES: "Permission denied; make it writable or choose another folder",
    errno.EIO: "Input/output error; fix this",
}


@pytest.fixture
def failing(monkeypatch):
    """Return a function (count, errno) after which ``count`` calls of fsync succeed and the next fails."""
    fsync, left = os.fsync, [-1, 0]

    def failed(descriptor):
        left[0] -= 1
        if left[0] == -1:
            raise OSError(left[1], os.strerror(left[1]))
        fsync(descriptor)

    def after(count, number):
        left[:] = [count, number]

    monkeypatch.setattr(os, "fsync", failed)
    return after


@pytest.mark.parametrize("number", WHY)
def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path, failing, number):
    path = tmp_path / "front.csv"
    write_atomically(path, b"before")
    failing(0, number)
    with pytest.raises(UserError) as said:
        write_atomically(path, b"after")
    advice = "and repeat the command, with --resume to continue a run."
    assert str(said.value) == f"{path} cannot be written: {WHY[number]} {advice}"
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_folder_that_cannot_be_written_leaves_the_one_before(tmp_path, failing, count):
    folder = tmp_path / "eps-0.3000"
    save_folder(folder, lambda place: _two_files(place, "before"), replace=True)
    failing(count, errno.ENOSPC)
    with pytest.raises(UserError, match=r"eps-0\.3000 cannot be written: No space left on device"):
        save_folder(folder, lambda place: _two_files(place, "after"), replace=True)
    assert _texts(folder) == {"before"}
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("killed_in", "left"),
    [
        ("_rename", "before"),  # called to move the new folder into place
        ("_settle", "after"),  # called after the move
    ],
)
def test_a_kill_while_a_folder_is_replaced_leaves_one_of_the_two(tmp_path, monkeypatch, killed_in, left):
    folder = tmp_path / "eps-0.3000"
    save_folder(folder, lambda place: _two_files(place, "before"), replace=True)
    child = os.fork()
    if not child:
        monkeypatch.setattr(atomic_io, killed_in, lambda *_: os._exit(9))
        save_folder(folder, lambda place: _two_files(place, "after"), replace=True)
    assert os.waitpid(child, 0)[1] == 9 << 8
    assert folder.exists() == (left == "after")
    assert len(list(tmp_path.iterdir())) == 2
    atomic_io.tidy(tmp_path)
    assert _texts(folder) == {left}
    assert list(tmp_path.iterdir()) == [folder]


def _texts(folder):
    return {path.read_text() for path in folder.iterdir() if path.name != atomic_io.RECORD}


def _two_files(place, text):
    place.mkdir()
    for name in ("config.json", "weights"):
        (place / name).write_text(text)


def test_of_two_simultaneous_writers_the_first_wins(tmp_path):
    def late(place):
        _two_files(tmp_path / "model", "first")
        _two_files(place, "second")

    save_folder(tmp_path / "model", late, replace=False)
    assert {path.read_text() for path in (tmp_path / "model").iterdir()} == {"first"}


def test_disk_errors_of_safetensors_get_the_same_message(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")

    def save(place):
        safetensors.save_file({"a": torch.zeros(3)}, str(place / "nowhere" / "weights"))

    with pytest.raises(UserError, match=r"cannot be written: No such file or directory; check that its disk is still"):
        save_folder(tmp_path / "model", save, replace=True)


def test_other_errors_are_not_converted(tmp_path):
    with pytest.raises(ZeroDivisionError):
        save_folder(tmp_path / "model", lambda place: 1 / 0, replace=True)
    assert not list(tmp_path.iterdir())


def swept(folder):
    images = torch.rand(2, 12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return sweep(
        tiny.model("vqgan"), images[0] / 2, images[1], task=CenterCrop(0.5), points=1, resume=True, out=folder,
        settings=Settings(steps=4, batch_size=8),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, 60])
def test_a_sweep_on_a_full_disk_resumes_when_there_is_space(tmp_path, monkeypatch, failing, count):
    pytest.importorskip("diffusers")
    monkeypatch.setattr(journal, "SECONDS", 0.0)
    swept(tmp_path / "alone")
    failing(count, errno.ENOSPC)
    with pytest.raises(UserError, match="No space left on device; free some space and repeat the command"):
        swept(tmp_path / "full")
    assert not list((tmp_path / "full").rglob("*.part"))
    swept(tmp_path / "full")
    for name in ("history.csv", "samples.npz", "most-forgotten/diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "full" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


@pytest.mark.slow
def test_a_folder_that_vanishes(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    folder, steps = tmp_path / "mounted" / "run", []
    checkpoint = journal.Journal.checkpoint

    def vanishing(self, state):
        steps.append(1)
        if len(steps) == 9:
            (tmp_path / "mounted").rename(tmp_path / "gone")
            (tmp_path / "mounted").write_text("a mount that is gone")
        checkpoint(self, state)

    monkeypatch.setattr(journal, "SECONDS", 0.0)
    monkeypatch.setattr(journal.Journal, "checkpoint", vanishing)
    with pytest.raises(UserError, match=r"\.front\.csv\.journal cannot be written: Not a directory; choose another"):
        swept(folder)
    (tmp_path / "mounted").unlink()
    (tmp_path / "gone").rename(tmp_path / "mounted")
    assert len(swept(folder)) == 6
