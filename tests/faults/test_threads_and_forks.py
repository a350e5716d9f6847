"""Threads and forks, as docs/reliability.md states them."""

import multiprocessing
import os
import signal
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import unlearn_ext as ux
from unlearn_ext.ops import extension

pytestmark = pytest.mark.skipif(extension.kernels is None, reason=extension.missing)
NUMEL = 300_001  # enough for several threads
DATA = torch.randn(2, NUMEL, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def several_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def train(seed: int, steps: int = 5) -> Tensor:
    """Train a new parameter for a few steps and return it: with one constraint, or three if the seed is even."""
    generator = torch.Generator().manual_seed(seed)
    param = nn.Parameter(torch.randn(NUMEL, generator=generator))
    names = [None] if seed % 2 else ["a", "b", "c"]
    control = ux.EpsilonGap(0.3) if seed % 2 else {name: ux.EpsilonGap(0.3) for name in names}
    optimizer = ux.EpsilonAdamW([param], lr=0.01, control=control, constraint_grad_ema=0.5, fused=True)
    for _ in range(steps):
        for shift, name in enumerate(names):
            param.grad = DATA[0].roll(shift)
            optimizer.hold_constraint(torch.tensor(1.0), name)
        param.grad = DATA[1].clone()
        optimizer.step()
    return param.detach()


def test_two_optimizers_in_two_threads_at_once():
    alone = [train(seed) for seed in (1, 2)]
    together: dict[int, Tensor] = {}
    start = threading.Barrier(2)

    def run(seed: int) -> None:
        start.wait()
        together[seed] = train(seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(together[seed], want) for seed, want in zip((1, 2), alone, strict=True))


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@needs_fork
def test_a_step_after_a_fork():
    """A forked child lacks the threads of its parent's OpenMP team; torch's kernels would wait for them."""
    psi, ours, theirs = torch.tensor(1e3), DATA[0].clone(), DATA[0].clone()
    torch.ops.unlearn_ext.halfspace_project_([ours], [DATA[1]], psi)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        torch.ops.unlearn_ext.halfspace_project_([theirs], [DATA[1]], psi)
        os._exit(0 if (ours.numpy() == theirs.numpy()).all() else 1)
    assert os.waitpid(child, 0)[1] == 0


class Steps(Dataset):
    """Every item trains a parameter in a worker."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return train(index, steps=2)


@needs_fork
def test_steps_in_the_workers_of_a_data_loader():
    want = [train(index, steps=2) for index in range(4)]
    context = multiprocessing.get_context("fork")
    loader = DataLoader(Steps(), batch_size=None, num_workers=2, multiprocessing_context=context, timeout=60)
    assert all(torch.equal(got, expected) for got, expected in zip(loader, want, strict=True))
