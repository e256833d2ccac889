"""Documents that could be held out are looked up by what was folded before as they are by their text."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from qalam_core.corpus.filtered import filter_documents, read_digests
from qalam_core.corpus.filters import FilterSettings
from qalam_core.corpus.fingerprints import Fingerprints, document_hashes, folded
from qalam_core.corpus.held_out import FOLDED, HeldOut, fold_documents
from qalam_core.corpus.prepare import HELD_OUT, PrepareSettings
from qalam_core.corpus.splits import below, read_split, read_texts
from qalam_core.errors import CorpusError
from tests.conftest import examples, sentences
from tests.corpus.preparing import prepare_files
from tests.corpus.test_fingerprints import MARKED, read
from tests.corpus.test_fingerprints import text as texts
from tests.corpus.test_prepare import content, part, write

ALL = part(validation=0.3, test=0.6, min_arabic=0.0)
documents = st.lists(st.one_of(texts, st.sampled_from([MARKED, MARKED.replace("،", ""), "؟!", f"{MARKED}\n12"])))


def filtered(folder: Path, found: list[str], batch: int = 1000) -> Path:
    path = write(folder / "a.arrow", [("a", text) for text in found], batch)
    filter_documents([path], FilterSettings.of(ALL, "none"), folder / "filtered")
    return folder / "filtered"


def kept_texts(folder: Path) -> pa.ChunkedArray:
    return pa.chunked_array([batch.column("text") for batch in read_texts(folder / "texts.arrow")], pa.large_string())


@given(documents, documents, st.integers(1, 5))
def test_what_was_folded_is_looked_up_as_its_text_is(found: list[str], before: list[str], batch: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = filtered(Path(scratch), found, batch)
        fold_documents(folder, PrepareSettings.of(ALL), Path(scratch, "folded"))
        digests = np.concatenate([np.zeros(0, "S16"), *(part for part, _ in read_digests(folder))])
        everything = kept_texts(folder).combine_chunks()
        seen = read(*before)
        known, unknown = HeldOut.of(seen, [Path(scratch, "folded")]), HeldOut.of(seen, [])
    assert set(known.digests) == set(digests[below(digests, 0.6 + 0.3)])
    for held in (known, unknown):  # and documents of which nothing was folded
        hashes, was_read = held.look_up(digests, everything)
        np.testing.assert_array_equal(hashes, document_hashes(folded(everything)))
        np.testing.assert_array_equal(was_read, seen.meets(everything).read)


def prepared(folder: Path, found: list[str], seen: Fingerprints, fold: bool, shares: tuple[float, float]) -> object:
    corpus = part(validation=shares[0], test=shares[1], min_arabic=0.0)
    path = write(folder / "a.arrow", [("a", text) for text in found], batch=7)
    try:
        facts = prepare_files([("a", path)], corpus, folder / "out", seen=seen, fold=fold)
    except CorpusError as error:
        return str(error)
    return facts, content(folder)


@settings(max_examples=examples(15))
@given(documents, documents, st.sampled_from([(0.3, 0.4), (0.0, 0.5), (0.001, 0.001)]))
def test_a_corpus_is_the_same_with_and_without_folds(
    found: list[str], before: list[str], shares: tuple[float, float]
) -> None:
    """Also one so small that a document is held out which its digest alone would not."""
    with tempfile.TemporaryDirectory() as scratch:
        one, other = (prepared(Path(scratch, str(fold)), found, read(*before), fold, shares) for fold in (False, True))
    assert one == other


def test_the_hashes_of_what_is_held_out_are_written(tmp_path: Path) -> None:
    found = sentences(200)
    with_folds = prepared(tmp_path, found, read(*found[:40]), True, (0.2, 0.2))
    assert not isinstance(with_folds, str), with_folds
    held_out = [
        text for split in ("validation", "test") for shard in read_split(tmp_path / "out", split)
        for batch in read_texts(shard) for text in batch.column("text").to_pylist()
    ]  # fmt: skip
    (written,) = (batch.column("hash").to_numpy() for batch in read_texts(tmp_path / "out" / HELD_OUT))
    assert 0 < len(held_out) < 100
    np.testing.assert_array_equal(written, np.unique(document_hashes(folded(pa.array(held_out, pa.large_string())))))


def test_nothing_folded_is_a_file_without_rows(tmp_path: Path) -> None:
    fold_documents(filtered(tmp_path, []), PrepareSettings.of(ALL), tmp_path / "folded")
    assert [len(batch) for batch in read_texts(tmp_path / "folded" / FOLDED)] in ([], [0])
    assert not len(HeldOut.of(read(MARKED), [tmp_path / "folded"]).digests)
