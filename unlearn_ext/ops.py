"""Lists of tensors to kernels: the two phases of a step, on the compiled module or on the reference.

The optimizers use :class:`TwoPhase`. The functions at the end are the functional layer, one call each, registered with
``torch.library`` as ``torch.ops.unlearn_ext.*``.
"""

from collections.abc import Sequence
from math import inf, nan

import numpy as np
import torch
from torch import Tensor

from . import reference
from .binary import kernels, why_not
from .layout import Control, Hyper, Kind, Report, Rule, Sum
from .reference import Operands

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class TwoPhase:
    """One step in two phases, and the small device tensors that carry the numbers between them.

    **stats** reads the gradients and writes the sums, ψ, λ and the flags; **apply_** reads λ and steps in place. A
    collective over ``sums``, or a ψ computed by the caller, fits between ``stats(solve=False)`` and ``solve()``.

    Args:
        device: of every operand.
        groups: number of parameter groups.
        fused: ``None``: the kernels where they serve, else the reference; ``True``: the kernels or ``RuntimeError``
            with the reason; ``False``: the reference.
    """

    def __init__(self, device: torch.device, groups: int = 1, fused: bool | None = None) -> None:
        self.device, self.fused = device, fused
        dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.hyper = torch.zeros(groups, len(Hyper), dtype=dtype, device=device)
        self.sums = torch.zeros(groups, len(Sum), dtype=dtype, device=device)
        self.control = torch.zeros(len(Control), dtype=dtype, device=device)
        self.report = torch.zeros(len(Report), dtype=dtype, device=device)
        self._kernels = _Kernels(self) if self._serves() else None

    def _serves(self) -> bool:
        if self.fused is False:
            return False
        reason = why_not(self.device)
        if self.fused and reason:
            raise RuntimeError(f"fused=True, but {reason}.")
        return not reason

    def begin(self, rule: Rule, operands: Operands) -> None:
        """Checks the operands and fixes the path for this step.

        Raises:
            ValueError: a gradient's or state's shape is not its parameter's.
            RuntimeError: operands on several devices; or ``fused=True`` and no kernel for a dtype.
        """
        self.rule, self.operands = rule, operands
        self._fused_now = self._kernels is not None and _check(rule, operands, self.device, self.fused)
        if self._fused_now:
            self._kernels.begin(rule, operands)

    def stats(self, solve: bool = True) -> None:
        if self._fused_now:
            self._kernels.stats(solve)
            return
        reference.stats(self.rule, self.operands, self.hyper, self.sums)
        if solve:
            self.solve()

    def solve(self) -> None:
        reference.solve(self.sums, self.hyper, self.control, self.report)

    def apply_(self) -> None:
        if self._fused_now:
            self._kernels.apply_()
        else:
            reference.apply_(self.rule, self.operands, self.hyper, self.report)


class _Kernels:
    """The compiled path: the table of rows, and the workspace that outlives a step."""

    def __init__(self, step: TwoPhase) -> None:
        self.step = step
        self.cuda = step.device.type == "cuda"
        self.partials = torch.empty(0, dtype=torch.float64, device=step.device)
        self.counter = torch.zeros(1, dtype=torch.int32, device=step.device)
        self.table = np.empty((0, 9), np.int64)
        self.device_table: Tensor | None = None

    def begin(self, rule: Rule, operands: Operands) -> None:
        self.staged: list[tuple[Tensor, Tensor]] = []
        table = self._rows(rule, operands)
        chunks = -(-table[:, 6] // kernels.CHUNK)
        ends = np.cumsum(chunks)
        table[:, 7] = ends - chunks
        total = int(ends[-1]) if len(ends) else 0
        if self.partials.numel() < total * len(Sum):
            self.partials = torch.empty(total * len(Sum), dtype=torch.float64, device=self.step.device)
        self._job = (int(rule), self._address_of(table), len(table), total)

    def _rows(self, rule: Rule, operands: Operands) -> np.ndarray:
        table = np.zeros((len(operands), 9), np.int64)
        tags = np.asarray(operands.groups, np.int64) << 32
        lists = (operands.params, operands.grads, operands.constraint_grads, operands.firsts, operands.seconds)
        flat = self._flat(rule, lists)
        for column, tensors in enumerate(flat):
            table[:, column] = [0 if t is None else t.data_ptr() for t in tensors]
            tags += np.array([0 if t is None else _DTYPES[t.dtype] for t in tensors], np.int64) << (4 * column)
        table[:, 5] = [0 if t is None else t.data_ptr() for t in operands.steps]
        table[:, 6] = [t.numel() for t in (flat[1] if rule is Rule.PROJECT else flat[0])]
        table[:, 8] = tags
        self._alive = flat  # a staged copy must live until the step is over
        return table

    def _flat(self, rule: Rule, lists: tuple[Sequence[Tensor | None], ...]) -> list[list[Tensor | None]]:
        """The operands as runs of memory in one order of elements; where a row's strides differ, contiguous copies."""
        flat = [list(tensors) for tensors in lists]
        writes = (1,) if rule is Rule.PROJECT else (0, 3, 4)
        for row in range(len(flat[1])):
            present = [tensors[row] for tensors in flat if tensors[row] is not None]
            if all(t.is_contiguous() for t in present) or _same_dense(present):
                continue
            for column, tensors in enumerate(flat):
                original = tensors[row]
                if original is None:
                    continue
                tensors[row] = original.contiguous()
                if column in writes and tensors[row] is not original:
                    self.staged.append((original, tensors[row]))
        return flat

    def _address_of(self, table: np.ndarray) -> int:
        """Where the kernels read the table: here, or on the device, refreshed only when a row changed."""
        if not self.cuda:
            self.table = table
            return table.ctypes.data
        if self.device_table is None or not np.array_equal(table, self.table):
            self.table = table
            if self.device_table is None or len(self.device_table) != len(table):
                self.device_table = torch.empty(table.shape, dtype=torch.int64, device=self.step.device)
            self.device_table.copy_(torch.from_numpy(table), non_blocking=True)
        return self.device_table.data_ptr()

    def _bound(self, solve: bool):
        rule, rows, n_rows, n_chunks = self._job
        step = self.step
        pointers = (t.data_ptr() for t in (step.hyper, step.control, self.partials, step.sums, step.report))
        return kernels.Job(rule, rows, n_rows, n_chunks, len(step.hyper), *pointers, solve)

    def _where(self) -> tuple[int, int]:
        index = self.step.device.index
        device = torch.cuda.current_device() if index is None else index
        return device, torch.cuda.current_stream(device).cuda_stream

    def stats(self, solve: bool) -> None:
        if self.cuda:
            kernels.cuda_stats(self._bound(solve), self.counter.data_ptr(), *self._where())
        else:
            kernels.stats(self._bound(solve), torch.get_num_threads())

    def apply_(self) -> None:
        if self.cuda:
            kernels.cuda_apply(self._bound(False), self.counter.data_ptr(), *self._where())
        else:
            kernels.apply(self._bound(False), torch.get_num_threads())
        for original, staged in self.staged:
            original.copy_(staged)
        self.staged = []
        self._bump_versions()

    def _bump_versions(self) -> None:
        """Autograd learns of the in-place writes it could not see."""
        written = (1,) if self.step.rule is Rule.PROJECT else (0, 3, 4)
        for column in written:
            tensors = [t for t in self._alive[column] if t is not None]
            if tensors:
                torch.autograd.graph.increment_version(tensors)


def _same_dense(tensors: list[Tensor]) -> bool:
    first = tensors[0].stride()
    return all(t.stride() == first for t in tensors) and torch.ops.aten.is_non_overlapping_and_dense(tensors[0])


def _check(rule: Rule, operands: Operands, device: torch.device, fused: bool | None) -> bool:
    """Whether the kernels take these operands; raises where nothing can, or where ``fused=True`` promised so."""
    like = operands.grads if rule is Rule.PROJECT else operands.params
    lists = (operands.grads, operands.constraint_grads, operands.firsts, operands.seconds)
    reason = ""
    for row, owner in enumerate(like):
        if owner.device.type != device.type or owner.is_sparse:
            raise RuntimeError(
                f"step: tensor {row} is {owner.layout} on {owner.device}; every tensor must be dense on {device}"
            )
        if owner.dtype not in _DTYPES:
            reason = f"there is no kernel for {owner.dtype} parameters"
        for tensors in lists:
            tensor = tensors[row]
            if tensor is None:
                continue
            if tensor.shape != owner.shape:
                raise ValueError(
                    f"step: tensor {row} has shape {tuple(owner.shape)} but a gradient or state of shape "
                    f"{tuple(tensor.shape)}; zero the gradients and run both backward passes again"
                )
            if tensor.device.type != device.type or tensor.is_sparse:
                raise RuntimeError(
                    f"step: a gradient or state of tensor {row} is {tensor.layout} on {tensor.device}; "
                    f"it must be dense on {device}"
                )
            if tensor.dtype not in _DTYPES:
                reason = f"there is no kernel for {tensor.dtype} gradients or states"
    if fused and reason:
        raise RuntimeError(f"fused=True, but {reason}.")
    return not reason


def control_block(
    coefficients: Sequence[float], max_norm: float | None = None, lambda_max: float | None = None
) -> list[float]:
    """The ten entries of ``control`` (``layout.Control``) from a control function's ``coefficients()``."""
    return [
        *map(float, coefficients),
        inf if max_norm is None else max_norm,
        inf if lambda_max is None else lambda_max,
        0.0,
    ]


#: The coefficients of a step that holds no constraint: λ = 0.
UNCONSTRAINED = (Kind.UNCONSTRAINED, 0.0, nan, 0.0, 1.0, 0.0, inf)
#: The coefficients of a step whose ψ the caller writes to ``control[Control.GIVEN_PSI]``.
GIVEN_PSI = (Kind.GIVEN, 0.0, nan, 0.0, 1.0, 0.0, inf)


def _projection(directions: Sequence[Tensor], constraint_grads: Sequence[Tensor]) -> TwoPhase:
    step = TwoPhase(directions[0].device)
    none = [None] * len(directions)
    step.hyper[:, Hyper.LR] = 1.0
    step.control.copy_(torch.tensor(control_block(GIVEN_PSI)))
    step.begin(Rule.PROJECT, Operands(none, directions, constraint_grads, none, none, none, [0] * len(directions)))
    return step


@torch.library.custom_op("unlearn_ext::halfspace_stats", mutates_args=())
def halfspace_stats(directions: Sequence[Tensor], constraint_grads: Sequence[Tensor]) -> Tensor:
    """⟨g1, d⟩, ‖g1‖² and ‖d‖² over all tensors: float64 ``[3]`` on their device.

    Args:
        directions: d, at least one tensor.
        constraint_grads: g1, of the same shapes.
    """
    step = _projection(directions, constraint_grads)
    step.stats(solve=False)
    return step.sums[0, : Sum.RAW_CONSTRAINT].clone()


@halfspace_stats.register_fake
def _(directions, constraint_grads):
    return directions[0].new_empty(3, dtype=torch.float64)


@torch.library.custom_op("unlearn_ext::halfspace_project_", mutates_args=("directions",))
def halfspace_project_(directions: Sequence[Tensor], constraint_grads: Sequence[Tensor], psi: Tensor) -> Tensor:
    """d ← argmin ‖g − d‖² s.t. ⟨g1, g⟩ ≥ ψ, in place over all tensors at once (slides, eq. 6 with any ψ).

    Args:
        directions: d, at least one tensor; overwritten with g. Untouched if any value is not finite.
        constraint_grads: g1, of the same shapes.
        psi: ψ, 0-d.

    Returns:
        float64 ``[2]``: λ, and 1 where nothing was written because a value was not finite.
    """
    step = _projection(directions, constraint_grads)
    step.control[Control.GIVEN_PSI] = psi
    step.stats()
    step.apply_()
    return step.report[[Report.LAMBDA, Report.SKIPPED]]


@halfspace_project_.register_fake
def _(directions, constraint_grads, psi):
    return directions[0].new_empty(2, dtype=torch.float64)


@torch.library.custom_op("unlearn_ext::sgd_step_", mutates_args=("params", "momentum_buffers", "steps", "report"))
def sgd_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    constraint_grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    steps: Sequence[Tensor],
    groups: Sequence[int],
    hyper: Tensor,
    control: Tensor,
    report: Tensor,
) -> None:
    """One step of :class:`~unlearn_ext.EpsilonSGD`, both phases, in place.

    Args:
        params, grads, constraint_grads: θ, g2, g1: a tensor each, of the same shapes.
        momentum_buffers, steps: of the same length, or both empty for no momentum.
        groups: index of the row of ``hyper`` for each tensor, ascending.
        hyper: float64 ``[groups, 7]``, columns as in ``layout.Hyper``.
        control: float64 ``[10]``, see :func:`control_block`.
        report: float64 ``[10]``; f1 goes in at ``layout.Report.CONSTRAINT``, the rest comes out.
    """
    none = [None] * len(params)
    operands = Operands(params, grads, constraint_grads, momentum_buffers or none, none, steps or none, groups)
    _step(Rule.SGD, operands, hyper, control, report)


@torch.library.custom_op(
    "unlearn_ext::adamw_step_", mutates_args=("params", "exp_avgs", "exp_avg_sqs", "steps", "report")
)
def adamw_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    constraint_grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    groups: Sequence[int],
    hyper: Tensor,
    control: Tensor,
    report: Tensor,
) -> None:
    """One step of :class:`~unlearn_ext.EpsilonAdamW`, both phases, in place; arguments as :func:`sgd_step_`."""
    operands = Operands(params, grads, constraint_grads, exp_avgs, exp_avg_sqs, steps, groups)
    _step(Rule.ADAMW, operands, hyper, control, report)


@sgd_step_.register_fake
@adamw_step_.register_fake
def _(*args):
    return None


def _step(rule: Rule, operands: Operands, hyper: Tensor, control: Tensor, report: Tensor) -> None:
    step = TwoPhase(report.device, len(hyper))
    step.hyper, step.control, step.report = hyper, control, report
    step.begin(rule, operands)
    step.stats()
    step.apply_()
