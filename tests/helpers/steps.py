"""Random steps of every rule, as plain tensors, for the kernels and the reference."""

from collections.abc import Sequence
from dataclasses import fields

import pytest
import torch
from emulated import needs_compiler
from torch import Tensor

from unlearn_ext import ops
from unlearn_ext.ops import TwoPhase
from unlearn_ext.ops.extension import why_not
from unlearn_ext.ops.layout import Hyper, Operands, Report, Rule

needs_kernels = pytest.mark.skipif(bool(why_not(torch.device("cpu"))), reason=why_not(torch.device("cpu")))
#: Marks of a test that runs on the emulated CUDA kernels.
emulated_marks = [needs_kernels, needs_compiler, pytest.mark.emulated]
#: Values of ``fused``: the kernels, the CUDA kernels on CPU tensors, and the reference.
PATHS = [
    pytest.param(True, marks=needs_kernels, id="kernels"),
    pytest.param(True, marks=emulated_marks, id="emulated"),
    pytest.param(False, id="reference"),
]

HYPER = {
    Rule.PROJECT: {Hyper.LR: 1.0},
    Rule.SGD: {Hyper.LR: 0.05, Hyper.BETA1: 0.9, Hyper.BETA2: 0.1, Hyper.WEIGHT_DECAY: 0.02},
    Rule.ADAMW: {
        Hyper.LR: 0.01,
        Hyper.BETA1: 0.9,
        Hyper.BETA2: 0.99,
        Hyper.EPS: 1e-8,
        Hyper.WEIGHT_DECAY: 0.02,
        Hyper.CONSTRAINT_WEIGHT: 0.3,
    },
}


def operands_like(rule: Rule, shaped: Sequence[Tensor], dtypes: Sequence[torch.dtype], seed: int) -> Operands:
    """Draw operands with the shapes and strides of ``shaped``; ``dtypes`` are those of θ, g2, g1, first and second."""
    generator = torch.Generator().manual_seed(seed)

    def draw(dtype: torch.dtype, positive: bool = False) -> list[Tensor]:
        drawn = []
        for tensor in shaped:
            values = torch.randn(tensor.shape, generator=generator)
            copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype)
            drawn.append(copy.copy_(values.square() * 0.1 + 1e-3 if positive else values))
        return drawn

    none: list[None] = [None] * len(shaped)
    param, grad, constraint, first, second = dtypes
    return Operands(
        params=none if rule is Rule.PROJECT else draw(param),
        grads=draw(grad),
        constraint_grads=draw(constraint),
        firsts=none if rule is Rule.PROJECT else draw(first),
        seconds=draw(second, positive=True) if rule is Rule.ADAMW else none,
        steps=none if rule is Rule.PROJECT else [torch.tensor(3.0) for _ in shaped],
        groups=[0] * len(shaped),
    )


def cloned(operands: Operands, dtype: torch.dtype | None = None) -> Operands:
    """Return a deep copy with the same strides; ``dtype`` converts all operands but the steps."""

    def copy(name: str, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        target = tensor.dtype if dtype is None or name == "steps" else dtype
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=target).copy_(tensor)

    lists = {f.name: getattr(operands, f.name) for f in fields(operands)}
    return Operands(**{name: list(v) if name == "groups" else [copy(name, t) for t in v] for name, v in lists.items()})


def run_step(rule: Rule, operands: Operands, psi: float, fused: bool | None, device: str = "cpu") -> TwoPhase:
    """Run both phases with a given ψ, in place; return the step with its sums and report."""
    step = TwoPhase(torch.device(device), fused=fused)
    for column, value in HYPER[rule].items():
        step.hyper[:, column] = value
    step.control.copy_(torch.tensor(ops.control_block(ops.GIVEN_PSI), dtype=torch.float64))
    step.control[-1] = psi
    step.report[Report.CONSTRAINT] = 1.0
    step.begin(rule, operands)
    step.stats()
    step.apply_()
    return step


def written(rule: Rule, operands: Operands) -> list[Tensor]:
    """Return the tensors that a step writes, without its counters."""
    if rule is Rule.PROJECT:
        return list(operands.grads)
    return [t for t in (*operands.params, *operands.firsts, *operands.seconds) if t is not None]
