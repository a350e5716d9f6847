"""accelerate with FSDP2: sharded parameters; each process holds the constraint of its share of the data.

Start it on two GPUs with ``accelerate launch --use_fsdp --fsdp_version 2 --num_processes 2 accelerate_fsdp2.py``. In a
single process without a GPU, accelerate does not shard, and the loop is the same.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import unlearn_ext as ux

EPSILON = 0.1


def train(accelerator):
    """Train on synthetic data; return f1 over the whole forget set."""
    set_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 4))
    target = nn.Linear(8, 4)
    forget, retain = torch.randn(512, 8), torch.randn(512, 8)
    with torch.no_grad():
        data = TensorDataset(forget, retain, target(retain))
    loader = DataLoader(data, batch_size=32, shuffle=True)
    optimizer = ux.EpsilonAdamW(model.parameters(), lr=2e-3, weight_decay=0.0, control=ux.EpsilonGap(EPSILON))
    # `prepare` shards the model, and replaces the parameters in the optimizer's groups by the shards.
    model, prepared, loader = accelerator.prepare(model, optimizer, loader)

    for _ in range(40):
        for forgotten, images, kept in loader:
            f1 = model(forgotten).square().mean()
            accelerator.backward(f1)  # averages ∇f1 over the processes
            optimizer.hold_constraint(f1, scaler=accelerator.scaler)  # averages f1; of the original, not of `prepared`
            accelerator.backward((model(images) - kept).square().mean())
            prepared.step()
            prepared.zero_grad()

    with torch.no_grad():
        return model(forget.to(accelerator.device)).square().mean().item()


def main():
    """Train and print the result."""
    accelerator = Accelerator()
    accelerator.print(f"reached f1 {train(accelerator):.4f}, asked ε = {EPSILON}")


if __name__ == "__main__":
    main()
