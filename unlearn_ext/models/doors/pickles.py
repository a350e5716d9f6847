"""Read a pickle without importing or calling anything: plain values, descriptions of tensors, and stubs for the rest.

A pickle is a program for a small stack machine. Python's own machine calls whatever the program names. This one
knows the few names that state dicts need, by their spelling only; every other name becomes a :class:`Stub`. Time and
memory are linear in the number of opcodes and of copied elements, which is limited.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

__all__ = ["OPCODES", "RecordedStorage", "RecordedTensor", "Stub", "Unpickler"]

OPCODES = 1_000_000  # in one file; a ViT-H with AdamW's state has 100,000
DIMENSIONS = 16  # of a tensor

_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_DTYPE_NAMES = {str(dtype): dtype for dtype in _DTYPES.values()}
_DICTS = (
    "argparse.Namespace", "collections.OrderedDict", "collections.Counter", "collections.defaultdict",
    "pytorch_lightning.utilities.parsing.AttributeDict", "lightning.fabric.utilities.data.AttributeDict",
)  # fmt: skip
_LARGEST = 1 << 63  # larger whole numbers could be chosen so that their hashes collide
_MARK = object()


class Stub:
    """What a pickle names and this package does not know. It does nothing, and neither does calling it.

    Args:
        name: full name of the global, as the pickle spells it.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


@dataclass(frozen=True)
class RecordedStorage:
    """A storage that a pickle refers to; its bytes are elsewhere in the file.

    Attributes:
        key: name of the storage in the file.
        dtype: type of its elements; uint8 if they have none.
        count: number of elements.
    """

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class RecordedTensor:
    """A tensor that a pickle describes; nothing of it is allocated.

    Attributes:
        storage: where its elements are.
        dtype: type of the elements.
        offset: first element in the storage.
        shape: its shape.
        stride: distance of neighbours per dimension, in elements.
    """

    storage: RecordedStorage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Namespace(dict[str, Any]):
    """The attributes of an ``argparse.Namespace``."""


class Unpickler:
    """A pickle's stack machine, in which nothing can be executed.

    One machine may run the pickles of a file one after the other; the limit of opcodes holds for all of them.

    Attributes:
        storages: all storages that the pickles refer to, by their keys.
    """

    def __init__(self) -> None:
        self.storages: dict[str, RecordedStorage] = {}
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._spent = 0  # opcodes, and elements that one opcode copies

    def load(self, file: BinaryIO) -> Any:
        """Run a pickle from the file's position to its end, and return its value.

        Raises:
            ValueError, IndexError, KeyError, TypeError: the pickle is damaged.
        """
        self._stack, self._memo = [], {}
        for opcode, argument, _ in pickletools.genops(file):
            self._spend(1)
            _OPERATIONS[opcode.name](self, argument)
        return self._stack.pop()

    def _spend(self, count: int) -> None:
        self._spent += count
        if self._spent > OPCODES:
            raise ValueError(f"its pickle has more than {OPCODES} parts")

    def _since_mark(self) -> list[Any]:
        """Remove and return what was pushed after the last mark."""
        start = len(self._stack) - 1
        while self._stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise IndexError("a mark is missing")
        items = self._stack[start + 1 :]
        del self._stack[start:]
        return items

    def _pop_mark(self) -> None:
        self._since_mark()

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _tuple(self, length: int) -> None:
        items = tuple(self._stack[-length:])
        if len(items) < length:
            raise IndexError("the stack is too short")
        self._stack[-length:] = [items]

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            target.update(_pairs(items))
        elif not isinstance(target, Stub):
            raise TypeError("items are set on something that is no dictionary")

    def _append(self, items: Iterable[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(map(_key, items))
        elif not isinstance(target, Stub):
            raise TypeError("items are appended to something that is no list")

    def _global(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a global has no name")
        full = f"{module}.{name}"
        self._push(_DTYPE_NAMES.get(full) or Stub(full))

    def _call(self, arguments: Any) -> None:
        called = self._stack.pop()
        if not isinstance(called, Stub) or not isinstance(arguments, tuple):
            raise TypeError("something is called that is no global")
        self._spend(sum(len(part) for part in arguments if isinstance(part, list)))
        self._push(_called(called.name, arguments))

    def _call_with_names(self) -> None:
        """Call a class with positional and named arguments; the named ones are ignored."""
        self._stack.pop()
        self._call(self._stack.pop())

    def _instance(self, name: str) -> None:
        self._since_mark()
        self._push(Stub(name.replace(" ", ".")))

    def _build(self, state: Any) -> None:
        if isinstance(self._stack[-1], _Namespace) and isinstance(state, dict):
            self._spend(len(state))
            self._stack[-1].update(state)

    def _put(self, index: Any) -> None:
        self._memo[index] = self._stack[-1]

    def _persistent(self, given: Any) -> None:
        if given[0] == "module":  # a class together with its source code, in files before torch 1.6
            self._push(given[1])
            return
        kind, type_, key, _location, count, *view = given
        if kind != "storage" or not isinstance(type_, Stub) or any(part is not None for part in view):
            raise TypeError("a storage is described in an unknown way")
        name = type_.name.rpartition(".")[2]
        if not isinstance(key, (str, int)) or not _is_count(count):
            raise TypeError("a storage has no key or no size")
        if name not in _DTYPES and name != "UntypedStorage":
            self._push(type_)  # of a type without a dtype here; its tensors become stubs
            return
        storage = RecordedStorage(str(key), _DTYPES.get(name, torch.uint8), count)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"storage {key} is described twice, in different ways")
        self._push(storage)


def _called(name: str, arguments: tuple[Any, ...]) -> Any:
    """Return what a call makes: a plain value or the description of a tensor for the known names, else a stub."""
    if name in _DICTS:
        found: dict[Any, Any] = _Namespace() if name == "argparse.Namespace" else {}
        if arguments and isinstance(arguments[-1], list):  # OrderedDict of a list of pairs
            found.update((_key(name), value) for name, value in arguments[-1])
        return found
    if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
        return _tensor(*arguments[:4])
    if name == "torch._utils._rebuild_tensor_v3":
        return _tensor(*arguments[:4], *arguments[6:7])
    if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        return arguments[0]
    if name == "torch.Size" and isinstance(arguments[0], tuple):
        return arguments[0]
    return Stub(name)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, dtype: Any = None) -> RecordedTensor | Stub:
    """Return the description of a tensor; a stub if its storage has none of the known types."""
    if isinstance(storage, Stub):
        return storage
    if not isinstance(storage, RecordedStorage) or not (dtype is None or isinstance(dtype, torch.dtype)):
        return Stub("torch.Tensor")
    if not (isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= DIMENSIONS):
        raise ValueError(f"a tensor has no shape of at most {DIMENSIONS} dimensions")
    if not all(map(_is_count, (offset, *shape, *stride))):
        raise ValueError("a tensor has an impossible shape")
    return RecordedTensor(storage, dtype or storage.dtype, offset, shape, stride)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _pairs(items: list[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(map(_key, items[::2]), items[1::2], strict=True)


def _key(value: Any) -> Any:
    """Return a key of a dictionary: a plain value or a stub.

    The hash of a nested tuple can take exponential time or overflow the stack, so other keys are replaced by a stub.
    """
    if isinstance(value, int):
        return value if -_LARGEST <= value < _LARGEST else Stub("builtins.int")
    return value if isinstance(value, (str, bytes, float, Stub, type(None))) else Stub("builtins.object")


def _values(*names: str) -> dict[str, Callable[[Unpickler, Any], None]]:
    return dict.fromkeys(names, lambda machine, argument: machine._push(argument))


# Opcodes of all protocols by their names in `pickletools`. Those that are missing use tables outside of the file.
_OPERATIONS: dict[str, Callable[[Unpickler, Any], None]] = {
    **_values("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    **_values("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    **_values("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, argument: None),
    "NONE": lambda machine, _: machine._push(None),
    "NEWTRUE": lambda machine, _: machine._push(True),
    "NEWFALSE": lambda machine, _: machine._push(False),
    "EMPTY_LIST": lambda machine, _: machine._push([]),
    "EMPTY_DICT": lambda machine, _: machine._push({}),
    "EMPTY_SET": lambda machine, _: machine._push(set()),
    "EMPTY_TUPLE": lambda machine, _: machine._push(()),
    "MARK": lambda machine, _: machine._push(_MARK),
    "POP": lambda machine, _: machine._stack.pop(),
    "POP_MARK": lambda machine, _: machine._pop_mark(),
    "DUP": lambda machine, _: machine._push(machine._stack[-1]),
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "TUPLE": lambda machine, _: machine._push(tuple(machine._since_mark())),
    "LIST": lambda machine, _: machine._push(machine._since_mark()),
    "DICT": lambda machine, _: machine._push(dict(_pairs(machine._since_mark()))),
    "FROZENSET": lambda machine, _: machine._push(frozenset(map(_key, machine._since_mark()))),
    "APPEND": lambda machine, _: machine._append([machine._stack.pop()]),
    "APPENDS": lambda machine, _: machine._append(machine._since_mark()),
    "ADDITEMS": lambda machine, _: machine._append(machine._since_mark()),
    "SETITEM": lambda machine, _: machine._set_items([machine._stack.pop(-2), machine._stack.pop()]),
    "SETITEMS": lambda machine, _: machine._set_items(machine._since_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, index: machine._put(index)),
    "MEMOIZE": lambda machine, _: machine._put(len(machine._memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine._push(machine._memo[index])),
    "GLOBAL": lambda machine, names: machine._global(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine._global(machine._stack.pop(-2), machine._stack.pop()),
    "REDUCE": lambda machine, _: machine._call(machine._stack.pop()),
    "NEWOBJ": lambda machine, _: machine._call(machine._stack.pop()),
    "NEWOBJ_EX": lambda machine, _: machine._call_with_names(),
    "INST": lambda machine, names: machine._instance(names),
    "OBJ": lambda machine, _: machine._instance("an object"),
    "BUILD": lambda machine, _: machine._build(machine._stack.pop()),
    "BINPERSID": lambda machine, _: machine._persistent(machine._stack.pop()),
}
