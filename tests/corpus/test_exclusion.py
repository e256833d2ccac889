"""Exclusion files: what their entries reject, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest

from qalam_core.corpus.exclusion import Excluded
from qalam_core.corpus.filters import digests_of
from qalam_core.errors import CorpusError
from tests.conftest import sentences
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
        (b'text\n{"txt": "a"}', r"exclude.txt:2: expected a JSON object"),
        (b'{"text": "a"', r"exclude.txt:1: expected a JSON object"),
        (b'{"text": "  "}', r"has no entries"),
        ("؟!\n".encode(), "exclude.txt:1: .* no letters"),
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
