"""Standard output and standard error that never raise, so that a run continues when its output cannot be written."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["SafeStream", "make_safe"]

_SPELLED = {
    "ε": "eps", "λ": "lam", "ψ": "psi", "δ": "delta", "∇": "grad ", "²": "^2", "·": "*", "‖": "||", "×": "x",
    "±": "+/-", "≤": "<=", "→": "->", "–": "-", "…": "...", "•": "*", "“": '"', "”": '"', "’": "'",
}  # fmt: skip


def make_safe() -> None:
    r"""Replace ``sys.stdout`` and ``sys.stderr`` by streams that never raise.

    Characters that the encoding lacks are spelled out: Greek letters by name, everything else by escapes such as
    ``\udce9``, which stands for a byte of a file name that is not text. When a stream can no longer be written to,
    because its reader is gone or the disk is full, the rest of the output goes to the null device.
    """
    _open_closed()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "buffer"):  # a notebook's stream has no buffer and can write every character
            setattr(sys, name, SafeStream(stream))


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Spell out characters that an encoding lacks; an error handler for :func:`codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_SPELLED.get(c) or c.encode("ascii", "backslashreplace").decode() for c in missing), error.end


codecs.register_error(_spell.__name__, _spell)


def _open_closed() -> None:
    """Open the null device in place of standard streams that were closed.

    The operating system assigns the lowest free file descriptor, so each stream gets its old one back. Otherwise the
    next opened file would get it, and anything that a library prints would be written into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


class SafeStream(io.TextIOWrapper):
    """A stream that replaces another one and never raises; see :func:`make_safe`.

    Args:
        stream: the stream to replace; both share its underlying buffer.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(
            stream.buffer, stream.encoding, _spell.__name__, line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )  # fmt: skip
        self._replaced = stream  # without a reference, it would be collected and close the shared buffer

    def write(self, text: str) -> int:
        """Write text without raising ``OSError``; return its length."""
        with self._without_errors():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the buffer without raising ``OSError``."""
        with self._without_errors():
            super().flush()

    @contextmanager
    def _without_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with open(os.devnull, "wb") as null:
                os.dup2(null.fileno(), self.fileno())
            if error.errno != errno.EPIPE and self is sys.stdout:  # with EPIPE, the reader is gone: no warning
                print(f"The output can no longer be written: {error.strerror}. The command continues.", file=sys.stderr)
