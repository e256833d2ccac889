"""Measures of normalised documents, which the filter rules compare with thresholds.
They are those of Gopher (Rae et al. 2021, arXiv 2112.11446) and FineWeb2 (Penedo et al. 2025, arXiv 2506.20920), with
two differences. Repetition counts the letters of n-grams that occur earlier in a document, overlaps once, where
datatrove skips past each match. And these n-grams are of words separated by white space, where FineWeb2 uses spaCy's
tokens. The other measures separate words and symbols about as spaCy does. `python -m benchmarks.bench_corpus --rules`
counts the documents for which a rule decides otherwise than datatrove's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qalam_core.arabic import NORMALISATIONS, normalise
from qalam_core.corpus.words import Numbers, Words

Floats = NDArray[np.float64]

STOP_WORDS = (
    "،", "في", "من", "على", "إلى", "عام", "أن", "مع", "أو", "هو", "عن", "التي", "كان", "بين", "ما", "كانت", "هي",
    "المتحدة", "بعد",
)  # fmt: skip
"""FineWeb2's for arb_Arab; at least two different ones must occur. The comma counts as one, as in FineWeb2."""

_LETTER, _OTHER = r"[\p{L}\p{M}\p{N}_]", r"[\p{M}\p{N}_]"  # of words; and those of them that are not alphabetic
_SYMBOL = r"[^\p{L}\p{M}\p{N}_\s]"
_CLOSING = r"""[)\]"'»”’]"""
# Symbols between letters and digits do not end a word: 20540.21, 7:39, www.example.com.
_WORD = f"{_LETTER}+(?:{_SYMBOL}{_LETTER}+)*"
_ALPHABETIC = rf"(?:{_OTHER}+{_SYMBOL})*{_OTHER}*\p{{L}}{_LETTER}*(?:{_SYMBOL}{_LETTER}+)*"
# spaCy leaves a hyphen at the word, also a closing mark or % with a full stop behind it, and full stops together.
_WORD_OR_SYMBOL = rf"{_WORD}(?:(?:{_CLOSING}|%)\.|-)?|\.\.+|{_SYMBOL}"
# punctuation that ends a line, in several scripts
_TERMINAL = f"[.!?؟۔:؛]{_CLOSING}*$"


def _shape(texts: pa.Array, words: Words) -> dict[str, Floats]:
    """Measures that are computed once per distinct spelling, and summed over a document's words."""
    count, parts = _matches(words, _WORD), _matches(words, _WORD_OR_SYMBOL)
    # without marks, which would make vocalised words about half as long again
    letters = words.summed(pc.utf8_length(words.distinct).to_numpy()) - _matches(words, r"[^\p{L}\p{N}_]", plain=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        average = letters / count
        share = _matches(words, _ALPHABETIC) / parts
    return {
        "words": count.astype(np.float64), "average_word": np.nan_to_num(average),
        "alphabetic": np.nan_to_num(share), "stop_words": _stop_words(words),
        "newlines": pc.count_substring(texts, "\n").to_numpy() / np.maximum(parts, 1),
    }  # fmt: skip


def _matches(words: Words, pattern: str, plain: int = 1) -> Numbers:
    """(D,) matches of a pattern in each document's words, of which a word of letters alone has `plain`."""
    others = pc.invert(pc.utf8_is_alpha(words.distinct))  # a quarter of the words
    counts = np.full(len(words.distinct), plain)
    found = pc.count_substring_regex(words.distinct.filter(others), pattern=pattern).to_numpy()
    counts[others.to_numpy(zero_copy_only=False)] = found
    return words.summed(counts)


def _stop_words(words: Words) -> Floats:
    """Different stop words in each document, as spelled or as the normalisation `search` folds them."""
    bare = pc.replace_substring_regex(words.distinct, pattern=r"\PL+", replacement="")
    folded = [normalise(word, NORMALISATIONS["search"]) for word in STOP_WORDS]
    which = pc.index_in(bare, value_set=pa.array([*STOP_WORDS, *folded], pa.large_string())).fill_null(-1).to_numpy()
    bits = np.where(which >= 0, np.int64(1) << (which % len(STOP_WORDS)), 0)
    bits |= pc.match_substring(words.distinct, STOP_WORDS[0]).to_numpy(zero_copy_only=False)
    bits = bits[words.ids]
    joined = np.bitwise_or.reduceat(np.append(bits, 0), words.borders[:-1])
    joined[words.sizes == 0] = 0
    return np.bitwise_count(joined).astype(np.float64)


def _lines(texts: pa.Array, words: Words) -> dict[str, Floats]:
    lists = pc.split_pattern(texts, "\n")
    borders = lists.offsets.to_numpy().astype(np.int64)
    lines = lists.values.slice(borders[0], borders[-1] - borders[0])
    counts = np.diff(borders)
    documents = np.repeat(np.arange(len(texts)), counts)
    ended = pc.match_substring_regex(lines, pattern=_TERMINAL).to_numpy(zero_copy_only=False)
    ids = pc.dictionary_encode(lines).indices.to_numpy().astype(np.int64)
    _, first = np.unique(documents * len(lines) + ids, return_index=True)
    repeated = np.ones(len(lines), np.bool_)
    repeated[first] = False
    chars = pc.utf8_length(lines).to_numpy()
    total = np.bincount(documents, chars, len(texts))
    return {
        "line_punctuation": np.bincount(documents, ended, len(texts)) / counts,
        "duplicate_lines": np.bincount(documents, repeated, len(texts)) / counts,
        "duplicate_line_chars": np.bincount(documents, repeated * chars, len(texts)) / np.maximum(total, 1),
    }


def _repetition(texts: pa.Array, words: Words) -> dict[str, Floats]:
    """Shares of each document's characters in its most frequent n-gram, and of letters of n-grams that occur earlier.

    A recurring n-gram consists of two recurring (n-1)-grams, so each length is searched only where the one before it
    recurs. N-grams are compared exactly, by the numbers of their parts. None recurs across a border of documents,
    because its words' numbers are specific to their documents.
    """
    chars = pc.utf8_length(words.distinct).to_numpy().astype(np.int64)[words.ids]
    ends = np.concatenate([[0], np.cumsum(chars)])
    totals = np.maximum(pc.utf8_length(texts).to_numpy(), 1)
    documents, count = words.documents, len(words.ids)
    starts, kinds, _ = _recurring(np.arange(count), documents * max(len(words.distinct), 1) + words.ids)
    single = np.full(count + 1, -1)  # the number of each recurring word; -1 elsewhere and past the end
    single[starts] = kinds
    found: dict[str, Floats] = {}
    for n in range(2, 11):
        last = np.append(starts[1:] == starts[:-1] + 1, False) if len(starts) else np.zeros(0, np.bool_)
        starts, kinds = starts[last], kinds[last]  # an (n-1)-gram that recurs begins at the next word too
        starts, kinds, again = _recurring(starts, kinds * (count + 1) + single[starts + n - 1])
        if n <= 4:
            length = ends[starts + n] - ends[starts] + n - 1  # with the spaces between its words
            found[f"top_{n}gram"] = _top(starts, kinds, length, documents, totals)
        if n >= 5:
            edges = np.zeros(count + 1, np.int64)
            np.add.at(edges, starts[again], 1)
            np.add.at(edges, starts[again] + n, -1)
            covered = np.concatenate([[0], np.cumsum(chars * (np.cumsum(edges[:-1]) > 0))])
            found[f"duplicate_{n}gram"] = np.diff(covered[words.borders]) / totals
    return found


def _recurring(starts: Numbers, keys: Numbers) -> tuple[Numbers, Numbers, NDArray[np.bool_]]:
    """-> those of `starts` whose key occurs more than once, the number of their key, and which are not its first."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    new = np.ones(len(keys), np.bool_)
    new[1:] = ordered[1:] != ordered[:-1]
    groups = np.cumsum(new) - 1
    recurs = np.bincount(groups, minlength=1)[groups] > 1
    back = np.empty(len(keys), np.int64)
    back[order] = np.arange(len(keys))  # to the order of the text
    kept = recurs[back]
    return starts[kept], groups[back][kept], ~new[back][kept]


def _top(starts: Numbers, kinds: Numbers, chars: Numbers, documents: Numbers, totals: Numbers) -> Floats:
    """The share of the characters in each document's most frequent n-gram; of equally frequent ones the longest."""
    value, first, counts = np.unique(kinds, return_index=True, return_counts=True)
    best = np.zeros(len(totals), np.int64)
    if len(value):
        np.maximum.at(best, documents[starts[first]], (counts << 32) + chars[first])
    return np.minimum((best >> 32) * (best & 0xFFFFFFFF) / totals, 1.0)


MEASURES: dict[str, Callable[[pa.Array, Words], dict[str, Floats]]] = {
    **dict.fromkeys(("words", "average_word", "alphabetic", "stop_words", "newlines"), _shape),
    **dict.fromkeys(("line_punctuation", "duplicate_lines", "duplicate_line_chars"), _lines),
    **dict.fromkeys((f"top_{n}gram" for n in range(2, 5)), _repetition),
    **dict.fromkeys((f"duplicate_{n}gram" for n in range(5, 11)), _repetition),
}
"""Measure (a rule's name without min_ or max_) -> the function that computes it, and others with it, for a batch.
A new rule is one entry here and its threshold in filter_profiles.py. (language.py measures text by text.)"""
