"""Verbatim spans, against a naive implementation and on texts that are hard to compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.ipc as ipc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalam_core.corpus import spans as module
from qalam_core.corpus.spans import Span, spans
from qalam_core.corpus.splits import SCHEMA
from tests.conftest import examples

# of several lengths, with common beginnings and ends of 8 bytes and more, and one that is part of another
WORDS = ("ا", "من", "المدرسة", "المدرسات", "والمدرسة", "المدرسةالمدرسة", "المدرسةالمدرسات")


def name(number: int) -> str:
    return f"{number:016x}"


def write(folder: Path, shards: Sequence[Sequence[Sequence[str]]]) -> list[Path]:
    """Shards of batches of documents, which are numbered."""
    paths, number = [], 0
    for index, batches in enumerate(shards):
        paths.append(folder / f"train-{index:05}.arrow")
        with ipc.new_file(paths[-1], SCHEMA) as file:
            for texts in batches:
                ids = [name(number + place) for place in range(len(texts))]
                number += len(texts)
                columns = [pa.array(ids), pa.array(texts, pa.large_string()), pa.array(["stories"] * len(texts))]
                file.write_batch(
                    pa.record_batch(
                        [column.cast(f.type) for column, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
                    )
                )
    return paths


def naive(text: str, documents: Sequence[str], size: int) -> list[tuple[int, int, list[str]]]:
    """The maximal spans, with the ids of the documents that hold them."""
    own, texts = text.split(), [document.split() for document in documents]

    def holders(start: int, end: int) -> list[str]:
        part, n = own[start:end], end - start
        return [name(i) for i, t in enumerate(texts) if any(t[p : p + n] == part for p in range(len(t) - n + 1))]

    found: list[tuple[int, int, list[str]]] = []
    for start in range(len(own)):
        end = start
        while end < len(own) and holders(start, end + 1):
            end += 1
        if end - start >= size and (not found or end > found[-1][1]):
            found.append((start, end, holders(start, end)))
    return found


texts_of = st.builds(
    lambda words, ends: "".join(w + (" " if e else "\n") for w, e in zip(words, ends, strict=False)).strip(),
    st.lists(st.sampled_from(WORDS[:3]) | st.sampled_from(WORDS), max_size=30),
    st.lists(st.booleans(), min_size=30, max_size=30),
)


@settings(max_examples=examples(60))
@given(
    st.lists(texts_of, max_size=3),
    st.lists(st.lists(st.lists(texts_of, min_size=1, max_size=4), max_size=3), max_size=2),
    st.integers(1, 6),
    st.sampled_from([1, 40, 1 << 18]),
)
def test_as_a_naive_implementation(texts: list[str], shards: list[list[list[str]]], size: int, gathered: int) -> None:
    documents = [text for batches in shards for batch in batches for text in batch]
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GATHERED", gathered)
        found = spans(texts, write(Path(folder), shards), size, shown=2)
    assert len(found) == len(texts)
    for text, of_text in zip(texts, found, strict=True):
        expected = naive(text, documents, size)
        assert [(s.start_word, s.end_word, s.count) for s in of_text] == [(b, e, len(d)) for b, e, d in expected]
        assert [[hit.id for hit in s.documents] for s in of_text] == [d[:2] for _, _, d in expected]
        for span in of_text:
            for hit in span.documents:
                around = [*hit.before.split(), *text.split()[span.start_word : span.end_word], *hit.after.split()]
                assert " ".join(around) in " ".join(documents[int(hit.id, 16)].split())


def found_in(tmp_path: Path, text: str, *documents: str, size: int = 5) -> list[Span]:
    return spans([text], write(tmp_path, [[documents]]), size)[0]


def test_a_span_names_its_documents_and_what_is_around_it(tmp_path: Path) -> None:
    sentence = "ذهب الولد الصغير إلى السوق صباحا"
    (span,) = found_in(tmp_path, f"قال إن {sentence} ثم عاد", "لا شيء", f"كتاب:\n{sentence} واشترى", sentence)
    assert (span.start_word, span.end_word, span.count) == (2, 8, 2)
    first, second = span.documents
    assert (first.source, first.id, first.shard.name) == ("stories", name(1), "train-00000.arrow")
    assert (first.before, first.after, second.before, second.after) == ("كتاب:", "واشترى", "", "")


def test_words_are_compared_whole_and_within_one_document(tmp_path: Path) -> None:
    assert not found_in(tmp_path, "ا ب ج د ه", "ا ب ج د هو", "وا ب ج د ه", "ا ب", "ج د ه", "", "ا ب ج ده")
    assert len(found_in(tmp_path, "ا ب ج د ه", "س", "ا ب ج د ه", "س")) == 1
    one, other = "المدرسة" * 3, "المدرسةالمكتبةالمدرسة"  # of one length, with one beginning and one end
    assert len(one) == len(other)
    assert not found_in(tmp_path, f"ا ب ج د {one}", f"ا ب ج د {other}")


def test_a_text_that_repeats_itself_takes_no_longer(tmp_path: Path) -> None:
    text = "ههه " * 10_000
    (span,) = found_in(tmp_path, text, "ههه " * 20_000, "ههه " * 9_999)
    assert (span.start_word, span.end_word, span.count) == (0, 10_000, 1)


def test_nothing_to_compare(tmp_path: Path) -> None:
    assert spans([], write(tmp_path, [[["ا ب ج د ه"]]])) == []
    assert spans(["", "ا ب"], write(tmp_path, [[["ا ب ج د ه"]]])) == [[], []]
    assert spans(["ا ب ج د ه"], []) == [[]]
