"""Time of a step with an average of ∇c, compared with the same step without it and with plain torch; on the CPU."""

from functools import partial

import peers
import pytest
import several
import torch
from peers import Ours
from problems import SIZES, Problem
from race import cases, entered, facts, race, rounds_of
from test_step import agree

import unlearn_ext as ux

DECAY = 0.9
ELEMENTS = 16  # per parameter: 13 of AdamW; the average is read twice and written once


@pytest.mark.parametrize(("device", "size", "dtype"), cases({"cpu": SIZES["cpu"][:3]}, [torch.float32]))
def test_averaged(benchmark, device, size, dtype):
    """Time a step of AdamW; the step of plain torch must agree with it."""
    averaged = partial(Ours, optimizer=ux.EpsilonAdamW, constraint_grad_ema=DECAY)
    foreach = partial(several.ForeachAdamW, decay=DECAY)
    problem = Problem.random(size, dtype, device)
    agree(averaged, {"foreach": foreach}, problem)
    made = {"foreach": foreach, "not averaged": partial(Ours, optimizer=ux.EpsilonAdamW), "copy": peers.Copy}
    contestants = {name: entered(make, [problem], device) for name, make in made.items()}
    floor = ELEMENTS * dtype.itemsize * size.total
    benchmark.extra_info.update(facts(size, dtype), suite="averaged", device=device, optimizer="adamw", bytes=floor)
    race(benchmark, device, entered(averaged, [problem], device), contestants, min(50, rounds_of(size, device)))
