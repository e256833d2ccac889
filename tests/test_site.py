"""The documentation as a site: strict, complete, and without anything from a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
LONG = 200  # characters of a paragraph that two pages must not share


class Page(HTMLParser):
    """The links, anchors and loaded files of a page, and its paragraphs."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.loaded, self.ids, self.directions = list[str](), list[str](), set[str](), set[str]()
        self.paragraphs, self._inside = list[str](), False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.add(given.get("id") or "")
        self.directions.add(given.get("dir") or "")
        if tag == "a":
            self.links.append(given.get("href") or "")
        elif given.get("rel") not in ("canonical", "next", "prev"):
            self.loaded += [given[name] or "" for name in ("src", "href") if name in given]
        if tag == "p":
            self._inside = True
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "p"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.paragraphs[-1] += data


@pytest.fixture(scope="module")
def site(processes: None, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", folder], cwd=ROOT, capture_output=True,
        text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    return {path: Page(path) for path in folder.rglob("*.html") if path.name != "404.html"}


def test_every_page_is_in_the_navigation(site: dict[Path, Page]) -> None:
    pages = [*(ROOT / "docs").rglob("*.md")]
    assert len(site) == len(pages) > 25
    named = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in pages:
        assert re.search(rf"[\[ ]{re.escape(page.relative_to(ROOT / 'docs').as_posix())}\b", named), page


def test_nothing_is_loaded_from_a_network(site: dict[Path, Page]) -> None:
    for path, page in site.items():
        assert page.loaded
        assert not [each for each in page.loaded if urlsplit(each).netloc], path


def test_links_lead_to_pages_and_anchors(site: dict[Path, Page]) -> None:
    checked = 0
    for path, page in site.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or not link or link == ".":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), (path.name, link)
            if parts.fragment and target in site:
                assert unquote(parts.fragment) in site[target].ids, (path.name, link)
                checked += 1
    assert checked > 100


def test_arabic_reads_from_right_to_left(site: dict[Path, Page]) -> None:
    (arabic,) = (page for path, page in site.items() if path.parent.name == "ar")
    assert "rtl" in arabic.directions


def test_no_two_pages_share_a_paragraph(site: dict[Path, Page]) -> None:
    pages = defaultdict(set)
    for path, page in site.items():
        for paragraph in page.paragraphs:
            if len(text := " ".join(paragraph.split())) > LONG:
                pages[text].add(path.name)
    assert len(pages) > 100
    assert not {text[:80]: names for text, names in pages.items() if len(names) > 1}
