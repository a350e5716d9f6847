"""The last move of a run: f1 ≤ ε itself, not only up to the tolerance of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..models import I2IModel
from .dial import encoder_state, mix, root
from .encoder import Encoder
from .requests import Request

__all__ = ["bring_within"]

# Fractions of the unmodified model's f1, and of the displacement from the unmodified model.
_NEAR = 0.0005  # the search aims this far below ε and ends within the same distance of its aim
_LONGEST = 0.2


def bring_within(
    unlearned: I2IModel,
    unmodified: I2IModel,
    requests: Sequence[Request],
    epsilons: Mapping[str, float],
    originals: Mapping[str, float],
    reached: tuple[dict[str, float], float],
) -> tuple[dict[str, float], float]:
    """Move a trained model along its displacement from the unmodified model, until f1 ≤ ε for every request.

    The model is changed in place. It stays as it is if no request is above its ε, or if a fifth of the displacement
    more would not be enough.

    Args:
        unlearned: the trained model.
        unmodified: the model from which the objectives were frozen.
        requests: the requests.
        epsilons: ε of each request.
        originals: f1 of the unmodified model for each request.
        reached: f1 of each request, and f2, of the trained model.

    Returns:
        f1 of each request, and f2, of the model as it is left.
    """
    objectives = requests[0].objectives
    encode = Encoder(unlearned, objectives.settings)
    before, trained = encoder_state(unmodified), encoder_state(unlearned)

    def excess(f1: Mapping[str, float]) -> float:
        return max((f1[name] - epsilon) / originals[name] for name, epsilon in epsilons.items())

    def f1_at(share: float) -> dict[str, float]:
        mix(unlearned, before, trained, 1 + share * _LONGEST)
        return {request.name: request.objectives.evaluate_f1(encode) for request in requests}

    def over(share: float) -> float:
        return excess(f1_at(share)) + _NEAR

    at_0 = excess(reached[0]) + _NEAR
    if at_0 <= _NEAR:
        return reached
    at_1 = over(1.0)
    if at_1 > 0:
        mix(unlearned, before, trained, 1.0)
        return reached
    f1 = f1_at(root(over, at_0, at_1, _NEAR))
    return f1, objectives.evaluate_f2(encode)
