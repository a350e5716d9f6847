"""The experiment on a tiny model: complete, resumed, the same every time; and what is said of it."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
import tiny
import torch

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytest.importorskip("sklearn")
pytest.importorskip("torchmetrics")
pytest.importorskip("efficientnet_lite_pytorch")

from unlearn_ext import demo, journal
from unlearn_ext.baselines import METHODS, train
from unlearn_ext.batches import in_bytes
from unlearn_ext.data import ForgetRetain
from unlearn_ext.errors import UserError
from unlearn_ext.models import load, reconstruct
from unlearn_ext.objectives import Objectives
from unlearn_ext.pareto import dominates
from unlearn_ext.report import write_reproduction
from unlearn_ext.reproduction import Plan, reproduce, standings, trial, workers
from unlearn_ext.reproduction import costs as costs_module
from unlearn_ext.reproduction import experiment as experiment_module
from unlearn_ext.reproduction.compare import WORST_F2
from unlearn_ext.reproduction.pictures import KINDS, Pictures
from unlearn_ext.reproduction.plan import BASELINE_LR
from unlearn_ext.reproduction.studies import Convergence, Infill, Probe, Resurfacing
from unlearn_ext.reproduction.table import OURS, UNMODIFIED, Cost, Row, Table
from unlearn_ext.reproduction.workers import Workers
from unlearn_ext.settings import Settings

PLAN = Plan(seeds=1, points=1)
BRIEF = demo.Choice(Settings(steps=1, batch_size=8))
SOME = (
    "max-loss",
    "composite",
    "mgda",
    "dual-ascent",
)  # of pictures, of latents, without a knob, of ε


@pytest.fixture(autouse=True)
def forgotten():
    """No test is given the problem of another's model."""
    trial.posed.cache_clear()
    yield
    trial.posed.cache_clear()


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, tiny_model, tiny_images):
    """A folder where it was run with some methods, its two tables, and the images."""
    forget, retain = tiny_images
    images = ForgetRetain("stripes", forget[:32], retain[:32], forget[32:], retain[32:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "prepare", lambda *_, **__: (tiny_model, images))
        for family in ("vqgan", "diffusion"):
            patch.setitem(demo.CHOICES, family, BRIEF)
        patch.setattr(experiment_module, "METHODS", {name: METHODS[name] for name in SOME})
        patch.setattr(costs_module, "FEW", 1)
        patch.setattr(costs_module, "MANY", 2)
        folder = tmp_path_factory.mktemp("experiment")
        rows, costs = reproduce(folder, plan=PLAN)
        yield folder, rows, costs, images


def test_every_method_has_its_models(experiment):
    folder, rows, costs, _ = experiment
    counts = {name: sum(row.method == name for row in rows) for name in (UNMODIFIED, OURS, *SOME)}
    front = counts.pop(OURS)
    assert front == PLAN.points + 2
    assert counts.pop(UNMODIFIED) == 1
    grids = [len(METHODS[name].grid) for name in ("max-loss", "composite")]
    assert counts == dict(zip(SOME, (*grids, 1, front), strict=True))
    assert [cost.method for cost in costs] == [OURS, *SOME]
    assert all(cost.memory_mb > 10 or math.isnan(cost.memory_mb) for cost in costs)
    assert repr(list(Table(folder / "reproduction.csv", Row).rows.values())) == repr(rows)


def test_all_are_given_as_many_gradients_as_a_model_of_ours(experiment):
    folder, rows, _, _ = experiment
    ours = [row.gradients for row in rows if row.method == OURS]
    steps = (folder / "vqgan-0" / "history.csv").read_text().count("\n") - 1
    assert sum(ours) == 2 * steps
    assert {row.gradients for row in rows if row.method in SOME} == {2 * round(steps / len(ours))}


def test_rows_are_what_the_objectives_say(experiment, tiny_model):
    _, rows, _, images = experiment
    objectives = Objectives.freeze(tiny_model, images.forget, images.retain, demo.TASK, settings=BRIEF.settings)
    validation = objectives.held_out(images.forget_validation, images.retain_validation)
    (row,) = (row for row in rows if row.method == UNMODIFIED)
    assert (*row.values, *row.values_validation) == (
        *objectives.evaluate(tiny_model.encode),
        *validation.evaluate(tiny_model.encode),
    )
    (row,) = (row for row in rows if row.key[2:] == ("composite", "0.1"))
    steps = row.gradients // 2
    (made,) = train(METHODS["composite"], tiny_model, objectives, values=[0.1], steps=steps, lr=BASELINE_LR)
    assert (*row.values, *row.values_validation) == (
        *objectives.evaluate(made.encode),
        *validation.evaluate(made.encode),
    )


def test_what_every_model_makes_is_kept(experiment, tiny_model):
    folder, rows, _, images = experiment
    validation = {"forget": images.forget_validation, "retain": images.retain_validation}
    kept = Pictures(folder, "vqgan", 0)
    assert len(list(kept.folder.iterdir())) == len(rows) + 2

    def same(sets, make):
        assert set(sets) == set(KINDS)
        return all(np.array_equal(sets[kind], in_bytes(make(part)).numpy()) for kind, part in validation.items())

    assert same(kept.originals(), lambda part: part)
    assert same(kept.corrupted(), demo.TASK)
    (trained,) = (row for row in rows if row.key[2:] == ("composite", "0.1"))
    objectives = Objectives.freeze(tiny_model, images.forget, images.retain, demo.TASK, settings=BRIEF.settings)
    steps = trained.gradients // 2
    (made,) = train(METHODS["composite"], tiny_model, objectives, values=[0.1], steps=steps, lr=BASELINE_LR)
    models = {
        row: load("vqgan", folder / "vqgan-0" / row.point) if row.method == OURS else tiny_model
        for row in rows if row.method in (OURS, UNMODIFIED)
    } | {trained: made}  # fmt: skip
    for row, model in models.items():
        assert same(kept.made(row.method, row.point), lambda part, model=model: reconstruct(model, part, demo.TASK))
    assert all(kept.made(row.method, row.point) for row in rows)


def test_a_row_enters_its_table_after_its_pictures(experiment, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(28, "full")

    monkeypatch.setattr(trial.Trial, "keep_pictures", broken)
    with pytest.raises(OSError, match="full"):
        reproduce(tmp_path, plan=PLAN)
    assert not (tmp_path / "reproduction.csv").exists()


def test_the_same_seed_gives_the_same_table_and_what_is_there_is_not_computed_again(experiment, tmp_path, monkeypatch):
    folder, *_ = experiment
    whole = (folder / "reproduction.csv").read_bytes()
    reproduce(tmp_path, plan=PLAN)
    assert (tmp_path / "reproduction.csv").read_bytes() == whole
    for path in Pictures(folder, "vqgan", 0).folder.iterdir():
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes()

    (tmp_path / "reproduction.csv").write_bytes(b"\n".join(whole.split(b"\n")[:-4]) + b"\n")
    made, row = [], trial.BaselineRun.row
    monkeypatch.setattr(trial.BaselineRun, "row", lambda run: made.append(run) or row(run))
    monkeypatch.setattr(trial.Trial, "front", lambda _: pytest.fail("the front is there"))
    reproduce(tmp_path, plan=PLAN)
    assert len(made) == 3
    assert (tmp_path / "reproduction.csv").read_bytes() == whole

    trial.posed.cache_clear()
    monkeypatch.setattr(demo, "prepare", lambda *_, **__: pytest.fail("nothing is left to be done"))
    reproduce(tmp_path, plan=PLAN)


def test_processes_side_by_side_make_the_same_tables(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "get_context", lambda _: get_context("fork"))  # which know what is patched here
    before, seen, prepare, prepared = torch.get_num_threads(), [], demo.prepare, []
    try:
        torch.set_num_threads(1)
        alone, _ = reproduce(tmp_path / "alone", plan=PLAN, seeds=2)
        monkeypatch.setattr(demo, "prepare", lambda *a, **k: prepared.append(k["seed"]) or prepare(*a, **k))
        together, _ = reproduce(tmp_path / "together", plan=PLAN, seeds=2, jobs=2, progress=seen.append)
    finally:
        torch.set_num_threads(before)
    assert repr(together) == repr(alone)
    assert prepared == [0, 1]  # here, not in a process of one thread, whose small models differ in their last digits
    assert [(now.stage, now.step) for now in seen[:2]] == [("front of vqgan 0", 0), ("front of vqgan 0", 1)]
    assert list(dict.fromkeys(now.stage for now in seen))[:4] == [
        "front of vqgan 0",
        "front of vqgan 1",
        "max-loss 0.1",
        "composite 0.002",
    ]


def threads(_):
    return torch.get_num_threads()


def test_every_process_has_one_thread_and_results_keep_their_order():
    with Workers(2, None) as pair:
        assert list(pair.each(threads, range(3), str)) == [1, 1, 1]
        assert list(pair.each(math.sqrt, (9, 4, 1), str)) == [3, 2, 1]
        with pytest.raises(ValueError, match="math domain error"):
            list(pair.each(math.sqrt, (1, -1), str))


def test_more_seeds_are_added(experiment, tmp_path, monkeypatch):
    folder, rows, _, _ = experiment
    for name in ("reproduction.csv", "costs.csv", "reproduction.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    more, _ = reproduce(tmp_path, plan=PLAN, seeds=2)
    assert [row.seed for row in more] == [0] * len(rows) + [1] * len(rows)
    assert repr(more[: len(rows)]) == repr(rows)
    assert [row.key[2] for row in more[: len(rows)]] == [row.key[2] for row in more[len(rows) :]]
    assert more[1].f1 != more[len(rows) + 1].f1
    assert all(not math.isnan(standing.hypervolume.half) for standing in standings(more))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"plan": replace(PLAN, points=2)}, "points"),
        ({"plan": replace(PLAN, studies=(Probe(),))}, "studies"),
        ({"plan": PLAN, "device": "cuda"}, "device"),
    ],
)
def test_another_experiment_is_refused(experiment, changed, named):
    folder, *_ = experiment
    with pytest.raises(UserError, match=f"holds an experiment with other settings, it differs in: {named}; see"):
        reproduce(folder, **changed)


@pytest.mark.parametrize("name", ["quality.csv", "probe.csv", "figures", "reproduction.html"])
def test_somebodys_own_files_are_not_replaced(tmp_path, monkeypatch, name):
    monkeypatch.setattr(demo, "prepare", lambda *_, **__: pytest.fail("too late"))
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"holds {name}, which no run wrote and this one would replace"):
        reproduce(tmp_path, plan=replace(PLAN, studies=(Probe(),)))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("vqgan-1/front.csv", "vqgan-1 holds front.csv, which no run wrote"),
        ("vqgan-1/eps-0.3000/cat.png", "vqgan-1 holds eps-0.3000, which no run wrote"),
        ("vqgan-1/.eps-0.3000.journal", "vqgan-1 holds what `unlearn-ext run` wrote"),
    ],
)
def test_a_front_that_could_not_be_written_is_found_before_the_first(tmp_path, monkeypatch, name, sentence):
    monkeypatch.setattr(demo, "prepare", lambda *_, **__: pytest.fail("too late"))
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=re.escape(sentence)):
        reproduce(tmp_path, plan=PLAN, seeds=2)
    assert (tmp_path / name).read_text() == "mine"


def test_models_of_the_front_are_brought_to_the_device(experiment):
    folder, *_ = experiment
    there = trial.Trial("vqgan", 0, PLAN, folder, None, device=torch.device("meta"))
    assert there.model(there.points()[0].name).device.type == "meta"
    assert there.under(demo.TASK, 1).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
def test_it_runs_on_a_gpu(experiment, tmp_path):
    _, rows, *_ = experiment
    study = (Convergence((2.0,), 1), Resurfacing((0, 1)), Probe(), Infill((0.5,)))
    again, costs = reproduce(tmp_path, plan=replace(PLAN, studies=study), device="cuda")
    assert [row.key[:3] for row in again] == [row.key[:3] for row in rows]
    assert again[0].values == pytest.approx(rows[0].values, rel=1e-3)  # the unmodified model; TF32 may be on
    assert all(math.isfinite(cost.seconds) for cost in costs)


def test_a_family_without_a_small_model_is_named(tmp_path):
    with pytest.raises(UserError, match="family gan is not compared"):
        reproduce(tmp_path, families=("gan",), plan=PLAN)


def test_methods_that_look_at_pictures_are_left_out_where_there_are_none(tmp_path, experiment, monkeypatch):
    images = experiment[-1]
    model = tiny.model("diffusion")
    monkeypatch.setattr(demo, "prepare", lambda *_, **__: (model, images))
    monkeypatch.setattr(experiment_module, "FAMILIES", ("diffusion",))
    rows, costs = reproduce(tmp_path, families=("diffusion",), plan=PLAN)
    assert {row.method for row in rows} == {UNMODIFIED, OURS, *SOME} - {"max-loss"}
    assert {cost.method for cost in costs} == {OURS, *SOME} - {"max-loss"}
    page = write_reproduction(tmp_path).read_text(encoding="utf-8")
    assert re.search(r"Not defined for this family:\s+max-loss", page)


# ---- what is said of it


def row(method, seed, f1, f2, point=""):
    return Row("vqgan", seed, method, point, 0.0, f1, f2, f1, f2, 10)


MADE_UP = [
    *(row(UNMODIFIED, seed, 1.0, 0.0) for seed in (0, 1)),
    row(OURS, 0, 0.5, 0.5 * WORST_F2, "a"),
    row(OURS, 0, 0.25, 0.75 * WORST_F2, "b"),
    row(OURS, 1, 0.5, 0.5 * WORST_F2, "a"),
    row("composite", 0, 0.5, 0.4 * WORST_F2),
    row("composite", 1, 2.0, 0.1 * WORST_F2),
]


def test_hypervolumes_are_shares_of_the_box_and_their_interval_is_students():
    ours, composite = sorted(standings(MADE_UP), key=lambda standing: standing.method != OURS)
    # Seed 0: half by half, and a quarter by a quarter more. Seed 1: half by half.
    assert ours.hypervolume.mean == pytest.approx((0.25 + 0.0625 + 0.25) / 2)
    assert ours.hypervolume.half == pytest.approx(12.7062 * 0.0625 / 2, rel=1e-4)
    assert composite.hypervolume.mean == pytest.approx(0.3 / 2)
    assert math.isnan(standings([r for r in MADE_UP if r.seed == 0])[0].hypervolume.half)


def test_a_model_is_beaten_only_by_one_of_its_own_seed():
    ours, composite = sorted(standings(MADE_UP), key=lambda standing: standing.method != OURS)
    assert dominates((0.5, 0.4 * WORST_F2), (0.5, 0.5 * WORST_F2))
    assert str(composite.beaten) == str(composite.beaten_validation) == "1 of 3, 0 of 1 clearly"
    assert ours.beaten.models == 0
    assert ours.models == 3
    assert ours.gradients == 30


@pytest.mark.parametrize(("f2", "clearly"), [((0.3, 0.31, 0.29), 1), ((0.3, 0.45, 0.1), 0), ((0.3, 0.31, 0.51), 0)])
def test_a_place_is_beaten_clearly_where_both_are_lower_beyond_the_interval_over_seeds(f2, clearly):
    rows = [row(UNMODIFIED, seed, 1.0, 0.0) for seed in range(3)]
    for seed in range(3):
        rows += [row(OURS, seed, 0.5 + seed / 1000, 0.5, "a"), row(OURS, seed, 0.9, 0.1, "b")]
        rows += [row("composite", seed, 1.5, 0.9, "far"), row("composite", seed, 0.4 + seed / 500, f2[seed], "near")]
    ours, composite = sorted(standings(rows), key=lambda standing: standing.method != OURS)
    assert (composite.beaten.clearly, composite.beaten.places) == (clearly, 2)
    assert ours.beaten.clearly == 0
    assert str(standings(rows[:5])[0].beaten) == "0 of 2"  # one seed has no interval


def test_the_page_stands_alone_and_shows_every_method(experiment):
    folder, *_ = experiment
    page = write_reproduction(folder).read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", page)
    assert page.count("<svg") == 3
    assert page.count("images to retain: ") == 2 + 4 + len(SOME) + 3 + PLAN.points + 2  # its gallery, and its strip
    for name in (OURS, *SOME):
        assert f"<td>{name}</td>" in page
    assert "± " not in re.sub("; ± is", "", page)  # one seed has no interval


def test_hostile_text_is_escaped(tmp_path):
    evil = "<script>alert('x')</script>"
    PLAN.keep(tmp_path, torch.device("cpu"))
    plan = tmp_path / "reproduction.json"
    plan.write_text(plan.read_text().replace('"mnist"', f'"{evil}"'))
    Table(tmp_path / "reproduction.csv", Row).add([replace(r, family=evil, point=evil) for r in MADE_UP])
    Table(tmp_path / "costs.csv", Cost).add([Cost(evil, "composite", 0.1, math.nan)])
    page = write_reproduction(tmp_path).read_text(encoding="utf-8")
    assert "alert(" in page
    assert "<script" not in page


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("reproduction.json", "{", "its reproduction.json cannot be read"),
        ("reproduction.csv", "a,b\n1,2\n", "cannot be read as a table"),
        ("reproduction.csv", "family\n", "lists no model"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path, name, content, sentence):
    PLAN.keep(tmp_path, torch.device("cpu"))
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=sentence):
        write_reproduction(tmp_path)


def test_a_front_that_was_cut_short_goes_on(experiment, tmp_path, monkeypatch):
    _, rows, *_ = experiment
    monkeypatch.setattr(journal, "SECONDS", 0.0)
    checkpoint, steps = journal.Journal.checkpoint, []

    def killed(self, state):
        checkpoint(self, state)
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(journal.Journal, "checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        reproduce(tmp_path, plan=PLAN)
    assert (tmp_path / "vqgan-0" / ".front.csv.journal").exists()
    assert reproduce(tmp_path, plan=PLAN)[0] == rows
