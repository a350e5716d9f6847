"""Dominance, front and hypervolume, compared with brute force."""

import math

import numpy as np
import pytest

from unlearn_ext.errors import UserError
from unlearn_ext.unlearning.pareto import ParetoFront, ParetoPoint, dominates, hypervolume, nondominated

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

# A coarse grid makes ties and equal points common, because they are the error-prone cases.
grid_points = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=12)


def point(epsilon, f1, f2):
    return ParetoPoint(f"eps-{epsilon:.4f}", "epsilon", epsilon, f1, f2, f1 * 1.1, f2 * 1.1, 60, 1.5)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0), (1, 1), True),
        ((0, 1), (0, 2), True),
        ((0, 1), (1, 0), False),
        ((1, 1), (1, 1), False),
        ((math.nan, 0), (1, 1), False),
        ((0, 0), (math.nan, 1), False),
    ],
)
def test_dominates(a, b, expected):
    assert dominates(a, b) is expected


@hypothesis.given(grid_points)
def test_dominance_is_a_strict_order(values):
    for a in values:
        assert not dominates(a, a)
        for b in values:
            assert not (dominates(a, b) and dominates(b, a))
            assert all(dominates(a, c) for c in values if dominates(a, b) and dominates(b, c))


@hypothesis.given(grid_points)
def test_every_dominated_point_is_dominated_by_a_free_one(values):
    free = nondominated(values)
    front = [value for value, is_free in zip(values, free, strict=True) if is_free]
    for value, is_free in zip(values, free, strict=True):
        assert is_free != any(dominates(other, value) for other in front)


@hypothesis.given(grid_points, st.tuples(st.integers(0, 8), st.integers(0, 8)))
def test_hypervolume_counts_the_dominated_cells(values, reference):
    cells = np.zeros((8, 8), bool)
    for f1, f2 in values:
        cells[f1 : reference[0], f2 : reference[1]] = True
    assert hypervolume(values, reference) == pytest.approx(cells.sum())


@hypothesis.given(grid_points, st.randoms(use_true_random=False))
def test_hypervolume_does_not_depend_on_order_or_on_dominated_points(values, random):
    shuffled = random.sample(values, len(values))
    front = [v for v, is_free in zip(values, nondominated(values), strict=True) if is_free]
    assert hypervolume(shuffled, (9, 9)) == hypervolume(values, (9, 9)) == pytest.approx(hypervolume(front, (9, 9)))


def test_front_is_ordered_and_marks_the_dominated():
    front = ParetoFront((point(0.9, 0.9, 0.001), point(0.1, 0.1, 0.2), point(0.5, 0.5, 0.3)))
    assert [p.epsilon for p in front] == [0.1, 0.5, 0.9]
    assert front.dominated == [False, True, False]
    assert front.hypervolume((1.0, 1.0)) == pytest.approx(0.9 * 0.8 + 0.1 * 0.199)


def test_csv_keeps_every_digit(tmp_path):
    front = ParetoFront((point(0.3, 1 / 3, 2 / 7), point(0.1, 0.1 + 1e-17, 0.7)))
    front.to_csv(tmp_path / "front.csv")
    assert ParetoFront.from_csv(tmp_path / "front.csv") == front
    header = (tmp_path / "front.csv").read_text().splitlines()[0]
    assert header == "name,role,epsilon,f1,f2,f1_validation,f2_validation,steps,seconds,made_of,dominated"


def test_a_table_of_an_earlier_version_is_read(tmp_path):
    header = "name,role,epsilon,f1,f2,f1_validation,f2_validation,steps,seconds,dominated"
    rows = ["boundary-high,boundary-high,0.1,0.1,0.2,0.1,0.2,5,1.0,0", "boundary-low,boundary-low,1,1,0,1,0,5,1.0,0"]
    (tmp_path / "front.csv").write_text("\n".join([header, *rows, ""]))
    front = ParetoFront.from_csv(tmp_path / "front.csv")
    assert [point.role for point in front] == ["most-forgotten", "least-forgotten"]
    assert [point.name for point in front] == ["boundary-high", "boundary-low"]  # of their folders
    assert {point.made_of for point in front} == {"trained"}


@pytest.mark.parametrize("content", [None, "a,b\n1,2\n", "name,role,epsilon\nx,epsilon,zero\n"])
def test_a_file_that_is_no_front_is_a_user_error(tmp_path, content):
    path = tmp_path / "front.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"front\.csv"):
        ParetoFront.from_csv(path)
