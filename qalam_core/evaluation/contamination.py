"""Contamination: how much of the test documents the model, or a model before it, has read.

By 8-grams and by 13-grams of words, folded as in corpus/fingerprints.py: a copy in which some words were replaced has
few of the long ones, and still many of the short ones.
Source: Brown et al., Language Models are Few-Shot Learners (2020), appendix C, for 13-grams. Coverage is counted rather
than "any hit", because formulas and quotations recur in Arabic prose without being a leak. Where they recur so often
that honest test documents are mostly covered, training documents are as well: these are the control.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qalam_core.corpus.fingerprints import Fingerprints, Met
from qalam_core.evaluation.results import Contamination, Overlap, Repetition, rounded

UNKNOWN = Repetition()
COPIED = 0.5  # a document counts as copied when more than this share of its words is covered
BATCH = 1_000  # documents
HONEST = 2.58  # standard errors: the share of test documents exceeds the control's by more in 1 of 200 honest splits
MOST_REPEATED = 0.5  # where most documents repeat others, the control is itself evidence of copies


def contamination(test: Sequence[str], seen: Fingerprints, control: Repetition = UNKNOWN) -> Contamination:
    """Of the test documents, over what `seen` records; `control` is of the training documents among themselves.

    A document or a line that was read exactly counts as covered, whatever its length: short ones have no n-grams.
    """
    parts = [seen.meets(pa.array(test[start : start + BATCH])) for start in range(0, len(test), BATCH)]
    words = np.concatenate([part.words for part in parts])

    def overlap(name: str, repeated: int) -> Overlap:
        covered = np.concatenate([_covered(part, getattr(part, name)) for part in parts])
        return Overlap(
            copied=rounded((covered > COPIED).mean()), covered=rounded((covered * words).sum() / max(words.sum(), 1)),
            expected=rounded(_expected(repeated, control.documents, len(test))),
        )  # fmt: skip

    short, long = overlap("short", control.words_8), overlap("long", control.words_13)
    return Contamination(documents=len(test), control=control.documents, words_8=short, words_13=long)


def copied(test: Sequence[str], seen: Fingerprints) -> NDArray[np.bool_]:
    """(D,) which of the documents are mostly in what `seen` records, by n-grams of 8 words or of 13."""
    met = seen.meets(pa.array(test, pa.large_string()))
    return (_covered(met, met.short) > COPIED) | (_covered(met, met.long) > COPIED)


def repetition(sample: pa.Array, others: Fingerprints) -> Repetition:
    """Of a sample of the training documents, over the rest of them."""
    met = others.meets(sample)
    short, long = (int((_covered(met, shares) > COPIED).sum()) for shares in (met.short, met.long))
    return Repetition(documents=len(sample), words_8=short, words_13=long)


def _covered(met: Met, shares: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(met.exactly, 1.0, np.nan_to_num(shares))


def _expected(repeated: int, control: int, documents: int) -> float:
    """The largest share of copied documents that an honest test split has."""
    share = repeated / max(control, 1)
    error = np.sqrt(share * (1 - share) * (1 / max(control, 1) + 1 / max(documents, 1)))
    return float(min(share + HONEST * error, MOST_REPEATED))
