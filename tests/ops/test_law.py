"""The control functions of the kernels against those of the reference, over sequences of random measurements."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import PATHS, control_of, needs_kernels

import unlearn_ext as ux
from unlearn_ext.ops import TwoPhase, layout
from unlearn_ext.ops.layout import Control, Hyper, Operands, Report, Rule, StepReport, Sums

F64 = torch.float64
CPU = torch.device("cpu")
NAN = float("nan")

controls = st.one_of(
    st.builds(
        ux.EpsilonGap,
        epsilon=st.floats(-2, 2),
        rate=st.floats(1e-3, 1),
        delta=st.sampled_from([1.0, 1.0, 1.0, 0.5, 2.0]),
        alpha=st.one_of(st.none(), st.floats(0.01, 5)),
        cap=st.one_of(st.none(), st.floats(0.01, 5), st.just(math.inf)),
        equality=st.booleans(),
    ),
    st.builds(ux.GradientNorm, alpha=st.floats(0.01, 3), delta=st.sampled_from([0.0, 1.0, 2.0, 3.0])),
)
decays = st.sampled_from([0.0, 0.5, 0.99, NAN, NAN])


class Laws:
    """A step with given sums for one path; ``row``: the row of ``control``."""

    def __init__(self, fused: bool, rule: Rule = Rule.SGD) -> None:
        self.step, self.rule = TwoPhase(CPU, fused=fused), rule

    def solve(self, row: list[float], value: float, lr: float, sums: list[float]) -> torch.Tensor:
        """Return the report's row of the constraint; every step begins with what the one before has left there."""
        step = self.step
        step.control.copy_(control_of(row))
        step.hyper[0, Hyper.LR] = lr
        one = [torch.ones(1)]
        step.begin(self.rule, Operands(one, one, [None], [None], [None], [0], [[torch.ones(1)]], [[torch.ones(1)]]),
                   [torch.tensor(value, dtype=F64)])  # fmt: skip
        step.stats(solve=False)
        step.sums.copy_(torch.tensor([sums], dtype=F64))
        step.report[1, Report.CONSTRAINT] = value
        step.solve()
        return step.report[1].clone()


def row_of(control, decay: float) -> list[float]:
    return [*control.coefficients(), 0.0, float(getattr(control, "equality", False)), math.inf, decay]


def measurements(generator: torch.Generator, steps: int, noise: float, agreement: float):
    """Yield c, the learning rate, the sums of a step, and whether ε changes before it."""
    columns, drift = Sums(1), 0.05 * torch.randn(steps, generator=generator, dtype=F64).cumsum(0)
    for t in range(steps):
        draw = torch.randn(8, generator=generator, dtype=F64).tolist()
        power = math.exp(draw[0])
        sums = [0.0] * columns.count
        sums[columns.SQ_DIRECTION], sums[columns.SQ_GRAD] = math.exp(draw[1]), 1.0
        sums[columns.power(0)], sums[columns.aligned(0)] = power, power * (agreement + 0.5 * draw[2])
        sums[columns.gram(0, 0)] = power * (0.1 + abs(draw[3]))
        sums[columns.dot(0)] = draw[4]
        value = 1.5 * math.exp(-t / 20) + drift[t].item() + noise * draw[5]
        yield (NAN if draw[6] > 2.3 else value), 0.1 * math.exp(0.1 * draw[7]), sums, t % 17 == 16


@needs_kernels
@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    control=controls,
    decay=decays,
    seed=st.integers(0, 10_000),
    noise=st.sampled_from([0.0, 0.1, 2.0]),
    agreement=st.sampled_from([0.0, 0.5, 1.2, -0.5]),
)
def test_kernels_and_reference_have_the_same_law(control, decay, seed, noise, agreement):
    kernels, reference = Laws(fused=True), Laws(fused=False)
    skipped = 0
    for value, lr, sums, changes in measurements(torch.Generator().manual_seed(seed), 60, noise, agreement):
        if changes and isinstance(control, ux.EpsilonGap):
            control = dataclasses.replace(control, epsilon=control.epsilon * 0.5 - 0.1)
        row = row_of(control, decay)
        mine, theirs = (laws.solve(row, value, lr, sums) for laws in (kernels, reference))
        assert torch.equal(kernels.step.report[0, 1:], reference.step.report[0, 1:])
        skipped += kernels.step.report[0, StepReport.SKIPPED].item()
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert kernels.step.report[1, Report.COUNT] + skipped == 60


@pytest.mark.parametrize("fused", PATHS)
@pytest.mark.parametrize("where", ["c", "sums"])
def test_a_skipped_step_changes_no_kept_column(fused, where):
    laws, row = Laws(fused), row_of(ux.EpsilonGap(0.2), NAN)
    for value, lr, sums, _ in measurements(torch.Generator().manual_seed(0), 30, 0.1, 0.5):
        if math.isnan(value):
            continue
        kept = laws.step.report[1, layout.KEPT :].clone()
        spoilt = list(sums)
        spoilt[Sums(1).power(0)] = NAN if where == "sums" else spoilt[Sums(1).power(0)]
        laws.solve(row, NAN if where == "c" else value, lr, spoilt)
        assert laws.step.report[0, StepReport.SKIPPED] == 1
        assert torch.equal(laws.step.report[1, layout.KEPT :], kept)
        laws.solve(row, value, lr, sums)
        assert laws.step.report[0, StepReport.SKIPPED] == 0


@pytest.mark.parametrize("fused", PATHS)
@pytest.mark.parametrize("equality", [False, True])
@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1e3, 1e6])
def test_the_unit_of_c_does_not_matter(fused, equality, unit):
    """With c, ε and ∇c times a factor, Ψ is times the factor.

    The learning rate is so small that the first demand, not a plain gradient step, determines the cap.
    """
    control = ux.EpsilonGap(0.2, equality=equality)
    scaled = dataclasses.replace(control, epsilon=0.2 * unit)
    laws, others, columns = Laws(fused), Laws(fused), Sums(1)
    for value, lr, sums, _ in measurements(torch.Generator().manual_seed(3), 100, 0.2, 0.3):
        in_unit = list(sums)
        for column in (columns.power(0), columns.aligned(0), columns.gram(0, 0)):
            in_unit[column] *= unit**2
        in_unit[columns.dot(0)] *= unit
        plain = laws.solve(row_of(control, NAN), value, lr * 1e-9, sums)
        other = others.solve(row_of(scaled, NAN), value * unit, lr * 1e-9, in_unit)
        torch.testing.assert_close(other[Report.PSI] / unit, plain[Report.PSI], rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("fused", PATHS)
def test_the_weight_of_a_gradient_in_its_average(fused):
    """One in the first step; then with bias correction, or the share of signal, which is known from the third step."""
    constant, noisy = [1.0] * 30, [(-1.0) ** t * 0.1 for t in range(300)]
    for decay in (0.0, 0.8):
        weights = fresh_of(fused, decay, constant)
        want = [(1 - decay) / (1 - decay ** (t + 1)) for t in range(30)]
        assert weights == pytest.approx(want, rel=1e-12)
    assert fresh_of(fused, NAN, constant) == [1.0, 0.5] + [1.0] * 28
    weights = fresh_of(fused, NAN, noisy)
    assert weights[0] == 1
    assert max(weights[100:]) < 0.1
    assert min(weights) >= 0.02


def fresh_of(fused: bool, decay: float, alignments: list[float]) -> list[float]:
    """Return the weights of ∇c where ⟨∇c,P⁻¹a₋⟩/‖∇c‖² is as given in each step."""
    laws, columns, weights = Laws(fused), Sums(1), []
    for alignment in alignments:
        sums = [0.0] * columns.count
        sums[columns.power(0)] = sums[columns.gram(0, 0)] = 4.0
        sums[columns.aligned(0)] = 4.0 * alignment
        report = laws.solve(row_of(ux.EpsilonGap(0.2), decay), 1.0, 0.1, sums)
        weights.append(report[Report.FRESH].item())
    return weights


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fused", PATHS)
@pytest.mark.parametrize("control", [ux.EpsilonGap(0.2, delta=2.0, cap=math.inf), ux.GradientNorm(delta=4.0)])
@pytest.mark.parametrize("size", [1e200, math.inf])
def test_numbers_that_overflow_skip_the_step(fused, control, size):
    laws, columns = Laws(fused), Sums(1)
    sums = [1.0] * columns.count
    sums[columns.gram(0, 0)] = size
    laws.solve(row_of(control, NAN), size, 0.1, sums)
    assert laws.step.report[0, StepReport.SKIPPED] == 1
    assert not laws.step.report[1, layout.KEPT :].any()


def test_controls_have_the_columns_of_the_binary():
    assert len(row_of(ux.EpsilonGap(0.2), 0.0)) == len(Control)
