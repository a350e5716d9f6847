"""The compiled path of a step: the table of its rows, and the workspace that outlives it."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from . import _aliasing
from .extension import kernels
from .layout import WRITES, Operands, Rule, Sum


class StepBuffers(Protocol):
    """The numbers that the two phases pass to each other, see :class:`unlearn_ext.ops.TwoPhase`."""

    device: torch.device
    hyper: Tensor
    control: Tensor
    sums: Tensor
    report: Tensor


class _Kernels:
    """What the kernels of both kinds of device have in common."""

    gpu = -1
    lists: tuple[Sequence[Tensor | None], ...]
    staged: list[tuple[Tensor, Tensor]]

    def __init__(self, step: StepBuffers) -> None:
        self.step = step
        self.partials = torch.empty(0, dtype=torch.float64, device=step.device)
        self.table = kernels.Table(torch.Tensor.__dlpack_c_exchange_api__, torch.Tensor.is_neg, self.gpu)

    def begin(self, rule: Rule, operands: Operands, constraint: Tensor | None) -> str:
        """Reads the operands; why no kernel serves them, or nothing."""
        self.rule, self.constraint, self.staged = rule, constraint, []  # f1 must live until the kernels have read it
        self.lists = operands.lists()
        if reason := self.table.read(rule, self.lists, operands.groups):
            return reason
        if self.table.scattered or (self.table.changed and self.table.crossing):
            _aliasing.check(self.lists, WRITES[rule])
        if self.table.scattered:
            self._stage(self.table.scattered)
            self.table.read(rule, self.lists, operands.groups)
        self.changed = self.table.changed
        if self.changed:
            self.table.accept()
        if self.partials.numel() < self.table.turns * len(Sum):
            self.partials = torch.empty(self.table.turns * len(Sum), dtype=torch.float64, device=self.step.device)
        step = self.step
        blocks = [t.data_ptr() for t in (step.hyper, step.control, self.partials, step.sums, step.report)]
        self.job = kernels.Job(rule, self.table, len(step.hyper), blocks, constraint)
        return ""

    def _stage(self, rows: list[int]) -> None:
        """Replaces the tensors of these rows by contiguous copies; those that the step writes are copied back."""
        self.lists = lists = tuple(list(tensors) for tensors in self.lists)
        for column, tensors in enumerate(lists):
            for row in rows:
                original = tensors[row]
                if original is None or original.is_contiguous():
                    continue
                tensors[row] = copy = original.contiguous()
                if column in WRITES[self.rule]:
                    self.staged.append((original, copy))

    def _after_apply(self) -> None:
        for original, staged in self.staged:
            original.copy_(staged)
        for column in WRITES[self.rule][:-1]:  # autograd learns of the in-place writes that it could not see
            tensors, absent = self.lists[column], self.table.absent[column]
            if absent < len(tensors):
                written = [t for t in tensors if t is not None] if absent else tensors
                torch.autograd.graph.increment_version(written)  # type: ignore[arg-type]  # none is None
        self.lists, self.staged, self.constraint = (), [], None


class CpuKernels(_Kernels):
    def stats(self, solve: bool) -> None:
        kernels.stats(self.table, self.job, solve, torch.get_num_threads())

    def apply_(self) -> None:
        kernels.apply(self.table, self.job, torch.get_num_threads())
        self._after_apply()


class CudaKernels(_Kernels):
    """Two launches. The rows lie in a table on the device, which is laid out anew by launches of its own on change."""

    def __init__(self, step: StepBuffers) -> None:
        index = step.device.index
        self.gpu = torch.cuda.current_device() if index is None else index
        super().__init__(step)
        self.counter = torch.zeros(1, dtype=torch.int32, device=step.device)
        self.rows: Tensor
        self.by_graph = False  # a captured graph fills the table, and may not have run yet
        self.captured: dict[int, Tensor] = {}  # the tables of graphs, by address

    def begin(self, rule: Rule, operands: Operands, constraint: Tensor | None) -> str:
        if reason := super().begin(rule, operands, constraint):
            return reason
        stream = torch.cuda.current_stream(self.gpu).cuda_stream
        capturing = torch.cuda.is_current_stream_capturing()
        if self.changed or self.by_graph:
            size = len(self.table) * kernels.ROW_BYTES  # a new one: the old one may be a graph's
            self.rows = torch.empty(size, dtype=torch.uint8, device=self.step.device)
            kernels.cuda_upload(self.table, self.rows.data_ptr(), self.gpu, stream)
            self.by_graph = capturing
        if capturing:
            self.captured[self.rows.data_ptr()] = self.rows
        self.where = self.rows.data_ptr(), self.counter.data_ptr(), self.gpu, stream
        return ""

    def stats(self, solve: bool) -> None:
        kernels.cuda_stats(self.job, solve, *self.where)

    def apply_(self) -> None:
        kernels.cuda_apply(self.job, *self.where)
        self._after_apply()
