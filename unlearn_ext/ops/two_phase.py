"""The two phases of a step, on the kernels or on the reference implementation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _reference
from ._kernels import CpuKernels, CudaKernels
from .extension import why_not
from .layout import Control, Hyper, Operands, Report, Rule, Sums, slots_for

__all__ = ["TwoPhase"]


class TwoPhase:
    """One step in two phases, with the small device tensors that carry values between them.

    **stats** reads the gradients and writes the sums, ψ, λ and the flags; **apply_** reads λ and steps in place. To
    reduce ``sums`` over processes, or to compute ψ in the caller, do so between ``stats(solve=False)`` and ``solve()``.

    Args:
        device: device of every operand.
        groups: number of parameter groups.
        constraints: number of constraints that the optimizer has; a step may use some of them.
        fused: ``None``: the kernels if they support the operands, else the reference; ``True``: the kernels, or
            ``RuntimeError`` with the reason; ``False``: the reference.

    Attributes:
        hyper: float64 ``[groups, 8]``, columns as in ``layout.Hyper``.
        control: float64 ``[1 + constraints, 11]``: a row of ``layout.StepControl``, then rows of ``layout.Control``.
        report: float64 ``[1 + constraints, 27]``: a row of ``layout.StepReport``, then rows of ``layout.Report``.
        sums: float64 ``[groups, columns]``, see ``layout.Sums``; its size depends on the step's constraints.
    """

    def __init__(self, device: torch.device, groups: int = 1, constraints: int = 1, fused: bool | None = None) -> None:
        self.device, self.fused = device, fused
        dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.hyper = torch.zeros(groups, len(Hyper), dtype=dtype, device=device)
        self.sums = torch.zeros(groups, Sums(1).count, dtype=dtype, device=device)
        self.control = torch.zeros(1 + constraints, len(Control), dtype=dtype, device=device)
        self.report = torch.zeros(1 + constraints, len(Report), dtype=dtype, device=device)
        reason = "the reference was asked for" if fused is False else why_not(device)
        if fused and reason:
            raise RuntimeError(f"fused=True, but {reason}.")
        self._kernels = None if reason else (CudaKernels if device.type == "cuda" else CpuKernels)(self)

    def on(self, hyper: Tensor, control: Tensor, report: Tensor) -> "TwoPhase":
        """Use caller-owned buffers; return self.

        Raises:
            ValueError: a tensor has the wrong shape, dtype or device, or is not contiguous.
        """
        self.hyper = _checked("hyper", hyper, self.hyper)
        self.control = _checked("control", control, self.control)
        self.report = _checked("report", report, self.report)
        return self

    def begin(
        self,
        rule: Rule,
        operands: Operands,
        values: Sequence[Tensor | None] = (),
        rows: Sequence[int] | None = None,
    ) -> None:
        """Check the operands and choose kernels or reference for this step.

        Args:
            rule: the kind of step.
            operands: the tensors of this step.
            values: c of each constraint, one element each; ``None`` for one that ``report`` already has.
            rows: index of each constraint among the optimizer's; by default they are the first ones.

        Raises:
            ValueError: a gradient's or state's shape is not its parameter's.
            RuntimeError: operands on several devices; or ``fused=True`` and no kernel for a dtype.
        """
        self.rule, self.operands = rule, operands
        self._rows = list(range(operands.constraints) if rows is None else rows)
        self._values = list(values) or [None] * operands.constraints
        columns = Sums(slots_for(operands.constraints)).count
        if self.sums.shape[1] != columns:
            self.sums = self.sums.new_zeros(len(self.hyper), columns)
        reason = self._kernels.begin(rule, operands, self._values, self._rows) if self._kernels else "no kernels"
        if self.fused and reason:
            raise RuntimeError(f"fused=True, but {reason}.")
        self._serving = None if reason else self._kernels
        if reason:
            _reference.check(rule, operands)

    def stats(self, solve: bool = True) -> None:
        """Write ``sums``, and with ``solve`` ψ, λ and the flags; change no operand."""
        if self._serving is not None:
            self._serving.stats(solve)
            return
        for row, value in zip(self._rows, self._values, strict=True):
            if value is not None:
                self.report[1 + row, Report.CONSTRAINT].copy_(value)
        self._reference().stats()
        if solve:
            self.solve()

    def solve(self) -> None:
        """Compute ψ, λ and the flags from ``sums``, ``control`` and c, and write them to ``report``."""
        if self._serving is not None:
            self._serving.solve()
        else:
            self._reference().solve()

    def apply_(self) -> None:
        """Step in place with the λ of ``report``, or write nothing if its skip flag is set; then drop the operands."""
        if self._serving is not None:
            self._serving.apply_()
        else:
            self._reference().apply_()
        self._values = []
        self.operands = None  # type: ignore[assignment]  # frees the gradients

    def _reference(self) -> _reference.Step:
        return _reference.Step(self.rule, self.operands, self._rows, self.hyper, self.control, self.sums, self.report)


def _checked(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    """Return a buffer after checking its layout, since the kernels get only its address; else raise ``ValueError``."""
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
