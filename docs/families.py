"""Draws docs/families.png: retained digits, and what each small model makes of them."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from unlearn_ext import demo, models
from unlearn_ext.unlearning.batches import pixels

COLUMNS = 8

shown = {}
for family in demo.CHOICES:
    model, images = demo.prepare(family)
    digits = pixels(images.retain_validation[:COLUMNS])
    # Diffusion, which comes last, has them half as large.
    shown = {"original": digits, "corrupted": demo.TASK(digits)} | shown
    shown[family] = models.reconstruct(model, digits, demo.TASK)

figure, axes = plt.subplots(
    len(shown), figsize=(6, 0.75 * len(shown)), layout="constrained"
)
for ax, (label, tiles) in zip(axes, shown.items(), strict=True):
    ax.imshow(torch.cat(list(tiles[:, 0]), 1), cmap="gray", vmin=-1, vmax=1)
    ax.set(xticks=[], yticks=[])
    ax.set_ylabel(label, rotation=0, ha="right", va="center")
figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)
