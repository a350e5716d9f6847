"""What models make of images, in numbers that say whose eyes they come from; needs the extra `metrics`."""

from .evaluation import Judge, evaluate
from .extractors import Extractor, load_extractor

__all__ = ["Extractor", "Judge", "evaluate", "load_extractor"]
