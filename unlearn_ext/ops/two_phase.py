"""The two phases of a step, on the kernels or on the reference."""

import torch
from torch import Tensor

from . import _reference
from ._kernels import CpuKernels, CudaKernels
from .extension import why_not
from .layout import Control, Hyper, Operands, Report, Rule, Sum

__all__ = ["TwoPhase", "check_devices"]


class TwoPhase:
    """One step in two phases, and the small device tensors that carry the numbers between them.

    **stats** reads the gradients and writes the sums, ψ, λ and the flags; **apply_** reads λ and steps in place. A
    collective over ``sums``, or a ψ computed by the caller, fits between ``stats(solve=False)`` and ``solve()``.

    Args:
        device: of every operand.
        groups: number of parameter groups.
        fused: ``None``: the kernels where they serve, else the reference; ``True``: the kernels or ``RuntimeError``
            with the reason; ``False``: the _reference.
    """

    def __init__(self, device: torch.device, groups: int = 1, fused: bool | None = None) -> None:
        self.device, self.fused = device, fused
        dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.hyper = torch.zeros(groups, len(Hyper), dtype=dtype, device=device)
        self.sums = torch.zeros(groups, len(Sum), dtype=dtype, device=device)
        self.control = torch.zeros(len(Control), dtype=dtype, device=device)
        self.report = torch.zeros(len(Report), dtype=dtype, device=device)
        reason = "the reference was asked for" if fused is False else why_not(device)
        if fused and reason:
            raise RuntimeError(f"fused=True, but {reason}.")
        self._kernels = None if reason else (CudaKernels if device.type == "cuda" else CpuKernels)(self)

    def on(self, hyper: Tensor, control: Tensor, report: Tensor) -> "TwoPhase":
        """Itself, with the caller's numbers in the place of its own.

        Raises:
            ValueError: of another shape, dtype or device, or not contiguous.
        """
        self.hyper = _checked("hyper", hyper, self.hyper)
        self.control = _checked("control", control, self.control)
        self.report = _checked("report", report, self.report)
        return self

    def begin(self, rule: Rule, operands: Operands, constraint: Tensor | None = None) -> None:
        """Checks the operands and fixes the path for this step.

        Args:
            constraint: f1, one element; ``None``: ``report[Report.CONSTRAINT]`` holds it.

        Raises:
            ValueError: a gradient's or state's shape is not its parameter's.
            RuntimeError: operands on several devices; or ``fused=True`` and no kernel for a dtype.
        """
        self.rule, self.operands, self._constraint = rule, operands, constraint
        reason = self._kernels.begin(rule, operands, constraint) if self._kernels else "no kernels"
        if self.fused and reason:
            raise RuntimeError(f"fused=True, but {reason}.")
        self._serving = None if reason else self._kernels
        if reason:
            _reference.check(rule, operands)

    def stats(self, solve: bool = True) -> None:
        """Writes ``sums``, and with ``solve`` ψ, λ and the flags; changes no operand."""
        if self._serving is not None:
            self._serving.stats(solve)
            return
        if self._constraint is not None:
            self.report[Report.CONSTRAINT].copy_(self._constraint)
        _reference.stats(self.rule, self.operands, self.hyper, self.sums)
        if solve:
            self.solve()

    def solve(self) -> None:
        """ψ, λ and the flags from ``sums``, ``control`` and f1; to ``report``."""
        _reference.solve(self.sums, self.hyper, self.control, self.report)

    def apply_(self) -> None:
        """Steps in place with the λ of ``report``; writes nothing where its flag says so. Lets go of the operands."""
        if self._serving is not None:
            self._serving.apply_()
        else:
            _reference.apply_(self.rule, self.operands, self.hyper, self.report)
        self.operands = self._constraint = None  # type: ignore[assignment]  # or two gradients would live until the next step


def _checked(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    """A block of numbers whose address crosses the border, if it is what the kernels take it for."""
    if (tensor.shape, tensor.dtype, tensor.device) != (
        like.shape,
        like.dtype,
        like.device,
    ) or not tensor.is_contiguous():
        raise ValueError(
            f"step: {name} must be a contiguous {like.dtype} tensor of shape {tuple(like.shape)} on {like.device}, "
            f"not {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
        )
    return tensor


def check_devices(*tensors: Tensor | None) -> None:
    """Of a fake step: with one meta tensor among real ones, torch runs that and leaves all as they were."""
    devices = {tensor.device for tensor in tensors if tensor is not None}
    if len(devices) > 1:
        raise RuntimeError(f"step: tensors are on {' and '.join(sorted(map(str, devices)))}; move them to one device")
