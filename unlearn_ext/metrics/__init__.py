"""Image quality metrics of reconstructions, each named after its feature extractor; needs the extra `metrics`."""

from .evaluation import Judge, evaluate
from .extractors import Extractor, load_extractor

__all__ = ["Extractor", "Judge", "evaluate", "load_extractor"]
