"""Lists of tensors to kernels: the two phases of a step, on the compiled module or on the reference.

The optimizers use :class:`TwoPhase`. The functions at the end are the functional layer, one call each, registered as
``torch.ops.unlearn_ext.*``; none has a derivative.
"""

from collections.abc import Sequence
from math import inf, nan

import torch
from torch import Tensor

from . import memory, reference
from .binary import kernels, why_not
from .layout import Control, Hyper, Kind, Report, Rule, Sum
from .reference import WRITES, Operands
from .registration import operator


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
        reason = "the reference was asked for" if fused is False else why_not(device)
        if fused and reason:
            raise RuntimeError(f"fused=True, but {reason}.")
        self._kernels = None if reason else (_Cuda if device.type == "cuda" else _Cpu)(self)

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
        self._fused_now = not reason
        if reason:
            reference.check(rule, operands)

    def stats(self, solve: bool = True) -> None:
        """Writes ``sums``, and with ``solve`` ψ, λ and the flags; changes no operand."""
        if self._fused_now:
            self._kernels.stats(solve)
            return
        if self._constraint is not None:
            self.report[Report.CONSTRAINT].copy_(self._constraint)
        reference.stats(self.rule, self.operands, self.hyper, self.sums)
        if solve:
            self.solve()

    def solve(self) -> None:
        """ψ, λ and the flags from ``sums``, ``control`` and f1; to ``report``."""
        reference.solve(self.sums, self.hyper, self.control, self.report)

    def apply_(self) -> None:
        """Steps in place with the λ of ``report``; writes nothing where its flag says so. Lets go of the operands."""
        if self._fused_now:
            self._kernels.apply_()
        else:
            reference.apply_(self.rule, self.operands, self.hyper, self.report)
        self.operands = self._constraint = None  # or two gradients would live until the next step


class _Kernels:
    """The compiled path: the table of rows, and the workspace that outlives a step."""

    gpu = -1

    def __init__(self, step: TwoPhase) -> None:
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
            memory.check(self.lists, WRITES[rule])
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
        self.lists = tuple(list(tensors) for tensors in self.lists)
        for column, tensors in enumerate(self.lists):
            for row in rows:
                original = tensors[row]
                if original is None or original.is_contiguous():
                    continue
                tensors[row] = original.contiguous()
                if column in WRITES[self.rule]:
                    self.staged.append((original, tensors[row]))

    def _after_apply(self) -> None:
        for original, staged in self.staged:
            original.copy_(staged)
        for column in WRITES[self.rule][:-1]:  # autograd learns of the in-place writes that it could not see
            tensors, absent = self.lists[column], self.table.absent[column]
            if absent < len(tensors):
                written = [t for t in tensors if t is not None] if absent else tensors
                torch.autograd.graph.increment_version(written)
        self.lists, self.staged, self.constraint = (), [], None


class _Cpu(_Kernels):
    def stats(self, solve: bool) -> None:
        kernels.stats(self.table, self.job, solve, torch.get_num_threads())

    def apply_(self) -> None:
        kernels.apply(self.table, self.job, torch.get_num_threads())
        self._after_apply()


class _Cuda(_Kernels):
    """Two launches. The rows lie in a table on the device, which is laid out anew by launches of its own on change."""

    def __init__(self, step: TwoPhase) -> None:
        index = step.device.index
        self.gpu = torch.cuda.current_device() if index is None else index
        super().__init__(step)
        self.counter = torch.zeros(1, dtype=torch.int32, device=step.device)
        self.rows: Tensor | None = None
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


def control_block(
    coefficients: Sequence[float | Tensor], max_norm: float | None = None, lambda_max: float | None = None
) -> list[float | Tensor]:
    """The ten entries of ``control`` (``layout.Control``) from a control function's ``coefficients()``."""
    return [
        *coefficients,
        inf if max_norm is None else max_norm,
        inf if lambda_max is None else lambda_max,
        0.0,
    ]


#: The coefficients of a step that holds no constraint: λ = 0.
UNCONSTRAINED = (Kind.UNCONSTRAINED, 0.0, nan, 0.0, 1.0, 0.0, inf)
#: The coefficients of a step whose ψ the caller writes to ``control[Control.GIVEN_PSI]``.
GIVEN_PSI = (Kind.GIVEN, 0.0, nan, 0.0, 1.0, 0.0, inf)


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


def _check_lists(directions: Sequence[Tensor], constraint_grads: Sequence[Tensor]) -> None:
    if not directions or len(directions) != len(constraint_grads):
        raise ValueError(
            f"projection: as many constraint gradients as directions are needed, and at least one; "
            f"got {len(directions)} and {len(constraint_grads)}"
        )


def check_devices(*tensors: Tensor | None) -> None:
    """Of a fake step: with one meta tensor among real ones, torch runs that and leaves all as they were."""
    devices = {tensor.device for tensor in tensors if tensor is not None}
    if len(devices) > 1:
        raise RuntimeError(f"step: tensors are on {' and '.join(sorted(map(str, devices)))}; move them to one device")


def _projection(directions: Sequence[Tensor], constraint_grads: Sequence[Tensor]) -> TwoPhase:
    _check_lists(directions, constraint_grads)
    step = TwoPhase(directions[0].device)
    none = [None] * len(directions)
    step.hyper[:, Hyper.LR].fill_(1.0)  # not assigned, which would copy from the host: a CUDA graph may capture a fill
    step.control[Control.KIND].fill_(Kind.GIVEN)
    step.control[Control.CAP : Control.GIVEN_PSI].fill_(inf)
    step.begin(Rule.PROJECT, Operands(none, directions, constraint_grads, none, none, none, [0] * len(directions)))
    return step


@operator()
def halfspace_stats(directions: Sequence[Tensor], constraint_grads: Sequence[Tensor]) -> Tensor:
    """⟨g1, d⟩, ‖g1‖² and ‖d‖² over all tensors: float64 ``[3]`` on their device.

    Args:
        directions: d, at least one tensor.
        constraint_grads: g1, of the same shapes.
    """
    step = _projection(directions, constraint_grads)
    step.stats(solve=False)
    return step.sums[0, : Sum.RAW_CONSTRAINT].clone()


@torch.library.register_fake("unlearn_ext::halfspace_stats")
def _(directions, constraint_grads):
    _check_lists(directions, constraint_grads)
    check_devices(*directions, *constraint_grads)
    return directions[0].new_empty(3, dtype=torch.float64)


@operator(mutates=["directions"])
def halfspace_project_(directions: Sequence[Tensor], constraint_grads: Sequence[Tensor], psi: Tensor) -> Tensor:
    """d ← argmin ‖g − d‖² s.t. ⟨g1, g⟩ ≥ ψ, in place over all tensors at once.

    Source: Feng et al., ICLR 2025, eq. 6 with any ψ.

    Args:
        directions: d, at least one tensor; overwritten with g. Untouched if any value is not finite.
        constraint_grads: g1, of the same shapes.
        psi: ψ, 0-d.

    Returns:
        float64 ``[2]``: λ, and 1 where nothing was written because a value was not finite.
    """
    step = _projection(directions, constraint_grads)
    if psi is None or psi.dim() or not psi.is_floating_point():  # torch lets None pass for a tensor
        raise ValueError(f"projection: psi={psi!r} must be a real 0-d tensor")
    step.control[Control.GIVEN_PSI] = psi
    step.stats()
    step.apply_()
    return torch.stack((step.report[Report.LAMBDA], step.report[Report.SKIPPED]))


@torch.library.register_fake("unlearn_ext::halfspace_project_")
def _(directions, constraint_grads, psi):
    _check_lists(directions, constraint_grads)
    check_devices(*directions, *constraint_grads, *([psi] if psi.is_meta else []))
    return directions[0].new_empty(2, dtype=torch.float64)


@operator(mutates=["params", "momentum_buffers", "steps", "report"])
def sgd_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    constraint_grads: Sequence[Tensor | None],
    momentum_buffers: Sequence[Tensor],
    steps: Sequence[Tensor],
    groups: Sequence[int],
    hyper: Tensor,
    control: Tensor,
    report: Tensor,
    fused: bool | None = None,
) -> None:
    """One step of :class:`~unlearn_ext.EpsilonSGD`, both phases, in place.

    Args:
        params, grads, constraint_grads: θ, g2, g1, of the same shapes; a gradient that is ``None`` reads as zero.
        momentum_buffers, steps: of the same length, or both empty for no momentum.
        groups: index of the row of ``hyper`` for each tensor, ascending.
        hyper: float64 ``[groups, 8]``, columns as in ``layout.Hyper``.
        control: float64 ``[10]``, see :func:`control_block`.
        report: float64 ``[10]``; f1 goes in at ``layout.Report.CONSTRAINT``, the rest comes out.
        fused: as in :class:`TwoPhase`.
    """
    if len(momentum_buffers) != len(steps):
        raise ValueError(f"step: {len(momentum_buffers)} momentum buffers need as many steps, not {len(steps)}")
    none = [None] * len(params)
    operands = Operands(params, grads, constraint_grads, momentum_buffers or none, none, steps or none, groups)
    _step(Rule.SGD, operands, hyper, control, report, fused)


@operator(mutates=["params", "exp_avgs", "exp_avg_sqs", "steps", "report"])
def adamw_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    constraint_grads: Sequence[Tensor | None],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    groups: Sequence[int],
    hyper: Tensor,
    control: Tensor,
    report: Tensor,
    fused: bool | None = None,
) -> None:
    """One step of :class:`~unlearn_ext.EpsilonAdamW`, both phases, in place; arguments as :func:`sgd_step_`."""
    operands = Operands(params, grads, constraint_grads, exp_avgs, exp_avg_sqs, steps, groups)
    _step(Rule.ADAMW, operands, hyper, control, report, fused)


@torch.library.register_fake("unlearn_ext::sgd_step_")
def _(params, grads, constraint_grads, momentum_buffers, steps, groups, hyper, control, report, fused=None):
    check_devices(*params, *grads, *constraint_grads, *momentum_buffers, *steps, hyper, control, report)


@torch.library.register_fake("unlearn_ext::adamw_step_")
def _(params, grads, constraint_grads, exp_avgs, exp_avg_sqs, steps, groups, hyper, control, report, fused=None):
    check_devices(*params, *grads, *constraint_grads, *exp_avgs, *exp_avg_sqs, *steps, hyper, control, report)


def _step(rule: Rule, operands: Operands, hyper: Tensor, control: Tensor, report: Tensor, fused: bool | None) -> None:
    if hyper is None or control is None or report is None:  # torch lets None pass for a tensor
        raise TypeError("step: hyper, control and report must be tensors")
    n_groups, groups = len(hyper), operands.groups
    if groups and not (groups[0] >= 0 and list(groups) == sorted(groups) and groups[-1] < n_groups):
        raise ValueError(f"step: groups must ascend from 0 or above and stay below the {n_groups} rows of hyper")
    step = TwoPhase(report.device, n_groups, fused).on(hyper, control, report)
    step.begin(rule, operands)
    step.stats()
    step.apply_()
