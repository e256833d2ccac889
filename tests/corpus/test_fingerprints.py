"""Fingerprints of read texts: against brute force, under another normalisation, united, and saved."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalam_core.arabic import NORMALISATIONS, normalise
from qalam_core.corpus.fingerprints import LONG, MIN_LINE, NEW_WORDS, SHORT, Fingerprints, document_hashes, folded
from tests.conftest import examples, sentences


def documents(texts: list[str], source: str = "a") -> pa.RecordBatch:
    """Texts as in a corpus's shards."""
    ids = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]
    columns = {"id": pa.array(ids, pa.string()), "text": pa.array(texts, pa.large_string())}
    return pa.record_batch({**columns, "source": pa.array([source] * len(texts), pa.string())})


def read(*texts: str, source: str = "a") -> Fingerprints:
    return Fingerprints.of([documents(list(texts), source)])


def brute(test: list[str], train: list[str], size: int) -> list[float]:
    """The share of the words of each test text in n-grams of `size` words, all of whose 8-grams are in train, or for 8
    in a line that is a document or a short line of train."""
    known = {tuple(w[i : i + SHORT]) for text in train for w in [text.split()] for i in range(len(w) - SHORT + 1)}
    short = {line for text in train for line in text.split("\n") if len(line.split()) < SHORT}
    lines = {tuple(line.split()) for line in (*train, *short) if len(line.split()) >= MIN_LINE} if size == SHORT else ()
    shares = []
    for text in test:
        words = text.split()
        inside: set[int] = set()
        for start in range(len(words) - size + 1):
            if all(tuple(words[i : i + SHORT]) in known for i in range(start, start + size - SHORT + 1)):
                inside |= set(range(start, start + size))
        begin = 0
        for line in map(str.split, text.split("\n")):
            if tuple(line) in lines:
                inside |= set(range(begin, begin + len(line)))
            begin += len(line)
        shares.append(len(inside) / len(words) if len(words) >= size or inside else math.nan)
    return shares


line = st.one_of(
    st.lists(st.sampled_from(["قال", "من"]), max_size=10).map(" ".join),
    st.integers(0, 10).map(lambda start: " ".join(str(n) for n in range(start, start + 20))),
)
text = st.lists(line, max_size=3).map("\n".join)


@given(st.lists(text, max_size=4), st.lists(text, max_size=4))
def test_what_is_met_equals_brute_force(test: list[str], train: list[str]) -> None:
    found = Fingerprints.of([documents(train[:1]), documents(train[1:])]).meets(pa.array(test, pa.string()))
    whole = [one.split() for one in train]
    assert found.exactly.tolist() == [bool(one.split()) and one.split() in whole for one in test]
    np.testing.assert_allclose(found.short, brute(test, train, SHORT))
    np.testing.assert_allclose(found.long, brute(test, train, LONG))
    assert found.words.tolist() == [len(one.split()) for one in test]
    lines = [[words for words in map(str.split, one.split("\n")) if len(words) >= MIN_LINE] for one in test]
    assert found.line.tolist() == [max((len(words) for words in one if words in whole), default=0) for one in lines]


def test_an_ngram_does_not_cross_documents() -> None:
    words = [str(n) for n in range(20)]
    found = read(" ".join(words[:7]), " ".join(words[7:14]), " ".join(words[14:])).meets(pa.array([" ".join(words)]))
    assert found.short.tolist() == [0.0]


MARKED = "قَالَ الوَلَدُ إِنَّ المَدْرَسَةَ أُغْلِقَتْ فِي يَوْمِ ١٢ مِنَ الشَّهْرِ، ثُمَّ ذَهَبَ إلى السُّوقِ الكبيرة"  # fmt: skip


@pytest.mark.parametrize("kept", NORMALISATIONS)
@pytest.mark.parametrize("asked", [None, *NORMALISATIONS])
def test_normalisation_does_not_hide_a_text(kept: str, asked: str | None) -> None:
    seen = read(normalise(MARKED, NORMALISATIONS[kept]))
    shown = normalise(MARKED, NORMALISATIONS[asked]) if asked else MARKED
    found = seen.meets(pa.array([shown]))
    assert found.exactly[0]
    assert found.short[0] == 1


@pytest.mark.parametrize(
    "same",
    [
        MARKED.replace("،", " , "),
        MARKED.replace(" ", "  \n"),
        MARKED.replace("، ", "،"),
        MARKED.replace("، ", "/"),
        MARKED.replace(" ", "_"),
        f"«{MARKED}»!",
        MARKED.replace("١٢", "12"),
        MARKED.replace("١٢", "۱۲"),
        MARKED.replace("ك", "ک").replace("ي", "ی"),
        MARKED.replace("السُّوقِ", "الســُّوقِ"),
        MARKED.replace("و", "و\u200c"),
    ],
)
def test_spelling_and_punctuation_do_not_hide_a_text(same: str) -> None:
    assert same != MARKED
    assert read(MARKED).meets(pa.array([same])).exactly[0]


def test_the_order_of_words_and_other_words_do() -> None:
    words = MARKED.split()
    other = [" ".join(reversed(words)), " ".join(words[:-1]), f"{MARKED} غدا", "", "؟!"]
    assert not read(MARKED, "").meets(pa.array(other)).exactly.any()


def test_parts_and_paraphrases_count_as_read() -> None:
    whole = sentences(60)
    long = [" ".join(whole[start : start + 6]) for start in range(0, 60, 6)]
    seen = Fingerprints.of([documents(long)])
    quarter = [" ".join(one.split()[: len(one.split()) // 4]) for one in long]
    tenth = [" ".join("كلمة" if n % 10 == 9 else word for n, word in enumerate(one.split())) for one in long]
    added = [f"{one} سطر أضيف بعد النشر في الصحيفة." for one in long]
    for copies in (quarter, tenth, added):
        assert seen.meets(pa.array(copies)).read.all()
    assert not seen.meets(pa.array([" ".join(sentences(60, seed=9)[n : n + 6]) for n in range(0, 60, 6)])).read.any()


@pytest.mark.parametrize("size", range(MIN_LINE, LONG))
def test_lines_are_recognised_whatever_the_unit(size: int) -> None:
    """Of a corpus by line and of the same one by document, each is recognised by what was read of the other."""
    words = " ".join(sentences(40)).split()
    lines = [" ".join(words[start : start + size]) for start in range(0, 120, size)]
    poems = ["\n".join(lines[start : start + 4]) for start in range(0, len(lines), 4)]
    assert read(*lines).meets(pa.array(poems)).read.all()
    assert read(*poems).meets(pa.array(lines)).read.all()
    other = [" ".join(reversed(one.split())) for one in lines]
    assert not read(*poems).meets(pa.array(other)).read.any()


@pytest.mark.parametrize("added", range(1, NEW_WORDS + 3))
@pytest.mark.parametrize("size", range(SHORT, LONG))
def test_a_short_document_with_an_added_line_counts_as_read(size: int, added: int) -> None:
    document, line = " ".join(sentences(1)[0].split()[:size]), " ".join(f"كلمة{n}" for n in range(added))
    seen = read(document)
    for copy in (f"{document}\n{line}", f"{line}\n{document}"):
        assert seen.meets(pa.array([copy])).read[0] == (added <= NEW_WORDS)
    # within a line, it is a phrase that others may have as well
    assert seen.meets(pa.array([f"{document} {line}"])).read[0] == (added < size)


@settings(max_examples=examples(40))
@given(st.lists(text, max_size=4), st.lists(text, max_size=4), st.lists(text, max_size=3))
def test_a_union_has_read_what_either_has(one: list[str], other: list[str], asked: list[str]) -> None:
    united = Fingerprints.union([read(*one), read(*other, source="b")])
    together = Fingerprints.of([documents(one), documents(other, "b")])
    for found, expected in zip(united.meets(pa.array(asked, pa.string())),
                               together.meets(pa.array(asked, pa.string())), strict=True):  # fmt: skip
        np.testing.assert_array_equal(found, expected)
    assert united.counts() == together.counts()
    assert sum(united.counts().values()) == len(united.documents)


def test_documents_that_are_gone_are_counted_by_source() -> None:
    before = Fingerprints.union([read("النص الأول", "النص الثاني"), read("النص الثالث", source="b")])
    today = np.sort(document_hashes(folded(pa.array(["النصُّ الثّاني!"], pa.large_string()))))
    assert before.absent_from(today) == {"a": 1, "b": 1}
    assert before.absent_from(before.documents) == {}


def test_saving_keeps_everything_and_is_reproducible(tmp_path: Path) -> None:
    seen = Fingerprints.of([documents(sentences(50)), documents(sentences(30, seed=2), "b")])
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        seen.save(tmp_path / name)
        contents.append({path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())})
    assert contents[0] == contents[1]
    loaded = Fingerprints.load(tmp_path / "one")
    for name in ("documents", "ids", "sources", "bands", "lines", "ngrams", "buckets"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(seen, name))
    assert loaded.names == seen.names
    per_document = sum(
        len(content) for name, content in contents[0].items() if name in ("documents.arrow", "bands.arrow")
    )
    assert per_document < 130 * len(seen.documents) + 10000  # as the module states
    assert len(contents[0]["ngrams.arrow"]) < 4 * len(seen.ngrams) + 1000


def test_nothing_read_meets_nothing(tmp_path: Path) -> None:
    read().save(tmp_path)
    found = Fingerprints.load(tmp_path).meets(pa.array([MARKED, ""]))
    assert not found.read.any()
    assert Fingerprints.load(tmp_path).counts() == {}
