"""The report in a browser: skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import POINTS, write_audit, write_run, write_single

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright import sync_api

from unlearn_ext.report import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FOUND = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(FOUND is None, reason=f"none of these browsers is installed: {', '.join(BROWSERS)}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=FOUND, args=["--no-sandbox"])  # a sandbox needs a user
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return reports of a sweep and of a run, with all tables."""
    runs = {name: write(tmp_path_factory.mktemp(name)) for name, write in (("sweep", write_run), ("run", write_single))}
    for run in runs.values():
        write_audit(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unlearn_ext.report.page.save_figures", lambda *_: None)  # the pages do not need them
        patch.setattr("unlearn_ext.report.page.recommend", lambda _: None)  # then the most forgotten model comes first
        return {name: write_report(run) for name, run in runs.items()}


@pytest.fixture
def page(browser: Any, reports: dict[str, Path]) -> Iterator[Any]:
    """Open the report of the sweep; fail if the page logs an error or loads anything else."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    opened, errors, loaded = context.new_page(), [], []
    opened.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("request", lambda request: loaded.append(request.url))
    opened.goto(reports["sweep"].as_uri())
    yield opened
    context.close()
    assert errors == []
    assert [url for url in loaded if not url.startswith("data:")] == [reports["sweep"].as_uri()]


def chosen(page: Any) -> tuple[int, str, int]:
    """Return the number of the chosen dot, the displayed name, and the position of the slider."""
    checked = [dot.get_attribute("aria-checked") == "true" for dot in page.locator("#front .dot").all()]
    assert checked.count(True) == 1
    return checked.index(True), page.locator("#dial-label").inner_text(), int(page.locator("#dial-input").input_value())


LABELS = [
    {"most-forgotten": "most forgotten", "least-forgotten": "least forgotten"}.get(name, f"ε = {epsilon:g}")
    for name, _, epsilon in POINTS
]


def source(page: Any, group: str, side: str, model: str) -> str:
    picture = page.locator(f'.strip img[data-group="{group}"][data-side="{side}"][data-model="{model}"]')
    return str(picture.get_attribute("src"))


def shows(page: Any, model: str) -> None:
    """Check that the pictures beside the front are those of a model."""
    for group in ("training", "validation"):
        for side in ("forget", "retain"):
            shown = page.locator(f'#dial img[data-group="{group}"][data-side="{side}"]')
            assert shown.is_visible()
            assert shown.get_attribute("src") == source(page, group, side, model)


def test_a_click_on_a_dot_shows_its_model(page: Any) -> None:
    assert chosen(page) == (0, LABELS[0], 0)
    shows(page, POINTS[0][0])
    page.locator("#front .dot").nth(2).click()
    assert chosen(page) == (2, LABELS[2], 2)
    shows(page, POINTS[2][0])
    note = page.locator("#dial-note").inner_text()
    assert "f1" in note
    assert "f2" in note
    assert "validation" in note


def test_a_click_near_a_dot_chooses_the_nearest(page: Any) -> None:
    mark = page.locator("#front .dot .mark").nth(3)
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2 + 12, box["y"] + box["height"] / 2 - 12)
    assert chosen(page)[0] == 3


def test_arrow_keys_move_along_the_front(page: Any) -> None:
    page.locator("#front .dot").first.focus()
    for key, place in (("ArrowRight", 1), ("ArrowUp", 2), ("ArrowLeft", 1), ("End", 4), ("ArrowRight", 4), ("Home", 0)):
        page.keyboard.press(key)
        assert chosen(page) == (place, LABELS[place], place)
        assert page.evaluate("document.activeElement.dataset.name") == POINTS[place][0]


def test_the_front_is_one_stop_of_the_tab_key(page: Any) -> None:
    page.locator("nav.contents a").last.focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.name") == POINTS[0][0]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "dial-input"


def test_the_slider_moves_the_front(page: Any) -> None:
    page.locator("#dial-input").focus()
    page.keyboard.press("ArrowRight")
    assert chosen(page) == (1, LABELS[1], 1)
    page.locator("#dial-input").fill("4")
    assert chosen(page) == (4, LABELS[4], 4)
    shows(page, POINTS[4][0])


def test_pictures_are_enlarged_and_escape_closes_them(page: Any) -> None:
    dialog, button = page.locator("dialog"), page.locator("#models-pictures .enlarge").nth(6)
    assert not dialog.is_visible()
    button.click()
    assert dialog.is_visible()
    assert page.locator("#large-picture").get_attribute("src") == button.locator("img").get_attribute("src")
    assert page.locator("#large-original").get_attribute("src") == source(page, "training", "forget", "original")
    assert page.locator("#large-picture").bounding_box()["width"] > 1.5 * button.bounding_box()["width"]
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_pictures_are_enlarged_by_keyboard(page: Any, key: str) -> None:
    page.locator("#dial .enlarge").first.focus()
    page.keyboard.press(key)
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Enter")  # the focus is on the button Close
    assert not page.locator("dialog").is_visible()


def test_a_click_beside_the_dialog_closes_it(page: Any) -> None:
    page.locator("#dial .enlarge").first.click()
    page.mouse.click(5, 5)
    assert not page.locator("dialog").is_visible()


def test_curves_are_folded_until_they_are_printed(page: Any) -> None:
    assert page.locator("details[open]").count() == 0
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0


@pytest.mark.parametrize("name", ["sweep", "run"])
@pytest.mark.parametrize("look", [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"java_script_enabled": False}])
def test_a_phone_needs_no_sideways_scrolling(browser: Any, reports: dict[str, Path], name: str, look: Any) -> None:
    context = browser.new_context(viewport={"width": 400, "height": 800}, **look)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(reports[name].as_uri())
    root = page.locator("html")
    if look.get("java_script_enabled", True):
        page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    assert root.evaluate("node => node.scrollWidth") == 400
    assert errors == []
    context.close()
