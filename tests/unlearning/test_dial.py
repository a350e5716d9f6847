"""Mixtures on straight lines between anchors: their f1 and f2, the choice of the line, and dominated mixtures."""

import math

import pytest
import torch

from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning.dial import Anchor, Dial, Mixture, encoder_state, root
from unlearn_ext.unlearning.objectives import Objectives
from unlearn_ext.unlearning.settings import Settings


@pytest.mark.parametrize(
    "function",
    [
        lambda t: 1 - 2 * t,
        lambda t: math.cos(3 * t),
        lambda t: 1 - 5 * t**4,
        lambda t: 1e-3 - t**6,
        lambda t: math.exp(-40 * t) - 0.01,
        lambda t: -math.log(t + 1e-3) - 1,
        lambda t: 0.2 - t + 0.3 * math.sin(12 * t),
    ],
)
def test_a_root_is_found_within_what_is_near_enough(function):
    calls = []

    def counted(t):
        calls.append(t)
        return function(t)

    share = root(counted, function(0.0), function(1.0), 1e-4)
    assert abs(function(share)) <= 1e-4
    assert all(0 <= t <= 1 for t in calls)
    assert len(calls) <= 20


class Line:
    """Objectives given as functions of the first two parameters; no images or latents are needed."""

    settings = Settings()

    def __init__(self, f1, f2):
        self.f1, self.f2, self.parameter = f1, f2, None

    def evaluate_f1(self, encode):
        return self.f1(*self.here())

    def evaluate_f2(self, encode):
        return self.f2(*self.here())

    def evaluate(self, encode):
        return self.evaluate_f1(encode), self.evaluate_f2(encode)

    def here(self):
        return self.parameter.flatten()[:2].tolist()


@pytest.fixture
def dial(model):
    """Return a function that builds a dial from f1, f2 and the anchors' values of the first two parameters."""
    with torch.no_grad():
        for parameter in model.encoder_parameters():
            parameter.zero_()

    def dial(f1, f2, *places):
        line = Line(f1, f2)
        made = Dial(model, line, f1(0.0, 0.0), [])
        line.parameter = made._model.encoder_parameters()[0]
        for number, place in enumerate(places):
            encoder = encoder_state(model)
            encoder[0].flatten()[:2] = torch.tensor(place)
            made.anchors.append(Anchor(f"a{number}", encoder, f1(*place), f2(*place)))
        return made

    return dial


def falling(x, y):
    return (1 - x) ** 2


def rising(x, y):
    return x**2


@pytest.mark.parametrize("epsilon", [0.99, 0.7, 0.36, 0.2, 0.05])
def test_a_mixture_has_the_f1_that_is_asked_for(dial, epsilon):
    mixture = dial(falling, rising, (0.4, 0.0), (0.9, 0.0)).mixture(epsilon)
    assert mixture.f1 == pytest.approx(epsilon, abs=0.002)
    assert mixture.f2 == pytest.approx((1 - math.sqrt(mixture.f1)) ** 2, abs=1e-5)
    assert mixture.less.f1 >= epsilon > mixture.more.f1


def test_the_better_of_the_lines_to_the_neighbour_and_to_the_unmodified_model_is_taken(dial):
    off = dial(falling, lambda x, y: x**2 + y**2, (0.4, 0.5), (0.8, 0.0)).mixture(0.2)
    assert (off.less.name, off.more.name) == ("unmodified", "a1")  # the first anchor is off the straight line to a1
    curved = dial(falling, lambda x, y: (y - x * (1 - x)) ** 2, (0.5, 0.25), (1.0, 0.0)).mixture(0.2)
    assert (curved.less.name, curved.more.name) == ("a0", "a1")


def test_a_mixture_that_an_anchor_dominates_says_so(dial):
    bump = dial(falling, lambda x, y: x**2 + 2 * (x - 0.4) * (0.8 - x) * (x > 0.4) * 10, (0.4, 0.0), (0.8, 0.0))
    assert bump.mixture(0.16).is_dominated
    assert not bump.mixture(0.7).is_dominated
    assert not dial(falling, rising, (0.4, 0.0), (0.8, 0.0)).mixture(0.16).is_dominated


@pytest.mark.parametrize("f2", [0.001, 0.02, 0.16, 0.3, 0.6])
def test_costing_stays_within_the_given_f2(dial, f2):
    mixture = dial(falling, rising, (0.4, 0.0), (0.8, 0.0)).costing(f2)
    assert 0.88 * f2 <= mixture.f2 <= f2
    assert mixture.f1 == pytest.approx((1 - math.sqrt(mixture.f2)) ** 2, abs=1e-4)


def test_costing_with_more_f2_than_any_anchor_gives_the_most_forgotten_anchor(dial):
    mixture = dial(falling, rising, (0.4, 0.0), (0.8, 0.0)).costing(0.9)
    assert (mixture.f2, str(mixture)) == (pytest.approx(0.64), "1*a1")


def test_a_mixture_says_what_it_is_made_of():
    ends = Anchor("unmodified", [], 1.0, 0.0), Anchor("anchor-0.2500", [], 0.25, 0.01)
    assert str(Mixture(*ends, 0.25, 0.5, 0.001)) == "0.25*anchor-0.2500 + 0.75*unmodified"


def test_a_dial_leaves_its_model_and_its_anchors_alone(model, images):
    objectives = Objectives.freeze(model, *images, CenterCrop(0.5))
    before = encoder_state(model)
    encoder = [value + 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)) for value in before]
    kept = [value.clone() for value in encoder]
    dial = Dial(model, objectives, objectives.evaluate_f1(model.encode), [Anchor("a", encoder, 0.0, 1.0)])
    mixture = Mixture(dial.anchors[0], dial.anchors[1], 0.5, 0.0, 0.0)
    made, again = dial.model(mixture).model, dial.model(mixture).model
    for parameter in made.encoder_parameters():
        parameter.data.zero_()
    assert all(map(torch.equal, before, model.encoder_parameters()))
    assert all(map(torch.equal, kept, encoder))
    middle = [torch.lerp(a, b, 0.5) for a, b in zip(before, kept, strict=True)]
    assert all(map(torch.equal, middle, again.encoder_parameters()))
