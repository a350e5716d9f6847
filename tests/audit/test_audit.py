"""Audits of unlearned models: each measure on models whose answer is known, and the whole on a tiny run."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

pytest.importorskip("diffusers")
pytest.importorskip("scipy")
pytest.importorskip("sklearn")
pytest.importorskip("PIL")

from PIL import Image
from scipy import stats
from sklearn.metrics import roc_auc_score

import unlearn_ext as ux
from unlearn_ext.audit import AUDITS, Context, audit, canaries, compression, decoder, read_audit, relearning
from unlearn_ext.audit.estimates import auc, mean
from unlearn_ext.data import ForgetRetain
from unlearn_ext.errors import UserError
from unlearn_ext.models.autoencoder import Autoencoder
from unlearn_ext.tasks import CenterCrop, RandomMask, Reconstruct, Task
from unlearn_ext.unlearning.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore:.* to measure on:UserWarning")  # tested below

TASK, SETTINGS = CenterCrop(0.5), Settings(steps=3, batch_size=16)


# ---- estimates


def test_a_mean_has_students_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 7)
    found = mean(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), *expected))
    assert found.images == "7 images"


def test_minibatches_weigh_as_many_images_as_they_have() -> None:
    found = mean(np.array([1.0, 4.0]), np.array([3, 1]))
    assert found.value == 1.75
    assert found.images == "4 images"


def test_one_image_has_no_interval() -> None:
    assert str(mean(np.array([2.0]))) == "no interval (1 image)"


def test_auc_is_that_of_sklearn_and_its_interval_is_symmetric() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(0.5, 1, 30).round(1), rng.normal(0, 1, 12).round(1)  # rounded, for ties
    found, turned = auc(one, other), auc(other, one)
    labels = np.repeat([1, 0], [len(one), len(other)])
    assert found.value == pytest.approx(roc_auc_score(labels, np.concatenate([one, other])))
    assert found.low < found.value < found.high
    assert (1 - turned.value, 1 - turned.high, 1 - turned.low) == pytest.approx((found.value, found.low, found.high))


def test_a_perfect_attack_on_few_images_is_not_certain() -> None:
    few, many = auc(np.ones(3), np.zeros(3)), auc(np.ones(300), np.zeros(300))
    assert few.value == many.value == few.high == 1
    assert few.low < 0.8 < 0.98 < many.low < 1


def test_the_interval_of_an_auc_covers_the_truth() -> None:
    rng, truth = np.random.default_rng(0), stats.norm.cdf(1 / math.sqrt(2))
    found = [auc(rng.normal(1, 1, 12), rng.normal(0, 1, 12)) for _ in range(200)]
    assert 0.9 <= np.mean([area.low <= truth <= area.high for area in found]) <= 1


# ---- models whose answer is known


class Flat(torch.nn.Module):
    """Latents are the visible pixels, times a weight; a weight of 0 tells nothing."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.weight * images.flatten(1)


class Painted(torch.nn.Module):
    """One linear layer from latents to pixels; it begins with black images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 64)
        torch.nn.init.zeros_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.layer(latents).view(-1, 1, 8, 8)


def greys(count: int, seed: int) -> torch.Tensor:
    """Return images of one grey each: their hidden pixels follow from the visible ones."""
    grey = torch.rand(count, 1, 1, 1, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return grey.expand(-1, 1, 8, 8).clone()


def sets(forget: int = 40, retain: int = 40, held_out: int = 20) -> ForgetRetain:
    counts = (forget, retain, held_out, held_out)
    return ForgetRetain("greys", *(greys(count, seed) for seed, count in enumerate(counts)))


def context(images: ForgetRetain, told: float = 1.0, task: Task = TASK) -> Context:
    """Return a context whose unmodified model tells everything, and whose audited one as much as ``told``."""
    before, model = (Autoencoder(Flat(weight), Painted(), channels=1, size=8) for weight in (1.0, 1.0))
    with torch.no_grad():
        model.encoder.weight.fill_(told)
    return replace(Context.of(before, images, task, SETTINGS), point="eps-0.1000", model=model)


def run(name: str, given: Context) -> dict[str, Any]:
    (found,) = (each for each in AUDITS if each.name == name)
    return {finding.measure: finding for finding in found.run(given)}


@pytest.mark.parametrize("task", [TASK, RandomMask(0.5, 4)], ids=str)
def test_a_linear_reader_finds_what_the_latents_tell(task: Task) -> None:
    told = run("linear reader", context(sets(), task=task))
    read, blind = told["error of a linear reader"], told["error of the mean image"]
    assert read.chance == blind.forget > 0.1
    assert max(read.forget, read.retain) < 0.05 * blind.forget
    silent = run("linear reader", context(sets(), told=0.0, task=task))["error of a linear reader"]
    assert silent.forget == pytest.approx(blind.forget, rel=1e-6)


def test_if_nothing_is_hidden_the_whole_image_counts() -> None:
    assert run("linear reader", context(sets(), task=Reconstruct()))["error of a linear reader"].forget < 1e-3


def test_a_new_decoder_finds_what_the_latents_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "LR", 0.02)
    given = context(sets())
    before = copy.deepcopy(given.model.module.state_dict())
    told = run("decoder", given)
    own, on_retained, on_both = told.values()
    assert max(on_retained.forget, on_both.forget, on_both.retain) < 0.1 * own.forget
    assert all(torch.equal(value, before[name]) for name, value in given.model.module.state_dict().items())
    *_, silent = run("decoder", context(sets(), told=0.0)).values()
    assert silent.forget > 0.8 * silent.chance


def test_what_only_the_forgotten_show_is_not_learned_from_the_retained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The latents only say which set an image is from, and each set has one grey: who saw both can paint it."""
    monkeypatch.setattr(decoder, "LR", 0.02)
    light, dark = (grey + greys(40, seed) / 100 for seed, grey in enumerate((0.9, -0.3)))
    given = context(ForgetRetain("flat", light, dark, light[:20], dark[:20]))
    given.model.encoder.register_forward_hook(lambda _, __, made: (made > 0).float() * torch.eye(64)[0] + 0 * made)
    _, on_retained, on_both = run("decoder", given).values()
    assert on_retained.forget > 1
    assert on_both.forget < 0.1


def test_membership_is_found_where_there_is_some() -> None:
    images = sets()
    images = replace(images, forget=images.forget * 0.1, retain=images.retain.sign())  # black is what this model draws
    found = run("membership", context(images))
    area = found["AUC: loss-threshold attack (Yeom et al. 2018)"]
    assert area.forget > 0.9 > 0.1 > area.retain
    assert area.chance == 0.5
    assert "40 and 20 images" in area.note


def test_a_model_that_says_nothing_gives_no_membership_away() -> None:
    found = run("membership", context(sets(held_out=40), told=0.0))
    assert found["AUC: latents near those of noise"].forget == 0.5
    assert found["AUC: rise of the error since the unmodified model"].forget == 0.5


def test_membership_needs_held_out_images() -> None:
    (found,) = run("membership", context(sets(held_out=0))).values()
    assert found.note.startswith("not run: there are no held-out images")
    assert math.isnan(found.forget)


# ---- canaries


def test_exposure_is_the_rank_in_bits() -> None:
    others = np.arange(1.0, 8.0)
    assert canaries.exposures(np.array([0.0, 9.0, 3.5]), others) == pytest.approx([3, 0, 1])


def test_the_chance_of_exposure_is_that_of_a_random_rank() -> None:
    given = context(sets())
    given = replace(given, canaries=canaries.Canaries(greys(3, 1), greys(7, 2)))
    (found,) = run("canaries", given).values()
    others = np.arange(7.0)
    assert found.chance == pytest.approx(canaries.exposures(np.arange(8) - 0.5, others).mean())
    assert "look-alikes: 7, so at most 3 bits" in found.note


def write_canaries(folder: Path, **names: list[int]) -> Path:
    for name, values in names.items():
        (folder / name).mkdir(parents=True)
        for value in values:
            Image.fromarray(np.full((9, 9), value, np.uint8)).save(folder / name / f"{value}.png")
    return folder


def test_canaries_are_read_at_the_models_size(tmp_path: Path) -> None:
    found = canaries.read_canaries(write_canaries(tmp_path, **{"in": [1], "out": [2, 3]}), tiny.model("vqgan"))
    assert found.inside.tolist() == [[[[1] * 8] * 8]]
    assert found.outside.shape == (2, 1, 8, 8)


def test_canaries_that_cannot_be_used_are_one_sentence(tmp_path: Path) -> None:
    model = tiny.model("vqgan")
    with pytest.raises(UserError, match="give a folder with `in`"):
        canaries.read_canaries(tmp_path, model)
    with pytest.raises(UserError, match="is in `in` and in `out`"):
        canaries.read_canaries(write_canaries(tmp_path / "both", **{"in": [1], "out": [1]}), model)
    (write_canaries(tmp_path / "broken", **{"in": [1], "out": [2]}) / "in" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"the canary .* cannot be read"):
        canaries.read_canaries(tmp_path / "broken", model)


# ---- compression


@pytest.mark.parametrize("bits", [8, 4])
def test_rounded_weights_have_few_values_and_small_errors(bits: int) -> None:
    weight = torch.randn(3, 5, 50, generator=torch.Generator().manual_seed(0))
    weight[1] = 0
    rounded = compression.quantize(weight, bits)
    scale = weight.abs().amax((1, 2)) / (2 ** (bits - 1) - 1)
    assert ((rounded - weight).abs().amax((1, 2)) <= scale / 2 + 1e-6).all()
    assert len(rounded[0].unique()) <= 2**bits - 1
    assert not torch.equal(rounded[0], weight[0])
    assert torch.equal(rounded[1], weight[1])


def test_pruning_removes_the_smallest_and_no_more_with_ties() -> None:
    pruned = compression.prune(torch.tensor([[3.0, -1.0], [1.0, 1.0], [-4.0, 1.0]]), 0.5)
    assert pruned.abs().sum() == 3 + 4 + 1
    assert (pruned == 0).sum() == 3


def test_compression_changes_weights_of_layers_only_in_a_copy() -> None:
    model = tiny.model("vqgan")
    before = copy.deepcopy(model.module.state_dict())
    changed = compression._compressed(model, lambda weight: weight + 1).module.state_dict()
    moved = {name for name, value in changed.items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.endswith("weight") and before[name].dim() > 1 and "quantize" not in name for name in moved)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


# ---- a whole run


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "STEPS", 3)
        patch.setattr(relearning, "STEPS", (1, 2))
        yield


@pytest.fixture(scope="module")
def stripes(tiny_images: tuple[torch.Tensor, torch.Tensor]) -> ForgetRetain:
    forget, retain = tiny_images
    return ForgetRetain("stripes", forget[:32], retain[:32], forget[32:], retain[32:])


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any, stripes: ForgetRetain, quick: None) -> Path:
    out = tmp_path_factory.mktemp("audit") / "run"
    ux.sweep(tiny_model, stripes.forget, stripes.retain, task=TASK, points=2, settings=SETTINGS, out=out)
    return out


@pytest.fixture
def folder(swept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(swept, tmp_path / "run"))


@pytest.fixture(scope="module")
def whole(swept: Path, tiny_model: Any, stripes: ForgetRetain) -> list[Any]:
    return audit(swept, tiny_model, stripes, task=TASK)


def test_every_audit_is_in_the_table_for_every_model(swept: Path, whole: list[Any]) -> None:
    assert list(dict.fromkeys(row.audit for row in whole)) == [each.name for each in AUDITS]
    points = list(dict.fromkeys(row.point for row in whole))
    assert points[0] == "unmodified"
    assert [name[:4] for name in points[1:]] == ["eps-", "eps-"]
    for name in ("linear reader", "decoder", "relearning", "compression"):
        measures = [[row.measure for row in whole if (row.audit, row.point) == (name, point)] for point in points]
        assert len(measures[0]) > 1
        assert measures == [measures[0]] * 3
        assert all(math.isfinite(row.forget) and math.isfinite(row.retain) for row in whole if row.audit == name)
    assert [row.note for row in whole if row.audit == "canaries"] == [
        "not run: no canaries were given (--canaries)"
    ] * 3
    assert str(read_audit(swept)) == str(whole)  # as text, since NaN differs from itself


def test_f1_and_f2_are_those_of_the_front(swept: Path, whole: list[Any]) -> None:
    front = {point.name: point for point in ux.ParetoFront.from_csv(swept / "front.csv")}
    found = {row.point: row for row in whole if row.measure == "f1, f2 as it is"}
    unmodified = found.pop("unmodified")
    assert unmodified.retain == pytest.approx(0, abs=1e-9)
    assert len(found) == 2
    for name, row in found.items():
        assert (row.forget, row.retain) == pytest.approx(front[name].values, rel=1e-4)


def test_the_model_before_is_unchanged(whole: list[Any], tiny_model: Any) -> None:
    assert all(
        map(torch.equal, tiny_model.module.state_dict().values(), tiny.model("vqgan").module.state_dict().values())
    )


def test_an_interrupted_audit_continues(folder: Path, tiny_model: Any, stripes: ForgetRetain, whole: list[Any]) -> None:
    (folder / ".audit.journal").unlink()
    points = [whole[-1].point]
    begun: list[str] = []

    def interrupt(stage: str) -> None:
        begun.append(stage)
        if len(begun) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(folder, tiny_model, stripes, task=TASK, points=points, progress=interrupt)
    stages: list[str] = []
    rows = audit(folder, tiny_model, stripes, task=TASK, points=points, progress=stages.append)
    assert begun[:8] + stages == list(dict.fromkeys(begun + stages))
    assert len(begun[:8] + stages) == 2 * len(AUDITS)
    assert str(rows) == str([row for row in whole if row.point in ("unmodified", *points)])
    audit(folder, tiny_model, stripes, task=TASK, points=points, progress=stages.append)
    assert len(begun[:8] + stages) == 2 * len(AUDITS)


def test_a_model_that_changed_is_audited_again(
    folder: Path, tiny_model: Any, stripes: ForgetRetain, whole: list[Any]
) -> None:
    name = whole[-1].point
    shutil.rmtree(folder / name)
    shutil.copytree(folder / "most-forgotten", folder / name)
    stages: list[str] = []
    audit(folder, tiny_model, stripes, task=TASK, points=[name], progress=stages.append)
    assert stages == [f"{name}: {each.name}" for each in AUDITS]


def test_a_retrained_model_for_images_of_another_size_is_refused(
    folder: Path, tiny_model: Any, stripes: ForgetRetain
) -> None:
    tiny.wrapped("vqgan", sample_size=16).save_pretrained(folder / "larger")
    with pytest.raises(UserError, match="takes images of 16x16 pixels and 1 channels, but the images of the run have"):
        audit(folder, tiny_model, stripes, task=TASK, points=["most-forgotten"], retrained=folder / "larger")


def test_a_retrained_model_is_beside_the_others(folder: Path, tiny_model: Any, stripes: ForgetRetain) -> None:
    tiny_model.save_pretrained(folder / "other")
    rows = audit(folder, tiny_model, stripes, task=TASK, points=["most-forgotten"], retrained=folder / "other")
    assert list(dict.fromkeys(row.point for row in rows)) == ["unmodified", "retrained", "most-forgotten"]
    retrained = [row for row in rows if row.point == "retrained"]
    assert not any(row.measure.startswith("AUC: latents") for row in retrained)
    assert all(row.note.startswith("not run") for row in retrained if row.measure.startswith("f1"))
    assert any(row.audit == "relearning" for row in retrained)


def test_bad_arguments_are_one_sentence(folder: Path, tiny_model: Any, stripes: ForgetRetain) -> None:
    with pytest.raises(UserError, match="has no point `eps-9`; it has most-forgotten"):
        audit(folder, tiny_model, stripes, task=TASK, points=["eps-9"])
    (folder / ".audit.journal").write_text("[1]", encoding="utf-8")
    with pytest.raises(UserError, match="delete it to audit again"):
        audit(folder, tiny_model, stripes, task=TASK)
    (folder / "audit.csv").write_text("point\n1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"audit\.csv cannot be read: it has no column audit"):
        read_audit(folder)


@pytest.mark.parametrize("count", [1, 2])
def test_few_images_are_measured_with_a_warning(
    folder: Path, tiny_model: Any, stripes: ForgetRetain, count: int
) -> None:
    few = ForgetRetain("few", stripes.forget[:count], stripes.retain, *[stripes.forget[:0]] * 2)
    with pytest.warns(UserWarning, match="to measure on in the forget set"):
        rows = audit(folder, tiny_model, few, task=TASK, points=["most-forgotten"])
    read = next(row for row in rows if row.audit == "linear reader")
    assert read.note.startswith("not run: the forget set has only one image" if count == 1 else "forget ")
    assert all(row.note.startswith("not run") for row in rows if row.audit == "membership")


@pytest.mark.parametrize("family", ["autoencoder", "mae", "diffusion", "mage"])
def test_other_families(family: str, stripes: ForgetRetain, quick: None) -> None:
    model = tiny.model(family)
    given = replace(Context.of(model, stripes, TASK, SETTINGS), point="eps-0.1000", model=copy.deepcopy(model))
    found = {each.name: each.run(given) for each in AUDITS}
    refused = {name for name, findings in found.items() if all(math.isnan(f.forget) for f in findings)}
    assert refused == {"canaries"} | {"diffusion": {"decoder"}, "mage": {"relearning"}}.get(family, set())
    if family != "mage":  # it has no recipe, and so no loss to relearn by
        assert any(finding.measure.startswith("f1, f2 after 2 steps") for finding in found["relearning"])
