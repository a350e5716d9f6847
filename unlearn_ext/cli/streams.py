"""Standard output and standard error that cannot end a command: a run goes on although nobody can read its output."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

__all__ = ["SafeStream", "make_safe"]

_SPELLED = {
    "ε": "eps", "λ": "lam", "ψ": "psi", "δ": "delta", "∇": "grad ", "²": "^2", "·": "*", "‖": "||", "×": "x",
    "±": "+/-", "≤": "<=", "→": "->", "–": "-", "…": "...", "•": "*", "“": '"', "”": '"', "’": "'",
}  # fmt: skip


def make_safe() -> None:
    """Replace ``sys.stdout`` and ``sys.stderr`` by streams that never raise.

    What their encoding lacks is spelled out: Greek letters by their names, all else, such as parts of a file name that
    are not text, by escapes such as ``\\udce9``. Once a stream cannot be written to, because its reader has left or its
    disk is full, the rest goes to the null device.
    """
    _open_closed()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "buffer"):  # a notebook's has none, and no encoding that lacks anything
            setattr(sys, name, SafeStream(stream))


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Spell out characters that an encoding lacks; a handler for :func:`codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_SPELLED.get(c) or c.encode("ascii", "backslashreplace").decode() for c in missing), error.end


codecs.register_error(_spell.__name__, _spell)


def _open_closed() -> None:
    """Open the null device in place of standard streams that were closed.

    The system gives the lowest free number, so each gets its own again. Else the first file that is opened would get
    it, and whatever a library prints would be written there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


class SafeStream(io.TextIOWrapper):
    """A stream in the place of another that never raises; :func:`make_safe` says what it does instead.

    Args:
        stream: the other one, which shares its bytes.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(
            stream.buffer, stream.encoding, _spell.__name__, line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )  # fmt: skip
        self._replaced = stream  # it would close the bytes when nothing refers to it

    def write(self, text: str) -> int:
        with self._without_errors():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._without_errors():
            super().flush()

    @contextmanager
    def _without_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with open(os.devnull, "wb") as null:
                os.dup2(null.fileno(), self.fileno())
            if error.errno != errno.EPIPE and self is sys.stdout:  # a reader that has left wants nothing more
                print(f"The output cannot be written any more: {error.strerror}. The command goes on.", file=sys.stderr)
