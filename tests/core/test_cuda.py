"""The CUDA kernels against the reference, where a device is at hand."""

import pytest
import torch
from steps import cloned, operands_like, run_step, written

from unlearn_ext.binary import why_not
from unlearn_ext.layout import Report, Rule
from unlearn_ext.reference import Operands

REASON = why_not(torch.device("cuda")) or ("" if torch.cuda.is_available() else "torch sees no CUDA device here")
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

SHAPES = [(0,), (1,), (1023,), (3 * 16384 + 5,), (0, 3), (129, 257)] + [(1 + i % 97,) for i in range(500)]


def on_device(operands: Operands) -> Operands:
    moved = {
        name: values if name == "groups" else [None if t is None else t.cuda() for t in values]
        for name, values in vars(operands).items()
    }
    return Operands(**moved)


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_agrees_with_the_reference(rule, dtype):
    operands = operands_like(rule, [torch.empty(s) for s in SHAPES], (dtype,) * 5, seed=1)
    exact, device = cloned(operands, torch.float64), on_device(operands)
    oracle = run_step(rule, exact, 0.5, fused=False)
    step = run_step(rule, device, 0.5, fused=True, device="cuda")
    torch.testing.assert_close(step.sums.cpu(), oracle.sums, rtol=1e-5, atol=float(1e-6 * oracle.sums.abs().max()))
    ulp = torch.finfo(dtype).eps
    for got, want in zip(written(rule, device), written(rule, exact), strict=True):
        torch.testing.assert_close(got.cpu().double(), want, rtol=max(ulp, 2e-5), atol=max(ulp, 1e-4))


@pytest.mark.parametrize("rule", list(Rule))
def test_nothing_is_written_when_anything_is_not_finite(rule):
    device = on_device(operands_like(rule, [torch.empty(11), torch.empty(20_001)], (torch.float32,) * 5, seed=5))
    device.constraint_grads[1][12_345] = float("nan")
    before = [t.clone() for t in written(rule, device)]
    step = run_step(rule, device, 0.5, fused=True, device="cuda")
    assert step.report[Report.SKIPPED] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, written(rule, device), strict=True))


@pytest.mark.parametrize("rule", list(Rule))
def test_bitwise_repeatable(rule):
    operands = operands_like(rule, [torch.empty(s) for s in SHAPES], (torch.float32,) * 5, seed=7)
    results = []
    for _ in range(2):
        device = on_device(operands)
        step = run_step(rule, device, 0.5, fused=True, device="cuda")
        results.append([step.report, *written(rule, device)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
