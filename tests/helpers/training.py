"""One small constrained problem, trained on whole minibatches or on this process's part of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

import unlearn_ext as ux

CONTROL = ux.EpsilonGap(epsilon=0.05, rate=0.2)
#: Controls for one constraint without a name, and for three with names.
CONTROLS = {
    1: CONTROL,
    3: {
        "one": ux.EpsilonGap(0.1, rate=0.05),
        "along 0": ux.EpsilonGap(0.9, rate=0.1),
        "along 1": ux.EpsilonGap(0.9, rate=0.1),
    },
}
OPTIMIZERS = {
    "sgd": lambda params, **options: ux.EpsilonSGD(
        params, **{"lr": 0.05, "momentum": 0.9, "control": CONTROL, **options}
    ),
    "adamw": lambda params, **options: ux.EpsilonAdamW(
        params, **{"lr": 0.01, "weight_decay": 0.1, "control": CONTROL, **options}
    ),
}
STEPS = 6


def network() -> nn.Module:
    """Return layers of 5, 3 and 1 rows: over two processes, shards are uneven and some are empty."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1))


def batches(start: int = 0, steps: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield forget and retain images [8, 6] of each step; f1 differs between the halves of the forget images."""
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        forget, retain = torch.randn(2, 8, 6, generator=generator)
        yield forget * torch.linspace(0.2, 2, 8)[:, None], retain


def share(images: Tensor) -> Tensor:
    """Return this process's part of a minibatch."""
    return images.tensor_split(dist.get_world_size())[dist.get_rank()]


def divide(model: nn.Module, mesh_shape: tuple[int, ...]) -> nn.Module:
    """Apply ``fully_shard`` over a one-dimensional mesh, or over the second dimension of a two-dimensional one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=("replicate", "shard")[-len(mesh_shape) :])
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    return model


def forget_loss(model: nn.Module, images: Tensor) -> Tensor:
    return (model(images) - 1).square().mean()


#: The constraints by name; the values of each differ between the halves of the forget images.
LOSSES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "one": forget_loss,
    "along 0": lambda model, images: (model(images) - images[:, :1].sign()).square().mean(),
    "along 1": lambda model, images: (model(images) - images[:, 1:2].sign()).square().mean(),
}


def retain_loss(model: nn.Module, images: Tensor) -> Tensor:
    return (model(images) - images[:, :1].sin()).square().mean()


def train(
    model: nn.Module,
    optimizer: ux.EpsilonSGD | ux.EpsilonAdamW,
    share: Callable = lambda x: x,
    start: int = 0,
    steps: int = STEPS,
) -> list[float]:
    """Train and return λ of every step; with several constraints, those of one step after the other."""
    multipliers = []
    for forget, retain in batches(start, steps):
        for name in optimizer.control if isinstance(optimizer.control, dict) else [None]:
            f1 = LOSSES[name or "one"](model, share(forget))
            f1.backward()
            optimizer.hold_constraint(f1, name)
        retain_loss(model, share(retain)).backward()
        optimizer.step()
        optimizer.zero_grad()
        multipliers += [stats.lam.item() for stats in every_stats(optimizer)]
    return multipliers


def every_stats(optimizer: ux.EpsilonSGD | ux.EpsilonAdamW) -> list[ux.StepStats]:
    """Return the stats of each constraint."""
    return list(optimizer.stats.values()) if isinstance(optimizer.control, dict) else [optimizer.stats]


def train_without_constraint(model: nn.Module, optimizer: torch.optim.Optimizer, share: Callable = lambda x: x) -> None:
    """Train on the objective alone."""
    for _, retain in batches():
        retain_loss(model, share(retain)).backward()
        optimizer.step()
        optimizer.zero_grad()


def whole(model: nn.Module) -> list[Tensor]:
    """Return the full parameters, detached."""
    return [(p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone() for p in model.parameters()]


def alone(name: str, **options) -> tuple[list[Tensor], list[float]]:
    """Train on whole minibatches in one process; return the parameters and every λ."""
    model = network()
    multipliers = train(model, OPTIMIZERS[name](model.parameters(), **options))
    return whole(model), multipliers
