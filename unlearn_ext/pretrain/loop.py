"""The training loop of the small models of all families."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..models import I2IModel
from ..tasks import Corruption
from ..unlearning.progress import Callback, Progress, Throttle
from .recipe import Minibatches, Recipe

__all__ = ["train"]


def train(
    images: torch.Tensor, task: Corruption, seed: int, recipe: Recipe, progress: Callback | None = None
) -> I2IModel:
    """Train a model to fill in what a task hides; the global random number generator does not change.

    Args:
        images: uint8 [N, C, S, S], or float in [-1, 1].
        task: the task T.
        seed: random seed of initial weights, minibatches and noise.
        recipe: architecture and training.
        progress: called at most ten times per second, with the training loss as f2.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = recipe.build(images.shape[1], images.shape[-1])
    batches = Minibatches(images, recipe.batch_size, torch.Generator().manual_seed(seed))
    throttle = Throttle()
    with _all_of_it_trained(model.module) as module:
        optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.lr, weight_decay=0.01, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=recipe.steps, pct_start=0.15)
        for step in range(recipe.steps):
            loss = recipe.loss(model, batches, task, step)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if progress is not None and throttle.due():
                progress(Progress("pretrain", 0, 1, step + 1, recipe.steps, math.nan, loss.item(), math.nan))
    return model


@contextmanager
def _all_of_it_trained(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Temporarily unfreeze all parameters and use channels-last format."""
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    module.requires_grad_(True)
    # In channels-last format, convolutions with few channels take about a third less time on a CPU.
    yield module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch does not declare it
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for parameter in frozen:
        parameter.requires_grad_(False)
