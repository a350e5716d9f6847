"""Hugging Face accelerate: prepare, gradient accumulation and clipping, in one process or several."""

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import unlearn_ext as ux

EPSILON, MICRO_BATCHES = 0.1, 4


def micro_batches(loader):
    """Yield lists of MICRO_BATCHES batches, without end."""
    while True:
        batches = [images for (images,) in loader]
        for start in range(0, len(batches) - MICRO_BATCHES + 1, MICRO_BATCHES):
            yield batches[start : start + MICRO_BATCHES]


def main():
    """Train on synthetic data and print the result."""
    set_seed(0)
    # Groups of micro-batches are complete; the end of a data loader must not force a step within a group.
    plugin = GradientAccumulationPlugin(num_steps=MICRO_BATCHES, sync_with_dataloader=False)
    accelerator = Accelerator(gradient_accumulation_plugin=plugin)
    encoder = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 4))
    frozen = nn.Linear(8, 4).to(accelerator.device)
    sets = [TensorDataset(torch.randn(512, 8)) for _ in range(2)]
    control = ux.EpsilonGap(epsilon=EPSILON)
    optimizer = ux.EpsilonAdamW(encoder.parameters(), lr=2e-3, weight_decay=0.0, control=control)
    loaders = [DataLoader(images, batch_size=32, shuffle=True) for images in sets]
    # `prepare` wraps the optimizer; use `hold_constraint` and `stats` of the original, `prepared.optimizer`.
    model, prepared, forget, retain = accelerator.prepare(encoder, optimizer, *loaders)

    for _, forget_group, retain_group in zip(range(200), micro_batches(forget), micro_batches(retain), strict=False):
        value = 0.0
        for images in forget_group:  # first all micro-batches of the constraint
            with accelerator.accumulate(model):
                f1 = model(images).square().mean()
                accelerator.backward(f1)  # divides by MICRO_BATCHES; averages over processes in the last micro-batch
                value = value + f1.detach() / MICRO_BATCHES
        optimizer.hold_constraint(value, scaler=accelerator.scaler)  # once, after all micro-batches
        for images in retain_group:
            with accelerator.accumulate(model):
                accelerator.backward((model(images) - frozen(images).detach()).square().mean())
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)  # clips ∇f2 only; the bound on f1 still holds
                prepared.step()  # takes a step in the last micro-batch only
                prepared.zero_grad()

    with torch.no_grad():
        f1 = model(sets[0].tensors[0].to(accelerator.device)).square().mean().item()
    accelerator.print(f"reached f1 {f1:.4f}, asked ε = {EPSILON}; λ of the last step {optimizer.stats.lam.item():.3f}")


if __name__ == "__main__":
    main()
