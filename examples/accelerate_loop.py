"""Hugging Face accelerate: prepare, gradient accumulation, clipping; in one process or several.
`prepare` wraps the optimizer; `hold_constraint` and `stats` are those of the one within, `prepared.optimizer`.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import unlearn_ext as ux

EPSILON, MICRO_BATCHES = 0.1, 4


def micro_batches(loader):
    """Lists of MICRO_BATCHES batches, epoch after epoch."""
    while True:
        batches = [images for (images,) in loader]
        for start in range(0, len(batches) - MICRO_BATCHES + 1, MICRO_BATCHES):
            yield batches[start : start + MICRO_BATCHES]


def main():
    set_seed(0)
    # Whole groups are counted out below: the end of a data loader must not force a step in the midst of one.
    plugin = GradientAccumulationPlugin(num_steps=MICRO_BATCHES, sync_with_dataloader=False)
    accelerator = Accelerator(gradient_accumulation_plugin=plugin)
    encoder = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 4))
    frozen = nn.Linear(8, 4).to(accelerator.device)
    sets = [TensorDataset(torch.randn(512, 8)) for _ in range(2)]
    control = ux.EpsilonGap(epsilon=EPSILON, integral=0.1)
    optimizer = ux.EpsilonAdamW(encoder.parameters(), lr=2e-3, weight_decay=0.0, control=control)
    loaders = [DataLoader(images, batch_size=32, shuffle=True) for images in sets]
    model, prepared, forget, retain = accelerator.prepare(encoder, optimizer, *loaders)

    for _, forget_group, retain_group in zip(range(200), micro_batches(forget), micro_batches(retain), strict=False):
        value = 0.0
        for images in forget_group:  # the constraint's micro-batches first, all of them
            with accelerator.accumulate(model):
                f1 = model(images).square().mean()
                accelerator.backward(f1)  # divides by MICRO_BATCHES; averages over the processes in the last one
                value = value + f1.detach() / MICRO_BATCHES
        optimizer.hold_constraint(value, accelerator.scaler)  # once, when the gradient is complete
        for images in retain_group:
            with accelerator.accumulate(model):
                accelerator.backward((model(images) - frozen(images).detach()).square().mean())
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)  # ∇f2 alone: the promise about f1 stands
                prepared.step()  # steps in the last micro-batch only
                prepared.zero_grad()

    with torch.no_grad():
        f1 = model(sets[0].tensors[0].to(accelerator.device)).square().mean().item()
    accelerator.print(f"reached f1 {f1:.4f}, asked ε = {EPSILON}; λ of the last step {optimizer.stats.lam.item():.3f}")


if __name__ == "__main__":
    main()
