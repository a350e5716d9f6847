"""The experiment on a tiny model: complete, resumable and deterministic; and its evaluation and page."""

from __future__ import annotations

import copy
import json
import math
import re
from collections import Counter
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

from unlearn_ext import demo
from unlearn_ext.baselines import METHODS, train
from unlearn_ext.data import ForgetRetain
from unlearn_ext.errors import UserError
from unlearn_ext.models import reconstruct
from unlearn_ext.report import write_reproduction
from unlearn_ext.reproduction import FAMILIES, FULL, QUICK, Plan, reproduce, search, standings, trial, verdicts, workers
from unlearn_ext.reproduction import costs as costs_module
from unlearn_ext.reproduction.compare import STRICT_F2, f2_at
from unlearn_ext.reproduction.effort import Effort
from unlearn_ext.reproduction.pictures import KINDS, Pictures
from unlearn_ext.reproduction.search import FACTORS, WITHOUT_KNOB, Tried, Try, tunings
from unlearn_ext.reproduction.studies import Convergence, Infill, Probe, Readers, Resurfacing
from unlearn_ext.reproduction.sweeps import Tuning, legs
from unlearn_ext.reproduction.table import OURS, RETRAINED, UNMODIFIED, Cost, ModelRow, Table
from unlearn_ext.reproduction.workers import Workers
from unlearn_ext.unlearning import journal
from unlearn_ext.unlearning.batches import in_bytes
from unlearn_ext.unlearning.pareto import TRAINED, ParetoFront, hypervolume
from unlearn_ext.unlearning.schedule import SCHEDULE
from unlearn_ext.unlearning.settings import Settings

PAIRS = 20
PLAN = Plan(seeds=1, points=1, efforts=dict.fromkeys(FAMILIES, Effort(8, PAIRS, 1.0)))
SOME = ("max-loss", "composite", "mgda", "dual-ascent")  # compares pictures, compares latents, has no knob, takes ε
LEGS = {OURS: 4, "max-loss": 5, "composite": 5, "mgda": 4, "dual-ascent": 4}


@pytest.fixture(autouse=True)
def forgotten():
    """Clear the cache of problems, so that no test gets the problem of another test's model."""
    trial.posed.cache_clear()
    yield
    trial.posed.cache_clear()


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, tiny_model, tiny_images):
    """Run the experiment with some methods; yield its folder, its first two tables and the images."""
    forget, retain = tiny_images
    images = ForgetRetain("stripes", forget[:32], retain[:32], forget[32:], retain[32:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "prepare", lambda *_, **__: (tiny_model, images))
        patch.setattr(demo, "retrained", lambda *_, **__: another(tiny_model))
        patch.setattr(trial, "METHODS", {name: METHODS[name] for name in SOME})
        patch.setattr(costs_module, "FEW", 1)
        patch.setattr(costs_module, "MANY", 2)
        folder = tmp_path_factory.mktemp("experiment")
        rows, costs = reproduce(folder, plan=PLAN)
        yield folder, rows, costs, images


def another(model):
    """Return a copy of the model with a different encoder."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.encoder_parameters():
            parameter *= 1.1
    return other


def tried_in(folder):
    return list(Table(folder / "search.csv", Tried).rows.values())


def chosen_in(folder):
    return tunings(Table(folder / "search.csv", Tried), "vqgan")


@pytest.fixture
def problem(experiment):
    folder, *_ = experiment
    return (
        trial.Trial("vqgan", 0, PLAN.efforts["vqgan"], PLAN.points, folder, None).tuned(chosen_in(folder)[OURS]).problem
    )


def test_every_method_has_its_models_and_the_same_mixtures(experiment):
    folder, rows, costs, _ = experiment
    assert [row.method for row in rows[:2]] == [UNMODIFIED, RETRAINED]
    for method, count in LEGS.items():
        mine = [row for row in rows if row.method == method]
        trained = [row for row in mine if row.made_of == TRAINED]
        assert [row.point for row in trained] == [str(number + 1) for number in range(count)]
        mixtures = [row.made_of for row in mine if row.made_of != TRAINED]
        between = [
            f"{s}*{k + 1} + {r}*{k}" for k in range(1, count) for s, r in (("0.333", "0.667"), ("0.667", "0.333"))
        ]
        assert mixtures == [*between, *(f"0.5*{k} + 0.5*unmodified" for k in range(1, count + 1))]
    assert {row.method for row in rows} == {UNMODIFIED, RETRAINED, *LEGS}
    assert [cost.method for cost in costs] == [OURS, *SOME]
    assert all(cost.memory_mb > 10 or math.isnan(cost.memory_mb) for cost in costs)
    assert repr(list(Table(folder / "reproduction.csv", ModelRow).rows.values())) == repr(rows)


def test_all_sweeps_take_the_same_number_of_pairs(experiment):
    folder, rows, _, _ = experiment
    for method, count in LEGS.items():
        pairs = [row.pairs for row in rows if row.method == method and row.made_of == TRAINED]
        assert pairs == [PAIRS // count * number for number in range(1, count + 1)]
        assert pairs[-1] == PAIRS
        for row in rows:
            if row.method == method and row.made_of != TRAINED:
                assert row.pairs == pairs[int(re.match(r"[\d.]+\*(\d)", row.made_of)[1]) - 1]
    with (folder / "vqgan-0" / "history.csv").open() as file:
        steps = Counter(line.split(",")[0] for line in file)
    assert sum(steps[name] for name in steps if name.startswith("anchor-") or name == "most-forgotten") == PAIRS


def test_values_of_the_knob_are_the_same_shares_of_f1_for_all_that_ask_for_an_epsilon(experiment):
    folder, rows, _, _ = experiment
    original = rows[0].f1
    for method in (OURS, "dual-ascent"):
        asked = [row.value for row in rows if row.method == method and row.made_of == TRAINED]
        assert asked == pytest.approx([share * original for share in SCHEDULE.anchors])
    weights = [row.value for row in rows if row.method == "composite" and row.made_of == TRAINED]
    scale = chosen_in(folder)["composite"].scale
    assert weights == pytest.approx([scale * weight for weight in METHODS["composite"].grid])
    assert all(math.isnan(row.value) for row in rows if row.method == "mgda" or row.made_of != TRAINED)


def test_rows_are_what_the_objectives_say(experiment, problem, tiny_model):
    folder, rows, _, _ = experiment

    def judged(model):
        return (*problem.training.evaluate(model.encode), *problem.validation.evaluate(model.encode))

    by_key = {row.key[2:]: (*row.values, *row.values_validation) for row in rows}
    assert by_key[UNMODIFIED, ""] == judged(tiny_model)
    assert by_key[RETRAINED, ""] == judged(another(tiny_model))
    tuning = chosen_in(folder)["composite"]
    method = METHODS["composite"].scaled(tuning.scale)
    sweep = train(method, tiny_model, problem.training, steps=PAIRS // 5, lr=tuning.lr)
    models = [copy.deepcopy(model) for model in sweep]
    for number, model in enumerate(models, 1):
        assert by_key["composite", str(number)] == judged(model)
    mixed = copy.deepcopy(tiny_model)
    triples = zip(*(model.encoder_parameters() for model in (mixed, *models[1:3])), strict=True)
    with torch.no_grad():
        for parameter, second, third in triples:
            parameter.copy_(second + (third - second) / 3)
    assert by_key["composite", "0.333*3 + 0.667*2"] == pytest.approx(judged(mixed), rel=1e-4)


def test_ours_are_the_anchors_of_its_folder_trained_with_what_the_search_chose(experiment, problem):
    folder, rows, _, _ = experiment
    metrics = json.loads((folder / "vqgan-0" / "metrics.json").read_text())
    tuning = chosen_in(folder)[OURS]
    assert metrics["settings"]["lr"] == tuning.lr
    assert metrics["settings"]["rate"] == min(1.0, tuning.scale * Settings().rate)
    there = {point.values for point in ParetoFront.from_csv(folder / "vqgan-0" / "front.csv")}
    mine = [row for row in rows if row.method == OURS and row.made_of == TRAINED]
    for row in mine:
        assert min(abs(row.f1 - f1) + abs(row.f2 - f2) for f1, f2 in there) < 1e-6
    settings = trial.Trial("vqgan", 0, PLAN.efforts["vqgan"], PLAN.points, folder, None).settings
    again = list(legs(OURS, problem, settings, tuning, PAIRS))  # as in the search
    assert [leg.pairs for leg in again] == [row.pairs for row in mine]
    model = copy.deepcopy(problem.model)
    for row, leg in zip(mine, again, strict=True):
        for parameter, value in zip(model.encoder_parameters(), leg.encoder, strict=True):
            parameter.data.copy_(value)
        assert problem.training.evaluate(model.encode) == pytest.approx(row.values, rel=1e-5, abs=1e-9)


# ---- the search


def test_every_method_has_as_many_trials_and_the_largest_hypervolume_is_chosen(experiment):
    folder, *_ = experiment
    tried = tried_in(folder)
    assert Counter(row.method for row in tried) == dict.fromkeys(LEGS, len(FACTORS))
    assert len(FACTORS) == len(WITHOUT_KNOB)
    assert {row.pairs for row in tried} == {PAIRS}
    for method in LEGS:
        mine = [row for row in tried if row.method == method]
        (best,) = (row for row in mine if row.chosen)
        assert best.hypervolume == max(row.hypervolume for row in mine)
        assert len({(row.lr, row.scale) for row in mine}) == len(FACTORS)
    assert {row.scale for row in tried if row.method == "mgda"} == {1.0}


def test_the_search_judges_models_and_mixtures_on_training_images(experiment):
    folder, rows, *_ = experiment
    original = rows[0].f1
    for method in LEGS:  # in this plan trial and final sweeps are equally long, so they are equal
        (best,) = (row for row in tried_in(folder) if row.method == method and row.chosen)
        values = [row.values for row in rows if row.method == method]
        share = hypervolume(values, (original, STRICT_F2)) / (original * STRICT_F2)
        assert best.hypervolume == pytest.approx(share, rel=1e-4, abs=1e-9)


def test_a_trial_that_diverges_counts_with_what_it_trained_before(experiment, monkeypatch):
    folder, *_ = experiment

    def diverging(*arguments):
        yield next(legs(*arguments))
        raise UserError("the training diverges")

    first = trial.Trial("vqgan", 0, PLAN.efforts["vqgan"], PLAN.points, folder, None)
    whole, cut = Try(first, "composite", Tuning(1e-3), 0, 1), Try(first, "composite", Tuning(1e-3), 0, 1)
    before = whole.row().hypervolume
    monkeypatch.setattr(search, "legs", diverging)
    assert cut.row().hypervolume <= before


def test_full_and_quick_plans_take_every_pair():
    for plan in (FULL, QUICK):
        assert set(plan.efforts) == set(FAMILIES)
        for effort in plan.efforts.values():
            ladders = {len(SCHEDULE.anchors), *(len(method.grid) or 1 for method in METHODS.values())}
            assert all(effort.pairs % legs == 0 for legs in ladders)
    assert 4 <= len(FACTORS) <= 6


# ---- pictures


def test_what_every_trained_model_of_the_first_seed_makes_is_kept(experiment, problem, tiny_model):
    folder, rows, _, images = experiment
    validation = {"forget": images.forget_validation, "retain": images.retain_validation}
    kept, trained = Pictures(folder, "vqgan", 0), [row for row in rows if row.made_of == TRAINED]
    assert len(list(kept.folder.iterdir())) == len(trained) + 2

    def same(sets, make):
        assert set(sets) == set(KINDS)
        return all(np.array_equal(sets[kind], in_bytes(make(part)).numpy()) for kind, part in validation.items())

    assert same(kept.originals(), lambda part: part)
    assert same(kept.corrupted(), demo.TASK)
    tuning = chosen_in(folder)["composite"]
    method = METHODS["composite"].scaled(tuning.scale)
    first = next(train(method, tiny_model, problem.training, steps=PAIRS // 5, lr=tuning.lr))
    models = {(UNMODIFIED, ""): tiny_model, (RETRAINED, ""): another(tiny_model), ("composite", "1"): first}
    for name, model in models.items():
        assert same(kept.made(*name), lambda part, model=model: reconstruct(model, part, demo.TASK))
    assert all(kept.made(row.method, row.point) for row in trained)


def test_a_row_enters_its_table_after_its_pictures(experiment, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(28, "full")

    monkeypatch.setattr(Pictures, "keep", broken)
    with pytest.raises(OSError, match="full"):
        reproduce(tmp_path, plan=PLAN)
    assert not (tmp_path / "reproduction.csv").exists()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_table_and_what_is_there_is_not_computed_again(experiment, tmp_path, monkeypatch):
    folder, *_ = experiment
    whole = (folder / "reproduction.csv").read_bytes()
    reproduce(tmp_path, plan=PLAN)
    assert (tmp_path / "reproduction.csv").read_bytes() == whole
    for path in Pictures(folder, "vqgan", 0).folder.iterdir():
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes()

    tried = (folder / "search.csv").read_bytes()
    assert (tmp_path / "search.csv").read_bytes() == tried

    lines = whole.splitlines(keepends=True)
    (tmp_path / "reproduction.csv").write_bytes(b"".join(line for line in lines if b",dual-ascent," not in line))
    made, rows = [], trial.Sweep.rows
    monkeypatch.setattr(trial.Sweep, "rows", lambda run: made.append(run.method) or rows(run))
    monkeypatch.setattr(Try, "row", lambda _: pytest.fail("the search is there"))
    reproduce(tmp_path, plan=PLAN)
    assert made == ["dual-ascent"]
    assert (tmp_path / "reproduction.csv").read_bytes() == whole

    trial.posed.cache_clear()
    monkeypatch.setattr(demo, "prepare", lambda *_, **__: pytest.fail("nothing is left to be done"))
    reproduce(tmp_path, plan=PLAN)


def test_a_search_that_was_cut_short_goes_on_and_chooses_the_same(experiment, tmp_path, monkeypatch):
    folder, rows, *_ = experiment
    for name in ("reproduction.json", "costs.csv"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    lines = (folder / "search.csv").read_text().splitlines(keepends=True)
    (tmp_path / "search.csv").write_text("".join([lines[0], *(re.sub(",1$", ",0", line) for line in lines[1:-3])]))
    made, row = [], Try.row
    monkeypatch.setattr(Try, "row", lambda attempt: made.append(attempt.method) or row(attempt))
    assert repr(reproduce(tmp_path, plan=PLAN)[0]) == repr(rows)
    assert made == ["dual-ascent"] * 3
    assert (tmp_path / "search.csv").read_text() == "".join(lines)


@pytest.mark.slow
def test_processes_side_by_side_make_the_same_tables(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "get_context", lambda _: get_context("fork"))  # a fork keeps this test's patches
    seen, prepare, prepared = [], demo.prepare, []
    alone, _ = reproduce(tmp_path / "alone", plan=PLAN, seeds=2)
    monkeypatch.setattr(demo, "prepare", lambda *a, **k: prepared.append(k["seed"]) or prepare(*a, **k))
    together, _ = reproduce(tmp_path / "together", plan=PLAN, seeds=2, jobs=2, progress=seen.append)
    assert repr(together) == repr(alone)
    assert prepared == [0, 1]  # here: a process of one thread would give other last digits
    first = f"search {OURS} lr 0.001 x 1"
    assert [(now.stage, now.step) for now in seen[:2]] == [(first, 0), (first, 1)]
    swept = [f"vqgan {seed} {method}" for seed in (0, 1) for method in LEGS]
    assert list(dict.fromkeys(now.stage for now in seen if now.stage.startswith("vqgan"))) == swept
    assert (tmp_path / "together/search.csv").read_bytes() == (tmp_path / "alone/search.csv").read_bytes()


def threads(_):
    return torch.get_num_threads()


def test_every_process_has_one_thread_and_results_keep_their_order(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with Workers(2, None) as pair:
        assert list(pair.each(threads, range(3), str)) == [1, 1, 1]
        assert list(pair.each(math.sqrt, (9, 4, 1), str)) == [3, 2, 1]
        with pytest.raises(ValueError, match="math domain error"):
            list(pair.each(math.sqrt, (1, -1), str))


def test_more_seeds_are_added(experiment, tmp_path, monkeypatch):
    folder, rows, _, _ = experiment
    for name in ("reproduction.csv", "search.csv", "costs.csv", "reproduction.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    more, _ = reproduce(tmp_path, plan=PLAN, seeds=2)
    assert repr(more[: len(rows)]) == repr(rows)
    added = more[len(rows) :]
    assert {row.seed for row in added} == {1}
    assert [row.key[2:] for row in added] == [row.key[2:] for row in rows if row.method != RETRAINED]
    assert added[-1].f1 != rows[-1].f1
    assert (tmp_path / "search.csv").read_bytes() == (folder / "search.csv").read_bytes()
    assert not Pictures(tmp_path, "vqgan", 1).folder.exists()
    assert all(not math.isnan(standing.seen["training"].strict.half) for standing in standings(more))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"plan": replace(PLAN, points=2)}, "points"),
        ({"plan": replace(PLAN, efforts=dict.fromkeys(FAMILIES, Effort(8, PAIRS, 0.5)))}, "efforts"),
        ({"plan": replace(PLAN, studies=(Probe(),))}, "studies"),
        ({"plan": PLAN, "device": "cuda"}, "device"),
    ],
)
def test_another_experiment_is_refused(experiment, changed, named):
    folder, *_ = experiment
    with pytest.raises(
        UserError,
        match=rf"contains an experiment with other settings.*; they differ in: {named}; choose another folder\.",
    ):
        reproduce(folder, **changed)


@pytest.mark.parametrize("name", ["quality.csv", "probe.csv", "figures", "reproduction.html"])
def test_somebodys_own_files_are_not_replaced(tmp_path, monkeypatch, name):
    monkeypatch.setattr(demo, "prepare", lambda *_, **__: pytest.fail("too late"))
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"contains {name}, which no run wrote and this run would replace"):
        reproduce(tmp_path, plan=replace(PLAN, studies=(Probe(),)))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("vqgan-1/front.csv", "vqgan-1 contains front.csv, which no run wrote"),
        ("vqgan-1/eps-0.3000/cat.png", "vqgan-1 contains eps-0.3000, which no run wrote"),
        ("vqgan-1/.eps-0.3000.journal", "vqgan-1 contains the output of `unlearn-ext run`"),
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
    there = trial.Trial("vqgan", 0, PLAN.efforts["vqgan"], PLAN.points, folder, None, device=torch.device("meta"))
    assert there.model(there.points()[0].name).device.type == "meta"
    assert there.under(demo.TASK, 1).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
def test_it_runs_on_a_gpu(experiment, tmp_path):
    _, rows, *_ = experiment
    study = (Convergence((2.0,), 1), Resurfacing((0, 1)), Probe(), Readers(), Infill((0.5,)))
    again, costs = reproduce(tmp_path, plan=replace(PLAN, studies=study), device="cuda")
    assert [row.key[:3] for row in again] == [row.key[:3] for row in rows]
    assert again[0].values == pytest.approx(rows[0].values, rel=1e-3)  # the unmodified model; TF32 may be enabled
    assert all(math.isfinite(cost.seconds) for cost in costs)


def test_a_family_without_a_small_model_is_named(tmp_path):
    with pytest.raises(UserError, match="family gan is not compared"):
        reproduce(tmp_path, families=("gan",), plan=PLAN)


@pytest.mark.slow
def test_methods_that_look_at_pictures_are_left_out_where_there_are_none(tmp_path, experiment, monkeypatch):
    images = experiment[-1]
    model = tiny.model("diffusion")
    monkeypatch.setattr(demo, "prepare", lambda *_, **__: (model, images))
    monkeypatch.setattr(demo, "retrained", lambda *_, **__: another(model))
    rows, costs = reproduce(tmp_path, families=("diffusion",), plan=PLAN)
    assert {row.method for row in rows} == {UNMODIFIED, RETRAINED, OURS, *SOME} - {"max-loss"}
    assert {cost.method for cost in costs} == {OURS, *SOME} - {"max-loss"}
    page = write_reproduction(tmp_path).read_text(encoding="utf-8")
    assert re.search(r"Not defined for this family:\s+max-loss", page)


# ---- evaluation and page


def row(method, seed, f1, f2, point="1", pairs=10, made_of=TRAINED):
    return ModelRow("vqgan", seed, method, point, 0.0, made_of, pairs, f1, f2, f1, f2)


MADE_UP = [
    *(row(UNMODIFIED, seed, 1.0, 0.0, "") for seed in (0, 1)),
    row(OURS, 0, 0.5, 0.5 * STRICT_F2, "1"),
    row(OURS, 0, 0.25, 0.75 * STRICT_F2, "2", pairs=20),
    row(OURS, 1, 0.5, 0.5 * STRICT_F2, "1"),
    row("composite", 0, 0.5, 0.4 * STRICT_F2),
    row("composite", 1, 2.0, 0.1 * STRICT_F2),
]


def of(rows, method=OURS):
    (standing,) = (standing for standing in standings(rows) if standing.method == method)
    return standing


def test_hypervolumes_are_shares_of_the_box_and_their_interval_is_students():
    ours, composite = (of(MADE_UP, method).seen["training"] for method in (OURS, "composite"))
    # Seed 0: areas 0.5 * 0.5 and 0.25 * 0.25. Seed 1: area 0.5 * 0.5.
    assert ours.strict.mean == pytest.approx((0.25 + 0.0625 + 0.25) / 2)
    assert ours.strict.half == pytest.approx(12.7062 * 0.0625 / 2, rel=1e-4)
    assert composite.strict.mean == pytest.approx(0.3 / 2)
    assert ours.wide.mean == pytest.approx((0.5 * 0.95 + 0.25 * 0.925 + 0.5 * 0.95) / 2)
    assert math.isnan(of([r for r in MADE_UP if r.seed == 0]).seen["training"].strict.half)


def test_validation_and_training_images_are_kept_apart():
    rows = [replace(r, f2_validation=3 * r.f2) for r in MADE_UP]
    seen = of(rows).seen
    assert list(seen) == ["validation", "training"]
    assert seen["validation"].strict.mean < seen["training"].strict.mean


@pytest.mark.parametrize(
    ("f1", "f2"),
    [
        (0.2, 0.09),
        (0.3, 0.09**0.5 * 0.01**0.5),
        (0.4, 0.01),
        (0.55, 0.01**0.25 * 0.001**0.75),
        (0.9, 0.001),
        (0.1, math.nan),
    ],
)
def test_f2_at_an_f1_is_interpolated_on_the_front(f1, f2):
    values = [(0.6, 0.001), (0.2, 0.09), (0.4, 0.01), (0.45, 0.05), (0.2, 0.2), (math.nan, 0.0)]
    assert f2_at(values, f1) == pytest.approx(f2, nan_ok=True)


def test_where_f2_is_nothing_it_has_a_logarithm_all_the_same():
    assert 0 < f2_at([(0.5, 0.04), (1.0, 0.0)], 0.75) < 0.04
    assert math.isnan(f2_at([], 0.5))


def test_a_standing_counts_models_mixtures_and_pairs():
    rows = [*MADE_UP, row(OURS, 0, 0.4, 0.06, "0.5*2 + 0.5*1", 20, "0.5*2 + 0.5*1")]
    ours = of(rows)
    assert (ours.trained, ours.mixtures, ours.pairs) == (3, 1, 20)


def test_pairs_are_counted_until_the_hypervolume_is_reached():
    corner = row(UNMODIFIED, 0, 1.0, 0.0, "")
    path = [row(OURS, 0, 0.5, 0.001, "1", 10), row(OURS, 0, 0.2, 0.002, "2", 20), row(OURS, 0, 0.1, 0.003, "3", 30)]
    assert of([corner, *path]).seen["training"].pairs.mean == 20
    assert math.isnan(of([corner, *path[:1]]).seen["training"].pairs.mean)


@pytest.mark.parametrize(
    ("factors", "word"),
    [((0.5, 0.51, 0.49), "ahead"), ((2.0, 2.1, 1.9), "behind"), ((0.5, 1.5, 1.1), "equal"), ((1.0, 1.0, 1.0), "equal")],
)
def test_a_verdict_is_by_the_interval_of_paired_differences(factors, word):
    rows = [row(UNMODIFIED, seed, 1.0, 0.0, "") for seed in range(3)]
    for seed, factor in enumerate(factors):
        theirs = 0.01 * (1 + 5 * seed)  # seeds differ by far more than methods do
        rows += [row("composite", seed, 0.5, theirs), row(OURS, seed, 0.5, factor * theirs)]
        rows += [row("mgda", seed, 0.5, 9.0)]
    verdict = {verdict.share: verdict for verdict in verdicts(rows, "validation")}[0.5]
    assert (verdict.rival, verdict.word) == ("composite", word)
    assert verdict.ratio.mean == pytest.approx(np.mean(np.log(factors)), abs=1e-12)


def test_who_does_not_get_there_is_behind_and_one_seed_is_no_verdict():
    rows = [row(UNMODIFIED, seed, 1.0, 0.0, "") for seed in range(2)]
    rows += [row(OURS, seed, 0.2, 0.01) for seed in range(2)] + [
        row("composite", seed, 0.02, 0.02) for seed in range(2)
    ]
    assert [verdict.word for verdict in verdicts(rows, "training")][-2:] == ["behind", "behind"]
    swapped = [replace(r, method={OURS: "composite", "composite": OURS}.get(r.method, r.method)) for r in rows]
    assert [verdict.word for verdict in verdicts(swapped, "training")][-2:] == ["ahead", "ahead"]
    assert {verdict.word for verdict in verdicts([r for r in rows if r.seed == 0], "training")} == {""}


def test_the_page_stands_alone_and_shows_every_method(experiment):
    folder, *_ = experiment
    page = write_reproduction(folder).read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", page)
    assert page.count("<svg") == 3
    gallery, strip = 2 + 2 + 3 + len(SOME), 3 + len(SCHEDULE.anchors) + PLAN.points + 1
    assert page.count("images to retain: ") == gallery + strip
    for name in (OURS, *SOME):
        assert f"<td>{name}</td>" in page
    assert "± " not in re.sub("± is half", "", page)  # one seed has no interval
    for tuning in chosen_in(folder).values():
        assert f"<td>{tuning.lr:g}</td>" in page


def test_hostile_text_is_escaped(tmp_path):
    evil = "<script>alert('x')</script>"
    PLAN.keep(tmp_path, torch.device("cpu"))
    plan = tmp_path / "reproduction.json"
    plan.write_text(plan.read_text().replace('"mnist"', f'"{evil}"').replace('"vqgan"', f'"{evil}"'))
    Table(tmp_path / "reproduction.csv", ModelRow).add([replace(r, family=evil, point=evil) for r in MADE_UP])
    Table(tmp_path / "costs.csv", Cost).add([Cost(evil, "composite", 0.1, math.nan)])
    page = write_reproduction(tmp_path).read_text(encoding="utf-8")
    assert "alert(" in page
    assert "<script>alert" not in page


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
    folder, rows, *_ = experiment
    for name in ("reproduction.json", "search.csv", "costs.csv"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
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
    assert repr(reproduce(tmp_path, plan=PLAN)[0]) == repr(rows)
