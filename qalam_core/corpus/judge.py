"""Judging: a batch of documents as read -> their normalised text, and what speaks against each.
Takes record batches of documents.arrow and the recipe's corpus part; gives texts, digests, reasons and the keys that
near-duplicates are found by.
It does not know other batches: duplicates are found later, in order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qalam_core.arabic import normalise_array
from qalam_core.corpus import language
from qalam_core.corpus.duplicates import BANDS, Digests, band_keys
from qalam_core.corpus.filters import broken
from qalam_core.corpus.mojibake import repair_array
from qalam_core.corpus.sources import slice_name
from qalam_core.corpus.words import Hashes, Words, words
from qalam_core.errors import RecipeError
from qalam_core.filter_profiles import RULES
from qalam_core.recipe import Corpus, Filters, near

__all__ = ["REASONS", "Judged", "check_languages", "digests_of", "filters_by_slice", "judge"]

# in the order in which they are tried
REASONS = ("empty", "too_short", "too_long", "not_arabic", *RULES, "duplicate", "near_duplicate")

# Letters of the Arabic script (Arabic, Supplement, Extended-A and -B) as they stand after NFKC.
_ARABIC = (
    "[\u0620-\u063f\u0641-\u064a\u066e\u066f\u0671-\u06d3\u06d5\u06ee\u06ef\u06fa-\u06fc\u06ff"
    "\u0750-\u077f\u0870-\u0887\u0889-\u088f\u08a0-\u08c9]+"
)


@dataclass
class Judged:
    """A batch of documents, and what was found about each."""

    read: pa.Array
    names: pa.Array  # of their slices
    texts: pa.Array  # normalised
    digests: Digests
    reasons: NDArray[np.object_]  # "" for what is kept
    repaired: NDArray[np.bool_]
    long: NDArray[np.bool_]  # enough words for near-duplicates
    keys: Hashes  # of those


def filters_by_slice(corpus: Corpus) -> dict[str, Filters]:
    """Slice name -> its filter profile, where that is not the corpus's.

    Raises RecipeError where two sources of one name differ.
    """
    chosen: dict[str, Filters] = {}
    for source in corpus.sources:
        filters = source.filters or corpus.filters
        name = slice_name(source)
        if chosen.setdefault(name, filters) != filters:
            raise RecipeError(
                f'corpus.sources: "{name}" names two sources with different filters ({chosen[name]} and {filters}); '
                "give one of them another name"
            )
    return {name: filters for name, filters in chosen.items() if filters != corpus.filters}


def check_languages(corpus: Corpus, filters: Mapping[str, Filters]) -> None:
    """Raises RecipeError for languages that are to be told and cannot be."""
    if not any("min_language" in corpus.limits(profile) for profile in (corpus.filters, *filters.values())):
        return
    for code in corpus.languages:
        if code not in language.known():
            hint = near(code, language.known(), "they are ISO 639 codes such as ar, arz, fa")
            raise RecipeError(f'corpus.languages: "{code}" is not known; {hint}')


def judge(batch: pa.RecordBatch, corpus: Corpus, filters: Mapping[str, Filters]) -> Judged:
    """Everything that can be said about documents by themselves; `filters` as of `filters_by_slice`."""
    read, names = batch.column("text"), batch.column("source")
    texts, repaired = repair_array(read) if corpus.repair else (read, np.zeros(len(read), np.bool_))
    texts = normalise_array(texts, corpus.profile)
    found = words(texts)
    reasons = _basic(texts, found, batch.column("cut").to_numpy(zero_copy_only=False), corpus)
    profiles = [filters.get(name, corpus.filters) for name in names.to_pylist()] if filters else [corpus.filters]
    for profile in sorted(set(profiles)):
        mine = np.array([profile == other for other in profiles])
        reasons = np.where(mine, broken(texts, found, corpus.limits(profile), corpus.languages, reasons), reasons)
    if corpus.near_duplicates:
        long, keys = band_keys(found)
    else:
        long, keys = np.zeros(len(texts), np.bool_), np.zeros((0, BANDS), np.uint64)
    return Judged(read, names, texts, digests_of(texts), reasons, repaired, long, keys)


def _basic(texts: pa.Array, found: Words, cut: NDArray[np.bool_], corpus: Corpus) -> NDArray[np.object_]:
    characters = pc.utf8_length(texts).to_numpy()
    letters = pc.replace_substring_regex(found.distinct, pattern=r"\PL+", replacement="")
    foreign = pc.replace_substring_regex(letters, pattern=_ARABIC, replacement="")
    among = found.summed(pc.utf8_length(letters).to_numpy())
    arabic = among - found.summed(pc.utf8_length(foreign).to_numpy())
    conditions = [
        cut,
        characters == 0,
        characters < corpus.min_chars,
        characters > corpus.max_chars,
        arabic < corpus.min_arabic * np.maximum(among, 1),  # no letters at all: no Arabic
    ]
    reasons = np.select(conditions, ["too_long", "empty", "too_short", "too_long", "not_arabic"], default="")
    return reasons.astype(np.object_)


def digests_of(texts: pa.Array) -> Digests:
    """The first 16 bytes of each text's sha256."""
    _, offsets, data = texts.buffers()
    borders = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1].tolist()
    view = memoryview(data or b"")
    sha256 = hashlib.sha256
    heads = b"".join([sha256(view[a:b]).digest()[:16] for a, b in pairwise(borders)])
    return np.frombuffer(heads, "S16")
