"""Reject written tensors that alias other tensors; the result would depend on the order of the writes."""

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from .._torch_internals import overlaps_itself


def check(columns: Sequence[Sequence[Tensor | None]], written: Sequence[int]) -> None:
    """Reject written tensors that overlap themselves, share memory with another tensor, or are inference tensors.

    One case of sharing is allowed: within a row, a tensor that is only read may be the same memory as the tensor that
    is written, such as ``p.grad`` being ``p``.

    Args:
        columns: the lists of ``layout.Operands``.
        written: indices of the lists that the step writes.

    Raises:
        RuntimeError: a tensor was rejected; the message names the rows.
    """
    if not torch.is_inference_mode_enabled():
        for row, tensor in chain.from_iterable(enumerate(columns[column]) for column in written):
            if tensor is not None and tensor.is_inference():
                raise RuntimeError(f"step: tensor {row} was made in inference mode and is read-only: clone() it")
    open_spans: list[tuple[int, int, bool, Tensor]] = []  # spans that end after the current one begins
    for begin, end, row, writes, tensor in sorted(_spans(columns, written), key=lambda span: span[:2]):
        if writes and _overlaps_itself(tensor):
            raise RuntimeError(f"step: elements of tensor {row} share their memory (an expanded view?): clone() it")
        open_spans = [span for span in open_spans if span[0] > begin]
        for _, other_row, other_writes, other in open_spans:
            in_place = row == other_row and not (writes and other_writes) and _same_place(tensor, other)
            if (writes or other_writes) and not in_place and _share(tensor, other):
                raise RuntimeError(
                    f"step: tensor {row} shares memory with tensor {other_row}, or with its gradient or state; "
                    "pass a tensor once, or clone() it"
                )
        open_spans.append((end, row, writes, tensor))


def _spans(
    columns: Sequence[Sequence[Tensor | None]], written: Sequence[int]
) -> Iterator[tuple[int, int, int, bool, Tensor]]:
    """Yield (first byte, end, row, whether it is written, tensor); skip subclasses, whose memory is not known."""
    for column, tensors in enumerate(columns):
        for row, tensor in enumerate(tensors):
            if tensor is not None and type(tensor) in (Tensor, nn.Parameter) and tensor.numel() and not tensor.is_meta:
                begin = tensor.data_ptr()
                yield begin, begin + _extent(tensor) * tensor.itemsize, row, column in written, tensor


def _extent(tensor: Tensor) -> int:
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _dense(tensor: Tensor) -> bool:
    return bool(torch.ops.aten.is_non_overlapping_and_dense(tensor))


def _places(tensor: Tensor) -> Tensor:
    """Return the address of every element, flattened."""
    offsets = torch.arange(_extent(tensor)).as_strided(tensor.shape, tensor.stride()).flatten()
    return tensor.data_ptr() + offsets * tensor.itemsize


def _overlaps_itself(tensor: Tensor) -> bool:
    if _dense(tensor):
        return False
    known = overlaps_itself(tensor)
    return known == 1 or (known == 2 and _places(tensor).unique().numel() < tensor.numel())


def _same_place(a: Tensor, b: Tensor) -> bool:
    return (a.data_ptr(), a.stride(), a.dtype) == (b.data_ptr(), b.stride(), b.dtype)


def _share(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors whose address spans overlap have an element in common."""
    interleaved = a.itemsize == b.itemsize and not (_dense(a) and _dense(b))
    return not interleaved or bool(torch.isin(_places(a), _places(b)).any())
