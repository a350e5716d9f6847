"""The steps of two published packages on the same gradients: TorchJD's aggregators and Cooper's optimizer.

Both are optional (``pip install "unlearn-ext[bench]"``).
"""

from __future__ import annotations

import importlib.util
from abc import abstractmethod

import torch
from peers import ALPHA, LR, Contestant
from problems import Problem
from several import multipliers_of
from torch import Tensor


def missing(*modules: str) -> bool:
    """Return whether one of the modules is not installed."""
    return not all(map(importlib.util.find_spec, modules))


class Jacobians(Contestant):
    """TorchJD: the rows of each parameter's Jacobian are its gradients; then torch's fused SGD.

    The Jacobians are prepared in advance.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.params = [torch.nn.Parameter(t) for t in problem.params]
        self.rows = [torch.stack(grads) for grads in zip(problem.grads, *problem.constraint_grads, strict=True)]
        self.optimizer = torch.optim.SGD(self.params, lr=LR, fused=True)
        self.aggregator = self.make()

    @abstractmethod
    def make(self) -> torch.nn.Module:
        """Return the aggregator."""

    def prepare(self) -> None:
        """Set the Jacobians and drop the gradients."""
        self.optimizer.zero_grad()
        for param, rows in zip(self.params, self.rows, strict=True):
            param.jac = rows

    def step(self) -> None:
        """Take one step."""
        from torchjd.autojac import jac_to_grad

        jac_to_grad(self.params, self.aggregator, optimize_gramian_computation=True)
        self.optimizer.step()


class PCD(Jacobians):
    """TorchJD's PCD with the bounds of our constraints; its result is ours, rescaled to the length of g2."""

    def make(self) -> torch.nn.Module:
        """Return the aggregator; with ``beta=0`` it divides each gradient by its norm."""
        from torchjd.aggregation import PCD

        norms = torch.tensor([norm(self.problem.grads), *map(norm, self.problem.constraint_grads)])
        return PCD(tau=ALPHA * norms[1:] / norms[0], beta=0.0, eps=0.0)


class UPGrad(Jacobians):
    """TorchJD's UPGrad: another step, which lowers all losses and has no bounds."""

    def make(self) -> torch.nn.Module:
        """Return the aggregator."""
        from torchjd.aggregation import UPGrad

        return UPGrad()


def norm(tensors: list[Tensor]) -> Tensor:
    """Return the norm of a list of tensors."""
    return torch.stack([t.double().square().sum() for t in tensors]).sum().sqrt()


class Given(torch.autograd.Function):
    """A loss whose value and gradients are known, so that its passes take no time of their own."""

    @staticmethod
    def forward(ctx, grads: list[Tensor], *params: Tensor) -> Tensor:
        """Return 1."""
        ctx.grads = grads
        return params[0].new_ones(())

    @staticmethod
    def backward(ctx, factor: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients, multiplied by the factor of the loss in the Lagrangian."""
        return None, *torch._foreach_mul(ctx.grads, factor.item())


class Cooper(Contestant):
    """Cooper's simultaneous step on known gradients, with λ of our step and torch's fused SGD.

    It solves no QP: the multipliers are state, here initialised to those of our step, so that the first steps are the
    same.
    """

    def __init__(self, problem: Problem) -> None:
        import cooper

        super().__init__(problem)
        self.params = [torch.nn.Parameter(t) for t in problem.params]
        rows = torch.stack([torch.cat(grads) for grads in (problem.grads, *problem.constraint_grads)]).double()
        lam = torch.tensor(multipliers_of((rows @ rows.T).numpy()))
        cmp = _cooper_problem(cooper, problem, self.params, lam)
        self.optimizer = cooper.optim.SimultaneousOptimizer(
            cmp=cmp,
            primal_optimizers=torch.optim.SGD(self.params, lr=LR, fused=True),
            dual_optimizers=torch.optim.SGD(cmp.dual_parameters(), lr=1e-9, maximize=True),
        )

    @torch.enable_grad()
    def step(self) -> None:
        """Take one step."""
        self.optimizer.roll()


def _cooper_problem(cooper, problem: Problem, params: list[Tensor], lam: Tensor):
    class OfGradients(cooper.ConstrainedMinimizationProblem):
        def __init__(self) -> None:
            super().__init__()
            inequality, multiplier = cooper.ConstraintType.INEQUALITY, cooper.multipliers.DenseMultiplier
            for index, value in enumerate(lam):
                start = multiplier(init=value.reshape(1).float())
                constraint = cooper.Constraint(inequality, cooper.formulations.Lagrangian, start)
                setattr(self, f"constraint{index}", constraint)  # registers it

        def compute_cmp_state(self):
            states = {
                constraint: cooper.ConstraintState(violation=Given.apply(grads, *params))
                for constraint, grads in zip(self.constraints(), problem.constraint_grads, strict=True)
            }
            return cooper.CMPState(loss=Given.apply(problem.grads, *params), observed_constraints=states)

    return OfGradients()
