"""The emulated CUDA kernels against the CPU kernels: to the bit where the order of sums does not matter."""

import pytest
import torch
from emulated import ORDERS, cuda_kernels, needs_compiler
from pairs import pairwise
from steps import DECAY, HYPER, cloned, control_of, control_row, needs_kernels, operands_like, run_step, written

from unlearn_ext.ops import TwoPhase
from unlearn_ext.ops.layout import Hyper, Operands, Report, Rule, StepReport

pytestmark = [needs_kernels, needs_compiler]

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
RULES = list(Rule)
MIXES = [(F32,) * 5, (BF16,) * 5, (F16,) * 5, (F32, BF16, BF16, F32, F32), (BF16, F32, F16, F32, BF16)]
OFFSETS = [[0] * 5, [1] * 5, [7] * 5, [0, 1, 1, 0, 0], [5, 2, 3, 1, 4]]
SHAPES = [(0,), (1,), (9,), (1023,), (0, 3), (129, 257)]


def shifted(operands: Operands, offsets: list[int]) -> Operands:
    """Copy operands; each list's tensors begin ``offsets`` elements after an address that is a multiple of 64."""

    def shift(tensor: torch.Tensor | None, offset: int) -> torch.Tensor | None:
        if tensor is None:
            return None
        return torch.empty(tensor.numel() + offset, dtype=tensor.dtype)[offset:].view(tensor.shape).copy_(tensor)

    def shifted_list(tensors: list[torch.Tensor | None], index: int) -> list[torch.Tensor | None]:
        return [shift(tensor, offsets[index % len(offsets)]) for tensor in tensors]

    return Operands(
        shifted_list(operands.params, 0),
        shifted_list(operands.grads, 1),
        shifted_list(operands.firsts, 3),
        shifted_list(operands.seconds, 4),
        [None if t is None else t.clone() for t in operands.steps],
        operands.groups,
        [shifted_list(column, 2 + i) for i, column in enumerate(operands.constraint_grads)],
        [shifted_list(column, 3 + i) for i, column in enumerate(operands.averages)],
    )


def start(rule: Rule, operands: Operands, groups: int = 1, solve: bool = True, **hyper: float) -> TwoPhase:
    """Run the first phase with ψ = 1000, and a multiple of it for each further constraint."""
    constraints = operands.constraints
    step = TwoPhase(torch.device("cpu"), groups, constraints, fused=True)
    for column, value in {**HYPER[rule], **{Hyper[name]: value for name, value in hyper.items()}}.items():
        step.hyper[:, column] = value
    decay = 0.0 if operands.averages[0][0] is None else DECAY
    step.control.copy_(control_of(*(control_row(psi=1000.0 * (1 + i), decay=decay) for i in range(constraints))))
    step.report[1:, Report.CONSTRAINT] = 1.0
    step.report[1:, Report.COUNT] = 3.0
    step.begin(rule, operands)
    step.stats(solve)
    return step


def assert_equal_bits(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


# Every rule meets every number of constraints (each pair is a kernel of its own), every mix and every offset.
@pytest.mark.parametrize(
    ("rule", "mix", "offsets", "constraints_and_averages"),
    pairwise(RULES, MIXES, OFFSETS, [(1, False), (1, True), (2, True), (3, True), (8, True)]),
)
def test_the_same_lambda_gives_the_same_step_to_the_bit(rule, mix, offsets, constraints_and_averages):
    constraints, averages = constraints_and_averages
    shapes = SHAPES if constraints == 1 else SHAPES[:4]
    operands = operands_like(rule, [torch.empty(s) for s in shapes], mix, 1, constraints, averages)
    theirs, ours = shifted(operands, offsets), shifted(operands, offsets)
    cpu = start(rule, theirs)
    cpu.apply_()
    with cuda_kernels():
        emulated = start(rule, ours, solve=False)
        rounding = float(1e-6 * cpu.sums.abs().max())
        torch.testing.assert_close(emulated.sums, cpu.sums, rtol=1e-5, atol=rounding)
        emulated.sums.copy_(cpu.sums)
        emulated.solve()
        # A few more digits are lost where λ is a difference.
        torch.testing.assert_close(emulated.report, cpu.report, rtol=1e-9, atol=1e-9 * float(cpu.report.abs().max()))
        emulated.report.copy_(cpu.report)
        emulated.apply_()
    assert_equal_bits(written(rule, ours), written(rule, theirs))
    assert [s and s.item() for s in ours.steps] == [s and s.item() for s in theirs.steps]


@pytest.mark.parametrize("rule", [Rule.PROJECT, Rule.SGD])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("groups", [1, 3])
def test_sums_without_rounding_are_equal_to_the_bit(rule, mix, groups):
    """Small integers and powers of two: no sum of a pass is rounded, so its order does not matter."""
    operands = operands_like(rule, [torch.empty(s) for s in SHAPES], mix, seed=2)
    for tensors in operands.lists()[:-1]:
        for tensor in tensors:
            if tensor is not None:
                tensor.copy_((2 * tensor).round().clamp(-4, 4))
    operands.groups = [i * groups // len(SHAPES) for i in range(len(SHAPES))]
    exact = {} if rule is Rule.PROJECT else {"BETA1": 0.5, "BETA2": 0.5, "WEIGHT_DECAY": 0.25}
    theirs, ours = cloned(operands), cloned(operands)
    cpu = start(rule, theirs, groups, **exact)
    cpu.apply_()
    with cuda_kernels():
        emulated = start(rule, ours, groups, **exact)
        emulated.apply_()
    assert cpu.report[1, Report.LAMBDA] > 0
    assert_equal_bits(
        [emulated.sums, emulated.report, *written(rule, ours)], [cpu.sums, cpu.report, *written(rule, theirs)]
    )


# Every rule meets few and many tensors, and one and four constraints.
@pytest.mark.parametrize(
    ("rule", "shapes", "constraints"),
    pairwise(RULES, [[*SHAPES, (70_001,)], [(1 + i % 97,) for i in range(1100)]], [1, 4]),
)
def test_the_same_bits_from_any_number_of_blocks_in_any_order(rule, shapes, constraints, monkeypatch):
    operands = operands_like(rule, [torch.empty(s) for s in shapes], (F32,) * 5, 7, constraints, averages=True)
    operands.groups = [int(i > len(shapes) // 2) for i in range(len(shapes))]
    results = []
    with cuda_kernels() as kernels:
        try:
            for blocks, order in zip((1, 2, 5, 50, 2**30), ORDERS, strict=True):
                monkeypatch.setenv("CUDA_EMULATION_ORDER", order)
                kernels.cuda_limit_blocks(blocks)
                mine = cloned(operands)
                step = start(rule, mine, groups=2)
                step.apply_()
                results.append([step.sums, step.report, *written(rule, mine)])
        finally:
            kernels.cuda_limit_blocks(2**30)
    for other in results[1:]:
        assert_equal_bits(other, results[0])


@pytest.mark.parametrize("dtype", [F32, BF16, F16, torch.float64])
def test_the_kernels_read_the_value(dtype):
    operands = operands_like(Rule.SGD, [torch.empty(5)], (F32,) * 5, seed=3)
    with cuda_kernels():
        step = TwoPhase(torch.device("cpu"), fused=True)
        step.begin(Rule.SGD, operands, [torch.tensor(0.625, dtype=dtype)])
        step.stats()
    assert step.report[1, Report.CONSTRAINT] == 0.625


def test_nothing_is_written_after_an_overflow():
    operands = operands_like(Rule.ADAMW, [torch.empty(20_001)], (F32,) * 5, seed=5)
    operands.grads[0][12_345] = torch.inf
    before = cloned(operands)
    with cuda_kernels():
        step = run_step(Rule.ADAMW, operands, 0.5, fused=True)
    assert step.report[0, StepReport.SKIPPED] == 1
    assert_equal_bits([*written(Rule.ADAMW, operands), *operands.steps], [*written(Rule.ADAMW, before), *before.steps])
