"""Checkpoint files are read without running anything in them, and odd ones get a sentence."""

import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("safetensors")
from safetensors.torch import save_file

from unlearn_ext.errors import UserError
from unlearn_ext.models.doors import pickles
from unlearn_ext.models.doors.pickles import Stub
from unlearn_ext.models.doors.reading import read

MARKER = "executed"
HALVES = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}


def both(saved, path: Path) -> list[Path]:
    """Save something as a zip file and as a legacy file."""
    old = path.with_name(f"old-{path.name}")
    torch.save(saved, path)
    torch.save(saved, old, _use_new_zipfile_serialization=False)
    return [path, old]


def equal(found, expected) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in expected.items()
    )


@pytest.mark.parametrize(
    "saved",
    [HALVES, {"model": HALVES}, {"state_dict": HALVES, "global_step": torch.tensor(3), "epoch": 5}],
    ids=["flat", "model", "lightning"],
)
def test_every_kind_of_file_is_read(saved, tmp_path):
    for path in both(saved, tmp_path / "x.pth"):
        assert equal(read(path).weights, HALVES)
        outlines = read(path, data=False).weights
        assert {n: (w.shape, w.dtype, w.device.type) for n, w in outlines.items()} == {
            n: (w.shape, w.dtype, "meta") for n, w in HALVES.items()
        }
    save_file(HALVES, tmp_path / "x.safetensors")
    assert equal(read(tmp_path / "x.safetensors").weights, HALVES)
    assert read(tmp_path / "x.safetensors", data=False).weights["a"].shape == (2, 3)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickle(protocol, tmp_path):
    torch.save({"state_dict": HALVES, "hyper_parameters": {"lr": 1e-3}}, tmp_path / "x.pth", pickle_protocol=protocol)
    found = read(tmp_path / "x.pth")
    assert equal(found.weights, HALVES)
    assert found.content == {"hyper_parameters": {"lr": 1e-3}}


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
     torch.uint8, torch.bool],
    ids=str,
)  # fmt: skip
def test_every_dtype(dtype, tmp_path):
    weights = {"w": (torch.arange(8) % 2).to(dtype)}
    for path in both(weights, tmp_path / "x.pth"):
        assert equal(read(path).weights, weights)


def test_views_and_tied_weights(tmp_path):
    base = torch.arange(24.0).view(4, 6)
    weights = {
        "whole": base, "tied": base, "transposed": base.t(), "slice": base[1:3, ::2], "scalar": base[1, 1],
        "empty": base[:0], "parameter": torch.nn.Parameter(base + 1),
    }  # fmt: skip
    for path in both(weights, tmp_path / "x.pth"):
        found = read(path).weights
        assert equal(found, {name: value.detach() for name, value in weights.items()})
        assert found["whole"] is found["tied"]


class Command:
    """A hostile object: its pickle calls a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Trainer:
    """A class that the reader does not know."""

    def __init__(self):
        self.hidden = Command(os.system, f"touch {MARKER}")


def as_pickle(opcodes: bytes, path: Path) -> Path:
    """Write a zip file of torch.save with a pickle of one's own."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", opcodes)
        archive.writestr("x/data/0", bytes(64))
    return path


HOSTILE = {
    "beside the weights": {"state_dict": HALVES, "x": Command(os.system, f"touch {MARKER}")},
    "nested": {"state_dict": HALVES, "x": [{"y": (Command(eval, f"open({MARKER!r}, 'w')"),)}]},
    "in an object": {"state_dict": HALVES, "x": Trainer()},
    "as a callback": {"state_dict": HALVES, "callbacks": {Trainer: {"best": Command(exec, f"open({MARKER!r}, 'w')")}}},
    "by import": {"state_dict": HALVES, "x": Command(__import__, "antigravity")},
    "by getattr": {"state_dict": HALVES, "x": Command(getattr, Command(__import__, "os"), "system")},
}


@pytest.mark.parametrize("saved", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_pickle_executes_nothing(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in both(saved, tmp_path / "x.ckpt"):
        found = read(path)
        assert equal(found.weights, HALVES)
    assert not (tmp_path / MARKER).exists()
    with pytest.raises(pickle.UnpicklingError):  # what the library itself says
        torch.load(path, weights_only=True)


NAMES = {
    "os": b"cos\nsystem\n",
    "posix": b"cposix\nsystem\n",
    "a renamed module": b"ctorch.storage\nos\n",
    "a function of torch": b"ctorch.hub\nload_state_dict_from_url\n",
    "torch.load": b"ctorch\nload\n",
    "an attribute path": b"cbuiltins\neval.__call__\n",
    "by the stack": b"\x8c\x02os\x8c\x06system\x93",
    "a rebuilder that calls": b"ctorch._tensor\n_rebuild_from_type_v2\n",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
@pytest.mark.parametrize("call", [b"R", b"\x81", b"}\x92"], ids=["reduce", "new", "new with names"])
def test_nothing_that_a_pickle_names_is_called(name, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = f"touch {MARKER}".encode()
    argument = b"X" + struct.pack("<I", len(command)) + command
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03"
    )
    tensor += b"\x00\x00\x00cpuK\x10tQK\x00K\x02\x85K\x01\x85\x89NtR"
    hostile = name + b"(" + argument + b"cos\nsystem\n)t" + call
    path = as_pickle(
        b"\x80\x02}(X\x01\x00\x00\x00w" + tensor + b"X\x01\x00\x00\x00x" + hostile + b"u.", tmp_path / "x.pth"
    )
    try:
        assert isinstance(read(path).content["x"], Stub)
    except UserError as error:
        assert "damaged" in str(error)  # noqa: PT017  a rebuilder given the wrong arguments
        assert b"_rebuild" in name
    assert not (tmp_path / MARKER).exists()


BOMBS = {
    "long tuples of tuples as keys": b"\x80\x02)" + b"\x85" * 30_000 + b"0}" + b")" + b"\x85" * 30_000 + b"K\x01s.",
    "tuples that double": b"\x80\x02)" + b"2\x86" * 100 + b"}q\x000}X\x01\x00\x00\x00a.",
    "doubling keys": b"\x80\x02})" + b"2\x86" * 60 + b"K\x01s.",
    "a huge memo": b"\x80\x02Nr\xff\xff\xff\xff.",
    "a huge text": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "a huge text of protocol 4": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
    "huge bytes": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
    "a huge number": b"\x80\x02\x8b\xff\xff\xff\x7fabc.",
    "a huge decimal number": b"\x80\x02L" + b"9" * 100_000 + b"L\n.",
    "too many parts": b"\x80\x02" + b"]0" * 60_000 + b".",
    "a list that is copied often": b"\x80\x02]("
    + b"K\x01" * 9999
    + b"e\x85q\x000"
    + b"ccollections\nOrderedDict\nh\x00R0" * 9000
    + b".",
    "a long pair": b"\x80\x02(" + b"K\x01" * 9999 + b"tq\x000](" + b"h\x00" * 9000 + b"e\x85q\x010" + b"ccollections\n"
    b"OrderedDict\nh\x01R.",
    "marks that are missing": b"\x80\x02et.",
    "extensions": b"\x80\x02\x82\x01.",
    "buffers of others": b"\x80\x05\x97.",
    "no end": b"\x80\x02}",
    "nothing": b"",
    "a persistent name": b"Pabc\n.",
    "a call of a text": b"\x80\x02X\x01\x00\x00\x00a)R.",
}


@pytest.mark.parametrize("opcodes", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_a_sentence_and_takes_no_memory(opcodes, tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "OPCODES", 100_000)
    path = as_pickle(opcodes, tmp_path / "x.pth")
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"x\.pth is no checkpoint that can be read"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < (64 << 20) + 100 * len(opcodes)
    finally:
        tracemalloc.stop()


def recorded(
    size=b"K\x02\x85", stride=b"K\x01\x85", offset=b"K\x00", count=b"K\x10", key=b"0", kind=b"FloatStorage"
) -> bytes:
    """Return a pickle of a state dict with one tensor, of which any number may be wrong."""
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\n" + kind + b"\nX\x01\x00\x00\x00" + key + b"X\x03\x00\x00\x00cpu" + count
    )
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"tQ" + offset + size + stride + b"\x89NtR"
    return b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s."


HUGE = b"\x8a\x08" + struct.pack("<q", 1 << 62)
SIZES = {
    "a huge shape": recorded(size=HUGE + b"\x85"),
    "a huge stride": recorded(stride=HUGE + b"\x85"),
    "a huge offset": recorded(offset=HUGE),
    "a negative offset": recorded(offset=b"J\xff\xff\xff\xff"),
    "a negative shape": recorded(size=b"J\xff\xff\xff\xff\x85"),
    "a negative stride": recorded(stride=b"J\xff\xff\xff\xff\x85"),
    "one element, repeated": recorded(size=b"J\x00\x00\x00\x40\x85", stride=b"K\x00\x85"),
    "more strides than sides": recorded(stride=b"K\x01K\x01\x86"),
    "another storage": recorded(key=b"7"),
    "a shape that is a text": recorded(size=b"X\x01\x00\x00\x00a\x85"),
    "a shape that is true": recorded(size=b"\x88\x85"),
    "a shape of many dimensions": recorded(size=b"(" + b"K\x01" * 99 + b"t", stride=b"(" + b"K\x01" * 99 + b"t"),
    "a storage without a size": recorded(count=b"N"),
}


@pytest.mark.parametrize("opcodes", SIZES.values(), ids=SIZES.keys())
def test_a_wrong_size_is_found_before_anything_is_allocated(opcodes, tmp_path):
    path = as_pickle(opcodes, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth is no checkpoint that can be read"):
        read(path)
    path = as_pickle(recorded(), tmp_path / "right.pth")
    assert equal(read(path).weights, {"w": torch.zeros(2)})


@pytest.mark.slow
@pytest.mark.parametrize("weights_only", [False, True])
def test_a_checkpoint_that_lightning_wrote(weights_only, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self, array, rate=1e-3, path=Path("x")):
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(4, 2)

        def training_step(self, batch, _):
            loss = self.layer(batch).square().mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters())
            return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])]

    checkpoints = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, save_weights_only=weights_only, monitor="loss")
    trainer = lightning.Trainer(
        max_epochs=2, logger=False, callbacks=[checkpoints], accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    module = Module(np.ones(3))
    trainer.fit(module, torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=4))
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=weights_only)
    found = read(tmp_path / "last.ckpt")
    assert equal(found.weights, module.state_dict())
    assert found.content["hyper_parameters"]["rate"] == 1e-3
    assert isinstance(found.content["hyper_parameters"]["array"], Stub)
    assert ("optimizer_states" in found.content) is not weights_only
