"""The kernels against a float64 reference, elementwise, for every rule, dtype mix and size class."""

import itertools

import pytest
import torch
from steps import (
    assert_kernels_close,
    cloned,
    control_of,
    control_row,
    emulated_marks,
    needs_kernels,
    operands_like,
    report_of,
    run_step,
    written,
)

from unlearn_ext import ops
from unlearn_ext.ops import extension, layout
from unlearn_ext.ops.layout import Hyper, Rule, StepReport

pytestmark = needs_kernels


@pytest.fixture(autouse=True, params=["cpu", pytest.param("emulated", marks=emulated_marks)])
def kernels_under_test():
    """Run each test on the CPU kernels and on the emulated CUDA kernels."""


F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
RULES = list(Rule)
MIXES = [(d,) * 5 for d in (F32, BF16, F16)] + [
    (BF16, F32, F32, F32, F32),
    (F32, BF16, BF16, F32, F32),
    (BF16, BF16, F32, F32, F32),
    (F16, F16, BF16, F32, BF16),
    (F32, F16, F32, BF16, F16),
    (F16, F32, F16, F32, F32),
]
SIZES = {
    "empty": [(0,)],
    "one": [(1,)],
    "odd": [(3,), (17,), (1023,), (16384 + 5,)],
    "chunks": [(3 * 16384,), (16384 - 1,), (128, 257)],
    "with empties": [(0,), (5,), (0, 3), (70001,), (0,)],
    "many": [(1 + 7 * i % 97,) for i in range(2000)],
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sizes", SIZES)
def test_sizes(rule, sizes):
    assert_kernels_close(rule, operands_like(rule, [torch.empty(s) for s in SIZES[sizes]], (F32,) * 5, seed=1), psi=0.5)


@pytest.mark.parametrize(("rule", "mix"), list(itertools.product(RULES, MIXES)))
def test_dtype_mixes(rule, mix):
    assert_kernels_close(rule, operands_like(rule, [torch.empty(s) for s in SIZES["odd"]], mix, seed=2), psi=0.5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_misaligned_views(rule, dtype):
    operands = operands_like(rule, [torch.empty(1001)], (dtype,) * 5, seed=3)
    for values in operands.lists()[:-1]:
        if values[0] is not None:
            values[0] = torch.cat([values[0][:1], values[0]])[1:]
    assert written(rule, operands)[0].data_ptr() % 16
    exact = cloned(operands, torch.float64)
    run_step(rule, exact, 0.5, fused=False)
    run_step(rule, operands, 0.5, fused=True)
    tolerance = max(2e-5, torch.finfo(dtype).eps * 2)
    for got, want in zip(written(rule, operands), written(rule, exact), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rule", RULES)
def test_strides(rule):
    dense = torch.empty(33, 65).t()
    channels_last = torch.empty(2, 3, 8, 8).to(memory_format=torch.channels_last)
    assert_kernels_close(rule, operands_like(rule, [dense, channels_last], (F32,) * 5, seed=4), psi=0.5)


@pytest.mark.parametrize("rule", RULES)
def test_non_contiguous_and_unlike_strides(rule):
    gaps = torch.empty(40, 30)[::2, ::3]
    operands = operands_like(rule, [torch.empty(20, 10)], (F32,) * 5, seed=5)
    plain = cloned(operands)
    target = operands.grads if rule is Rule.PROJECT else operands.params
    target[0] = torch.empty(40, 30)[::2, ::3].copy_(target[0])
    held = operands.constraint_grads[0]
    held[0] = held[0].t().contiguous().t()
    assert target[0].stride() == gaps.stride()
    run_step(rule, operands, 0.5, fused=True)
    run_step(rule, plain, 0.5, fused=True)
    for got, want in zip(written(rule, operands), written(rule, plain), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("rule", [Rule.SGD, Rule.ADAMW, Rule.WRAP])
@pytest.mark.parametrize("missing", ["grads", "constraint_grads"])
def test_an_absent_gradient_reads_as_zero(rule, missing):
    operands = operands_like(rule, [torch.empty(777), torch.empty(5)], (F32,) * 5, seed=6)
    zeros = cloned(operands)
    for mine, value in ((operands, None), (zeros, torch.zeros(777))):
        (mine.grads if missing == "grads" else mine.constraint_grads[0])[0] = value
    run_step(rule, operands, 0.5, fused=True)
    run_step(rule, zeros, 0.5, fused=True)
    for got, want in zip(written(rule, operands), written(rule, zeros), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("rule", RULES)
def test_bitwise_repeatable_for_any_number_of_threads(rule):
    shapes = [torch.empty(s) for s in ((300_001,), (7,), (16384 * 9,), (129, 1001))]
    operands = operands_like(rule, shapes, (F32,) * 5, seed=7)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4, 4):
            torch.set_num_threads(threads)
            mine = cloned(operands)
            step = run_step(rule, mine, 0.5, fused=True)
            results.append([step.sums, step.report, *written(rule, mine)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_every_instruction_set_gives_the_same_bits(rule, dtype):
    operands = operands_like(rule, [torch.empty(s) for s in SIZES["odd"]], (dtype,) * 5, seed=11)
    best, results = extension.kernels.cpu_isa(), []
    assert extension.kernels.cpu_isas()[-1] == "baseline"
    try:
        for isa in extension.kernels.cpu_isas():
            extension.kernels.use_cpu_isa(isa)
            mine = cloned(operands)
            step = run_step(rule, mine, 0.5, fused=True)
            results.append([step.sums, step.report, *written(rule, mine)])
    finally:
        extension.kernels.use_cpu_isa(best)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("values", [[0.0, -0.0, 6e-8, -3e-8, 1e-5, 65519.0, 65504.0, 2.0**-14, 1 / 3]])
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_rounding_to_half_is_torchs(dtype, values):
    """With λ = 0 and scale 1 the projection writes what it read, widened and narrowed, at every offset of a vector."""
    grads = torch.tensor(values * 7, dtype=dtype)
    operands = operands_like(Rule.PROJECT, [grads], (dtype,) * 5, seed=8)
    operands.grads[0] = grads.clone()
    run_step(Rule.PROJECT, operands, -1e30, fused=True)
    assert torch.equal(operands.grads[0], grads)
    sums = operands_like(Rule.PROJECT, [torch.empty(5003)], (F32, dtype, F32, F32, F32), seed=9)
    exact = cloned(sums, torch.float64)
    run_step(Rule.PROJECT, sums, 1e3, fused=True)
    run_step(Rule.PROJECT, exact, 1e3, fused=False)
    nearest = exact.grads[0].to(dtype)
    assert (sums.grads[0] == nearest).float().mean() > 0.99  # the others: float32 rounding at a tie


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_any_number_is_rounded_as_torch_rounds_it(dtype):
    """With θ = 0 and lr = 1 the step writes −g2, on every instruction set; the values include ties and near-ties."""
    generator = torch.Generator().manual_seed(12)
    bits = torch.randint(-(2**31), 2**31, (1 << 18,), generator=generator).to(torch.int32)
    ties = (bits & ~0x1FFFF) | torch.randint(-1, 2, bits.shape, generator=generator, dtype=torch.int32)
    numbers = torch.cat([bits, ties, ties + 0x8000, ties + 0x18000, ties + 0x1000, ties + 0x3000]).view(F32)
    numbers = numbers[numbers.abs() < (1e15 if dtype is BF16 else 60000)]  # no NaN; float32 sums of squares stay finite
    hyper = torch.zeros(1, len(Hyper), dtype=torch.float64)
    hyper[0, Hyper.LR] = 1
    best = extension.kernels.cpu_isa()
    try:
        for isa in extension.kernels.cpu_isas():
            extension.kernels.use_cpu_isa(isa)
            params, report = [torch.zeros_like(numbers, dtype=dtype)], report_of(0)
            arguments = params, [-numbers], [], [], [], [], [0], hyper, control_of(), report
            ops.sgd_step_(*arguments, fused=True)
            assert report[0, StepReport.SKIPPED] == 0
            assert torch.equal(params[0], numbers.to(dtype)), isa
            params[0][::3] = torch.nan
            ops.sgd_step_(*arguments, fused=True)
            assert torch.equal(params[0].isnan(), torch.arange(len(numbers)) % 3 == 0), isa
    finally:
        extension.kernels.use_cpu_isa(best)


def test_groups_keep_their_own_sums_and_rates():
    operands = operands_like(Rule.SGD, [torch.empty(20_000), torch.empty(9)], (F32,) * 5, seed=10)
    operands.groups = [0, 1]
    results = []
    for fused in (False, True):
        mine = cloned(operands)
        step = two_group_step(mine, fused)
        results.append([step.sums, step.report, *written(Rule.SGD, mine)])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def two_group_step(operands, fused):
    step = ops.TwoPhase(torch.device("cpu"), groups=2, fused=fused)
    step.hyper[:, Hyper.LR] = torch.tensor([0.1, 0.003], dtype=torch.float64)
    step.control.copy_(control_of(control_row(psi=0.7, lambda_max=3.0), max_norm=0.5))
    step.begin(Rule.SGD, operands)
    step.stats()
    step.apply_()
    return step


def test_layout_matches_the_binary():
    kernels = extension.kernels
    sizes = [len(names) for names in (layout.Hyper, layout.Control, layout.Report)]
    assert sizes == [kernels.HYPER, kernels.CONTROL, kernels.REPORT]
    assert kernels.MAX_CONSTRAINTS == layout.MAX_CONSTRAINTS
