"""Activation checkpointing: torch.utils.checkpoint for both losses; the use of the optimizer does not change.

The constraint's backward pass ends before the objective's forward pass begins, so only one loss's activations are in
memory at a time, and checkpointing reduces them. The constraint adds one more set of gradients.
"""

import copy

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

import unlearn_ext as ux

EPSILON = 0.2


def main():
    """Train on synthetic data and print the result."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(8)]
    model = nn.Sequential(nn.Linear(8, 64), *blocks, nn.Linear(64, 4))
    original = copy.deepcopy(model)
    forget, retain = torch.randn(256, 8) + 1, torch.randn(256, 8) - 1
    with torch.no_grad():
        kept = original(retain)

    def forward(images):  # four segments: only their inputs are stored, the rest is recomputed
        return checkpoint_sequential(model, 4, images, use_reentrant=False)

    optimizer = ux.EpsilonAdamW(model.parameters(), lr=1e-3, weight_decay=0.0, control=ux.EpsilonGap(epsilon=EPSILON))
    before = (forward(forget) - 1).square().mean().item()
    for _ in range(100):
        f1 = (forward(forget) - 1).square().mean()
        f1.backward()
        optimizer.hold_constraint(f1)
        f2 = (forward(retain) - kept).square().mean()
        f2.backward()
        optimizer.step()
        optimizer.zero_grad()

    with torch.no_grad():
        f1, f2 = (model(forget) - 1).square().mean().item(), (model(retain) - kept).square().mean().item()
    print(f"before {before:.4f}; reached f1 {f1:.4f}, asked ε = {EPSILON}; f2 {f2:.5f}")


if __name__ == "__main__":
    main()
