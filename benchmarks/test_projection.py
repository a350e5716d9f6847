"""Time of the projection of a gradient onto a halfspace through ``ux.ops``, compared with the peers."""

import peers
import pytest
import torch
from problems import SIZES, Problem
from race import cases, entered, facts, race, rounds_of

PEERS = {"flattened": peers.FlattenedProjection, "foreach": peers.ForeachProjection}
ELEMENTS = 5  # per parameter: g1 and g2 are read twice, g is written once


@pytest.mark.parametrize(("device", "size", "dtype"), cases(SIZES, [torch.float32]))
def test_projection(benchmark, device, size, dtype):
    """Time the projection; the peers must agree with it."""
    problem = Problem.random(size, dtype, device)
    for name, make in PEERS.items():
        theirs, mine = make(problem.clone()), peers.OurProjection(problem.clone())
        theirs.step()
        mine.step()
        for want, got in zip(theirs.problem.grads, mine.problem.grads, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    copies = problem.copies()
    rivals = {name: entered(make, copies, device) for name, make in {**PEERS, "copy": peers.Copy}.items()}
    floor = ELEMENTS * dtype.itemsize * size.total
    benchmark.extra_info.update(facts(size, dtype), suite="projection", device=device, optimizer="project", bytes=floor)
    race(benchmark, device, entered(peers.OurProjection, copies, device), rivals, rounds_of(size, device))
