"""Composite: min f2 + w·f1 (Li et al., ICLR 2024)."""

from .method import Method

__all__ = ["Composite"]


class Composite(Method):
    """The weighted sum. The final f1 for a weight is known only after training; the authors use 0.2 for a ViT."""

    name = "composite"
    default = 0.2
    grid = (0.003, 0.01, 0.03, 0.1, 0.5)
