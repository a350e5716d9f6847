"""Implementations of steps with K constraints, and with an average of ∇c, in plain torch.

ψ_i = α‖a_i‖² in the step's metric, as in ``peers.py``. The constraints are random, so all of them are active, and the
peers need no QP solver: λ solves Gλ = b, with G_ij = ⟨a_i, P⁻¹a_j⟩ and b_i = αG_ii − ⟨a_i, d⟩.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement, pairwise

import numpy as np
import torch
from peers import ALPHA, LR, Contestant
from problems import Problem
from torch import Tensor

#: Tensors of one call of a compiled function: it takes minutes to compile for a hundred. The lengths of the tensors
#: repeat after three, so that all calls but the last have the same shapes.
BLOCK = 12


def multipliers(gram: np.ndarray, dots: np.ndarray) -> list[float]:
    """Return λ of each constraint, from ⟨a_i, P⁻¹a_j⟩ and ⟨a_i, d⟩; raise ``ValueError`` if one is not active."""
    lam = np.linalg.solve(gram, ALPHA * gram.diagonal() - dots)
    if not (lam >= 0).all():
        raise ValueError(f"the peers can only solve for active constraints; λ is {lam}")
    return lam.tolist()


def multipliers_of(products: np.ndarray) -> list[float]:
    """Return λ of each constraint from all products of g2, a_1, …, a_K with each other; P is the identity."""
    return multipliers(products[1:, 1:], products[1:, 0])


def symmetric(values: Sequence[float], count: int) -> np.ndarray:
    """Return the symmetric matrix whose upper triangle has the values, row by row."""
    matrix = np.zeros((count, count))
    for (i, j), value in zip(combinations_with_replacement(range(count), 2), values, strict=True):
        matrix[i, j] = matrix[j, i] = value
    return matrix


def dots(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Return the dot product of two lists of tensors."""
    return sum(torch.dot(a, b) for a, b in zip(first, second, strict=True)).item()


class ForeachDots(Contestant):
    """``torch.dot`` for every pair of gradients, then multi-tensor additions."""

    def step(self) -> None:
        """Take one step."""
        p = self.problem
        rows = [p.grads, *p.constraint_grads]
        pairs = list(combinations_with_replacement(range(len(rows)), 2))[1:]  # ⟨g2, g2⟩ is not needed
        lam = multipliers_of(symmetric([0.0, *(dots(rows[i], rows[j]) for i, j in pairs)], len(rows)))
        for factor, grads in zip((1.0, *lam), rows, strict=True):
            torch._foreach_add_(p.params, grads, alpha=-LR * factor)


class Stacked(Contestant):
    """All gradients as the rows of one matrix, which is filled in the step; then two products with it."""

    def matrix(self) -> Tensor:
        """Return the matrix, [1 + K, parameters]."""
        return torch.stack([torch.cat(grads) for grads in (self.problem.grads, *self.problem.constraint_grads)])

    def step(self) -> None:
        """Take one step."""
        rows, params = self.matrix(), self.problem.params
        lam = multipliers_of((rows @ rows.T).double().numpy())
        g = torch.tensor([1.0, *lam]) @ rows
        torch._foreach_add_(params, list(g.split([p.numel() for p in params])), alpha=-LR)


class InMatrix(Stacked):
    """The same, if the backward passes have written into the matrix, which plain torch code does not do."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.ready = super().matrix()

    def matrix(self) -> Tensor:
        """Return the matrix."""
        return self.ready


@torch.compile(dynamic=False)
def compiled_products(rows: list[list[Tensor]]) -> Tensor:
    """Return the dot products of all pairs of rows but the first with itself."""
    pairs = list(combinations_with_replacement(range(len(rows)), 2))[1:]
    by_tensor = [[(rows[i][n] * rows[j][n]).sum() for i, j in pairs] for n in range(len(rows[0]))]
    return torch.stack([torch.stack(products) for products in by_tensor]).sum(0)


@torch.compile(dynamic=False)
def compiled_update(params: list[Tensor], rows: list[list[Tensor]], factors: Tensor) -> None:
    """Subtract the sum of factor·row from the parameters."""
    for n, param in enumerate(params):
        param.sub_(sum(factors[i] * row[n] for i, row in enumerate(rows)))


class Compiled(Contestant):
    """torch.compile of the loops over the tensors, which are fused into two passes, like our step."""

    def step(self) -> None:
        """Take one step."""
        p = self.problem
        rows = [p.grads, *p.constraint_grads]
        parts = list(blocks(len(p.params)))
        products = sum(compiled_products([row[part] for row in rows]).double() for part in parts)
        lam = multipliers_of(symmetric([0.0, *products.tolist()], len(rows)))
        factors = torch.tensor([LR, *(LR * value for value in lam)])
        for part in parts:
            compiled_update(p.params[part], [row[part] for row in rows], factors)


def blocks(count: int) -> Iterator[slice]:
    """Return the slices of ``BLOCK`` tensors each, and that of the rest."""
    ends = [*range(0, count, BLOCK), count]
    return (slice(*ends) for ends in pairwise(ends))


class ForeachAdamW(Contestant):
    """The step of ``EpsilonAdamW`` by multi-tensor kernels, with or without averages of the constraints' gradients.

    Args:
        problem: the tensors.
        decay: decay of the averages; 0 for none.
    """

    def __init__(self, problem: Problem, decay: float = 0.0) -> None:
        super().__init__(problem)
        self.taken, self.decay = 0, decay
        self.firsts, self.seconds = zeros(problem), zeros(problem)
        self.averages = [zeros(problem) for _ in problem.constraint_grads if decay]

    def step(self) -> None:
        """Take one step."""
        self.taken += 1
        p, beta1, beta2, eps, weight_decay = self.problem, 0.9, 0.999, 1e-8, 1e-2
        constraints = self.averaged()
        torch._foreach_lerp_(self.firsts, p.grads, 1 - beta1)
        torch._foreach_mul_(self.seconds, beta2)
        for grads in (p.grads, *constraints):
            torch._foreach_addcmul_(self.seconds, grads, grads, 1 - beta2)
        metric = torch._foreach_sqrt(self.seconds)
        torch._foreach_div_(metric, math.sqrt(1 - beta2**self.taken))
        torch._foreach_add_(metric, eps)
        direction = torch._foreach_div(self.firsts, metric)
        torch._foreach_div_(direction, 1 - beta1**self.taken)
        torch._foreach_add_(direction, p.params, alpha=weight_decay)
        scaled = [torch._foreach_div(grads, metric) for grads in constraints]
        pairs = combinations_with_replacement(range(len(constraints)), 2)
        gram = symmetric([dots(constraints[i], scaled[j]) for i, j in pairs], len(constraints))
        lam = multipliers(gram, np.array([dots(grads, direction) for grads in constraints]))
        for factor, tensors in zip((1.0, *lam), (direction, *scaled), strict=True):
            torch._foreach_add_(p.params, tensors, alpha=-LR * factor)

    def averaged(self) -> list[list[Tensor]]:
        """Return the gradients of the constraints, or their averages with bias correction."""
        if not self.decay:
            return self.problem.constraint_grads
        for averages, grads in zip(self.averages, self.problem.constraint_grads, strict=True):
            torch._foreach_lerp_(averages, grads, 1 - self.decay)
        return [list(torch._foreach_div(averages, 1 - self.decay**self.taken)) for averages in self.averages]


def zeros(problem: Problem) -> list[Tensor]:
    """Return a tensor of zeros for each parameter."""
    return [torch.zeros_like(p) for p in problem.params]
