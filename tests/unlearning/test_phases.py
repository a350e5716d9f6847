"""A whole sweep of a tiny model: the properties of the front, and the files in the output folder."""

import csv
import importlib
import itertools
import json
import math
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import unlearn_ext as ux
from unlearn_ext.errors import UserError
from unlearn_ext.models import load
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning import phases
from unlearn_ext.unlearning.dial import Mixture
from unlearn_ext.unlearning.objectives import Objectives
from unlearn_ext.unlearning.pareto import ParetoFront
from unlearn_ext.unlearning.phases import add_points, sweep
from unlearn_ext.unlearning.schedule import SCHEDULE
from unlearn_ext.unlearning.settings import Settings

TASK = CenterCrop(0.5)
QUICK = Settings(steps=30, batch_size=16)
SHORT = Settings(steps=4, batch_size=16)


@pytest.fixture(scope="module")
def given(tiny_images):
    """Return the arguments of the module's sweeps, except the model and the folder."""
    forget, retain = tiny_images
    sets = {"forget": forget[:40], "retain": retain[:40], "held_out": (forget[40:], retain[40:])}
    return {**sets, "task": TASK, "settings": QUICK}


@pytest.fixture(scope="module")
def swept(tmp_path_factory, tiny_model, given):
    out, seen = tmp_path_factory.mktemp("run"), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        front = sweep(tiny_model, **given, points=3, out=out, dataset="stripes", progress=seen.append)
    return front, out, json.loads((out / "metrics.json").read_text()), seen


@pytest.fixture(scope="module")
def objectives(tiny_model, given):
    return Objectives.freeze(tiny_model, given["forget"], given["retain"], TASK, settings=QUICK)


def of_role(front, role):
    return [point for point in front if point.role == role]


def encoder_of(folder):
    return [p.detach() for p in load("vqgan", folder).encoder_parameters()]


def test_every_epsilon_is_met(swept):
    front, _, metrics, _ = swept
    span = metrics["f1_original"] - metrics["f1_star"]
    asked = of_role(front, "epsilon")
    assert len(asked) == 3
    assert all(abs(point.miss) <= 0.01 * span for point in asked), asked
    assert metrics["max_epsilon_miss"] == pytest.approx(max(abs(point.miss) for point in asked) / span)


def test_epsilons_are_spaced_evenly_between_the_boundaries(swept):
    front, *_ = swept
    (high,), (low,) = of_role(front, "most-forgotten"), of_role(front, "least-forgotten")
    asked = [point.epsilon for point in of_role(front, "epsilon")]
    assert asked == pytest.approx(np.linspace(high.f1, low.f1, 5)[1:-1].tolist(), abs=1e-4)


def test_anchors_are_trained_at_shares_of_f1_and_the_last_comes_to_rest_at_the_infimum(swept):
    front, _, metrics, _ = swept
    anchors, (high,) = of_role(front, "anchor"), of_role(front, "most-forgotten")
    assert [a.epsilon for a in reversed(anchors)] == pytest.approx(
        [s * metrics["f1_original"] for s in SCHEDULE.anchors[:-1]]
    )
    assert high.f1 == high.epsilon == metrics["f1_star"] == min(point.f1 for point in front)
    assert {(point.made_of, point.steps) for point in (*anchors, high)} == {("trained", QUICK.steps)}


def test_f1_rises_and_f2_falls_along_the_front(swept):
    front, *_ = swept
    f1, f2 = np.array([point.values for point in front]).T
    assert (np.diff(f1) > 0).all(), f1
    assert (np.diff(f2) < 1e-4).all(), f2
    assert f2[0] > 2 * f2[-1]


def test_the_least_forgotten_point_costs_next_to_nothing_but_forgets(swept, objectives):
    front, out, metrics, _ = swept
    (low,) = of_role(front, "least-forgotten")
    assert 0.85 * SCHEDULE.f2_tolerance <= low.f2 <= SCHEDULE.f2_tolerance
    assert low.f1 == low.epsilon < metrics["f1_original"]
    f1, f2 = objectives.evaluate(load("vqgan", out / low.name).encode)
    assert (f1, f2) == pytest.approx(low.values, rel=1e-4)


def test_a_mixture_is_what_the_table_says_it_is_made_of(swept, tiny_model, objectives):
    front, out, _, _ = swept
    mixtures = [point for point in front if point.made_of != "trained"]
    assert mixtures
    for point in mixtures:
        parts = [part.split("*") for part in point.made_of.split(" + ")]
        ends = [
            tiny_model.encoder_parameters() if name == "unmodified" else encoder_of(out / name) for _, name in parts
        ]
        mixed = [
            sum(float(share) * p for (share, _), p in zip(parts, ps, strict=True)) for ps in zip(*ends, strict=True)
        ]
        assert sum(float(share) for share, _ in parts) == pytest.approx(1, abs=1e-5)
        for mine, saved in zip(mixed, encoder_of(out / point.name), strict=True):
            torch.testing.assert_close(mine, saved, rtol=1e-4, atol=1e-5)
        assert objectives.evaluate(load("vqgan", out / point.name).encode) == pytest.approx(point.values, rel=1e-3)


def test_many_points_take_no_more_steps_than_few(swept, tmp_path, tiny_model, given):
    front = sweep(tiny_model, **given, points=9)
    assert (
        sum(point.steps for point in front)
        == sum(point.steps for point in swept[0])
        == len(SCHEDULE.anchors) * QUICK.steps
    )


def test_a_front_gives_a_model_at_any_epsilon(swept, objectives):
    front, out, metrics, _ = swept
    before = (out / "front.csv").read_bytes()
    for share in (0.9, 0.5, 0.2, 0.1):
        epsilon = share * metrics["f1_original"]
        made = front.at(epsilon)
        assert made.f1 == pytest.approx(epsilon, abs=0.003 * metrics["f1_original"])
        assert objectives.evaluate(made.model.encode) == pytest.approx((made.f1, made.f2), rel=1e-4)
    assert (out / "front.csv").read_bytes() == before


def test_beyond_its_ends_a_front_gives_the_ends_and_warns(swept, tiny_model):
    front, _, metrics, _ = swept
    with pytest.warns(UserWarning, match="the least that can be reached"):
        made = front.at(0.0)
    assert (made.f1, made.made_of) == (metrics["f1_star"], "1*most-forgotten")
    with pytest.warns(UserWarning, match="the model stays as it is"):
        made = front.at(2 * metrics["f1_original"])
    assert (made.f2, made.made_of) == (0.0, "1*unmodified")
    for a, b in zip(made.model.encoder_parameters(), tiny_model.encoder_parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_finished_run_gives_models_too_and_a_table_alone_does_not(swept, tiny_model, given):
    front, out, metrics, _ = swept
    with pytest.warns(UserWarning, match="is finished: nothing is left to do"):
        again = sweep(tiny_model, **given, points=3, out=out, dataset="stripes", resume=True)
    epsilon = 0.3 * metrics["f1_original"]
    assert again.at(epsilon)[1:] == front.at(epsilon)[1:]
    with pytest.raises(UserError, match="this front was read from a table, so it has no models"):
        ParetoFront.from_csv(out / "front.csv").at(epsilon)


def test_where_no_line_is_good_enough_a_model_is_trained(swept, monkeypatch, objectives):
    front, _, metrics, _ = swept
    epsilon = 0.3 * metrics["f1_original"]
    mixed = front.at(epsilon)
    monkeypatch.setattr(Mixture, "is_dominated", True)
    trained = front.at(epsilon)
    assert (mixed.made_of == "trained", trained.made_of) == (False, "trained")
    assert trained.f1 == pytest.approx(epsilon, abs=0.01 * metrics["f1_original"])
    assert objectives.evaluate(trained.model.encode) == pytest.approx((trained.f1, trained.f2), rel=1e-4)


def test_points_are_added_to_a_finished_run(tmp_path, tiny_model, given, monkeypatch):
    alone = sweep(tiny_model, **given, epsilons=[0.3], out=tmp_path / "run")
    sweep(tiny_model, **given, epsilons=[0.3, 0.2, 0.1], out=tmp_path / "whole")
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*/*")}
    added = add_points(tmp_path / "run", tiny_model, **given, epsilons=[0.2])
    with monkeypatch.context() as patch:
        patch.setattr(Mixture, "is_dominated", True)
        added = add_points(tmp_path / "run", tiny_model, **given, epsilons=[0.1])
    names = [point.name for point in added]
    assert set(names) == {*(point.name for point in alone), "eps-0.2000", "eps-0.1000"}
    assert all(path.read_bytes() == content for path, content in before.items())
    assert ParetoFront.from_csv(tmp_path / "run" / "front.csv") == added
    run, whole = (ParetoFront.from_csv(tmp_path / name / "front.csv") for name in ("run", "whole"))
    mixed, at_once = (next(point for point in front if point.name == "eps-0.2000") for front in (run, whole))
    assert (mixed.values, mixed.made_of) == (at_once.values, at_once.made_of)
    assert next(point for point in run if point.name == "eps-0.1000").made_of == "trained"
    with np.load(tmp_path / "run" / "samples.npz") as pictures:
        assert set(names) < set(pictures.files)
    with open(tmp_path / "run" / "history.csv", newline="") as file:
        steps = [row["point"] for row in csv.DictReader(file)]
    assert steps.count("eps-0.1000") == QUICK.steps
    assert len(steps) == (len(SCHEDULE.anchors) + 1) * QUICK.steps
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["hypervolume"] == pytest.approx(added.hypervolume(tuple(metrics["reference_point"])))


def test_points_are_not_added_where_no_sweep_is(tmp_path, tiny_model, given):
    with pytest.raises(UserError, match=r"is not a finished run: it contains no front\.csv"):
        add_points(tmp_path, tiny_model, **given, epsilons=[0.2])


def test_every_point_loads_and_is_what_the_table_says(swept, tiny_images):
    front, out, _, _ = swept
    vq_model = importlib.import_module("diffusers").VQModel
    pictures = np.load(out / "samples.npz")
    hole = np.s_[..., 2:6, 2:6]
    for name in [point.name for point in front]:
        assert vq_model.from_pretrained(out / name, low_cpu_mem_usage=False).config.sample_size == 8
        assert pictures[name].shape == (12, 1, 8, 8)
        assert pictures[name].dtype == np.uint8
    assert pictures["is_forget"].tolist() == [True] * 6 + [False] * 6
    assert (pictures["corrupted"][hole] == 128).all()
    assert (pictures["original"][hole] != 128).any()
    assert pictures["unmodified"].shape == pictures["original"].shape


def test_the_tables_are_complete(swept):
    front, out, metrics, _ = swept
    assert ParetoFront.from_csv(out / "front.csv") == front
    with open(out / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["point", "step", "epsilon", "f1", "f2", "psi", "lam", "skipped", "request"]
    for point in front:
        steps = [int(row["step"]) for row in rows if row["point"] == point.name]
        assert steps == list(range(len(steps)))
        assert len(steps) == point.steps
        assert 0 < point.seconds < metrics["seconds"]
    assert {row["skipped"] for row in rows} == {"0"}
    expected = {
        "version", "family", "dataset", "task", "seed", "settings", "f1_original", "f2_original", "f1_star",
        "f2_tolerance", "anchors", "steps_per_anchor", "hypervolume", "reference_point", "max_epsilon_miss",
        "samples_from", "pictures", "seconds", "peak_memory_mb", "device", "command", "argv", "started", "finished",
        "after", "after_point", "requests", "units", "images",
    }  # fmt: skip
    assert set(metrics) == expected
    assert metrics["command"] == "sweep"
    assert metrics["requests"] == {"forget": {"epsilon": None, "epsilon_given": None}}
    assert metrics["hypervolume"] == pytest.approx(front.hypervolume(tuple(metrics["reference_point"])))
    assert metrics["task"] == "center-crop:0.5"
    assert 10 < metrics["peak_memory_mb"] < 10_000


def test_progress_goes_through_every_stage(swept):
    front, _, _, seen = swept
    assert [event.index for event in seen] == sorted(event.index for event in seen)
    assert {event.total for event in seen} == {len(front)}
    assert {event.stage for event in seen} == {point.name for point in front if point.made_of == "trained"}
    assert all(0 < event.step <= event.steps for event in seen)
    for before, after in itertools.pairwise(seen):
        assert after.index > before.index or after.step > before.step


def test_own_epsilons_warn_outside(tmp_path, model, images):
    with pytest.warns(UserWarning, match="the model stays as it is"):
        front = sweep(model, *images, task=TASK, epsilons=[40.0, 40.00001], out=tmp_path, settings=SHORT)
    assert all(math.isnan(point.f1_validation) for point in front)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {point.name for point in front}
    assert [point.name for point in of_role(front, "epsilon")] == ["eps-40.0000"]


def test_points_that_fall_together_are_a_warning(monkeypatch, model, images):
    monkeypatch.setattr(phases, "_record_least_forgotten", lambda dial, recorder: dial.f1_star + 1e-4)
    with pytest.warns(UserWarning, match="5 points were asked for, but the range of f1"):
        front = sweep(model, *images, task=TASK, points=5, settings=SHORT)
    assert 1 <= len(of_role(front, "epsilon")) <= 2


def test_every_public_name_of_the_package_loads():
    assert all(hasattr(ux, name) for name in ux.__all__)


def test_the_package_gives_the_function_whatever_was_imported_before():
    pytest.importorskip("diffusers")
    code = "import unlearn_ext.unlearning.phases, unlearn_ext as ux; assert callable(ux.sweep) and callable(ux.unlearn)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_f1_cannot_be_lowered_there_is_no_front(model, images):
    still = Settings(steps=1, lr=0.0)
    with pytest.raises(UserError, match=r"f1 did not fall below .* in \d+ steps, so there is no front"):
        sweep(model, *images, task=TASK, settings=still)


def test_with_a_huge_f2_tolerance_both_boundaries_are_the_same_point(model, images, monkeypatch):
    monkeypatch.setattr(phases, "SCHEDULE", replace(SCHEDULE, f2_tolerance=1e9))
    front = sweep(model, *images, task=TASK, points=0, settings=SHORT)
    (high,), (low,) = of_role(front, "most-forgotten"), of_role(front, "least-forgotten")
    assert low.values == high.values
