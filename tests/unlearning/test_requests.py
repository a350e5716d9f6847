"""Several requests in one run, runs that continue others, and f1 of single images."""

import csv
import json
import warnings

import pytest
import tiny
import torch

import unlearn_ext as ux
from unlearn_ext.data import augment
from unlearn_ext.errors import UserError
from unlearn_ext.tasks import CenterCrop, RandomMask
from unlearn_ext.unlearning.earlier import chain, f1_then, read_earlier
from unlearn_ext.unlearning.objectives import Objectives
from unlearn_ext.unlearning.run_folder import read_run
from unlearn_ext.unlearning.settings import Settings

TASK = CenterCrop(0.5)
QUICK = Settings(steps=40, batch_size=16)


@pytest.fixture
def three(images):
    """Return images of two requests and images to retain, 16 each; the requests differ in brightness."""
    forget, retain = images
    return {"ana": forget[:16] * 0.5 - 0.3, "ben": forget[16:32] * 0.5 + 0.4}, retain[:16]


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.encoder_parameters()])


@pytest.mark.parametrize(
    ("family", "task", "options"),
    [
        ("vqgan", TASK, {}),
        ("vqgan", RandomMask(0.5, 4), {}),
        ("vqgan", TASK, {"augment": augment.shift}),
        ("mae", RandomMask(0.5, 2), {}),
        ("diffusion", TASK, {}),
    ],
)
def test_f1_is_the_mean_over_its_images(images, family, task, options):
    model, settings = tiny.model(family), Settings(batch_size=5)
    objectives = Objectives.freeze(model, *images, task, settings=settings, **options)
    for goal in (objectives, objectives.toward(images[0][:7]), objectives.held_out(images[0][:7], None)):
        values = goal.per_image(model.encode)
        assert len(values) == len(goal.forget)
        assert values.mean().item() == pytest.approx(goal.evaluate_f1(model.encode), rel=1e-5)
        assert values.std() > 0


def test_the_units_can_be_those_of_another_retain_set(model, images):
    forget, retain = images
    whole = Objectives.freeze(model, forget, retain, TASK)
    fewer = Objectives.freeze(model, forget, retain[:20], TASK, variance=whole.variance.item())
    assert torch.equal(fewer.variance, whole.variance)
    assert fewer.evaluate_f1(model.encode) == whole.evaluate_f1(model.encode)


def test_every_request_meets_its_epsilon(model, three):
    forget, retain = three
    shares = {"ana": 0.2, "ben": 0.5}
    unlearned = ux.unlearn(
        model, forget, retain, task=TASK, epsilon={"ana": "20%", "ben": "50 %"}, settings=QUICK
    )  # fmt: skip
    for name, images in forget.items():
        objectives = Objectives.freeze(model, images, retain, TASK)
        original = objectives.evaluate_f1(model.encode)
        f1, f2 = objectives.evaluate(unlearned.encode)
        assert f1 == pytest.approx(shares[name] * original, abs=0.01 * original), name
        assert f2 < 0.5


def test_one_request_in_a_dict_is_the_same_run(model, images):
    quick = {"task": TASK, "settings": Settings(steps=5, batch_size=8, tolerance=1.0)}
    alone = ux.unlearn(model, *images, epsilon=0.2, **quick)
    named = ux.unlearn(model, {"ana": images[0]}, images[1], epsilon={"ana": 0.2}, **quick)
    assert torch.equal(parameters(alone), parameters(named))


@pytest.mark.parametrize(
    ("epsilon", "message"),
    [
        (0.2, "there are 2 requests, ana, ben: give an ε for each, by its name"),
        ({"ana": 0.2}, "there is no ε for the request ben"),
        ({"ana": 0.2, "ben": 0.2, "cem": 0.1}, "there is an ε for cem, which is no request; the requests are ana, ben"),
        ({"ana": 0.2, "ben": "much"}, "ε is 'much'; it must be a finite number"),
    ],
)
def test_an_epsilon_for_every_request(model, three, epsilon, message):
    with pytest.raises(UserError, match=message):
        ux.unlearn(model, *three, task=TASK, epsilon=epsilon)


@pytest.fixture(scope="module")
def first(tmp_path_factory, tiny_model, tiny_images):
    """Return the folder of a run that forgot one request; tests must not change it."""
    forget, retain = tiny_images
    folder = tmp_path_factory.mktemp("chain") / "first"
    held_out = (forget[40:], retain[40:])
    ux.unlearn(
        tiny_model, {"ana": forget[:16] * 0.5 - 0.3}, retain[:16], task=TASK, epsilon={"ana": "20%"}, settings=QUICK,
        held_out=({"ana": held_out[0]}, held_out[1]), out=folder, dataset="stripes", argv=["ux", "run"],
    )  # fmt: skip
    return folder


def test_a_run_leaves_the_folder_of_a_run(first):
    run = read_run(first)
    (point,), (row,) = run.points, run.requests
    assert not run.is_sweep
    assert point.role == "epsilon"
    assert (row.point, row.request, row.held, row.since) == (point.name, "ana", "trained", "")
    assert (row.epsilon, row.f1, row.f1_validation) == (point.epsilon, point.f1, point.f1_validation)
    assert row.epsilon == pytest.approx(0.2 * row.f1_unmodified)
    assert row.images == len(run.per_image) == 16
    assert (row.held_out, row.left_out) == (8, 0)
    values = {each.file: each.f1 for each in run.per_image}
    assert sum(values.values()) / 16 == pytest.approx(row.f1, rel=1e-5)
    assert row.worst_f1 == max(values.values()) == values[row.worst_file]
    assert row.above == sum(value > row.epsilon for value in values.values())
    uses = [(image.set, image.used_as) for image in run.images]
    assert {use: uses.count(use) for use in set(uses)} == {
        ("forget", "training"): 16, ("forget", "validation"): 8, ("retain", "training"): 16, ("retain", "validation"): 8
    }  # fmt: skip
    metrics = run.metrics
    assert (metrics["command"], metrics["argv"], metrics["after"]) == ("run", ["ux", "run"], None)
    assert metrics["requests"] == {"ana": {"epsilon": row.epsilon, "epsilon_given": "20%"}}
    assert metrics["started"] <= metrics["finished"]
    assert all(metrics[name] is None for name in ("f1_star", "hypervolume", "reference_point", "max_epsilon_miss"))
    assert set(run.samples) == {"is_forget", "original", "corrupted", "unmodified", point.name}


def test_a_finished_run_gives_its_model_again(first, tiny_model, tiny_images):
    forget, retain = tiny_images
    given = {"epsilon": {"ana": "20%"}, "task": TASK, "settings": QUICK, "out": first}
    held_out = ({"ana": forget[40:]}, retain[40:])
    images = {"ana": forget[:16] * 0.5 - 0.3}
    with pytest.warns(UserWarning, match="is finished: nothing is left to do"):
        again = ux.unlearn(tiny_model, images, retain[:16], held_out=held_out, resume=True, **given)
    saved = ux.models.load("vqgan", first / read_run(first).points[0].name)
    assert torch.equal(parameters(again), parameters(saved))
    with pytest.raises(UserError, match="is the result of a finished run"):
        ux.unlearn(tiny_model, images, retain[:16], held_out=held_out, **given)
    other = {**given, "epsilon": {"ana": "21%"}}
    with pytest.raises(UserError, match="differs in: epsilon;"):
        ux.unlearn(tiny_model, images, retain[:16], held_out=held_out, resume=True, **other)


@pytest.mark.parametrize("at_hand", [True, False])
def test_an_earlier_request_is_held_where_its_images_are_at_hand(first, model, three, tmp_path, at_hand):
    forget, retain = three
    images = {"ben": forget["ben"]} | ({"ana": forget["ana"]} if at_hand else {})
    out, before = tmp_path / "second", read_run(first)
    earlier = read_earlier(first)
    ux.unlearn(
        model, images, retain[:10], task=TASK, epsilon={"ben": "40%"}, after=earlier, settings=QUICK, out=out
    )  # fmt: skip
    run = read_run(out)
    own, old = run.requests
    assert (own.request, own.since, own.held) == ("ben", "", "trained")
    assert own.f1 == pytest.approx(own.epsilon, abs=0.01 * own.f1_unmodified)
    assert (old.request, old.since) == ("ana", "first")
    assert old.epsilon == before.requests[0].epsilon
    assert run.metrics["units"] == before.metrics["units"]
    assert (run.metrics["after"], run.metrics["after_point"]) == (str(first), before.points[0].name)
    assert list(run.metrics["requests"]) == ["ben"]
    assert f1_then(read_earlier(out)) == {"ana": before.requests[0].f1, "ben": own.f1}
    assert chain(out) == [out, first]
    if at_hand:
        assert old.held == "trained"
        assert old.f1_unmodified == before.requests[0].f1_unmodified
        assert old.f1 <= old.epsilon + 0.01 * old.f1_unmodified
        with open(out / "history.csv", newline="") as file:
            steps = [row["request"] for row in csv.DictReader(file)]
        assert steps.count("ana") == steps.count("ben") > 0
    else:
        assert old.held == "not at hand"
        assert not old.is_at_hand
        assert (old.images, old.above) == (16, -1)
        assert list(run.metrics["images"]["forget"]) == ["ben"]


def test_training_starts_from_the_earlier_model(first, model, three):
    forget, retain = three
    history, earlier = ux.History(), read_earlier(first)
    frozen = Settings(steps=1, batch_size=16, lr=0.0, tolerance=9.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unlearned = ux.unlearn(
            model, {"ben": forget["ben"]}, retain, task=TASK, epsilon=0.1, after=earlier, settings=frozen,
            history=history,
        )  # fmt: skip
    assert torch.equal(parameters(unlearned), parameters(earlier.model(model)))
    assert next(history.rows())[3] > 0  # f2 is that of the original, so it is not 0 at the start


def test_another_original_is_refused(first, model, three, tmp_path):
    with torch.no_grad():
        model.encoder_parameters()[0].mul_(2)
    forget, retain = three
    with pytest.raises(UserError, match=r"the model is not the one that .*first started from"):
        ux.unlearn(
            model, {"ben": forget["ben"]}, retain, task=TASK, epsilon=0.1, after=read_earlier(first),
            out=tmp_path / "run",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_run_with_nothing_new_is_refused(first, model, three):
    forget, retain = three
    with pytest.raises(UserError, match="nothing new to forget"):
        ux.unlearn(model, {"ana": forget["ana"]}, retain, task=TASK, epsilon=0.1, after=read_earlier(first))


def test_a_run_of_an_earlier_version_cannot_be_continued(run_folder):
    with pytest.raises(UserError, match="was written by an earlier version, which did not record what --after needs"):
        read_earlier(run_folder)


def test_a_run_that_has_no_command_is_a_sweep_of_an_earlier_version(run_folder):
    run = read_run(run_folder)
    assert run.is_sweep
    assert (run.images, run.requests, run.per_image) == ([], [], [])
    metrics = json.loads((run_folder / "metrics.json").read_text()) | {"command": "run", "f1_star": None}
    (run_folder / "metrics.json").write_text(json.dumps(metrics))
    assert read_run(run_folder).span == metrics["f1_original"]
