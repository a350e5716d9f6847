"""The step on the compiled kernels: the table of its rows, and the workspace that later steps reuse."""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from . import _aliasing
from .extension import kernels
from .layout import Operands, Rule, written

Values: TypeAlias = list[Tensor | None]


class StepBuffers(Protocol):
    """The tensors that the two phases use to exchange values, see :class:`unlearn_ext.ops.TwoPhase`."""

    device: torch.device
    hyper: Tensor
    control: Tensor
    sums: Tensor
    report: Tensor


class _Kernels:
    """The part that the CPU and CUDA kernels share."""

    gpu = -1
    lists: tuple[Sequence[Tensor | None], ...]
    written: tuple[int, ...]
    values: Values
    staged: list[tuple[Tensor, Tensor]]

    def __init__(self, step: StepBuffers) -> None:
        self.step = step
        self.partials = torch.empty(0, dtype=torch.float64, device=step.device)
        self.table = kernels.Table(torch.Tensor.__dlpack_c_exchange_api__, torch.Tensor.is_neg, self.gpu)

    def begin(self, rule: Rule, operands: Operands, values: Values, rows: Sequence[int]) -> str:
        """Read the operands; return why no kernel supports them, or an empty string."""
        self.values, self.staged = values, []  # keep the values of c alive until the kernels have read them
        self.lists, self.written = operands.lists(), written(rule, operands.constraints)
        if reason := self.table.read(rule, self.lists, operands.groups):
            return reason
        if self.table.scattered or (self.table.changed and self.table.has_aliasing):
            _aliasing.check(self.lists, self.written)
        if self.table.scattered:
            self._stage(self.table.scattered)
            if reason := self.table.read(rule, self.lists, operands.groups):
                return reason
        self.changed = self.table.changed
        if self.changed:
            self.table.accept()
        step = self.step
        size = self.table.tiles * step.sums.shape[1]
        if self.partials.numel() < size:
            self.partials = torch.empty(size, dtype=torch.float64, device=step.device)
        buffers = [t.data_ptr() for t in (step.hyper, step.control, self.partials, step.sums, step.report)]
        self.job = kernels.Job(rule, self.table, len(step.hyper), buffers, len(step.control) - 1, rows, values)
        return ""

    def _stage(self, rows: list[int]) -> None:
        """Replace the tensors of these rows by contiguous copies; those that the step writes are copied back later."""
        self.lists = lists = tuple(list(tensors) for tensors in self.lists)
        for column, tensors in enumerate(lists):
            for row in rows:
                original = tensors[row]
                if original is None or original.is_contiguous():
                    continue
                tensors[row] = copy = original.contiguous()
                if column in self.written:
                    self.staged.append((original, copy))

    def _after_apply(self) -> None:
        for original, staged in self.staged:
            original.copy_(staged)
        absent_of = self.table.absent
        for column in self.written[:-1]:  # autograd did not see these in-place writes
            tensors, absent = self.lists[column], absent_of[column]
            if absent < len(tensors):
                present = [t for t in tensors if t is not None] if absent else tensors
                torch.autograd.graph.increment_version(present)  # type: ignore[arg-type]  # none is None
        self.lists, self.staged, self.values = (), [], []


class CpuKernels(_Kernels):
    """The CPU kernels, on torch's number of threads."""

    def stats(self, solve: bool) -> None:
        """Compute the sums, and with ``solve`` ψ, λ and the flags."""
        kernels.stats(self.table, self.job, solve, torch.get_num_threads())

    def solve(self) -> None:
        """Compute ψ, λ and the flags from the sums and the report."""
        kernels.solve(self.job)

    def apply_(self) -> None:
        """Step in place with the λ of ``report``."""
        kernels.apply(self.table, self.job, torch.get_num_threads())
        self._after_apply()


class CudaKernels(_Kernels):
    """The CUDA kernels: two launches per step.

    The table of rows is in device memory. If the rows changed, extra launches upload a new table.
    """

    def __init__(self, step: StepBuffers) -> None:
        index = step.device.index
        self.gpu = torch.cuda.current_device() if index is None else index
        super().__init__(step)
        self.counter = torch.zeros(1, dtype=torch.int32, device=step.device)
        self.rows = torch.empty(0, dtype=torch.uint8, device=step.device)
        self.by_graph = False  # a CUDA graph that is being captured fills the table, and may not have run yet
        self.captured: dict[int, Tensor] = {}  # tables used by CUDA graphs, by address; kept alive for replays

    def begin(self, rule: Rule, operands: Operands, values: Values, rows: Sequence[int]) -> str:
        """Read the operands and upload the table if it changed; return why no kernel supports them, or nothing."""
        if reason := super().begin(rule, operands, values, rows):
            return reason
        stream = torch.cuda.current_stream(self.gpu).cuda_stream
        capturing = torch.cuda.is_current_stream_capturing()
        if self.changed or self.by_graph:
            # Always a new table: a CUDA graph may use the old one.
            self.rows = torch.empty(self.table.bytes, dtype=torch.uint8, device=self.step.device)
            kernels.cuda_upload(self.table, self.rows.data_ptr(), self.gpu, stream)
            self.by_graph = capturing
        if capturing:
            self.captured[self.rows.data_ptr()] = self.rows
        self.where = self.rows.data_ptr(), self.counter.data_ptr(), self.gpu, stream
        return ""

    def stats(self, solve: bool) -> None:
        """Compute the sums, and with ``solve`` ψ, λ and the flags."""
        kernels.cuda_stats(self.job, solve, *self.where)

    def solve(self) -> None:
        """Compute ψ, λ and the flags from the sums and the report."""
        kernels.cuda_solve(self.job, *self.where[2:])

    def apply_(self) -> None:
        """Step in place with the λ of ``report``."""
        kernels.cuda_apply(self.job, *self.where)
        self._after_apply()
