"""Every Python block of README.md and docs/ runs; the blocks of one page share a namespace and a folder.

A block needs the blocks above it: run a whole page, e.g. with ``-k saving.md``.
"""

from pathlib import Path

import pytest
import torch

pytest.importorskip("sybil")
from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parents[2]

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _blocks():
    for path in PAGES:
        document = Document.parse(str(path), PythonCodeBlockParser(), SkipParser())
        for example in document.examples():
            yield pytest.param(example, id=f"{path.relative_to(ROOT)}:{example.line}")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Return a function that gives every page one folder for all its blocks."""
    folders = {}
    return lambda page: folders.setdefault(page, tmp_path_factory.mktemp(Path(page).stem))


@pytest.mark.parametrize("example", list(_blocks()))
def test_block(example, folder_of, monkeypatch):
    monkeypatch.chdir(folder_of(example.path))
    torch.manual_seed(0)
    example.evaluate()


def test_every_page_is_found():
    assert len(PAGES) > 10
    assert {page.name for page in PAGES} >= {"README.md", "tutorial.md", "theory.md", "amp.md"}
