"""The report of a synthetic run."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_folders import POINTS, write_audit, write_requests, write_run, write_single

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from unlearn_ext.errors import UserError
from unlearn_ext.report import write_report
from unlearn_ext.report.saving import save_figures
from unlearn_ext.report.template import rounded, short
from unlearn_ext.unlearning.run_folder import read_run


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(write_run(tmp_path_factory.mktemp("run"))).read_text(encoding="utf-8")


@pytest.fixture
def page_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not save the figures, which takes most of the time."""
    monkeypatch.setattr("unlearn_ext.report.page.save_figures", lambda *_: None)


def test_page_stands_alone(html: str) -> None:
    sources = re.findall(r"src=\"([^\"]*)\"", html)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"@import|url\((?!#)|<link|<iframe", html)


@pytest.mark.usefixtures("page_only")
def test_links_lead_to_sections_and_to_files_that_exist(run_folder: Path) -> None:
    page = write_report(run_folder)
    html = page.read_text(encoding="utf-8")
    links = set(re.findall(r"<a href=\"([^\"]*)\"", html))
    files = {link for link in links if not link.startswith("#")}
    assert files == {"front.csv", "history.csv", "metrics.json"}
    assert {f"#{name}" for name in re.findall(r"<section id=\"([^\"]*)\"", html)} == links - files


def test_every_model_is_shown_from_most_to_least_forgotten(html: str) -> None:
    for before in ("<td>", 'data-name="'):
        places = [html.index(f"{before}{name}") for name, _, _ in POINTS]
        assert places == sorted(places)
    assert html.count('alt="images to retain: ') == 2 * (len(POINTS) + 3)  # of training and of validation images
    assert html.count("<svg") == 3


def test_skipped_steps_are_told(html: str) -> None:
    assert re.search(r"1\s+step skipped", html)


def test_figures_are_saved_beside_the_page(run_folder: Path) -> None:
    write_report(run_folder)
    assert sorted(path.name for path in (run_folder / "figures").iterdir()) == [
        f"{name}.{kind}" for name in ("convergence", "front", "steering", "strip") for kind in ("png", "svg")
    ]


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


@pytest.mark.usefixtures("page_only")
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
    write_requests(run, [[evil, evil, 0.3, 1, 0.3, 0.3, 1, 0.3, evil, 0, evil, evil, 0, 0]])
    (run / "audit.csv").write_text(f"point,{quoted(evil)}\n{','.join([quoted(evil)] * 2)}\n")
    page = write_report(run).read_text(encoding="utf-8")
    assert "alert(" in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page


@pytest.mark.usefixtures("page_only")
def test_a_point_worse_in_both_is_marked(run_folder: Path) -> None:
    front = run_folder / "front.csv"
    rows = list(csv.reader(front.open(newline="", encoding="utf-8")))
    rows[-1][4] = "9"  # the least forgotten model now also has the largest f2
    with front.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    page = write_report(run_folder).read_text(encoding="utf-8")
    assert ">dominated</span>" in page
    assert "Of these,\n        least-forgotten was trained: more steps" in page
    assert "None of these models is worse" not in page


@pytest.mark.parametrize("missing", ["front.csv", "history.csv", "metrics.json", "samples.npz"])
def test_an_unfinished_run_is_named(run_folder: Path, missing: str) -> None:
    (run_folder / missing).unlink()
    with pytest.raises(UserError, match=f"contains no {missing}"):
        write_report(run_folder)


BROKEN = [
    ("metrics.json", "{"), ("front.csv", "name\nx\n"), ("samples.npz", "x"), ("validation.npz", "x"),
    ("requests.csv", "point,request\na,b\n"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content"), BROKEN)
def test_a_broken_file_is_one_sentence(run_folder: Path, name: str, content: str) -> None:
    (run_folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot be read as a (run|Pareto front|table of requests)"):
        write_report(run_folder)


def test_no_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        read_run(tmp_path / "nowhere")


def test_miss_and_span(run_folder: Path) -> None:
    run = read_run(run_folder)
    assert run.span == pytest.approx(1.28)
    assert all(0 < abs(point.miss) < 0.02 for point in run.points)
    assert run.worse == []


@pytest.mark.usefixtures("page_only")
def test_a_run_of_one_model_has_no_front(tmp_path: Path) -> None:
    run = write_single(tmp_path / "run")
    write_audit(run)
    page = write_report(run).read_text(encoding="utf-8")
    assert 'id="front"' not in page
    assert 'type="range"' not in page
    assert "What is left of the forgotten?" in page
    assert "photos/s7/3.png" in page
    assert "<td>not at hand</td>" in page
    assert "&lt;b&gt;α&lt;/b&gt;" in page
    assert not re.search(r"\b(nan|None|-1)</td>", page)


def shown(run: Path, pictures: str | None) -> tuple[str, bool, set[str]]:
    """Return the page, whether the figure of the pictures exists, and the sides that the page shows."""
    page = write_report(run, pictures).read_text(encoding="utf-8")
    return page, (run / "figures" / "strip.png").exists(), set(re.findall(r'alt="images to (\w+): ', page))


def test_the_report_shows_what_was_chosen(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_strip(folder: Path, figures: dict[str, Any]) -> None:
        save_figures(folder, {name: figure for name, figure in figures.items() if name == "strip"})

    monkeypatch.setattr("unlearn_ext.report.page.save_figures", only_strip)
    whole, has_figure, sides = shown(run_folder, None)
    assert (has_figure, sides) == (True, {"forget", "retain"})
    blurred, _, sides = shown(run_folder, "blurred")
    assert sides == {"forget", "retain"}
    pictures = [set(re.findall(r"base64,([^\"]*)", page)) for page in (whole, blurred)]
    assert len(pictures[0] & pictures[1]) == len(pictures[0]) / 2  # those to retain
    none, has_figure, sides = shown(run_folder, "none")
    assert (has_figure, sides) == (False, set())
    assert "data:image" not in none


@pytest.mark.usefixtures("page_only")
def test_the_report_never_shows_more_than_was_saved(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", pictures="retain")
    with pytest.warns(UserWarning, match="shows the pictures `retain`, because this run saved no more"):
        assert shown(run, "all")[2] == {"retain"}
    with pytest.raises(UserError, match="no choice of pictures `some`"):
        write_report(run, "some")


@pytest.mark.usefixtures("page_only")
def test_runs_of_earlier_versions_are_shown_blurred_and_without_validation_pictures(run_folder: Path) -> None:
    metrics = json.loads((run_folder / "metrics.json").read_text())
    del metrics["pictures"]
    (run_folder / "metrics.json").write_text(json.dumps(metrics))
    (run_folder / "validation.npz").unlink()
    page, _, sides = shown(run_folder, None)
    assert "8\u00a0×\u00a08 colours" in page
    assert "validation images, which were not trained on" not in page
    assert sides == {"forget", "retain"}


@pytest.mark.parametrize(("cell", "text"), [("0.123456", "0.1235"), ("", "–"), ("nan", "–"), (None, "–"), ("a", "a")])
def test_cells_are_short(cell: str | None, text: str) -> None:
    assert short(cell) == text


def test_shares_are_short() -> None:
    assert rounded("0.498201*anchor-0.0620 + 0.5018*unmodified") == "0.498*anchor-0.0620 + 0.502*unmodified"


@pytest.mark.usefixtures("page_only")
def test_a_recommended_model_is_shown_first(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = SimpleNamespace(point=POINTS[2][0], epsilon=0.6, reason="From here on <i>f2</i> hardly falls.")
    monkeypatch.setattr("unlearn_ext.report.page.recommend", lambda run: best)
    page = write_report(run_folder).read_text(encoding="utf-8")
    assert "Recommended: ε = 0.6" in page
    assert "&lt;i&gt;f2&lt;/i&gt; hardly falls" in page
    assert f'data-start="{POINTS[2][0]}"' in page
