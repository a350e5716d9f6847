"""Files of ``torch.save``: find the bytes of each storage, check them, and read the tensors that are asked for."""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from .pickles import RecordedTensor, Unpickler

__all__ = ["LEGACY", "ZIP", "Damaged", "TorchFile", "read_legacy", "read_zip"]

ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of the number that begins files before torch 1.6
_LONGEST = 32 << 20  # bytes of a pickle; the tensors are not in it
_LARGEST_TABLE = 4 << 20  # bytes of a zip file's table of contents, which `zipfile` enlarges tenfold; 40,000 tensors


class Damaged(Exception):
    """A file is not as ``torch.save`` writes it; the message is a clause that says why."""


@dataclass(frozen=True)
class Place:
    """Where the bytes of a storage are.

    Attributes:
        offset: position of the first byte in the file.
        size: number of bytes.
    """

    offset: int
    size: int


@dataclass(frozen=True)
class TorchFile:
    """A file of ``torch.save`` whose tensors are not read yet.

    Attributes:
        content: what was saved, with a :class:`~.pickles.RecordedTensor` for each tensor.
        places: where the bytes of each storage are, by its key.
    """

    content: Any
    places: Mapping[str, Place]

    def outlines(self, recorded: Mapping[str, RecordedTensor]) -> dict[str, torch.Tensor]:
        """Return tensors without data, on torch's device ``meta``.

        Raises:
            Damaged: a tensor is not in the file.
        """
        for name, one in recorded.items():
            self._check(name, one)
        return {name: torch.empty(one.shape, dtype=one.dtype, device="meta") for name, one in recorded.items()}

    def tensors(self, file: BinaryIO, recorded: Mapping[str, RecordedTensor]) -> dict[str, torch.Tensor]:
        """Read tensors; those that are the same part of the same storage are the same tensor.

        Raises:
            Damaged: a tensor is not in the file, or all of them together are larger than the file. This is checked
                before anything is allocated.
        """
        for name, one in recorded.items():
            self._check(name, one)
        parts = set(recorded.values())
        size, available = sum(map(_bytes, parts)), file.seek(0, io.SEEK_END)
        if size > available:
            raise Damaged(f"its tensors have {size} bytes, more than the file's {available}")
        read = {one: self._read(file, one) for one in parts}
        return {name: read[one] for name, one in recorded.items()}

    def _check(self, name: str, one: RecordedTensor) -> None:
        place = self.places.get(one.storage.key)
        if place is None:
            raise Damaged(f"the data of {name} is missing")
        if (one.offset + _extent(one)) * one.dtype.itemsize > place.size:
            raise Damaged(f"{name} is larger than its data: the file is incomplete")

    def _read(self, file: BinaryIO, one: RecordedTensor) -> torch.Tensor:
        raw = torch.empty(_extent(one) * one.dtype.itemsize, dtype=torch.uint8)
        file.seek(self.places[one.storage.key].offset + one.offset * one.dtype.itemsize)
        if file.readinto(raw.numpy()) != len(raw):  # type: ignore[attr-defined]  # missing in typeshed's BinaryIO
            raise Damaged("the file is incomplete")
        return raw.view(one.dtype).as_strided(one.shape, one.stride).contiguous()


def read_zip(file: BinaryIO) -> TorchFile:
    """Read what a zip file of ``torch.save`` says about its tensors.

    Raises:
        Damaged: it is a zip file of another kind, or is damaged.
    """
    _check_table(file)
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise Damaged(f"its table of contents cannot be read ({error})") from error
    members = {info.filename: info for info in archive.infolist()}
    if len(members) < len(archive.infolist()):
        raise Damaged("it has two parts of the same name")
    pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Damaged("it is a zip file, but not one of torch.save: unpack it and give the checkpoint in it")
    root = pickles[0].removesuffix("data.pkl")
    if any(name.startswith(f"{root}code/") for name in members):
        raise Damaged("it is TorchScript, whose code is not run: save the state_dict() of the module it was made from")
    places = {name.removeprefix(root): _place(file, info) for name, info in members.items() if name.startswith(root)}
    if "byteorder" in places and _content(file, places["byteorder"]) != b"little":
        raise Damaged("it was written on a big-endian machine: save it again on another")
    content = Unpickler().load(io.BytesIO(_content(file, places["data.pkl"])))
    return TorchFile(content, {k.removeprefix("data/"): v for k, v in places.items() if k.startswith("data/")})


def read_legacy(file: BinaryIO) -> TorchFile:
    """Read what a file of ``torch.save`` before torch 1.6 says about its tensors.

    Raises:
        Damaged: it is damaged.
    """
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    head, machine = io.BytesIO(file.read(min(_LONGEST, end))), Unpickler()
    _magic, _protocol, system, content, keys = (machine.load(head) for _ in range(5))
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise Damaged("it was written on a big-endian machine: save it again on another")
    places, offset = {}, head.tell()
    for key in map(str, keys):
        storage = machine.storages[key]
        file.seek(offset)
        (count,) = struct.unpack("<q", file.read(8))
        places[key] = Place(offset + 8, storage.count * storage.dtype.itemsize)
        offset += 8 + places[key].size
        if count != storage.count or offset > end:
            raise Damaged("it ends before its last tensor: the file is incomplete")
    return TorchFile(content, places)


def _check_table(file: BinaryIO) -> None:
    """Check that a zip file ends with its table of contents, without a comment, and that the table is not too large.

    The file ends with a record of 22 bytes; with more than 4 GiB, also one of 20 bytes and one of 56 before it.

    Raises:
        Damaged: it is not so.
    """
    end = file.seek(0, io.SEEK_END)
    file.seek(max(end - 98, 0))
    tail = file.read().rjust(98, b"\0")
    if tail[-22:-18] != b"PK\x05\x06" or tail[-2:] != b"\0\0":
        raise Damaged("it does not end with its table of contents: the file is incomplete")
    (size,) = struct.unpack("<L", tail[-10:-6])
    if tail[:4] == b"PK\x06\x06":
        (size,) = struct.unpack("<Q", tail[40:48])
    if size > _LARGEST_TABLE:
        raise Damaged(f"its table of contents has {size} bytes, more than the {_LARGEST_TABLE} that are read")


def _place(file: BinaryIO, info: zipfile.ZipInfo) -> Place:
    """Return where a member's bytes are: behind its local header, whose length differs from the table's entry.

    Raises:
        Damaged: the member is compressed or encrypted, or not in the file.
    """
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
        raise Damaged("it is compressed or encrypted, which torch.save never does: unpack it first")
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) < 30 or not header.startswith(ZIP):
        raise Damaged(f"its part {info.filename} is not where the table of contents says")
    name, extra = struct.unpack("<HH", header[26:])
    offset = info.header_offset + len(header) + name + extra
    if offset + info.file_size > file.seek(0, io.SEEK_END):
        raise Damaged(f"its part {info.filename} is larger than the file: the file is incomplete")
    return Place(offset, info.file_size)


def _content(file: BinaryIO, place: Place) -> bytes:
    if place.size > _LONGEST:
        raise Damaged(f"its pickle has {place.size} bytes, more than the {_LONGEST} that are read")
    file.seek(place.offset)
    return file.read(place.size)


def _extent(one: RecordedTensor) -> int:
    """Return the number of elements of the storage from a tensor's first element to its last."""
    if 0 in one.shape:
        return 0
    return 1 + sum((side - 1) * step for side, step in zip(one.shape, one.stride, strict=True))


def _bytes(one: RecordedTensor) -> int:
    return max(math.prod(one.shape), _extent(one)) * one.dtype.itemsize
