"""Time of a step for every optimizer, size and dtype, compared with the peers."""

from collections.abc import Callable
from functools import partial
from math import inf

import peers
import pytest
import torch
from peers import Contestant, Ours
from problems import SIZES, Problem
from race import cases, entered, facts, host_seconds, race, rounds_of

import unlearn_ext as ux

Make = Callable[[Problem], Contestant]

OPTIMIZERS: dict[str, Make] = {
    "sgd": partial(Ours, optimizer=ux.EpsilonSGD),
    "sgd-momentum": partial(Ours, optimizer=ux.EpsilonSGD, momentum=0.9),
    "adamw": partial(Ours, optimizer=ux.EpsilonAdamW),
}
#: Peers that compute the same step as ours; their results are compared.
SAME_STEP: dict[str, dict[str, Make]] = {
    "sgd": {
        "flattened": peers.Flattened,
        "loop": peers.Loop,
        "loop of dots": peers.LoopOfDots,
        "foreach": peers.Foreach,
        "compiled": peers.Compiled,
    },
}
OTHERS: dict[str, dict[str, Make]] = {
    "sgd": {"copy": peers.Copy, "fused SGD, free": peers.TorchSGD},
    "sgd-momentum": {"copy": peers.Copy},
    "adamw": {
        "copy": peers.Copy,
        "foreach + fused AdamW": peers.ForeachThenAdamW,
        "fused AdamW, free": peers.TorchAdamW,
    },
}
#: Minimum of elements per parameter that the two passes read and write.
ELEMENTS = {"sgd": 6, "sgd-momentum": 9, "adamw": 13}
#: Limit on tensors: torch.compile takes minutes for more, and a CUDA graph of loops has hundreds of thousands of nodes.
MOST = {"compiled": 100, "loop": 1000, "loop of dots": 1000}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("device", "size", "dtype"), cases(SIZES, [torch.float32, torch.bfloat16]))
def test_step(benchmark, optimizer, device, size, dtype):
    """Time a step; the peers that compute the same step must agree with it."""
    problem = Problem.random(size, dtype, device)
    same = {name: make for name, make in SAME_STEP.get(optimizer, {}).items() if size.count <= MOST.get(name, inf)}
    agree(OPTIMIZERS[optimizer], same, problem)
    copies = problem.copies()
    rivals = {name: entered(make, copies, device) for name, make in {**same, **OTHERS[optimizer]}.items()}
    floor = ELEMENTS[optimizer] * dtype.itemsize * size.total
    benchmark.extra_info.update(facts(size, dtype), suite="step", device=device, optimizer=optimizer, bytes=floor)
    if device == "cuda":
        free = [make for name, make in OTHERS[optimizer].items() if name.endswith("free")]
        ours, *theirs = (host_seconds(make(problem)) for make in [OPTIMIZERS[optimizer], *free])
        benchmark.extra_info.update(host=ours, host_free=theirs)
    race(benchmark, device, entered(OPTIMIZERS[optimizer], copies, device), rivals, rounds_of(size, device))


def agree(ours: Make, others: dict[str, Make], problem: Problem) -> None:
    """Check that all contestants give the same result up to rounding.

    Raises:
        AssertionError: names the contestant and the tensor that differ.
    """
    results = {}
    for name, make in {"ours": ours, **others}.items():
        contestant = make(problem.clone())
        with torch.no_grad():
            contestant.prepare()
            contestant.step()
        results[name] = [t.detach() for t in contestant.problem.params]
    for name, params in results.items():
        for index, (mine, theirs) in enumerate(zip(results["ours"], params, strict=True)):
            tolerance = 4 * torch.finfo(mine.dtype).eps
            torch.testing.assert_close(
                theirs, mine, rtol=tolerance, atol=tolerance, msg=lambda m, n=name, i=index: f"{n}, tensor {i}: {m}"
            )
