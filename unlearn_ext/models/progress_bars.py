"""Hide what model libraries show while they load and save weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ..errors import require

__all__ = ["quiet", "without_bars"]


@contextmanager
def without_bars(*libraries: str) -> Iterator[None]:
    """Hide the progress bars of ``"transformers"`` and ``"diffusers"``, as far as they are named."""
    with ExitStack() as shown_again:
        for library in libraries:
            logging = require(f"{library}.utils.logging", "images")
            if logging.is_progress_bar_enabled():
                logging.disable_progress_bar()
                shown_again.callback(logging.enable_progress_bar)
        yield


@contextmanager
def quiet(*libraries: str) -> Iterator[None]:
    """Hide the progress bars of libraries, and their messages that are not errors."""
    with without_bars(*libraries), ExitStack() as as_before:
        for library in libraries:
            logging = require(f"{library}.utils.logging", "images")
            as_before.callback(logging.set_verbosity, logging.get_verbosity())
            logging.set_verbosity_error()
        yield
