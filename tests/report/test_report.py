"""The report of a synthetic run."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from run_folders import POINTS, write_run

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from unlearn_ext.errors import UserError
from unlearn_ext.report import write_report
from unlearn_ext.unlearning.run_folder import read_run


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(write_run(tmp_path_factory.mktemp("run"))).read_text(encoding="utf-8")


def test_page_stands_alone(html: str) -> None:
    links = re.findall(r"(?:src|href)=\"([^\"]*)\"", html)
    assert links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert "@import" not in html


def test_every_model_is_shown_from_most_to_least_forgotten(html: str) -> None:
    table = html[html.index("<thead>") :]
    places = [table.index(f"<td>{name}") for name, _, _ in POINTS]
    assert places == sorted(places)
    assert html.count("images to retain: ") == len(POINTS) + 3
    assert html.count("<svg") == 3


def test_skipped_steps_are_told(html: str) -> None:
    assert re.search(r"1\s+step skipped", html)


def test_figures_are_saved_beside_the_page(run_folder: Path) -> None:
    write_report(run_folder)
    assert sorted(path.name for path in (run_folder / "figures").iterdir()) == [
        f"{name}.{kind}" for name in ("convergence", "front", "steering", "strip") for kind in ("png", "svg")
    ]


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    evil = "</script><script>alert('x')</script><img src=x onerror=\"alert(1)\">"
    run = write_run(
        tmp_path / "<script>alert('folder')<b>",
        family=evil, dataset=evil, task=evil, samples_from=evil,
        settings={evil: {"inner": [evil]}},
    )  # fmt: skip
    front = run / "front.csv"
    rows = list(csv.reader(front.open(newline="", encoding="utf-8")))
    rows[-1][1] = evil
    with front.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    page = write_report(run).read_text(encoding="utf-8")
    assert "alert(" in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page


def test_a_point_worse_in_both_is_marked(run_folder: Path) -> None:
    front = run_folder / "front.csv"
    rows = list(csv.reader(front.open(newline="", encoding="utf-8")))
    rows[-1][4] = "9"  # the least forgotten model now also has the largest f2
    with front.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    page = write_report(run_folder).read_text(encoding="utf-8")
    assert ">dominated</span>" in page
    assert "None of these models is worse" not in page


@pytest.mark.parametrize("missing", ["front.csv", "history.csv", "metrics.json", "samples.npz"])
def test_an_unfinished_run_is_named(run_folder: Path, missing: str) -> None:
    (run_folder / missing).unlink()
    with pytest.raises(UserError, match=f"contains no {missing}"):
        write_report(run_folder)


@pytest.mark.parametrize(("name", "content"), [("metrics.json", "{"), ("front.csv", "name\nx\n"), ("samples.npz", "x")])
def test_a_broken_file_is_one_sentence(run_folder: Path, name: str, content: str) -> None:
    (run_folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot be read as a (run|Pareto front)"):
        write_report(run_folder)


def test_no_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        read_run(tmp_path / "nowhere")


def test_miss_and_span(run_folder: Path) -> None:
    run = read_run(run_folder)
    assert run.span == pytest.approx(1.28)
    assert all(0 < abs(point.miss) < 0.02 for point in run.points)
    assert run.worse == []
