"""The studies on tiny models: all rows exist, are computed once, are deterministic and are correct."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

pytest.importorskip("scipy")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from unlearn_ext import demo
from unlearn_ext.audit.reading import linear_reading
from unlearn_ext.audit.relearning import relearn
from unlearn_ext.data import ForgetRetain
from unlearn_ext.errors import UserError
from unlearn_ext.models import reconstruct
from unlearn_ext.optim.control import GradientNorm
from unlearn_ext.report import write_reproduction
from unlearn_ext.report.gallery import infill_rows
from unlearn_ext.reproduction import FULL, QUICK, Plan, reproduce, search
from unlearn_ext.reproduction import costs as costs_module
from unlearn_ext.reproduction import trial as trial_module
from unlearn_ext.reproduction.effort import Effort
from unlearn_ext.reproduction.pictures import Pictures
from unlearn_ext.reproduction.problem import Problem
from unlearn_ext.reproduction.studies import Convergence, Crops, Infill, Probe, Readers, Resurfacing, Study, fill
from unlearn_ext.reproduction.studies.infill import BLURRED, MEAN_IMAGE, NOISE, TARGETS, aimed, blurred
from unlearn_ext.reproduction.studies.probe import MEMBER, SET, accuracy
from unlearn_ext.reproduction.studies.resurfacing import FEW_FORGET, RETAIN
from unlearn_ext.reproduction.table import OURS, RETRAINED, UNMODIFIED, ModelRow, Table
from unlearn_ext.reproduction.trial import Trial
from unlearn_ext.reproduction.workers import Workers
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning.encoder import Encoder
from unlearn_ext.unlearning.history import History
from unlearn_ext.unlearning.objectives import Objectives
from unlearn_ext.unlearning.pareto import EPSILON, LEAST_FORGOTTEN, ParetoFront
from unlearn_ext.unlearning.schedule import SCHEDULE
from unlearn_ext.unlearning.settings import Settings
from unlearn_ext.unlearning.trainer import Trainer

DELTAS, STEPS, FRACTIONS, SHARES = (0.5, 2.0, 3.0), (0, 1, 3), (0.25, 0.75), (0.9, 0.8)
STUDIES = (
    Convergence(DELTAS, runs=2), Resurfacing(STEPS), Probe(), Readers(), Crops(FRACTIONS, points=1), Infill(SHARES),
)  # fmt: skip
EFFORT = Effort(batch_size=8, pairs=8, share=1.0)
SETTINGS = EFFORT.settings("vqgan", 0)
PLAN = Plan(seeds=1, points=1, efforts=dict.fromkeys(demo.CHOICES, EFFORT), studies=STUDIES)


@pytest.fixture(autouse=True)
def forgotten():
    """Clear the cache of problems, so that no test gets the problem of another test's model."""
    trial_module.posed.cache_clear()
    yield
    trial_module.posed.cache_clear()


@pytest.fixture(scope="module")
def images(tiny_images):
    forget, retain = tiny_images
    return ForgetRetain("stripes", forget[:32], retain[:32], forget[32:], retain[32:])


@pytest.fixture(scope="module")
def prepared():
    """Return a list that collects the tasks for which models were prepared."""
    return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model, images, prepared):
    """Yield the folder of an experiment without baselines."""

    def prepare(family, progress=None, *, seed=0, task=demo.TASK, share=None):
        prepared.append(task)
        return tiny_model, images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "prepare", prepare)
        patch.setattr(demo, "retrained", lambda *_, **__: tiny_model)
        patch.setattr(search, "FACTORS", ((1.0, 1.0),))
        patch.setattr(trial_module, "METHODS", {})
        patch.setattr(costs_module, "FEW", 1)
        patch.setattr(costs_module, "MANY", 2)
        folder = tmp_path_factory.mktemp("studies")
        reproduce(folder, plan=PLAN)
        yield folder


def answers(folder, study):
    return list(Table(folder / f"{study.name}.csv", study.row).rows.values())


def front(folder):
    """Return the points of the front at anchors and requested ε, beginning with the most forgotten."""
    return [point for point in ParetoFront.from_csv(folder / "vqgan-0" / "front.csv") if point.role != LEAST_FORGOTTEN]


def settings_of(folder):
    """Return the settings that the search chose for the epsilon-constraint method."""
    chosen = search.tunings(Table(folder / search.FILE, search.Tried), "vqgan")[OURS]
    return chosen.of_ours(SETTINGS)


def test_every_row_that_is_claimed_is_there(folder):
    convergence, resurfacing, probe, readers, crops, infill = (answers(folder, study) for study in STUDIES)
    names = [UNMODIFIED, *(point.name for point in front(folder))]
    assert len(names) == PLAN.points + len(SCHEDULE.anchors) + 1
    assert [row.key for row in convergence] == [
        ("vqgan", phase, delta, step) for phase in ("I", "II") for delta in DELTAS for step in range(4)
    ]
    assert [row.key for row in resurfacing] == [
        ("vqgan", name, data, steps) for name in names for data in (RETAIN, FEW_FORGET) for steps in STEPS
    ]
    anchors = [point.name for point in front(folder) if point.role != EPSILON]
    assert [row.key for row in readers] == [("vqgan", name) for name in (UNMODIFIED, RETRAINED, *anchors)]
    assert [row.key for row in probe] == [("vqgan", name, question) for name in names for question in (SET, MEMBER)]
    for fraction in FRACTIONS:
        points = [row.point for row in crops if row.fraction == fraction]
        assert points[0] == UNMODIFIED
        assert "most-forgotten" in points
        assert "least-forgotten" not in points
        assert len(points) == 1 + len(SCHEDULE.anchors) + 1
    assert [row.key for row in infill] == [("vqgan", target, share) for target in TARGETS for share in (1.0, *SHARES)]


def test_a_second_call_computes_nothing(folder, monkeypatch):
    tables = {path: path.read_bytes() for path in folder.glob("*.csv")}
    assert {path.stem for path in tables} >= {study.name for study in STUDIES}
    trial_module.posed.cache_clear()
    monkeypatch.setattr(demo, "prepare", lambda *_, **__: pytest.fail("nothing is left to be done"))
    reproduce(folder, plan=PLAN)
    assert {path: path.read_bytes() for path in tables} == tables


def test_the_same_seed_gives_the_same_rows_and_only_missing_parts_are_computed(folder, tmp_path, monkeypatch):
    reproduce(tmp_path, plan=PLAN)
    whole = {study.name: (folder / f"{study.name}.csv").read_bytes() for study in STUDIES}
    assert {name: (tmp_path / f"{name}.csv").read_bytes() for name in whole} == whole

    made = []
    for kind in map(type, STUDIES):
        path, answer = tmp_path / f"{kind.name}.csv", kind.answer
        last = answers(tmp_path, kind)[-1].part
        kept = [row for row in answers(tmp_path, kind) if row.part != last]
        path.unlink()
        Table(path, kind.row).add(kept)

        def counted(self, trial, part, on_step, answer=answer):
            made.append((self.name, part))
            return answer(self, trial, part, on_step)

        monkeypatch.setattr(kind, "answer", counted)
    with pytest.warns(UserWarning, match="is finished"):  # the front of the last hole size
        reproduce(tmp_path, plan=PLAN)
    least = front(folder)[-1].name
    (anchor,) = answers(folder, Readers)[-1].part
    assert made == [
        ("convergence", ("II", DELTAS[-1])), ("resurfacing", (least, FEW_FORGET)), ("probe", (least,)),
        ("readers", (anchor,)), ("crops", (FRACTIONS[-1],)), ("infill", (TARGETS[-1],)),
    ]  # fmt: skip
    assert {name: (tmp_path / f"{name}.csv").read_bytes() for name in whole} == whole


def test_only_the_first_seed_is_studied(folder, tmp_path):
    reproduce(tmp_path, plan=PLAN, seeds=2)
    for study in STUDIES:
        assert (tmp_path / f"{study.name}.csv").read_bytes() == (folder / f"{study.name}.csv").read_bytes()


def test_other_studies_are_another_experiment(folder):
    with pytest.raises(UserError, match="contains an experiment with other settings"):
        reproduce(folder, plan=replace(PLAN, studies=STUDIES[:3]))


def test_whoever_watches_is_told_of_the_studies(folder, tmp_path):
    seen = []
    reproduce(tmp_path, plan=replace(PLAN, studies=STUDIES[:2]), progress=seen.append)
    stages = {now.stage: (now.index, now.total) for now in seen}
    assert stages["convergence I 0.5"] == (0, 2 * len(DELTAS))
    assert stages["resurfacing unmodified retain"] == (0, 2 * (PLAN.points + len(SCHEDULE.anchors) + 1))
    assert all(0 <= now.step <= now.steps for now in seen)


@pytest.mark.parametrize(("study", "family"), [(Crops(FRACTIONS, points=1), "mae"), (Infill(SHARES), "diffusion")])
def test_a_family_that_is_not_asked_has_none(folder, tmp_path, monkeypatch, study, family):
    monkeypatch.setattr(demo, "prepare", lambda *_, **__: pytest.fail("no model is needed"))
    fill(study, [Trial(family, 0, PLAN.efforts[family], PLAN.points, folder, None)], tmp_path, Workers(1, None))
    assert not (tmp_path / f"{study.name}.csv").exists()


def test_the_full_plan_studies_all_of_it_and_the_quick_one_trains_no_further_model():
    full, quick = ({type(study) for study in plan.studies} for plan in (FULL, QUICK))
    assert full == set(Study.__subclasses__())
    assert quick == full - {Crops, Infill}


# ---- convergence


@pytest.mark.parametrize("phase", ["I", "II"])
def test_all_runs_of_a_phase_begin_with_the_same_demand(folder, tiny_model, images, phase):
    rows = [row for row in answers(folder, Convergence) if row.phase == phase]
    settings, points = settings_of(folder), front(folder)
    objectives = Objectives.freeze(tiny_model, images.forget, images.retain, demo.TASK, settings=settings)
    run = Trainer(copy.deepcopy(tiny_model), objectives, History())
    run.train(GradientNorm(alpha=1.0, delta=2.0), 1)
    ((_, _, f1, _, squared_norm, *_),) = run.history.rows()
    epsilon = points[len(points) // 2].epsilon
    expected = squared_norm if phase == "I" else settings.rate / settings.lr * (f1 - epsilon)
    first = {row.delta: row for row in rows if row.step == 0}
    assert set(first) == set(DELTAS)
    for row in first.values():
        assert row.psi == pytest.approx(expected, rel=1e-5)
        assert row.f1 == pytest.approx(f1, rel=1e-6)
    later = {row.delta: row.psi for row in rows if row.step == 2}
    assert len({round(psi / expected, 4) for psi in later.values()}) == len(DELTAS)


# ---- resurfacing


def test_without_a_step_a_model_is_the_fronts(folder):
    (unmodified,) = {row.f1 for row in answers(folder, Resurfacing) if row.steps == 0 and row.point == UNMODIFIED}
    begun = {row.point: row for row in answers(folder, Resurfacing) if row.steps == 0 and row.data == RETAIN}
    for point in front(folder):
        assert begun[point.name].f1 == pytest.approx(point.f1_validation, rel=1e-6)
        assert begun[point.name].share == 0
    for row in answers(folder, Resurfacing):
        if row.point == UNMODIFIED:
            assert math.isnan(row.share)
        else:
            start = begun[row.point].f1
            assert row.share == pytest.approx((row.f1 - start) / (unmodified - start))


def test_the_data_say_what_is_trained_on(folder):
    ends = {(row.point, row.data): row.f1 for row in answers(folder, Resurfacing) if row.steps == STEPS[-1]}
    starts = {(row.point, row.data): row.f1 for row in answers(folder, Resurfacing) if row.steps == 0}
    for point in front(folder):
        assert starts[point.name, RETAIN] == starts[point.name, FEW_FORGET]
        assert len({ends[point.name, RETAIN], ends[point.name, FEW_FORGET], starts[point.name, RETAIN]}) == 3


@pytest.mark.parametrize("family", list(demo.CHOICES))
def test_every_family_is_trained_by_its_own_loss_and_only_its_encoder(images, family):
    model = tiny.model(family)
    trained = copy.deepcopy(model)
    losses = relearn(trained, images.retain, demo.TASK, lr=1e-2, seed=0)
    assert all(math.isfinite(next(losses)) for _ in range(3))
    encoder = {id(p) for p in trained.encoder_parameters()}
    pairs = list(zip(trained.module.parameters(), model.module.parameters(), strict=True))
    assert any(not torch.equal(p, q) for p, q in pairs if id(p) in encoder)
    assert all(torch.equal(p, q) for p, q in pairs if id(p) not in encoder)


def test_the_loss_falls_on_what_is_trained_on(images):
    losses = relearn(tiny.model("autoencoder"), images.forget[:16], demo.TASK, lr=1e-2, seed=0)
    values = [next(losses) for _ in range(30)]
    assert values[-1] < 0.9 * values[0]


# ---- probe


@pytest.mark.parametrize("elements", [4, 600])
def test_a_planted_difference_is_found_and_noise_is_not(elements):
    one, other = np.random.default_rng(0).standard_normal((2, 200, elements)).astype(np.float32)
    assert abs(accuracy(one, other, 0) - 0.5) < 0.08
    other[:, 0] += 4 * elements**0.5  # a direction that PCA keeps
    other[:, 1:] += 0.2
    assert accuracy(one, other, 0) > 0.9
    assert accuracy(one, other, 0) == accuracy(one, other, 0)


def test_the_probe_sees_the_sets_of_stripes_and_not_who_was_trained_on(folder):
    found = {(row.point, row.question): row.accuracy for row in answers(folder, Probe)}
    assert {row.images for row in answers(folder, Probe)} == {16}
    assert found[UNMODIFIED, SET] > 0.9
    assert abs(found[UNMODIFIED, MEMBER] - 0.5) < 0.35  # chance level, from only 32 images


# ---- readers


def test_a_linear_reader_reads_what_is_linear_and_nothing_else():
    generator = np.random.default_rng(0)
    latents, noise = generator.standard_normal((2, 300, 20))
    pixels = latents @ generator.standard_normal((20, 5)) + 3.0
    fitted, asked = latents[:200], latents[200:]
    assert linear_reading(fitted, asked, pixels[:200], pixels[200:]) < 1e-3 * pixels.var()
    blind = linear_reading(noise[:200], noise[200:], pixels[:200], pixels[200:])
    assert blind == pytest.approx(np.square(pixels[200:] - pixels[:200].mean(0)).mean(), rel=0.15)
    nothing = np.zeros((200, 20))
    assert math.isfinite(linear_reading(nothing, nothing[:100], pixels[:200], pixels[200:]))


def test_errors_of_the_decoder_are_of_the_hole_and_the_retrained_model_has_its_own(folder, tiny_model, images):
    rows = {row.point: row for row in answers(folder, Readers)}
    for part, name in ((images.forget_validation, "decoder_forget"), (images.retain_validation, "decoder_retain")):
        hole = (reconstruct(tiny_model, part, demo.TASK) - part)[..., 2:6, 2:6]
        assert getattr(rows[UNMODIFIED], name) == pytest.approx(hole.square().mean().item(), rel=1e-5)
        assert getattr(rows[RETRAINED], name) == getattr(rows[UNMODIFIED], name)  # the same model here
    mean = images.forget.mean(0)
    blind = (images.forget_validation - mean)[..., 2:6, 2:6].square().mean().item()
    assert [row.mean_forget for row in rows.values()] == pytest.approx([blind] * len(rows), rel=1e-5)
    assert len({row.reader_forget for row in rows.values()}) == len(rows) - 1


def test_the_decoder_error_is_left_out_where_pictures_are_sampled(folder, images, tmp_path, monkeypatch):
    model = tiny.model("diffusion")
    monkeypatch.setattr(demo, "prepare", lambda *_, **__: (model, images))
    (row,) = Readers().answer(
        Trial("diffusion", 0, PLAN.efforts["diffusion"], PLAN.points, tmp_path, None), (UNMODIFIED,), None
    )
    assert math.isnan(row.decoder_forget)
    assert math.isfinite(row.reader_forget)


# ---- crops


def test_every_hole_has_a_model_of_its_own_and_its_own_front(folder, prepared):
    assert {task.fraction for task in prepared} == {demo.TASK.fraction, *FRACTIONS}
    crops = answers(folder, Crops)
    for fraction in FRACTIONS:
        path = folder / f"center-crop-{fraction}" / "vqgan-0" / "front.csv"
        points = [point for point in ParetoFront.from_csv(path) if point.role != LEAST_FORGOTTEN]
        rows = [row for row in crops if row.fraction == fraction and row.point != UNMODIFIED]
        assert [(row.point, row.epsilon, row.f1, row.f2) for row in rows] == [
            (point.name, point.epsilon, *point.values) for point in points
        ]


def test_the_unmodified_model_is_judged_under_the_hole(folder, tiny_model, images):
    for row in answers(folder, Crops):
        if row.point == UNMODIFIED:
            task = CenterCrop(row.fraction)
            settings = settings_of(folder)
            objectives = Objectives.freeze(tiny_model, images.forget, images.retain, task, settings=settings)
            assert row.f1 == objectives.evaluate_f1(objectives.frozen)


# ---- infill


def problem_of(model, images, settings=SETTINGS):
    training = Objectives.freeze(model, images.forget, images.retain, demo.TASK, settings=settings)
    validation = training.held_out(images.forget_validation, images.retain_validation)
    return Problem(model, images, training, validation, training.evaluate_f1(training.frozen))


@pytest.mark.parametrize("target", TARGETS[1:])
@pytest.mark.parametrize("family", Infill(()).families)
def test_a_target_is_what_it_is_called(images, family, target):
    model = tiny.model(family)
    problem = problem_of(model, images)
    pairs = zip(aimed(problem, target), (images.forget, images.forget_validation), strict=True)
    for objectives, forget in pairs:
        if target == MEAN_IMAGE:
            expected = seen(model, images.retain.mean(0, keepdim=True))
        elif target == BLURRED:
            expected = seen(model, blurred(forget, demo.TASK))
        else:
            expected = seen(model, images.retain).mean(0, keepdim=True)
        torch.testing.assert_close(objectives.forget.targets, expected)
        distance = (seen(model, forget) - expected).square().mean() / problem.training.variance
        assert objectives.evaluate_f1(objectives.frozen) == pytest.approx(distance.item(), rel=1e-4)
        assert objectives.evaluate_f2(objectives.frozen) == pytest.approx(0, abs=1e-9)


def test_noise_is_ours_as_it_is(tiny_model, images):
    problem = problem_of(tiny_model, images)
    assert aimed(problem, NOISE) == (problem.training, problem.validation)


@torch.no_grad()
def seen(model, images):
    return model.encode(*model.inputs(images, demo.TASK))


def test_what_is_blurred_does_not_tell_what_is_hidden(images):
    hidden = demo.TASK.mask(images.forget).expand_as(images.forget)
    other = images.forget.masked_fill(hidden, 0.7)
    once = blurred(images.forget, demo.TASK)
    assert torch.equal(blurred(other, demo.TASK), once)
    assert once.isfinite().all()
    assert (once - once.mean((1, 2, 3), keepdim=True)).square().mean() < 0.2 * images.forget[~hidden].var()


def test_a_blur_neither_lightens_nor_darkens():
    grey = torch.full((2, 1, 32, 24), 0.3)
    torch.testing.assert_close(blurred(grey, demo.TASK), grey)


def test_every_target_begins_at_the_unmodified_model_and_f1_is_brought_to_its_share(
    tiny_model, images, tmp_path, monkeypatch
):
    trial = Trial("vqgan", 0, PLAN.efforts["vqgan"], PLAN.points, tmp_path, None)
    trial.settings = Settings(steps=64, batch_size=16)
    problem = problem_of(tiny_model, images, trial.settings)
    monkeypatch.setattr(trial_module, "posed", lambda *_: problem)
    kept = []
    trial.pictures = SimpleNamespace(keep=lambda method, point, model, *_: kept.append((method, point, model)))
    for target in TARGETS:
        whole, half = Infill((0.5,)).answer(trial, (target,), None)
        training, validation = aimed(trial.problem, target)
        assert (whole.f1, whole.f2) == training.evaluate(training.frozen)
        assert half.f1 == pytest.approx(0.5 * whole.f1, abs=2 * trial.settings.tolerance * whole.f1)
        assert half.f2 > 0
        method, point, model = kept[-1]
        assert (method, point) == (f"infill {target}", "0.5")
        assert (half.f1_validation, half.f2_validation) == pytest.approx(
            validation.evaluate(Encoder(model, trial.settings)), rel=1e-6
        )


def test_the_error_is_of_the_hole_alone(folder, tiny_model, images):
    rows = {(row.target, row.share): row for row in answers(folder, Infill)}
    originals = images.forget_validation
    made = reconstruct(tiny_model, originals, demo.TASK)
    expected = (made - originals)[..., 2:6, 2:6].square().mean().item()
    assert [rows[target, 1.0].error_forget for target in TARGETS] == pytest.approx([expected] * len(TARGETS), rel=1e-5)
    assert rows[NOISE, 1.0].error_forget != rows[NOISE, 1.0].error_retain
    assert len({rows[target, SHARES[-1]].error_forget for target in TARGETS}) == len(TARGETS)


def test_what_every_target_makes_is_kept_and_drawn(folder):
    shown = Pictures(folder, "vqgan", 0)
    rows = answers(folder, Infill)
    kept = {row.pictures: shown.made(*row.pictures) for row in rows}
    assert len(kept) == 1 + len(TARGETS) * len(SHARES)
    assert {(kind, part.dtype) for sets in kept.values() for kind, part in sets.items()} == {
        ("forget", np.dtype("uint8")), ("retain", np.dtype("uint8")),
    }  # fmt: skip
    strip = infill_rows(rows, shown)
    assert [row.label for row in strip] == [
        "original", "corrupted", "unmodified model", *(target for target in TARGETS for _ in SHARES),
    ]  # fmt: skip
    assert len({row.sides["forget"].tobytes() for row in strip}) > 3
    page = write_reproduction(folder).read_text(encoding="utf-8")
    for target in TARGETS:
        assert page.count(f"images to retain: {target}") == len(SHARES)
    assert (folder / "figures" / "infill-vqgan.png").is_file()


# ---- the page


@pytest.mark.slow
def test_the_page_has_a_figure_a_study(folder):
    whole = write_reproduction(folder).read_text(encoding="utf-8").count("<svg")
    figures = {path.stem for path in folder.glob("figures/*.svg")}
    assert {f"{study.name}-vqgan" for study in STUDIES if study.name != Readers.name} <= figures  # it has a table
    (folder / "probe.csv").rename(folder / "elsewhere")
    try:
        assert write_reproduction(folder).read_text(encoding="utf-8").count("<svg") == whole - 1
    finally:
        (folder / "elsewhere").rename(folder / "probe.csv")


def test_a_table_of_something_else_is_one_sentence(folder):
    path = folder / "probe.csv"
    whole = path.read_bytes()
    path.write_text("a,b\n1,2\n")
    try:
        with pytest.raises(UserError, match=r"probe\.csv cannot be read as a table"):
            write_reproduction(folder)
    finally:
        path.write_bytes(whole)


def test_the_main_table_has_ours_alone(folder):
    rows = Table(folder / "reproduction.csv", ModelRow).rows.values()
    assert {row.method for row in rows} == {UNMODIFIED, RETRAINED, OURS}
