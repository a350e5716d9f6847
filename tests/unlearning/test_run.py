import math
import warnings
from dataclasses import replace

import pytest
import torch

import unlearn_ext as ux
from unlearn_ext.errors import UserError
from unlearn_ext.optim.control import GradientNorm
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning import divergence
from unlearn_ext.unlearning.encoder import Encoder
from unlearn_ext.unlearning.history import History
from unlearn_ext.unlearning.objectives import Objectives
from unlearn_ext.unlearning.outcome import warn_if_skipped
from unlearn_ext.unlearning.schedule import SCHEDULE
from unlearn_ext.unlearning.settings import Settings
from unlearn_ext.unlearning.trainer import Trainer
from unlearn_ext.unlearning.training_loop import WARMUP, Loop

TASK = CenterCrop(0.5)
QUICK = Settings(steps=40, batch_size=16)


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.module.parameters()])


@pytest.mark.parametrize(("share", "sharpness"), [(0.8, 0.0), (0.3, 0.0), (0.3, 0.05)])
def test_epsilon_is_met_over_the_whole_forget_set(model, images, share, sharpness):
    objectives = Objectives.freeze(model, *images, TASK)
    original, _ = objectives.evaluate(model.encode)
    settings = replace(QUICK, sharpness=sharpness)
    unlearned = ux.unlearn(model, *images, task=TASK, epsilon=share * original, settings=settings)
    f1, f2 = objectives.evaluate(unlearned.encode)
    assert f1 == pytest.approx(share * original, abs=0.01 * original)
    assert f2 < 1 - share


def f1_around(model, objectives, rho):
    """Return f1 of the model, and f1 of its worst neighbour, both over the whole forget set."""
    batch = objectives.forget.batch(torch.arange(len(objectives.forget)))
    objectives.f1(model.encode, batch).backward()
    with ux.sharpness(model.encoder_parameters(), rho):
        worst = objectives.f1(model.encode, batch)
        worst.backward()
    return objectives.evaluate_f1(model.encode), worst.item()


def test_sharpness_lowers_f1_of_the_neighbours_at_the_same_f1(model, images):
    objectives = Objectives.freeze(model, *images, TASK)
    original, _ = objectives.evaluate(model.encode)
    rises = []
    for sharpness in (0.0, 0.2):
        settings = replace(QUICK, steps=80, sharpness=sharpness)
        unlearned = ux.unlearn(model, *images, task=TASK, epsilon=0.2 * original, settings=settings)
        f1, worst = f1_around(unlearned, objectives, 0.2)
        assert f1 == pytest.approx(0.2 * original, abs=0.01 * original)
        rises.append(worst - f1)
    assert rises[1] < 0.9 * rises[0]


def test_the_history_has_f1_of_the_model_not_of_its_neighbour(model, images):
    first = []
    for sharpness in (0.0, 0.5):
        settings, history = Settings(steps=1, batch_size=48, sharpness=sharpness, tolerance=1.0), History()
        ux.unlearn(model, *images, task=TASK, epsilon=0.5, settings=settings, history=history)
        first.append(next(history.rows()))
    assert first[0][2] == first[1][2]  # f1
    assert first[0][5] != first[1][5]  # λ, which depends on ∇f1


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
    objectives = Objectives.freeze(model, *images, TASK, settings=Settings(steps=6, batch_size=48))
    original, _ = objectives.evaluate(model.encode)
    run = Trainer(model, objectives, history)
    run.train(GradientNorm(), 3)
    run.approach(0.5)
    rows = list(history.rows())
    assert [row[0] for row in rows] == list(range(len(rows)))
    assert [math.isnan(row[1]) for row in rows] == [True] * 3 + [False] * (len(rows) - 3)
    assert rows[0][2] == pytest.approx(original, rel=1e-5)
    assert rows[0][3] == pytest.approx(0, abs=1e-9)
    assert all(math.isfinite(value) for row in rows[3:] for value in row)
    assert run.steps_taken == len(rows) == 3 + 6


def test_steps_that_are_not_finite_write_nothing(model, images):
    forget, retain = images
    objectives = Objectives.freeze(model, forget, retain, TASK)
    forget[:] = math.inf
    before, history = parameters(model), History()
    Trainer(model, objectives, history).train(GradientNorm(), 6)
    assert torch.equal(parameters(model), before)
    assert [row[-1] for row in history.rows()] == [1, 1, 1] * (len(history.epsilons) // 3)


@pytest.mark.parametrize(("epsilon", "message"), [(-0.1, "f1 will end above ε"), (50.0, "stays as it is")])
def test_epsilon_outside_the_boundaries_warns(model, images, epsilon, message):
    with pytest.warns(UserWarning, match=message):
        ux.unlearn(model, *images, task=TASK, epsilon=epsilon, settings=Settings(steps=1))


def test_an_epsilon_inside_is_not_said_to_be_outside_and_progress_is_reported(model, images):
    seen, quick = [], Settings(steps=3, tolerance=1.0)
    with pytest.warns(UserWarning, match="was not reached") as said:  # in so few steps
        ux.unlearn(model, *images, task=TASK, epsilon=0.1, settings=quick, progress=seen.append)
    assert len(said) == 1
    assert seen[0].stage == "eps-0.1000"
    assert (seen[0].index, seen[0].total, seen[0].step, seen[0].steps) == (0, 1, 1, 3 * SCHEDULE.anchors_per_run)
    assert all(math.isfinite(value) for value in (seen[0].f1, seen[0].f2, seen[0].lam))


@pytest.mark.parametrize("epsilon", [0.35, "30%", 0.55])
def test_f1_ends_at_epsilon_or_just_below(model, images, epsilon):
    """Training alone ends within the tolerance, on either side."""
    objectives = Objectives.freeze(model, *images, TASK)
    original = objectives.evaluate_f1(objectives.frozen)
    unlearned = ux.unlearn(model, *images, task=TASK, epsilon=epsilon, settings=Settings(steps=30, lr=3e-3))
    f1, aim = objectives.evaluate_f1(Encoder(unlearned, Settings())), epsilon if epsilon != "30%" else 0.3 * original
    assert aim - 0.01 * original < f1 <= aim


def test_where_no_step_is_finite_a_run_stops(model, images):
    forget, retain = images
    objectives = Objectives.freeze(model, forget, retain, TASK)
    forget[:] = math.inf
    before, run = parameters(model), Trainer(model, objectives, History())
    with pytest.raises(UserError, match="the last 10 of 10 steps were skipped because values were not finite"):
        run.train(GradientNorm(), 40)
    assert torch.equal(parameters(model), before)
    assert run.steps_taken == 10


def test_a_run_that_explodes_stops(model, images):
    wild = Settings(steps=60, batch_size=16, lr=30.0)
    with pytest.raises(UserError, match=r"f[12] has grown to .* the training diverges; use a lower learning rate"):
        ux.unlearn(model, *images, task=TASK, epsilon=0.2, settings=wild)


def row(f1, f2, skipped=0.0):
    return torch.tensor([[f1, f2, 0.0, 0.0, skipped]] * divergence.WATCHED, dtype=torch.float64)


def test_what_is_no_divergence():
    divergence.check(row(2.0, 90.0), 1.0, 10, None)
    divergence.check(row(900.0, 900.0), 10.0, 10, None)
    divergence.check(row(math.nan, math.nan, 1.0), 1.0, 10, 1024.0)  # float16: the loss scale settles
    once = row(math.nan, math.nan, 1.0)
    once[3] = row(1.0, 0.0)[0]
    divergence.check(once, 1.0, 10, None)
    with pytest.raises(UserError, match="not finite"):
        divergence.check(row(math.nan, math.nan, 1.0), 1.0, 10, 1.0)


@pytest.mark.parametrize("first", [math.nan, math.inf])
def test_a_first_value_that_is_not_finite_does_not_hide_divergence(first):
    with pytest.raises(UserError, match="f1 has grown to 900 after 10 steps, above the limit of 100"):
        divergence.check(row(900.0, 1.0), first, 10, None)


def test_skipped_steps_are_counted_and_shown(model, images):
    few = Settings(batch_size=16)
    objectives, history = Objectives.freeze(model, *images, TASK, settings=few), History()
    images[0][0] = math.inf
    Trainer(model, objectives, history).train(GradientNorm(), 9)
    with pytest.warns(UserWarning, match="3 of 9 steps were skipped because a value was not finite"):
        warn_if_skipped([history])


def test_unlearn_augments_and_says_what_was_skipped(model, images):
    def spoilt(images, draw):
        return images * math.inf if draw == 2 else images

    few = Settings(steps=4, batch_size=16, tolerance=1.0)
    with pytest.warns(UserWarning, match=r"1 of \d+ steps were skipped because a value was not finite"):
        ux.unlearn(model, *images, task=TASK, epsilon=0.5, augment=spoilt, settings=few)


def test_noise_of_minibatches_is_averaged_out_of_the_gradient(model, images):
    run = Trainer(model, Objectives.freeze(model, *images, TASK), History())
    run.train(GradientNorm(), 1)
    assert all("constraint_ema" in state for state in run.optimizer.state.values())
    assert run.optimizer.param_groups[0]["weight_decay"] == 0


def test_an_epsilon_out_of_reach_is_said(model, images):
    with pytest.warns(UserWarning, match=r"ε = 0 was not reached: f1 is 0\.\d+"):
        ux.unlearn(model, *images, task=TASK, epsilon=0.0, settings=Settings(steps=6, batch_size=16))


def test_an_epsilon_out_of_reach_costs_no_more_than_one_correction(model, images):
    history = History()
    with pytest.warns(UserWarning, match="was not reached"):
        unlearned = ux.unlearn(model, *images, task=TASK, epsilon=-1.0, settings=QUICK, history=history)
    assert len(history) == SCHEDULE.anchors_per_run * QUICK.steps + QUICK.steps // 2
    f1, f2 = Objectives.freeze(model, *images, TASK).evaluate(unlearned.encode)
    assert f1 < 0.1
    assert f2 < 1


@pytest.mark.parametrize("reached", [0.3, 0.5, 0.508, 0.7])
def test_a_miss_is_made_up_for_once(model, images, monkeypatch, reached):
    aims = []

    def approach(run, epsilon, steps=None):
        aims.append((epsilon, steps))
        return reached, 0.0

    monkeypatch.setattr(Trainer, "approach", approach)
    monkeypatch.setattr(Objectives, "evaluate_f1", lambda *_: 1.0)
    few = Settings(steps=8, tolerance=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ux.unlearn(model, *images, task=TASK, epsilon=0.5, settings=few)
    missed = [] if abs(reached - 0.5) <= 0.01 else [(pytest.approx(1.0 - reached), 4)]
    assert aims == [(0.5, SCHEDULE.anchors_per_run * 8), *missed]


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_the_learning_rate_is_held_for_half_of_the_steps_and_falls_to_0(model, images, steps):
    optimizer = torch.optim.SGD(model.encoder_parameters(), lr=9.0)
    loop = Loop(model, Objectives.freeze(model, *images, TASK), Settings(batch_size=4), optimizer)
    loop.steps_taken = WARMUP
    rates = [optimizer.param_groups[0]["lr"] for _ in loop.minibatches(0.5, steps)]
    assert len(rates) == steps
    assert rates == pytest.approx([0.5 * min(1, 2 * (steps - step) / steps) for step in range(steps)])


def test_the_learning_rate_rises_over_the_first_steps_of_a_run_only(model, images):
    history, rates = History(), []
    run = Trainer(model, Objectives.freeze(model, *images, TASK, settings=Settings(batch_size=4)), history)
    run.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    for epsilon in (0.5, 0.4):
        run.approach(epsilon, 2 * WARMUP)
    rising = [1e-3 * (step + 1) / WARMUP for step in range(WARMUP)]
    assert rates[:WARMUP] == pytest.approx(rising)
    assert rates[2 * WARMUP : 3 * WARMUP] == pytest.approx([1e-3] * WARMUP)


def test_what_the_optimizer_knows_is_kept_between_two_epsilons(model, images):
    run = Trainer(model, Objectives.freeze(model, *images, TASK, settings=Settings(batch_size=4)), History())
    run.approach(0.5, 3)
    run.approach(0.4, 3)
    assert {state["step"].item() for state in run.optimizer.state.values()} == {6}
