"""The experiment that anybody can repeat: ours and every baseline on built-in images, at equal numbers of gradients."""

from .compare import standings, verdicts
from .experiment import reproduce
from .plan import Plan
from .plans import FULL, QUICK
from .quality import judge
from .trial import FAMILIES
from .workers import cores

__all__ = ["FAMILIES", "FULL", "QUICK", "Plan", "cores", "judge", "reproduce", "standings", "verdicts"]
