"""Contamination: how much of the test documents the model, or a model before it, has read.

By 8-grams and by 13-grams of words, folded as in corpus/fingerprints.py: a copy in which some words were replaced has
few of the long ones, and still many of the short ones.
Source: Brown et al., Language Models are Few-Shot Learners (2020), appendix C, for 13-grams. Coverage is counted rather
than "any hit", because formulas and quotations recur in Arabic prose without being a leak.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.evaluation.results import Contamination, Overlap, rounded

COPIED = 0.5  # a document counts as copied when more than this share of its words is covered
BATCH = 1_000  # documents


def contamination(test: Sequence[str], seen: Fingerprints) -> Contamination:
    """Of the test documents, over what `seen` records.

    A document or a line that was read exactly counts as covered, whatever its length: short ones have no n-grams.
    """
    parts = [seen.meets(pa.array(test[start : start + BATCH])) for start in range(0, len(test), BATCH)]
    exactly, words = (np.concatenate([getattr(part, name) for part in parts]) for name in ("exactly", "words"))

    def overlap(shares: NDArray[np.float64]) -> Overlap:
        covered = np.where(exactly, 1.0, np.nan_to_num(shares))
        return Overlap(
            copied=rounded((covered > COPIED).mean()), covered=rounded((covered * words).sum() / max(words.sum(), 1))
        )

    short, long = (overlap(np.concatenate([getattr(part, name) for part in parts])) for name in ("short", "long"))
    return Contamination(documents=len(test), words_8=short, words_13=long)
