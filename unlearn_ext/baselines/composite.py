"""Composite: min f2 + w·f1 (Li et al., ICLR 2024)."""

from .method import Method

__all__ = ["Composite"]


class Composite(Method):
    """The weighted sum. Which f1 a weight leads to is known only afterwards; 0.2 is its authors' for a ViT."""

    name = "composite"
    default = 0.2
    grid = (0.003, 0.01, 0.03, 0.1, 0.5)
