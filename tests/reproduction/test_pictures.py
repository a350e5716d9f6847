"""Pictures of a synthetic experiment: their quality is computed once per extractor, and the page shows them."""

from __future__ import annotations

import math
import re
from dataclasses import replace

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

from unlearn_ext.data import ForgetRetain
from unlearn_ext.demo import TASK
from unlearn_ext.errors import UserError
from unlearn_ext.metrics import load_extractor
from unlearn_ext.metrics.evaluation import FLOOR
from unlearn_ext.metrics.features import compare, extract
from unlearn_ext.report import write_reproduction
from unlearn_ext.report.quality import quality_lines
from unlearn_ext.reproduction import Plan, judge
from unlearn_ext.reproduction import quality as quality_module
from unlearn_ext.reproduction.pictures import IMAGES, KINDS, Pictures
from unlearn_ext.reproduction.representatives import MIDDLE, chosen
from unlearn_ext.reproduction.table import OURS, UNMODIFIED, Cost, ModelRow, Table
from unlearn_ext.unlearning.batches import pixels
from unlearn_ext.unlearning.pareto import TRAINED

PHOTOGRAPHS, CLASSES = "efficientnet-lite0", "pixels"


class Pixels:
    """A fast extractor whose features are pixels."""

    name, size = CLASSES, 8

    def __call__(self, images):
        return images.flatten(1)[:, :6]

    def logits(self, features):
        return None


def row(method, seed, point, f1):
    value = math.nan if method == UNMODIFIED else float(len(point))
    made_of = point if "*" in point else TRAINED
    return ModelRow("vqgan", seed, method, point, value, made_of, 10, f1, 0.1, f1, 0.1)


ROWS = [
    row(made, seed, point, f1)
    for seed in (0, 1)
    for made, point, f1 in (
        (UNMODIFIED, "", 1.0), (OURS, "1", 0.9), (OURS, "2", 0.5), (OURS, "3", 0.1), (OURS, "0.5*2 + 0.5*1", 0.7),
        ("max-loss", "0.01", math.nan), ("max-loss", "0.1", 3.0), ("composite", "0.02", 0.8 - 0.35 * seed),
        ("composite", "0.2", 0.6),
    )
]  # fmt: skip
FIRST = [row for row in ROWS if row.seed == 0]


@pytest.fixture
def loaded(monkeypatch):
    """Return a list that collects the names of the loaded extractors."""
    names = []

    def load(name):
        names.append(name)
        return Pixels() if name == CLASSES else load_extractor(name)

    monkeypatch.setattr(quality_module, "load_extractor", load)
    monkeypatch.setattr(quality_module, "EXTRACTORS", (PHOTOGRAPHS, CLASSES))
    return names


@pytest.fixture
def folder(tmp_path):
    """Return a folder with the tables, and pictures of all models except one."""
    Plan(seeds=2, points=1, efforts={}).keep(tmp_path, torch.device("cpu"))
    Table(tmp_path / "reproduction.csv", ModelRow).add(ROWS)
    model, generator = tiny.model("vqgan"), torch.Generator().manual_seed(0)
    for seed in (0, 1):
        images = ForgetRetain("noise", *(torch.rand(4, 12, 1, 8, 8, generator=generator) * 2 - 1))
        shown = Pictures(tmp_path, "vqgan", seed)
        shown.keep_images(images, TASK)
        for number, made in enumerate(row for row in ROWS if row.seed == seed and row.key[2:] != ("max-loss", "0.01")):
            with torch.no_grad():
                for parameter in model.encoder_parameters():
                    parameter.add_(0.02 * number)
            shown.keep(made.method, made.point, model, images, TASK)
    return tmp_path


def test_no_more_than_so_many_are_kept(tmp_path):
    images = ForgetRetain("noise", *torch.zeros(4, IMAGES + 4, 1, 8, 8))
    shown = Pictures(tmp_path, "../vqgan", 0)
    shown.keep_images(images, TASK)
    assert {len(part) for part in shown.originals().values()} == {IMAGES}
    assert shown.made("composite", "0.2") is None
    assert [path.name for path in tmp_path.iterdir()] == ["..-vqgan-0"]


def test_pictures_that_cannot_be_read_are_one_sentence(folder):
    (Pictures(folder, "vqgan", 0).folder / "original.npz").write_bytes(b"none")
    with pytest.raises(UserError, match=r"original.npz cannot be read as pictures"):
        Pictures(folder, "vqgan", 0).originals()


# ---- quality


def test_quality_is_what_the_metrics_say_in_each_extractors_eyes(folder, loaded):
    judged = {quality.key: quality for quality in judge(folder)}
    assert {key[-1] for key in judged} == {PHOTOGRAPHS, CLASSES}
    shown = Pictures(folder, "vqgan", 1)
    for extractor in (load_extractor(PHOTOGRAPHS), Pixels()):
        for kind in KINDS:
            original, made = (
                extract(extractor, pixels(torch.from_numpy(sets[kind])))
                for sets in (shown.originals(), shown.made("composite", "0.02"))
            )
            for name, features in ((FLOOR, original), ("composite", made)):
                point = "" if name == FLOOR else "0.02"
                quality = judged["vqgan", 1, name, point, kind, extractor.name]
                expected = compare(original, features, extractor)
                assert quality.images == 12
                assert quality.fid == expected[f"fid:{extractor.name}"]
                assert quality.kid == expected[f"kid:{extractor.name}"]
                assert quality.cosine == expected[f"cosine:{extractor.name}"]
                classes = expected.get(f"is:{extractor.name}")
                assert math.isnan(quality.inception_score) if classes is None else quality.inception_score == classes


def test_quality_is_of_the_models_that_stand_for_their_methods_and_is_not_computed_again(folder, loaded):
    judged = judge(folder)
    shown = {(row.seed, row.method, row.point) for mine in (FIRST, ROWS[len(FIRST) :]) for row in chosen(mine).values()}
    assert {(q.seed, q.method, q.point) for q in judged} == {(0, FLOOR, ""), (1, FLOOR, ""), *shown}
    assert len(judged) == 2 * 2 * (2 + len(shown))  # images to forget and to retain, two extractors
    assert loaded == [PHOTOGRAPHS, CLASSES]
    whole = (folder / "quality.csv").read_bytes()
    assert repr(judge(folder)) == repr(judged)
    assert loaded == [PHOTOGRAPHS, CLASSES]

    lines = whole.splitlines(keepends=True)
    (folder / "quality.csv").write_bytes(b"".join(lines[:-2]))
    names = []
    judge(folder, progress=names.append)
    assert len(names) == 1
    assert (folder / "quality.csv").read_bytes() == whole


def test_lines_are_averages_over_seeds_of_the_models_that_stand_for_their_methods(folder, loaded):
    judged = judge(folder)
    lines = quality_lines(ROWS, judged)[CLASSES]
    # The weight nearest to the middle is 0.2 for seed 0 and 0.02 for seed 1.
    assert list(lines) == [FLOOR, *chosen(FIRST)]
    nearest = {(0, "0.2"), (1, "0.02")}
    eyes = [q for q in judged if (q.method, q.kind, q.extractor) == ("composite", "forget", CLASSES)]
    both = [q.fid for q in eyes if (q.seed, q.point) in nearest]
    assert lines["composite"]["forget"]["fid"].mean == pytest.approx(np.mean(both))
    assert lines["composite"]["forget"]["fid"].half > 0


# ---- which models


def test_a_baseline_is_shown_where_its_f1_is_nearest_to_our_middle():
    named = chosen(FIRST)
    assert [row.point for row in named.values()] == ["", "3", "2", "1", "0.1", "0.2"]
    assert named[MIDDLE].f1 == 0.5
    nearer = [replace(r, f1=0.45) if r.key[2:] == ("composite", "0.02") else r for r in FIRST]
    assert chosen(nearer)["composite"].point == "0.02"


def test_without_a_front_only_the_unmodified_model_is_shown():
    assert list(chosen([ROWS[0], ROWS[-1]])) == [UNMODIFIED]


# ---- the page


def test_everything_is_drawn_and_lies_beside_the_page(folder, loaded):
    judge(folder)
    page = write_reproduction(folder).read_text(encoding="utf-8")
    drawn = {"front-vqgan", "hypervolume-vqgan", "pictures-vqgan", "tsne-vqgan"}
    kinds = {(path.stem, path.suffix) for path in (folder / "figures").iterdir()}
    assert kinds == {(name, kind) for name in drawn for kind in (".png", ".svg")}
    assert page.count("<svg") == 3
    assert page.count("images to retain: ") == 2 + len(chosen(FIRST))
    for extractor in (PHOTOGRAPHS, CLASSES):
        assert f"image quality, measured with {extractor}</h3>" in page
    assert page.count(f"<td>{FLOOR}</td>") == 2
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", page)


@pytest.mark.slow
def test_a_page_is_the_same_every_time(folder):
    first = write_reproduction(folder).read_bytes()
    figure = (folder / "figures" / "tsne-vqgan.svg").read_bytes()
    assert write_reproduction(folder).read_bytes() == first
    assert (folder / "figures" / "tsne-vqgan.svg").read_bytes() == figure


@pytest.mark.parametrize("missing", ["composite", OURS, "pictures"])
def test_what_is_missing_is_left_out(folder, missing):
    Table(folder / "costs.csv", Cost).add([Cost("vqgan", "composite", 0.1, math.nan)])
    if missing == "pictures":
        for path in Pictures(folder, "vqgan", 0).folder.iterdir():
            path.unlink()
    else:
        (folder / "reproduction.csv").unlink()
        Table(folder / "reproduction.csv", ModelRow).add([row for row in ROWS if row.method != missing])
    page = write_reproduction(folder).read_text(encoding="utf-8")
    shown = set(re.findall('images to retain: ([^"]+)', page))
    assert (
        shown
        == {
            "composite": {"original", "corrupted", *chosen([r for r in FIRST if r.method != "composite"])},
            OURS: {"original", "corrupted", UNMODIFIED},
            "pictures": set(),
        }[missing]
    )
