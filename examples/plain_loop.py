"""A constraint without unlearning: a classifier with a bounded loss on a rare class.

The overall cross-entropy is minimized while the rare class's cross-entropy is kept at ε. A class weight would need
tuning to reach this value; ε sets it directly.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import unlearn_ext as ux

EPSILON = 0.3  # cross-entropy of the rare class


def make_data(generator):
    """Return 1,900 points of class 0 and 100 of class 1, in two overlapping clouds, and their labels."""
    labels = (torch.arange(2000) >= 1900).long()
    return torch.randn(2000, 2, generator=generator) + 1.5 * labels[:, None], labels


def train(points, labels, control):
    """Train a classifier; return the rare class's cross-entropy f1, the overall one f2, and the rare class's recall."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = ux.EpsilonAdamW(model.parameters(), lr=3e-3, control=control or ux.EpsilonGap(EPSILON))
    rare = labels == 1
    for _ in range(400):
        if control is not None:  # without hold_constraint, the step is that of torch's AdamW
            f1 = cross_entropy(model(points[rare]), labels[rare])
            f1.backward()
            optimizer.hold_constraint(f1)
        f2 = cross_entropy(model(points), labels)
        f2.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        output = model(points)
        recall = (output[rare].argmax(1) == 1).float().mean().item()
        return cross_entropy(output[rare], labels[rare]).item(), cross_entropy(output, labels).item(), recall


def main():
    """Train without and with the constraint and print the results."""
    points, labels = make_data(torch.Generator().manual_seed(0))
    f1, f2, recall = train(points, labels, control=None)
    print(f"unconstrained: rare class {f1:.3f}, recall {recall:.2f}; overall f2 {f2:.3f}")
    f1, f2, recall = train(points, labels, ux.EpsilonGap(epsilon=EPSILON))
    print(f"constrained:   rare class f1 {f1:.4f}, asked ε = {EPSILON}, recall {recall:.2f}; overall f2 {f2:.3f}")


if __name__ == "__main__":
    main()
