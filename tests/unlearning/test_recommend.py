"""The recommended model of made-up fronts whose knee is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from unlearn_ext.errors import UserError
from unlearn_ext.unlearning.pareto import ParetoFront, ParetoPoint
from unlearn_ext.unlearning.recommend import knee, recommend
from unlearn_ext.unlearning.run_folder import RunFolder

# Two straight pieces that meet at f1 = 0.3: the knee.
BENT = {0.0: 0.100, 0.1: 0.069, 0.2: 0.038, 0.3: 0.007, 0.5: 0.005, 0.8: 0.002, 0.95: 0.0005}


def run_of(folder: Path, front: dict[float, float], psnr: dict[float, float] | None = None) -> RunFolder:
    """Return a run with points (f1, f2), with f1 = ε, and the PSNR of each; the unmodified model has f1 = 1, 20 dB."""
    points = [ParetoPoint(f"eps-{f1:.4f}", "epsilon", f1, f1, f2, f1, f2, 0, 0.0) for f1, f2 in front.items()]
    if psnr is not None:
        rows = ["point,psnr,images", "unmodified,20,6", *(f"eps-{f1:.4f},{dB},6" for f1, dB in psnr.items())]
        (folder / "hole.csv").write_text("\n".join(rows), encoding="utf-8")
    return RunFolder(folder, {"f1_original": 1.0, "task": "center-crop:0.5"}, ParetoFront(tuple(points)), {}, {})


def hole(lost_at: float, lowest: float = 10.0) -> dict[float, float]:
    """Return PSNR that is lowest up to ``lost_at`` and rises to 20 dB from there."""
    return {f1: lowest + max(0.0, f1 - lost_at) * (20 - lowest) / (1 - lost_at) for f1 in BENT}


def test_the_knee_is_where_two_straight_pieces_meet(tmp_path: Path) -> None:
    front = run_of(tmp_path, BENT).points
    assert knee(front, 1.0).f1 == 0.3
    assert recommend(run_of(tmp_path, BENT)) == (
        "eps-0.3000", 0.3,
        "ε is 30 % of the unmodified model's f1. This is the knee of the front: with a smaller ε, damage to the "
        "retained (f2) rises faster, from 0.0070 here to 0.1000 at the most forgotten model.",
    )  # fmt: skip


def test_the_units_of_f1_and_f2_do_not_matter(tmp_path: Path) -> None:
    points = [ParetoPoint("p", "epsilon", 7 * a, 7 * a, 1e-3 * b, 0, 0, 0, 0.0) for a, b in BENT.items()]
    assert knee(points, 7.0).f1 == pytest.approx(2.1)


@pytest.mark.parametrize(
    "front", [{0.0: 1.0, 0.5: 0.5, 0.9: 0.1}, {0.0: 1.0, 0.5: 0.9, 0.9: 0.5}, {0.0: 0.1, 0.9: 0.01}, {0.1: 0.0}]
)
def test_a_straight_a_concave_and_a_short_front_have_no_knee(tmp_path: Path, front: dict[float, float]) -> None:
    assert knee(run_of(tmp_path, front).points, 1.0) is None


def test_an_image_that_is_lost_before_the_knee_leaves_the_knee(tmp_path: Path) -> None:
    best = recommend(run_of(tmp_path, BENT, hole(lost_at=0.5)))
    assert best.point == "eps-0.3000"
    assert "the model has lost the images to forget: PSNR in the hole 10.0 dB, 20.0 dB before" in best.reason


def test_an_image_that_is_lost_only_after_the_knee_moves_the_recommendation(tmp_path: Path) -> None:
    best = recommend(run_of(tmp_path, BENT, hole(lost_at=0.05)))
    assert best.point == "eps-0.1000"
    assert "The knee of the front, from where damage rises faster, is at ε = 0.3000" in best.reason
    assert "f2 rises from 0.0070 to 0.0690" in best.reason
    assert "from here on the model has lost" in best.reason


def test_an_image_that_no_model_loses_is_said(tmp_path: Path) -> None:
    best = recommend(run_of(tmp_path, BENT, hole(lost_at=0.5, lowest=19.5)))
    assert best.point == "eps-0.3000"
    said = "But no model loses the images to forget: their PSNR in the hole is 20.0 dB before and 19.5 dB"
    assert said in best.reason


def test_dominated_models_are_not_recommended(tmp_path: Path) -> None:
    front = BENT | {0.25: 0.0225, 0.31: 0.0001, 0.5: 0.005}
    assert recommend(run_of(tmp_path, front)).point == "eps-0.3100"


def test_a_single_model_is_recommended_and_so_is_the_smallest_epsilon_without_a_knee(tmp_path: Path) -> None:
    assert recommend(run_of(tmp_path, {0.4: 0.1}))[:2] == ("eps-0.4000", 0.4)
    best = recommend(run_of(tmp_path, {0.0: 1.0, 0.5: 0.5, 0.9: 0.1}))
    assert best.point == "eps-0.0000"
    assert "no knee" in best.reason


def test_a_broken_table_is_one_sentence(tmp_path: Path) -> None:
    run = run_of(tmp_path, BENT, hole(0.5))
    (tmp_path / "hole.csv").write_text("point,psnr\neps-0.3000,much\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"hole\.csv cannot be read"):
        recommend(run)
