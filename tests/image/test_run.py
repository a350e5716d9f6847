import copy
import itertools
import math
import warnings
from dataclasses import replace

import pytest
import torch

import unlearn_ext as ux
from unlearn_ext import divergence
from unlearn_ext.errors import UserError
from unlearn_ext.objectives import Objectives
from unlearn_ext.run import History, Run, warn_if_skipped
from unlearn_ext.settings import Settings
from unlearn_ext.tasks import CenterCrop

TASK = CenterCrop(0.5)
QUICK = Settings(steps=40, batch_size=16)


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.module.parameters()])


@pytest.mark.parametrize("share", [0.8, 0.3])
def test_epsilon_is_met_over_the_whole_forget_set(model, images, share):
    objectives = Objectives.freeze(model, *images, TASK)
    original, _ = objectives.evaluate(model.encode)
    unlearned = ux.unlearn(model, *images, task=TASK, epsilon=share * original, settings=QUICK)
    f1, f2 = objectives.evaluate(unlearned.encode)
    assert f1 == pytest.approx(share * original, abs=0.01 * original)
    assert f2 < 1 - share


def test_the_given_model_and_the_decoder_are_left_alone(model, images):
    before = parameters(model)
    unlearned = ux.unlearn(model, *images, task=TASK, epsilon=0.1, settings=Settings(steps=5))
    assert torch.equal(parameters(model), before)
    for name, p in model.module.named_parameters():
        trained = name.startswith(("encoder.", "quant_conv."))
        assert torch.equal(p, unlearned.module.get_parameter(name)) != trained, name


def test_the_same_seed_gives_the_same_model(model, images):
    quick = Settings(steps=5)
    a, b = (ux.unlearn(model, *images, task=TASK, epsilon=0.1, settings=quick) for _ in range(2))
    assert torch.equal(parameters(a), parameters(b))
    other = ux.unlearn(model, *images, task=TASK, epsilon=0.1, settings=Settings(steps=5, seed=1))
    assert not torch.equal(parameters(a), parameters(other))


def test_the_history_has_every_step(model, images):
    history = History()
    objectives = Objectives.freeze(model, *images, TASK)
    original, _ = objectives.evaluate(model.encode)
    run = Run(model, objectives, Settings(steps=6, batch_size=48, tolerance=math.inf), history)
    run.descend(3)
    run.meet(0.5, original)
    rows = list(history.rows())
    assert [row[0] for row in rows] == list(range(len(rows)))
    assert [math.isnan(row[1]) for row in rows] == [True] * 3 + [False] * (len(rows) - 3)
    assert rows[0][2] == pytest.approx(original, rel=1e-5)
    assert rows[0][3] == pytest.approx(0, abs=1e-9)
    assert all(math.isfinite(value) for row in rows[3:] for value in row)
    assert run.steps_taken == len(rows) > 3 + 6


def test_steps_that_are_not_finite_write_nothing(model, images):
    forget, retain = images
    objectives = Objectives.freeze(model, forget, retain, TASK)
    forget[:] = math.inf
    before, history = parameters(model), History()
    Run(model, objectives, Settings(steps=3), history).descend(6)
    assert torch.equal(parameters(model), before)
    assert [row[-1] for row in history.rows()] == [1, 1, 1] * (len(history.epsilons) // 3)


@pytest.mark.parametrize(("epsilon", "message"), [(-0.1, "forget as far as it can"), (50.0, "close to unmodified")])
def test_epsilon_outside_the_boundaries_warns(model, images, epsilon, message):
    with pytest.warns(UserWarning, match=message):
        ux.unlearn(model, *images, task=TASK, epsilon=epsilon, settings=Settings(steps=1))


def test_epsilon_inside_does_not_warn_and_progress_is_reported(model, images):
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick = Settings(steps=3, tolerance=1.0)
        ux.unlearn(model, *images, task=TASK, epsilon=0.1, settings=quick, progress=seen.append)
    assert seen[0].stage == "eps-0.1000"
    assert (seen[0].index, seen[0].total, seen[0].step, seen[0].steps) == (0, 1, 1, 9)
    assert all(math.isfinite(value) for value in (seen[0].f1, seen[0].f2, seen[0].lam))


def test_where_no_step_is_finite_a_run_stops(model, images):
    forget, retain = images
    objectives = Objectives.freeze(model, forget, retain, TASK)
    forget[:] = math.inf
    before, run = parameters(model), Run(model, objectives, QUICK, History())
    with pytest.raises(UserError, match="the last 10 of 10 steps met numbers that are not finite"):
        run.descend(40)
    assert torch.equal(parameters(model), before)
    assert run.steps_taken == 10


def test_a_run_that_explodes_stops(model, images):
    wild = Settings(steps=60, batch_size=16, lr=30.0)
    with pytest.raises(UserError, match=r"f[12] has grown to .* the training diverges; take a lower learning rate"):
        ux.unlearn(model, *images, task=TASK, epsilon=0.2, settings=wild)


def row(f1, f2, skipped=0.0):
    return torch.tensor([[f1, f2, 0.0, 0.0, skipped]] * divergence.WATCHED, dtype=torch.float64)


def test_what_is_no_divergence():
    divergence.check(row(2.0, 90.0), 1.0, 10, None)
    divergence.check(row(900.0, 900.0), 10.0, 10, None)
    divergence.check(row(math.nan, math.nan, 1.0), 1.0, 10, 1024.0)  # float16 looks for its scale
    once = row(math.nan, math.nan, 1.0)
    once[3] = row(1.0, 0.0)[0]
    divergence.check(once, 1.0, 10, None)
    with pytest.raises(UserError, match="not finite"):
        divergence.check(row(math.nan, math.nan, 1.0), 1.0, 10, 1.0)


def test_skipped_steps_are_counted_and_shown(model, images):
    objectives, history = Objectives.freeze(model, *images, TASK), History()
    images[0][0] = math.inf
    Run(model, objectives, Settings(steps=9, batch_size=16), history).descend(9)
    with pytest.warns(UserWarning, match="3 of 9 steps met a number that is not finite, and were skipped"):
        warn_if_skipped([history])


def test_unlearn_augments_and_says_what_was_skipped(model, images):
    def spoilt(images, draw):
        return images * math.inf if draw == 2 else images

    few = Settings(steps=4, batch_size=16, tolerance=1.0)
    with pytest.warns(UserWarning, match=r"1 of \d+ steps met a number that is not finite, and were skipped"):
        ux.unlearn(model, *images, task=TASK, epsilon=0.5, augment=spoilt, settings=few)


def test_noise_of_minibatches_is_averaged_out_of_the_gradient(model, images):
    run = Run(model, Objectives.freeze(model, *images, TASK), Settings(steps=1, batch_size=16), History())
    run.descend(1)
    assert all("constraint_ema" in state for state in run.optimizer.state.values())
    assert run.optimizer.param_groups[0]["weight_decay"] == 0


def test_an_epsilon_out_of_reach_is_said(model, images):
    with pytest.warns(UserWarning, match=r"ε = 0 was not reached: f1 is 0\.\d+"):
        ux.unlearn(model, *images, task=TASK, epsilon=0.0, settings=Settings(steps=6, batch_size=16))


def test_an_epsilon_out_of_reach_is_not_chased(model, images):
    objectives = Objectives.freeze(model, *images, TASK)
    run = Run(model, objectives, replace(QUICK, tolerance=0.0), History())
    f1, _ = run.meet(-1.0, objectives.evaluate_f1(model.encode))  # f1 is a square: 0 at the very least
    assert 0 <= f1 < 0.5
    assert run.steps_taken < 4 * QUICK.steps  # nothing is held, or corrected, for as long as may be


def test_a_run_takes_as_long_as_it_has_far_to_go(model, images):
    objectives = Objectives.freeze(model, *images, TASK)
    f1, _ = objectives.evaluate(model.encode)
    unlearned, steps = copy.deepcopy(model), []
    for share in (0.4, 0.35):
        run = Run(unlearned, objectives, replace(QUICK, tolerance=0.01), History())
        run.meet(share * f1, f1)
        steps.append(run.steps_taken)
    assert QUICK.steps // 2 < steps[1] < steps[0] <= (2 + 1 / 2 + 3 / 3) * QUICK.steps


@pytest.fixture
def held_windows(model, images, monkeypatch):
    """A function of settings and f2 over the windows of a run that is where it should be: steps of each it takes."""

    def held_windows(settings, f2s):
        run, f2s, seen = Run(model, Objectives.freeze(model, *images, TASK), settings, History()), iter(f2s), []

        def train(control, lr, steps, epsilon, *, held=0):
            if held:
                seen.append(steps)
                rows = [[0.5, next(f2s), 0.0, 0.0, 0.0]] * steps
                run.history.extend(epsilon, torch.tensor(rows, dtype=torch.float64))

        monkeypatch.setattr(run, "train", train)
        run.meet(0.5, 1.0)
        return seen

    return held_windows


@pytest.mark.parametrize(
    ("values", "windows"),
    [((0.5, 0.4, 0.39), 3), ((0.5, 0.4, 0.3, 0.2, 0.2), 5), ((1e-4, 4e-5), 2), ((0.1, 0.3, 0.3), 3)],
)
def test_the_rate_is_held_until_f2_rests(held_windows, values, windows):
    assert held_windows(Settings(steps=16, tolerance=0.01), values) == [4] * windows


@pytest.mark.parametrize(("steps", "windows"), [(1, [1, 1]), (2, [2, 2]), (5, [3, 3, 3]), (12, [3] * 8), (24, [6] * 8)])
def test_a_window_has_a_quarter_of_the_steps_or_three(held_windows, steps, windows):
    restless = (0.5**window for window in itertools.count(1))
    assert held_windows(Settings(steps=steps, tolerance=0.01), restless) == windows


@pytest.mark.parametrize(("epsilon", "share"), [(0.0, 1.0), (1.0, 1.0), (1.5, 0.5), (1.99, 0.1), (3.0, 0.1)])
def test_the_shorter_the_way_the_lower_the_learning_rate(model, images, monkeypatch, epsilon, share):
    run = Run(model, Objectives.freeze(model, *images, TASK), replace(QUICK, lr=0.02, tolerance=math.inf), History())
    rates = []

    def train(control, lr, steps, epsilon, *, held=0):
        rates.append(lr)
        run.history.extend(epsilon, torch.zeros(steps, 5, dtype=torch.float64))

    monkeypatch.setattr(run, "train", train)
    run.meet(epsilon, 2.0)
    assert rates == [pytest.approx(0.02 * share)] * len(rates)
