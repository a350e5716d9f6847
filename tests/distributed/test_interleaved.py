"""``optimizer.constraint`` under DistributedDataParallel with ``no_sync`` equals one process with the whole batch."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from training import CONTROLS, LOSSES, OPTIMIZERS, alone, batches, every_stats, network, retain_loss, share, whole


def interleaved(name, bucket_view, constraints):
    """Train with two micro-batches per process; only the last backward pass of each loss reduces."""
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters(), control=CONTROLS[constraints])
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=bucket_view)
    multipliers = []
    for forget, retain in batches():
        pairs = zip(share(forget).split([3, 1]), share(retain).split([1, 3]), strict=True)
        for index, (forget_part, retain_part) in enumerate(pairs):
            with ddp.no_sync() if index == 0 else nullcontext():
                for key in optimizer.control if constraints > 1 else [None]:
                    with optimizer.constraint(key) as hold:
                        value = LOSSES[key or "one"](ddp, forget_part) * len(forget_part) / 4
                        value.backward()
                        hold(value)
                (retain_loss(ddp, retain_part) * len(retain_part) / 4).backward()
        optimizer.step()
        optimizer.zero_grad()
        multipliers += [stats.lam.item() for stats in every_stats(optimizer)]
    return whole(model), multipliers


@pytest.mark.parametrize("constraints", [1, 3])
@pytest.mark.parametrize("bucket_view", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_processes_equal_one(processes, name, bucket_view, constraints):
    parameters, multipliers = alone(name, control=CONTROLS[constraints])
    first, second = processes.run(2, interleaved, name, bucket_view, constraints)
    assert max(multipliers) > 0
    assert all(map(torch.equal, first[0], second[0]))
    torch.testing.assert_close(first[0], parameters, rtol=1e-5, atol=1e-6)
    assert first[1] == second[1] == pytest.approx(multipliers, rel=1e-4)
