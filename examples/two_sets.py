"""Forget two sets, each to a degree of its own, without harm to a third: two constraints with names.

A classifier must give the labels of two of its classes a mean probability of ε, and keep the answers of the others.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import unlearn_ext as ux

EPSILON = {"class 0": 0.5, "class 1": 0.2}


def main():
    """Train a classifier on synthetic data, unlearn two classes and print the result."""
    torch.manual_seed(0)
    labels = torch.arange(2048) % 4
    points = torch.randn(4, 16)[labels] + torch.randn(2048, 16)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(200):
        cross_entropy(model(points), labels).backward()
        adam.step()
        adam.zero_grad()

    def probability(rows):
        return model(points[rows]).softmax(1).gather(1, labels[rows, None]).mean()

    retain = (labels > 1).nonzero()[:, 0]
    forget = {"class 0": (labels == 0).nonzero()[:, 0], "class 1": (labels == 1).nonzero()[:, 0]}
    with torch.no_grad():
        kept, before = model(points[retain]).softmax(1), probability(retain).item()
    control = {name: ux.EpsilonGap(epsilon, equality=True) for name, epsilon in EPSILON.items()}
    optimizer = ux.EpsilonAdamW(model.parameters(), lr=1e-3, weight_decay=0.0, control=control)
    for _ in range(400):
        for name, rows in forget.items():
            c = probability(rows[torch.randint(len(rows), (64,))])
            c.backward()
            optimizer.hold_constraint(c, name)
        i = torch.randint(len(retain), (64,))
        cross_entropy(model(points[retain[i]]), kept[i]).backward()
        optimizer.step()
        optimizer.zero_grad()

    with torch.no_grad():
        for name, rows in forget.items():
            print(f"{name}: reached f1 {probability(rows):.4f}, asked ε = {EPSILON[name]}")
        print(f"probability of the retained labels: {probability(retain):.4f}, before {before:.4f}")


if __name__ == "__main__":
    main()
