"""Time of a step with 2, 4 and 8 constraints, compared with plain torch, TorchJD and Cooper; on the CPU."""

from functools import partial

import peers
import pytest
import rivals
import several
import torch
from peers import Contestant, Ours
from problems import SIZES, Problem
from race import cases, entered, facts, race, rounds_of
from test_step import Make, agree

import unlearn_ext as ux

OPTIMIZERS: dict[str, Make] = {
    "sgd": partial(Ours, optimizer=ux.EpsilonSGD),
    "adamw": partial(Ours, optimizer=ux.EpsilonAdamW),
}
#: Peers that compute the same step as ours; their results are compared.
SAME_STEP: dict[str, dict[str, Make]] = {
    "sgd": {
        "foreach, dots": several.ForeachDots,
        "stacked": several.Stacked,
        "in one matrix": several.InMatrix,
        "compiled": several.Compiled,
    },
    "adamw": {"foreach": several.ForeachAdamW},
}
OTHERS: dict[str, dict[str, Make]] = {"sgd": {"copy": peers.Copy}, "adamw": {"copy": peers.Copy}}
if not rivals.missing("cooper"):
    SAME_STEP["sgd"]["Cooper"] = rivals.Cooper
if not rivals.missing("torchjd"):
    OTHERS["sgd"]["TorchJD PCD"] = rivals.PCD
if not rivals.missing("torchjd", "qpsolvers", "quadprog"):
    OTHERS["sgd"]["TorchJD UPGrad"] = rivals.UPGrad


def elements(optimizer: str, constraints: int) -> int:
    """Return the minimum of elements per parameter that the two passes read and write."""
    return (4 if optimizer == "sgd" else 11) + 2 * constraints


@pytest.mark.parametrize("constraints", [2, 4, 8])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("device", "size", "dtype"), cases({"cpu": SIZES["cpu"][:3]}, [torch.float32]))
def test_several(benchmark, optimizer, constraints, device, size, dtype):
    """Time a step; the peers that compute the same step must agree with it."""
    problem = Problem.random(size, dtype, device, constraints=constraints)
    agree(OPTIMIZERS[optimizer], SAME_STEP[optimizer], problem)
    if rivals.PCD in OTHERS[optimizer].values():
        same_direction(OPTIMIZERS[optimizer], rivals.PCD, problem)
    made = {**SAME_STEP[optimizer], **OTHERS[optimizer]}
    contestants = {name: entered(make, [problem], device) for name, make in made.items()}
    floor = elements(optimizer, constraints) * dtype.itemsize * size.total
    benchmark.extra_info.update(facts(size, dtype), suite=f"K = {constraints}", device=device, optimizer=optimizer)
    benchmark.extra_info["bytes"] = floor
    ours = entered(OPTIMIZERS[optimizer], [problem], device)
    rounds = max(5, min(20, rounds_of(size, device) // constraints))  # some peers take seconds
    race(benchmark, device, ours, contestants, rounds)


def same_direction(ours: Make, theirs: Make, problem: Problem) -> None:
    """Check that two contestants step in the same direction, to rounding; the lengths may differ."""
    mine, other = (unit_step(make(problem.clone())) for make in (ours, theirs))
    assert (mine - other).norm() < 1e-4, (mine - other).norm()


def unit_step(contestant: Contestant) -> torch.Tensor:
    """Return the change of all parameters in one step, float64, divided by its norm."""
    before = torch.cat([t.double() for t in contestant.problem.params])
    with torch.no_grad():
        contestant.prepare()
        contestant.step()
    change = torch.cat([t.double() for t in contestant.problem.params]) - before
    return change / change.norm()
