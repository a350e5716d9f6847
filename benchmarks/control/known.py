"""Problems whose optimum is known: steps until x stays within 1e-3 of it, beside Cooper's optimizers if installed.

Every optimizer has the learning rate ``LR``, no weight decay, and otherwise its defaults; Cooper's are on SGD. Cooper
has no default for the learning rate of its multipliers: the best one of ``DUAL_LRS`` counts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unlearn_ext as ux

STEPS, NEAR, LR = 1000, 1e-3, 0.1
DUAL_LRS = (0.01, 0.1, 1.0)


@dataclass
class Known:
    """Minimise f(x) subject to c_i(x) ≤ 0, or = 0 for an equality; x is a vector.

    Attributes:
        start: x before the first step.
        objective: f.
        constraints: every c_i.
        equalities: names of those that are equalities.
    """

    start: Tensor
    objective: Callable[[Tensor], Tensor]
    constraints: dict[str, Callable[[Tensor], Tensor]]
    equalities: tuple[str, ...] = ()

    def optimum(self) -> Tensor:
        """Return x* by SLSQP in float64."""
        from scipy.optimize import minimize

        def with_slope(function: Callable[[Tensor], Tensor], sign: float) -> tuple[Any, Any]:
            def value(x: Any) -> float:
                return sign * function(torch.from_numpy(x)).item()

            def slope(x: Any) -> Any:
                leaf = torch.from_numpy(x).requires_grad_()
                return sign * torch.autograd.grad(function(leaf), leaf)[0].numpy()

            return value, slope

        bounds = []
        for name, constraint in self.constraints.items():
            value, slope = with_slope(constraint, -1.0)
            bounds.append({"type": "eq" if name in self.equalities else "ineq", "fun": value, "jac": slope})
        value, slope = with_slope(self.objective, 1.0)
        options = {"ftol": 1e-15, "maxiter": 1000}
        start = self.start.double().numpy()
        found = minimize(value, start, jac=slope, method="SLSQP", constraints=bounds, options=options)
        return torch.from_numpy(found.x)


def linear() -> Known:
    """Return Cooper's x² + 2y² with x + y ≥ 1 and x² + y ≤ 1; the optimum is (2/3, 1/3)."""
    return Known(
        torch.tensor([0.0, -1.0]),
        lambda x: x[0] ** 2 + 2 * x[1] ** 2,
        {"line": lambda x: 1 - x.sum(), "parabola": lambda x: x[0] ** 2 + x[1] - 1},
    )


def two_linear() -> Known:
    """Return the squared norm with two linear constraints, both active; the optimum is (0.6, 0.8)."""
    return Known(
        torch.tensor([0.0, 0.0]),
        lambda x: x.square().sum(),
        {"first": lambda x: 2.2 - x[0] - 2 * x[1], "second": lambda x: 2.0 - 2 * x[0] - x[1]},
    )


def circle() -> Known:
    """Return x + y in the unit circle."""
    return Known(torch.tensor([0.5, -0.2]), torch.sum, {"circle": lambda x: x.square().sum() - 1})


def maximum_entropy() -> Known:
    """Return the distribution of a die with a mean of 4.5 and the largest entropy, by two equalities."""
    faces = torch.arange(1, 7)
    return Known(
        torch.full((6,), 1 / 6),
        lambda x: torch.special.xlogy(x, x.clamp_min(1e-6)).sum(),
        {"sum": lambda x: x.sum() - 1, "mean": lambda x: (faces * x).sum() - 4.5},
        ("sum", "mean"),
    )


def logistic() -> Known:
    """Return logistic regression with ‖w‖² ≤ 1; w's unbounded optimum is longer."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 3, generator=generator)
    noise = 0.3 * torch.randn(200, generator=generator)
    label = (features @ torch.tensor([2.0, -1.0, 0.5]) + noise > 0).double()
    return Known(
        torch.zeros(3),
        lambda x: F.binary_cross_entropy_with_logits(features.to(x.dtype) @ x, label.to(x.dtype)),
        {"norm": lambda x: x.square().sum() - 1},
    )


def quadratics(count: int) -> Known:
    """Return a quadratic form with bounds on others, as in TorchJD's tests; some bounds are inactive."""
    generator = torch.Generator().manual_seed(1)
    roots = torch.randn(count + 1, 5, 5, generator=generator, dtype=torch.float64) / 5**0.5
    centres = torch.randn(count + 1, 5, generator=generator, dtype=torch.float64)
    forms = roots @ roots.mT + 0.2 * torch.eye(5, dtype=torch.float64)

    def form(x: Tensor, index: int) -> Tensor:
        away = x - centres[index].to(x.dtype)
        return away @ forms[index].to(x.dtype) @ away / 2

    middle = centres[1:].mean(0)
    bounds = [1.1 * form(middle, index).item() for index in range(1, count + 1)]
    return Known(
        centres[0].float(),
        lambda x: form(x, 0),
        {f"form {i}": lambda x, i=i: form(x, i) - bounds[i - 1] for i in range(1, count + 1)},  # type: ignore[misc]
    )


KNOWN: dict[str, Callable[[], Known]] = {
    "line and parabola": linear,
    "two linear": two_linear,
    "circle": circle,
    "maximum entropy": maximum_entropy,
    "logistic, ‖w‖² ≤ 1": logistic,
    "3 quadratic forms": partial(quadratics, 3),
    "6 quadratic forms": partial(quadratics, 6),
}

Path = Iterator[Tensor]  # x after every step


def _ours(make: Callable[[list[Tensor], Any], Any], problem: Known) -> Path:
    x = nn.Parameter(problem.start.clone())
    control = {name: ux.EpsilonGap(0.0, equality=name in problem.equalities) for name in problem.constraints}
    optimizer = make([x], control)
    while True:
        for name, constraint in problem.constraints.items():
            value = constraint(x)
            value.backward()
            optimizer.hold_constraint(value, name)
        problem.objective(x).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield x.detach()


def _coopers(name: str, problem: Known, dual_lr: float) -> Path:
    import cooper

    kinds, optim = cooper.ConstraintType, cooper.optim

    class Problem(cooper.ConstrainedMinimizationProblem):
        def __init__(self) -> None:
            super().__init__()
            for key in problem.constraints:
                kind = kinds.EQUALITY if key in problem.equalities else kinds.INEQUALITY
                multiplier = cooper.multipliers.DenseMultiplier(num_constraints=1)
                formulation = cooper.formulations.Lagrangian
                setattr(self, key, cooper.Constraint(kind, multiplier=multiplier, formulation_type=formulation))

        def compute_cmp_state(self) -> Any:
            states = {
                getattr(self, key): cooper.ConstraintState(violation=constraint(x).reshape(1))
                for key, constraint in problem.constraints.items()
            }
            return cooper.CMPState(loss=problem.objective(x), observed_constraints=states)

    x, cmp = nn.Parameter(problem.start.clone()), Problem()
    primal: Any = optim.ExtraSGD if name == "extragradient" else torch.optim.SGD
    dual: Any = partial(optim.nuPI, Kp=1.0, Ki=1.0) if name == "νPI" else primal
    kind = {
        "alternating": optim.AlternatingDualPrimalOptimizer,
        "extragradient": optim.ExtrapolationConstrainedOptimizer,
    }.get(name, optim.SimultaneousOptimizer)
    optimizer = kind(cmp, primal([x], lr=LR), dual(cmp.dual_parameters(), lr=dual_lr, maximize=True))
    while True:
        optimizer.roll()
        yield x.detach()


OURS: dict[str, Callable[[list[Tensor], Any], Any]] = {
    "EpsilonSGD": lambda params, control: ux.EpsilonSGD(params, lr=LR, control=control),
    "EpsilonAdamW": lambda params, control: ux.EpsilonAdamW(params, lr=LR, weight_decay=0.0, control=control),
    "wrapped AdamW": lambda params, control: ux.EpsilonWrapper(
        torch.optim.AdamW(params, lr=LR, weight_decay=0.0), control
    ),
    "wrapped SGD": lambda params, control: ux.EpsilonWrapper(torch.optim.SGD(params, lr=LR), control),
}
COOPER = ("simultaneous", "alternating", "νPI", "extragradient") if importlib.util.find_spec("cooper") else ()


@dataclass
class Arrival:
    """How near an optimizer comes to the optimum.

    Attributes:
        steps: number of steps after which x stays within ``NEAR`` of x*; ``None`` if it does not.
        end: |x − x*| at the end.
    """

    steps: int | None
    end: float


def arrival(path: Path, optimum: Tensor) -> Arrival:
    """Follow a path for ``STEPS`` steps."""
    away = [(x.double() - optimum).norm().item() for x in islice(path, STEPS)]
    far = [step for step, distance in enumerate(away) if not distance < NEAR]
    steps = far[-1] + 2 if far else 1
    return Arrival(steps if steps <= STEPS else None, away[-1])


def rows(problem: Known) -> dict[str, Arrival]:
    """Return the arrival of every optimizer."""
    optimum = problem.optimum()
    arrivals = {name: arrival(_ours(make, problem), optimum) for name, make in OURS.items()}
    for name in COOPER:
        tries = [arrival(_coopers(name, problem, dual_lr), optimum) for dual_lr in DUAL_LRS]
        arrivals[name] = min(tries, key=lambda found: (found.steps or STEPS + 1, found.end))
    return arrivals
