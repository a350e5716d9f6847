"""A whole sweep of a tiny model: the promises of the front, and the folder others read."""

import csv
import importlib
import itertools
import json
import math
import subprocess
import sys
import warnings
from statistics import fmean

import numpy as np
import pytest

from unlearn_ext.errors import UserError
from unlearn_ext.objectives import Objectives
from unlearn_ext.pareto import ParetoFront
from unlearn_ext.phases import F2_TOLERANCE, sweep
from unlearn_ext.run import WORTH, Run
from unlearn_ext.settings import Settings
from unlearn_ext.tasks import CenterCrop

QUICK = Settings(steps=40, batch_size=16)
NAMES = ("boundary-high", "boundary-low")


@pytest.fixture(scope="module")
def swept(tmp_path_factory, tiny_model, tiny_images):
    forget, retain = tiny_images
    out, seen = tmp_path_factory.mktemp("run"), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        front = sweep(
            tiny_model,
            forget[:40],
            retain[:40],
            task=CenterCrop(0.5),
            points=3,
            held_out=(forget[40:], retain[40:]),
            out=out,
            dataset="stripes",
            settings=QUICK,
            progress=seen.append,
        )
    return front, out, json.loads((out / "metrics.json").read_text()), seen


def test_every_epsilon_is_met(swept):
    front, _, metrics, _ = swept
    span = metrics["f1_original"] - metrics["f1_star"]
    for point in front:
        if point.role == "epsilon":
            assert abs(point.f1 - point.epsilon) <= 0.03 * span, point
    assert metrics["max_epsilon_miss"] <= 0.03


def test_the_highest_boundary_is_as_near_to_the_infimum_as_f1_is_met(swept):
    front, _, metrics, _ = swept
    high = metrics["f1_star"] + QUICK.tolerance * metrics["f1_original"]
    assert front.points[0].epsilon == pytest.approx(high)


def test_f1_rises_and_f2_falls_along_the_front(swept):
    front, *_ = swept
    assert [point.role for point in front] == ["boundary-high", "epsilon", "epsilon", "epsilon", "boundary-low"]
    f1, f2 = np.array([point.values for point in front]).T
    assert (np.diff(f1) > 0).all(), f1
    assert (np.diff(f2) < WORTH).all(), f2  # what a run does not go on for, it may leave
    assert f2[0] > 2 * f2[-1]


def test_the_lowest_boundary_costs_nothing_but_forgets(swept):
    front, _, metrics, _ = swept
    low = front.points[-1]
    assert 0 < low.f2 <= F2_TOLERANCE
    assert low.f1 < metrics["f1_original"]
    assert "f2 verified" in metrics["boundary_low_method"]


@pytest.mark.parametrize(
    ("costs", "share", "probes"),
    [
        (lambda gap: 4 * F2_TOLERANCE * (gap / 0.15) ** 2, 0.15 * math.sqrt(0.8 / 4), 2),  # too dear: back at once
        (lambda gap: 0.9 * F2_TOLERANCE * (gap / 0.15) ** 2, 0.15, 1),  # next to all of the tolerance
        (lambda gap: (0.3 if gap < 0.2 else 5) * F2_TOLERANCE, 0.15, 2),  # a cliff: back to the one before it
        (lambda gap: 0.1 * F2_TOLERANCE * (gap / 0.15) ** 2, 0.3 * math.sqrt(0.8 / 0.4), 3),  # at most twice as far
        (lambda gap: 0.0, 0.5, 3),  # never more than half of the way
        (lambda gap: 1.0, 0.0, 6),  # nothing is within the tolerance: the unmodified model
    ],
)
def test_the_lowest_boundary_is_searched_for_where_f2_says(model, images, monkeypatch, costs, share, probes):
    asked = []
    monkeypatch.setattr(Run, "descend", lambda run, steps: None)
    monkeypatch.setattr(Run, "evaluate_f1", lambda run: 0.0)

    def meet(run, epsilon, original, steps=None):
        asked.append(1 - epsilon / original)
        return epsilon, costs(asked[-1])

    monkeypatch.setattr(Run, "meet", meet)
    low = sweep(model, *images, task=CenterCrop(0.5), points=0, settings=Settings(steps=3)).points[-1]
    assert len(asked) == probes + 1  # and the highest boundary
    original = low.epsilon / (1 - share)
    assert asked[0] == pytest.approx(0.15)
    assert low.f1 == pytest.approx(low.epsilon)
    assert low.f2 <= F2_TOLERANCE * (1 + 1e-9)
    assert original == pytest.approx(Objectives.freeze(model, *images, CenterCrop(0.5)).evaluate_f1(model.encode))


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
    assert list(rows[0]) == ["point", "step", "epsilon", "f1", "f2", "psi", "lam", "skipped"]
    for point in front:
        steps = [int(row["step"]) for row in rows if row["point"] == point.name]
        assert steps == list(range(len(steps)))
        assert len(steps) >= point.steps >= QUICK.steps
        assert 0 < point.seconds < metrics["seconds"]
    assert {row["skipped"] for row in rows} == {"0"}
    expected = {
        "version", "family", "dataset", "task", "seed", "settings", "f1_original", "f2_original", "f1_star",
        "f2_tolerance", "boundary_low_method", "hypervolume", "reference_point", "max_epsilon_miss", "samples_from",
        "seconds", "peak_memory_mb", "device",
    }  # fmt: skip
    assert set(metrics) == expected
    assert metrics["hypervolume"] == pytest.approx(front.hypervolume(tuple(metrics["reference_point"])))
    assert metrics["task"] == "center-crop:0.5"
    assert 10 < metrics["peak_memory_mb"] < 10_000


def test_progress_goes_through_every_stage(swept):
    *_, seen = swept
    assert [event.index for event in seen] == sorted(event.index for event in seen)
    assert {event.total for event in seen} == {6}
    assert {event.stage for event in seen} == {point.name for point in swept[0]}
    assert all(0 < event.step <= event.steps for event in seen)
    for before, after in itertools.pairwise(seen):
        assert after.index > before.index or after.step > before.step


def test_own_epsilons_warn_outside(tmp_path, model, images):
    quick = Settings(steps=3, batch_size=16)
    with pytest.warns(UserWarning, match="close to unmodified"):
        front = sweep(model, *images, task=CenterCrop(0.5), epsilons=[40.0, 40.00001], out=tmp_path, settings=quick)
    assert all(math.isnan(point.f1_validation) for point in front)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {*NAMES, "eps-40.0000"}


def test_the_package_gives_the_function_whatever_was_imported_before():
    pytest.importorskip("diffusers")
    code = "import unlearn_ext.phases, unlearn_ext as ux; assert callable(ux.sweep) and callable(ux.unlearn)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_f1_cannot_be_lowered_there_is_no_front(model, images):
    still = Settings(steps=1, lr=0.0)
    with pytest.raises(UserError, match=r"f1 did not fall below .* in 1 steps, so there is nothing to walk between"):
        sweep(model, *images, task=CenterCrop(0.5), settings=still)


@pytest.fixture(scope="module")
def cold(tmp_path_factory, tiny_model, tiny_images):
    """A function that sweeps with every point begun at the unmodified model: the front, and the folder."""

    def swept(**some):
        out, images = tmp_path_factory.mktemp("cold"), (side[:40] for side in tiny_images)
        quick = Settings(steps=8, batch_size=16)
        return sweep(tiny_model, *images, task=CenterCrop(0.5), points=3, out=out, settings=quick, **some), out

    return swept


def test_points_computed_alone_are_those_of_a_cold_sweep(cold):
    whole, there = cold(cold=True)
    some, here = cold(only=(3, 1))
    assert [point.role for point in some] == ["epsilon", "epsilon", "boundary-low"]
    of_whole = {point.name: point for point in whole}
    assert [point.name for point in some] == [whole.points[1].name, whole.points[3].name, "boundary-low"]
    for point in some:
        assert point.values == of_whole[point.name].values
        weights = "diffusion_pytorch_model.safetensors"
        assert (here / point.name / weights).read_bytes() == (there / point.name / weights).read_bytes()


def test_nine_points_of_a_walk_cost_less_than_three_single_runs_and_their_front_is_no_worse(tiny_model, tiny_images):
    images = [side[:40] for side in tiny_images]
    how = {"task": CenterCrop(0.5), "points": 9, "settings": Settings(steps=12, batch_size=16)}
    walk, apart = (sweep(tiny_model, *images, cold=cold, **how) for cold in (False, True))
    steps, singles = ([p.steps for p in front if p.role == "epsilon"] for front in (walk, apart))
    assert sum(steps) <= 3 * fmean(singles)
    reference = (apart.points[-1].f1 / 0.9, max(point.f2 for point in apart))
    assert walk.hypervolume(reference) >= 0.99 * apart.hypervolume(reference)


@pytest.mark.parametrize("number", [0, 4])
def test_a_point_that_is_not_there_is_refused(cold, number):
    with pytest.raises(UserError, match=f"there is no point number {number}; the numbers are 1 to 3"):
        cold(only=(1, number))
