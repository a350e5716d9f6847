"""Time and extra memory of our step for 10⁴ to 10⁹ parameters and 1 to 5,000 tensors."""

import memory
import peers
import pytest
import torch
from problems import Problem, Size
from race import cases, entered, facts, race, rounds_of
from test_step import ELEMENTS, OPTIMIZERS

SIZES = [Size(10**n, 100) for n in range(4, 10)] + [Size(10**7, count) for count in (1, 10, 1000, 5000)]


@pytest.mark.parametrize(("device", "size", "dtype"), cases({"cpu": SIZES, "cuda": SIZES}, [torch.float32]))
def test_scaling(benchmark, device, size, dtype):
    """Time a step and measure its extra memory; sizes that do not fit into memory are skipped."""
    needed = (4 if device == "cpu" else 10) * dtype.itemsize * size.total
    if needed > (free := memory.free(device)):
        pytest.skip(f"needs {needed / 2**30:.0f} GiB on the {device}, where {free / 2**30:.0f} GiB are free")
    extra = extra_memory(device, size, dtype)
    problem = Problem.random(size, dtype, device)
    copies = problem.copies()
    floor = ELEMENTS["sgd"] * dtype.itemsize * size.total
    benchmark.extra_info.update(facts(size, dtype), suite="scaling", device=device, optimizer="sgd", bytes=floor)
    benchmark.extra_info["extra_memory"] = extra
    race(
        benchmark,
        device,
        entered(OPTIMIZERS["sgd"], copies, device),
        {"copy": entered(peers.Copy, copies, device)},
        rounds_of(size, device),
    )


def extra_memory(device: str, size: Size, dtype: torch.dtype) -> int:
    """Return the extra memory of the first step of this size; a small step before it loads all code."""
    contestants = [OPTIMIZERS["sgd"](Problem.random(s, dtype, device)) for s in (Size(1_000_000, 10), size)]
    for contestant in contestants:
        contestant.prepare()
    contestants[0].step()
    return memory.peak_of(contestants[1].step, device)
