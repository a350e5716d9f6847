"""Other unlearning methods, trained with the same loop, minibatches and optimizer as ours."""

from __future__ import annotations

from .augmented_lagrangian import AugmentedLagrangian
from .composite import Composite
from .dual_ascent import DualAscent
from .gradient_difference import GradientDifference
from .max_loss import MaxLoss
from .method import Method
from .mgda import MGDA
from .noisy_label import NoisyLabel
from .nu_pi import NuPI
from .pcd import PCD
from .pcgrad import PCGrad
from .random_encoder import RandomEncoder
from .retain_label import RetainLabel
from .salun import SalUn
from .training import train

__all__ = ["METHODS", "Method", "train"]

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        MaxLoss, NoisyLabel, RetainLabel, RandomEncoder, Composite, GradientDifference, PCGrad, MGDA, PCD, DualAscent,
        NuPI, AugmentedLagrangian, SalUn
    )
}  # fmt: skip
