"""A t-SNE map (van der Maaten and Hinton, 2008) of images and reconstructions in an extractor's feature space."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from ..metrics import Extractor
from ..metrics.features import extract
from ..reproduction.pictures import KINDS, Sets
from ..unlearning.batches import pixels
from .style import BLUE, INK, ORANGE, style

__all__ = ["embedding"]

_PERPLEXITY = 30
_LOOKS = {"forget": {"color": ORANGE, "marker": "o"}, "retain": {"color": BLUE, "marker": "^"}}


def embedding(panels: Mapping[str, Sets], extractor: Extractor) -> Figure:
    """Draw one t-SNE map of all pictures, with one panel per set of pictures.

    Args:
        panels: pictures by panel title; the first are the originals, drawn pale in the background of all other panels.
        extractor: the feature extractor.
    """
    places = _places(panels, extractor)
    originals = np.concatenate(list(places[0].values()))
    with style():
        figure = Figure(figsize=(3 * len(panels), 3.6))
        row = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
        for axes, title, sets in zip(row, panels, places, strict=True):
            if sets is not places[0]:
                axes.scatter(*originals.T, s=12, color=INK, alpha=0.18, linewidth=0, label="real images")
            for kind, place in sets.items():
                axes.scatter(*place.T, s=18, alpha=0.8, linewidth=0, label=f"to {kind}", **_LOOKS[kind])
            axes.set_title(title)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, alpha=0.3)
        figure.legend(*row[-1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return figure


def _places(panels: Mapping[str, Sets], extractor: Extractor) -> list[dict[str, np.ndarray]]:
    """Return the map positions, [N, 2], of each kind of images in each panel."""
    stacks = [torch.from_numpy(sets[kind]) for sets in panels.values() for kind in KINDS]
    features = torch.cat([extract(extractor, pixels(stack)) for stack in stacks]).cpu().numpy()
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    found = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)
    parts = iter(np.split(found, np.cumsum([len(stack) for stack in stacks])[:-1]))
    return [{kind: next(parts) for kind in KINDS} for _ in panels]
