"""Odd files and configurations, with the sentence that each gets."""

import errno
import gzip
import itertools
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from originals.mae import MaskedAutoencoder

pytest.importorskip("safetensors")
from safetensors.torch import save_file

from unlearn_ext import models
from unlearn_ext.errors import UserError
from unlearn_ext.models import doors

WEIGHTS = {"a": torch.ones(3)}
UNREAD = "{path} is no checkpoint that can be read: "
DAMAGED = "it is damaged ("

Write = Callable[[Path], object]


def text(content: str | bytes) -> Write:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def saved(content: object, **options: object) -> Write:
    return lambda path: torch.save(content, path, **options)


def cut(part: float, legacy: bool = False) -> Write:
    """Write the first part of a checkpoint, as an interrupted download leaves it."""

    def write(path: Path) -> None:
        torch.save({"model": {"a": torch.ones(3000)}}, path, _use_new_zipfile_serialization=not legacy)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(part * len(whole))])

    return write


def zipped(compression: int = zipfile.ZIP_STORED, **members: bytes) -> Write:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return write


def pickled(content: object) -> Write:
    return lambda path: path.write_bytes(pickle.dumps(content))


def script(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


def quantised(path: Path) -> None:
    saved({"model": {"a": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)}})(path)


def big_endian(path: Path) -> None:
    torch.save(WEIGHTS, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, b"big" if name.endswith("byteorder") else content)


def twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x/data.pkl", b"")


def folder(path: Path) -> None:
    path.mkdir()


def in_a_folder_of_a_library(path: Path) -> None:
    (path.parent / "config.json").write_text('{"_class_name": "VQModel"}')
    torch.save(WEIGHTS, path)


def safetensors(header: bytes, data: bytes = b"", length: int | None = None) -> Write:
    count = len(header) if length is None else length
    return text(count.to_bytes(8, "little") + header + data)


ONE = b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'
FILES: dict[str, tuple[str, Write, str]] = {
    "nothing there": ("x.pth", lambda path: None, "there is no file {path}."),
    "an empty file": ("x.pth", text(""), UNREAD + "it is empty."),
    "one byte": ("x.pth", text("P"), UNREAD + "it is neither a safetensors file nor one of torch.save."),
    "a text": ("x.pth", text("weights"), UNREAD + "it is neither a safetensors file nor one of torch.save."),
    "a pointer of Git LFS": (
        "x.pth", text("version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        UNREAD + "it is a pointer of Git LFS, not the file itself: run `git lfs pull`.",
    ),
    "a web page": (
        "x.pth", text("<!DOCTYPE html><p>404"), UNREAD + "it is a web page: the download went wrong, or needs a login.",
    ),
    "a GGUF file": (
        "x.gguf", text("GGUF\3"),
        UNREAD + "it is a GGUF file, whose weights are quantised: give the checkpoint that it was made from.",
    ),
    "a file of Keras": (
        "x.h5", text(b"\x89HDF\r\n"), UNREAD + "it is an HDF5 file, as Keras writes it: this package reads files of "
        "PyTorch.",
    ),
    "an array": (
        "x.npy", lambda path: np.save(path, np.ones(3)),
        UNREAD + "it is an array of NumPy: this package reads files of PyTorch.",
    ),
    "arrays": (
        "x.npz", lambda path: np.savez(path, a=np.ones(3)),
        UNREAD + "it is a zip file, but not one of torch.save: unpack it and give the checkpoint in it.",
    ),
    "gzip": ("x.gz", text(gzip.compress(b"weights")), UNREAD + "it is compressed with gzip: unpack it first."),
    "a plain pickle": (
        "x.pkl", pickled({"a": [1.0]}),
        UNREAD + "it is a pickle, but not one that torch.save wrote: save the state_dict() with safetensors or "
        "torch.save.",
    ),
    "a zip file of something else": (
        "x.zip", zipped(readme=b"hello"),
        UNREAD + "it is a zip file, but not one of torch.save: unpack it and give the checkpoint in it.",
    ),
    "a zip file of a checkpoint": (
        "x.zip", zipped(zipfile.ZIP_DEFLATED, **{"x.pth": bytes(9)}), UNREAD + "it is a zip file, but not one",
    ),
    "a compressed checkpoint": (
        "x.pth", lambda path: zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED).writestr("x/data.pkl", bytes(1 << 20)),
        UNREAD + "it is compressed or encrypted, which torch.save never does: unpack it first.",
    ),
    "TorchScript": (
        "x.pt", script,
        UNREAD + "it is TorchScript, whose code is not run: save the state_dict() of the module it was made from.",
    ),
    "a big-endian file": (
        "x.pth", big_endian, UNREAD + "it was written on a big-endian machine: save it again on another.",
    ),
    "two parts of the same name": ("x.pth", twice, UNREAD + "it has two parts of the same name."),
    "half a download": (
        "x.pth", cut(0.5), UNREAD + "it does not end with its table of contents: the file is incomplete.",
    ),
    "a table of contents of many megabytes": (
        "x.pth", text(b"PK\x03\x04" + bytes(99) + b"PK\x05\x06" + bytes(8) + b"\xff" * 4 + bytes(6)),
        UNREAD + "its table of contents has 4294967295 bytes, more than the 4194304 that are read.",
    ),
    "a table of contents somewhere else": (
        "x.pth", text(b"PK\x03\x04" + bytes(99) + b"PK\x05\x06" + bytes(8) + b"\x99" + bytes(9)),
        UNREAD + "its table of contents cannot be read",
    ),
    "half a download of before torch 1.6": (
        "x.pth", cut(0.5, legacy=True), UNREAD + "it ends before its last tensor: the file is incomplete.",
    ),
    "the beginning of a download of before torch 1.6": ("x.pth", cut(0.01, legacy=True), UNREAD + DAMAGED),
    "a whole module": (
        "x.pt", saved(torch.nn.Linear(2, 2)),
        UNREAD + "it is a whole object of the class torch.nn.modules.linear.Linear: where that class is installed, "
        "save its state_dict().",
    ),
    "a whole module in a dictionary": (
        "x.pt", saved({"model": torch.nn.Linear(2, 2), "epoch": 3}),
        UNREAD + "it contains no weights: save the model's state_dict().",
    ),
    "a list of tensors": (
        "x.pt", saved([torch.ones(3)]), UNREAD + "it contains a value of the type list, not a state dict",
    ),
    "a tensor": ("x.pt", saved(torch.ones(3)), UNREAD + "it contains a value of the type Tensor, not a state dict"),
    "a number": (
        "x.pt", saved(3),
        UNREAD + "it contains a value of the type int, not a state dict: save the model's state_dict().",
    ),
    "an empty state dict": ("x.pth", saved({}), UNREAD + "it contains no weights: save the model's state_dict()."),
    "only an optimizer": (
        "x.pth", saved({"optimizer": torch.optim.AdamW([torch.ones(2)]).state_dict()}),
        UNREAD + "it contains no weights: save the model's state_dict().",
    ),
    "two models": (
        "x.pth", saved({"model": WEIGHTS, "model_ema": WEIGHTS}),
        UNREAD + "it contains 2 state dicts, 'model', 'model_ema': save the one that you mean in a file of its own.",
    ),
    "a model beside another": (
        "x.pth", saved({**WEIGHTS, "ema": WEIGHTS}),
        UNREAD + "it contains weights, such as 'a', and the state dict 'ema': save the ones that you mean in a file of "
        "their own.",
    ),
    "names that are numbers": (
        "x.pth", saved({"model": {0: torch.ones(2)}}), UNREAD + "the name of a weight is 0, not a text.",
    ),
    "quantised weights": (
        "x.pth", quantised,
        UNREAD + "a is made by torch._utils._rebuild_qtensor, and only dense weights are read: save them so.",
    ),
    "sparse weights": (
        "x.pth", saved({"a": torch.eye(3).to_sparse()}),
        UNREAD + "a is made by torch._utils._rebuild_sparse_tensor, and only dense weights are read: save them so.",
    ),
    "a name with control characters": (
        "x.pth", saved({"\x1b[31mred": torch.ones(2)}),
        "{path} has a weight whose name is no readable text: '\\x1b[31mred'.",
    ),
    "a long name": (
        "x.pth", saved({"x" * 100_000: torch.ones(2)}), "{path} has a weight whose name is no readable text: 'xxx",
    ),
    "a class with a long name": (
        "x.pth", zipped(**{"x/data.pkl": b"\x80\x02cos\n" + b"x" * 100_000 + b"\n."}),
        UNREAD + "it is a whole object of the class os.xxx",
    ),
    "another layout": (
        "x.pth", saved({"model": WEIGHTS}),
        "{path} has weights, such as a, in no known layout: give a file of one of the formats mae, taming-vqgan",
    ),
    "weights of two formats": (
        "x.pth",
        saved({**MaskedAutoencoder().state_dict(), "denoise_fn.cond_embed.0.weight": torch.ones(3)}),
        "{path} has weights of several formats, mae and palette: save those of one model in a file of its own.",
    ),
    "weights out of a library's folder": (
        "x.bin", in_a_folder_of_a_library, "{path} is a file; give the folder that the model's library saved.",
    ),
    "a folder without a configuration": (
        "x", folder,
        "{path} does not say which class of model it is, because its config.json is missing or names none: give a "
        "folder that save_pretrained wrote",
    ),
    "a folder with a name of a file": (
        "x.pth", folder,
        "{path} does not say which class of model it is, because its config.json is missing or names none: give a "
        "folder that save_pretrained wrote",
    ),
    "safetensors without its end": ("x.safetensors", safetensors(ONE, b"1234"), UNREAD + DAMAGED),
    "safetensors with too much": ("x.safetensors", safetensors(ONE, bytes(99)), UNREAD + DAMAGED),
    "safetensors with a header that is no JSON": ("x.safetensors", safetensors(b"{abc}"), UNREAD + DAMAGED),
    "safetensors without weights": ("x.safetensors", safetensors(b"{}"), UNREAD + "it contains no weights."),
    "safetensors of an unknown type": (
        "x.safetensors", safetensors(ONE.replace(b"F32", b"X99"), bytes(12)), UNREAD + DAMAGED,
    ),
    "safetensors with a header of many gigabytes": (
        "x.safetensors", safetensors(ONE, bytes(12), length=1 << 40),
        UNREAD + "it is neither a safetensors file nor one of torch.save.",
    ),
    "a hub id without an owner": (
        "mae", lambda path: None, "there is no folder {path}",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch will drop some of these kinds
@pytest.mark.parametrize(("name", "write", "sentence"), FILES.values(), ids=FILES.keys())
def test_an_odd_file_gets_a_sentence(name, write, sentence, tmp_path):
    path = tmp_path / name
    write(path)
    with pytest.raises(UserError) as raised:
        models.family_of(path)
    said = str(raised.value)
    assert sentence.format(path=path) in said
    assert "\n" not in said
    assert len(said) < 500


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    torch.save(WEIGHTS, path)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"x\.pth cannot be read: Permission denied\."):
        doors.read(path)


def test_folders_of_libraries(tmp_path):
    for content, sentence in (
        ({"architectures": ["ViTForImageClassification"]}, "is a ViTForImageClassification, but the families are of"),
        (
            {"_class_name": "Transformer2DModel"},
            "is a Transformer2DModel, but the families are of VQModel, Autoencoder",
        ),
        ({"architecture": "vit_base_patch16_224", "num_classes": 0}, "has only the encoder of a masked autoencoder"),
        (["VQModel"], "does not say which class of model it is"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=sentence):
            models.family_of(tmp_path)
        if "architecture" in content:
            with pytest.raises(UserError, match=sentence):
                models.load("mae", tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json of .* cannot be read: Expecting property name"):
        models.family_of(tmp_path)


CONFIGURATIONS: dict[str, tuple[str, str | bytes, str]] = {
    "an empty file": ("x.yaml", "", "the configuration {path} contains no names with values."),
    "a list": ("x.yaml", "- a\n- b", "the configuration {path} contains no names with values."),
    "a text": ("x.yaml", "abc", "the configuration {path} contains no names with values."),
    "no YAML": ("x.yaml", "a: [1", "the configuration {path} cannot be read: while parsing a flow sequence"),
    "an object of Python": (
        "x.yaml", "a: !!python/object/apply:os.system ['touch executed']",
        "the configuration {path} cannot be read: could not determine a constructor",
    ),
    "an alias": (
        "x.yaml", "a: &b [1]\nc: *b", "the configuration {path} cannot be read: it uses an alias, *b: write out its "
        "value.",
    ),
    "aliases that multiply": (
        "x.yaml",
        "a: &a [x,x]\n" + "".join(f"{c}: &{c} [*{p},*{p}]\n" for p, c in itertools.pairwise("abcdefghi")),
        "it uses an alias, *a: write out its value.",
    ),
    "a name twice": (
        "x.yaml", "a: 1\na: 2", "the configuration {path} cannot be read: it has 'a' twice in the same place.",
    ),
    "a name that is a list": ("x.yaml", "? [a]\n: 1", "the configuration {path} cannot be read: "),
    "deep lists": ("x.yaml", "[" * 2000, "the configuration {path} cannot be read: "),
    "a date that is none": ("x.yaml", "a: 2020-99-99", "the configuration {path} cannot be read: "),
    "not UTF-8": ("x.yaml", b"a: \xff", "the configuration {path} cannot be read: 'utf-8' codec can't decode"),
    "a control character": ("x.yaml", "a: \0", "the configuration {path} cannot be read: unacceptable character"),
    "a large file": ("x.yaml", "#" * 70_000, "{path} has more than 65536 bytes, too many for the configuration"),
    "no JSON": ("x.json", "{'a': 1}", "the configuration {path} cannot be read: Expecting property name"),
    "a comment without an end": ("x.json", '{"a": 1 /* }', "the configuration {path} cannot be read: Expecting ','"),
    "a name twice in JSON": ("x.json", '{"a": 1, "a": 2}', "cannot be read: it has 'a' twice in the same place."),
    "deep lists in JSON": ("x.json", "[" * 60_000, "the configuration {path} cannot be read: "),
    "many comments": ("x.json", "/*" * 30_000, "the configuration {path} cannot be read: "),
    "another kind of file": (
        "x.toml", "a = 1", "{path} is not a configuration: give a file that ends with .yaml, .yml, .json.",
    ),
    "nothing there": ("", "", "the configuration {path} cannot be read: No such file or directory."),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "sentence"), CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_an_odd_configuration_gets_a_sentence(name, content, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(WEIGHTS, tmp_path / "weights.pth")
    path = tmp_path / (name or "x.yaml")
    if name:
        text(content)(path)
    with pytest.raises(UserError) as raised:
        doors.read(tmp_path / "weights.pth", path)
    assert sentence.format(path=path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "executed").exists()


def test_comments_in_json(tmp_path):
    (tmp_path / "x.json").write_text(
        '{ // the model\n "url": "http://x/*y*/", /* two\n lines */ "quote": "\\"//", "lr": 5e-5 }', encoding="utf-8"
    )
    torch.save(WEIGHTS, tmp_path / "x.pth")
    assert doors.read(tmp_path / "x.pth").config == {"url": "http://x/*y*/", "quote": '"//', "lr": 5e-5}


def test_which_configuration_belongs_to_a_file(tmp_path):
    path = tmp_path / "logs" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(WEIGHTS, path)
    assert doors.find_configuration(path) is None
    (path.parent / "other.yaml").write_text("only: 1")
    assert doors.find_configuration(path) == path.parent / "other.yaml"
    (path.parent / "other.pth").touch()
    assert doors.find_configuration(path) is None  # it belongs to the other checkpoint
    (path.parent / "other.pth").unlink()
    (path.parent / "another.yaml").write_text("second: 1")
    assert doors.find_configuration(path) is None  # neither has the file's name
    configs = tmp_path / "logs" / "configs"
    configs.mkdir()
    (configs / "2024-project.yaml").write_text("project: 1")
    (configs / "2024-lightning.yaml").write_text("lightning: 1")
    assert doors.find_configuration(path) == configs / "2024-project.yaml"
    (path.parent / "last.yaml").write_text("same: 1")
    assert doors.read(path).config == {"same": 1}
    assert doors.read(path, configs / "2024-project.yaml").config == {"project": 1}
    (path.parent / "last.json").write_text("{}")
    with pytest.raises(UserError, match=r"last\.json and last\.yaml may both be the configuration of last\.ckpt"):
        doors.find_configuration(path)


def test_no_two_doors_recognise_the_same_file(tmp_path):
    torch.save(MaskedAutoencoder().state_dict(), tmp_path / "x.pth")
    save_file(MaskedAutoencoder().state_dict(), tmp_path / "y.safetensors")
    for name in ("x.pth", "y.safetensors"):
        assert doors.door_of(tmp_path / name).NAME == "mae"
