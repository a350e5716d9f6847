"""Additional studies; each has its own module and its own table."""

from .convergence import Convergence
from .crops import Crops
from .infill import Infill
from .probe import Probe
from .readers import Readers
from .resurfacing import Resurfacing
from .study import Study, fill

__all__ = ["Convergence", "Crops", "Infill", "Probe", "Readers", "Resurfacing", "Study", "fill"]
