"""Draws docs/families.png: retained digits, and what each small model makes of them."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from unlearn_ext import demo

COLUMNS = 8


@torch.no_grad()
def rows(family: str) -> list[torch.Tensor]:
    model, images = demo.prepare(family)
    digits = images.retain_validation[:COLUMNS]
    inputs = model.inputs(digits, demo.TASK)
    return [
        digits,
        demo.TASK(digits),
        model.decode(model.encode(*inputs), *inputs).clamp(-1, 1),
    ]


answers = {family: rows(family) for family in demo.SETTINGS}
original, corrupted, _ = next(iter(answers.values()))
shown = {"original": original, "corrupted": corrupted} | {
    family: made[-1] for family, made in answers.items()
}
figure, axes = plt.subplots(
    len(shown), figsize=(6, 0.75 * len(shown)), layout="constrained"
)
for ax, (label, tiles) in zip(axes, shown.items(), strict=True):
    ax.imshow(torch.cat(list(tiles[:, 0]), 1), cmap="gray", vmin=-1, vmax=1)
    ax.set(xticks=[], yticks=[])
    ax.set_ylabel(label, rotation=0, ha="right", va="center")
figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)
