"""Muon, or any other torch optimizer, with a constraint: ``EpsilonWrapper`` corrects the step that it proposes."""

import copy

import torch
from torch import nn

import unlearn_ext as ux

EPSILON = 0.2


def main():
    """Train on synthetic data and print the result."""
    torch.manual_seed(0)
    linear = [nn.Linear(8, 64, bias=False), nn.Linear(64, 64, bias=False), nn.Linear(64, 4, bias=False)]
    model = nn.Sequential(linear[0], nn.Tanh(), linear[1], nn.Tanh(), linear[2])  # Muon steps matrices only
    original = copy.deepcopy(model)
    forget, retain = torch.randn(512, 8) + 1, torch.randn(512, 8) - 1
    with torch.no_grad():
        kept = original(retain)

    muon = torch.optim.Muon(model.parameters(), lr=5e-2, weight_decay=0.0)
    optimizer = ux.EpsilonWrapper(muon, control=ux.EpsilonGap(epsilon=EPSILON))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)  # of the wrapper; the groups are shared
    before = (model(forget) - 1).square().mean().item()
    for _ in range(600):
        rows = torch.randint(512, (2, 64))
        f1 = (model(forget[rows[0]]) - 1).square().mean()
        f1.backward()
        optimizer.hold_constraint(f1)
        f2 = (model(retain[rows[1]]) - kept[rows[1]]).square().mean()
        f2.backward()
        optimizer.step()  # Muon's step, corrected
        optimizer.zero_grad()
        schedule.step()

    with torch.no_grad():
        f1, f2 = (model(forget) - 1).square().mean().item(), (model(retain) - kept).square().mean().item()
    print(f"before {before:.3f}; reached f1 {f1:.4f}, asked ε = {EPSILON}; f2 {f2:.5f}")


if __name__ == "__main__":
    main()
