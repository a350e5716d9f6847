"""A repeatable experiment: our method and all baselines on built-in images, with equal numbers of gradients."""

from .compare import standings, verdicts
from .experiment import reproduce
from .plan import Plan
from .plans import FULL, QUICK
from .quality import judge
from .trial import FAMILIES
from .workers import cores

__all__ = ["FAMILIES", "FULL", "QUICK", "Plan", "cores", "judge", "reproduce", "standings", "verdicts"]
