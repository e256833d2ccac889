"""Exclusion files: what their entries reject, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalam_core.corpus.exclusion import Excluded
from qalam_core.corpus.filters import digests_of
from qalam_core.errors import CorpusError
from tests.conftest import examples, sentences
from tests.corpus.test_fingerprints import read

TEXTS = sentences(20)


def excluded(tmp_path: Path, *lines: str) -> Excluded:
    file = tmp_path / "exclude.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    return Excluded.load(file)


def held(found: Excluded, texts: list[str]) -> list[bool]:
    array = pa.array(texts, pa.large_string())
    return [bool(one) for one in found.holds(array, digests_of(array))]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def json_text(text: str) -> str:
    return json.dumps({"text": text}, ensure_ascii=False)


@pytest.mark.parametrize(
    "entry",
    [
        lambda text: text,
        lambda text: f"  {text}!  ",
        json_text,
        lambda text: json.dumps({"id": sha256(text)[:16], "more": 1}),
        lambda text: json.dumps({"id": "article-17", "text": text}),
        lambda text: f"\ufeff{sha256(text)[:16]}\r",
        lambda text: f"\ufeff{json_text(text)}\r",
        lambda text: f"{text}\u2028",
        lambda text: sha256(text)[:16],
        lambda text: sha256(text)[:32].upper(),
        sha256,
    ],
)
def test_an_entry_rejects_its_document_alone(entry: object, tmp_path: Path) -> None:
    assert callable(entry)
    found = excluded(tmp_path, "", entry(TEXTS[3]), "")
    assert held(found, TEXTS) == [n == 3 for n in range(len(TEXTS))]


def test_a_text_rejects_what_contains_it_and_what_nearly_equals_it(tmp_path: Path) -> None:
    found = excluded(tmp_path, TEXTS[0])
    around = " ".join([*TEXTS[5:15], TEXTS[0], *TEXTS[15:]])
    words = TEXTS[0].split()
    assert held(found, [around, " ".join([*words[:-1], "كلمة"]), " ".join(TEXTS[1:9])]) == [True, True, False]


WORDS = [str(number) for number in range(100, 400)]


@pytest.mark.parametrize(("size", "meets"), [(7, False), (8, True), (15, True), (40, True)])
def test_an_excerpt_is_excluded_and_its_reader_is_known(size: int, meets: bool, tmp_path: Path) -> None:
    """The document stands within the entry."""
    entry, document = " ".join(WORDS[:150]), " ".join(WORDS[60 : 60 + size])
    found = excluded(tmp_path, entry)
    assert held(found, [document]) == [meets]
    assert bool(found.read_by(read(document))) is meets


def test_lines_of_a_text_are_excluded_as_documents(tmp_path: Path) -> None:
    """Of a poem, each line may be a document of a corpus; it has fewer than 8 words."""
    lines = [" ".join(WORDS[start : start + 6]) for start in range(0, 36, 6)]
    found = excluded(tmp_path, json_text("\n".join(lines)))
    assert held(found, [*lines, " ".join(WORDS[3:9])]) == [True] * 6 + [False]
    assert len(found.read_by(read(lines[4]))) == 1


@settings(max_examples=examples(20))
@given(st.integers(0, 40), st.integers(3, 45), st.integers(0, 40), st.integers(3, 45), st.booleans())
def test_what_is_excluded_is_what_a_reader_is_known_by(
    tmp_path_factory: pytest.TempPathFactory, at: int, size: int, from_: int, length: int, changed: bool
) -> None:
    """The same relation both ways, or a model that has read a text would be certified not to have."""
    document = WORDS[at : at + size]
    if changed:
        document = [*document[: size // 2], "كلمة", *document[size // 2 :]]
    found = excluded(tmp_path_factory.mktemp("e"), " ".join(WORDS[from_ : from_ + length]))
    text = " ".join(document)
    assert held(found, [text])[0] == bool(found.read_by(read(text)))


def test_a_short_text_rejects_only_its_equals(tmp_path: Path) -> None:
    found = excluded(tmp_path, "يقرأ القط الكتاب")
    assert held(found, ["يقرأ القط الكتاب.", "يقرأ القط الكتاب في البيت"]) == [True, False]


def test_what_a_model_has_read_is_named(tmp_path: Path) -> None:
    seen = read(*TEXTS[:10])
    found = excluded(tmp_path, TEXTS[2], TEXTS[12], sha256(TEXTS[3]), sha256(TEXTS[13])[:16])
    assert found.read_by(seen) == [sha256(TEXTS[3]), TEXTS[2]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no entries"),
        (b"\n \n", "has no entries"),
        (b"\xff\xfe", "not a text file in UTF-8"),
        (b'{"text": 1}', r"exclude.txt:1: expected a JSON object"),
        ('نص من كلمات\n{"txt": "a"}'.encode(), r"exclude.txt:2: expected a JSON object"),
        (b'{"text": "a"', r"exclude.txt:1: expected a JSON object"),
        (b'["text of some words"]', r"exclude.txt:1: expected a JSON object"),
        *(
            (entry.encode(), r"exclude.txt:1: neither an id .* nor a text")
            for entry in (
                '{"text": "  "}',
                '{"id": "article-17"}',
                "؟!",
                "كلمتان فقط",
                "bd7c8b16f0a59",
                "bd7c8b16f0a59…",
                '"bd7c8b16f0a59c9f"',
                "bd7c8b16f0a59c9f,",
                "bd7c8b16f0a59c9f # asked by mail",
                "sha256:bd7c8b16f0a59c9f",
                "0xbd7c8b16f0a59c9f",
                "bd7c8b16f0a59c9f,asked by mail today",
            )
        ),
    ],
)
def test_a_bad_file_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "exclude.txt"
    file.write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        Excluded.load(file)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="there is no file"):
        Excluded.load(tmp_path / "none.txt")
    with pytest.raises(CorpusError, match="not a text file"):
        Excluded.load(tmp_path)
