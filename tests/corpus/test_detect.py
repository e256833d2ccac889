"""Detection: what the files of a source are together, and the unit of plain text."""

from __future__ import annotations

import random
import textwrap
from pathlib import Path

import pytest

from qalam_core.corpus.detect import detect
from qalam_core.errors import CorpusError
from qalam_core.recipe import Source
from tests.conftest import sentences
from tests.corpus.documents import NUMBERED, TEXTS, dumps, read_back, table


def long_paragraphs(count: int) -> list[str]:
    return [" ".join(random.Random(n).sample(TEXTS, 4)) for n in range(count)]


@pytest.mark.parametrize("width", [40, 70, 100])
def test_wrapped_books_are_divided_into_paragraphs(width: int, tmp_path: Path) -> None:
    books = long_paragraphs(60)
    for number in range(3):
        wrapped = (textwrap.fill(text, width) for text in books[number::3])
        (tmp_path / f"{number}.txt").write_text("\n\n".join(wrapped), encoding="utf-8")
    found = detect(Source(path=str(tmp_path)))
    assert (found.source.unit, found.documents) == ("paragraph", 60)
    assert found.source.path == str(tmp_path)


def test_lines_that_are_documents_stay_lines(tmp_path: Path) -> None:
    choice = random.Random(2)
    tweets = [" ".join(choice.sample(text.split(), choice.randint(3, 12))) for text in sentences(200)]
    stanzas = ["\n".join(tweets[n : n + 5]) for n in range(0, 200, 5)]
    for name, content in {"tweets": "\n".join(tweets), "groups": "\n\n".join(stanzas)}.items():
        path = tmp_path / f"{name}.txt"
        path.write_text(content, encoding="utf-8")
        found = detect(Source(path=str(path)))
        assert (found.source.unit, found.documents) == ("line", 200)
    assert found.shortest < 20
    path.write_text("".join(f"{tweet}\t{tweet}\n" for tweet in tweets), encoding="utf-8")  # as verse has its halves
    assert read_back(Source(path=str(path)), tmp_path)[0] == f"{tweets[0]}\t{tweets[0]}"


def test_a_wrapped_text_without_paragraphs_can_still_be_split(tmp_path: Path) -> None:
    wrapped = [textwrap.fill(text, 70) for text in long_paragraphs(40)]
    (tmp_path / "book.txt").write_text("\n".join(wrapped), encoding="utf-8")
    assert detect(Source(path=str(tmp_path / "book.txt"))).source.unit == "line"
    articles = tmp_path / "articles"
    articles.mkdir()
    for number, text in enumerate(wrapped):
        (articles / f"{number}.txt").write_text(text, encoding="utf-8")
    assert detect(Source(path=str(articles))).source.unit == "file"


# -- folders --------------------------------------------------------------------------------------


def test_a_folder_of_several_formats_has_the_keys_of_each(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.csv").write_text(table(";", ["id", "kind", "content"]), encoding="utf-8")
    (folder / "b.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    (folder / "c.txt").write_text("", encoding="utf-8")
    (folder / "d.txt").write_text("no Arabic here\n", encoding="utf-8")
    (folder / "e.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    assert read_back(Source(path=str(folder)), tmp_path) == [*TEXTS, *TEXTS, "no Arabic here"]
    assert detect(Source(path=str(folder / "*"))).source.path == str(folder / "*")


def test_files_that_need_different_keys_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n".join(TEXTS), encoding="cp1256")
    with pytest.raises(CorpusError, match=r"encoding is 'utf-8' for a.txt and 'cp1256' for b.txt; put them into"):
        detect(Source(path=str(tmp_path)))


def test_files_of_one_record_each_have_the_field_with_the_most_text(tmp_path: Path) -> None:
    """Of all of them: in some the title is longer."""
    folder, texts = tmp_path / "texts", [text[n % 4 * 25 :] for n, text in NUMBERED]
    folder.mkdir()
    for number, text in enumerate(texts):
        record = {"title": TEXTS[0][: number % 4 * 50], "tags": ["خبر"], "in": {"body": text}}
        (folder / f"{number:02}.json").write_text(dumps(record), encoding="utf-8")
    found = detect(Source(path=str(folder)))
    assert (found.source.text, found.source.records) == ("in.body", "")
    assert found.documents == pytest.approx(len(TEXTS), rel=0.2)
    assert read_back(Source(path=str(folder)), tmp_path) == texts
    (folder / "00.json").write_text(dumps({"title": TEXTS[0]}), encoding="utf-8")
    assert read_back(Source(path=str(folder)), tmp_path) == texts[1:]
    assert "bad records are skipped" in detect(Source(path=str(folder))).what


def test_what_does_not_exist_is_an_error(tmp_path: Path) -> None:
    for missing in ("none.txt", "none/*.txt", "none"):
        with pytest.raises(CorpusError, match="none"):
            detect(Source(path=str(tmp_path / missing)))
