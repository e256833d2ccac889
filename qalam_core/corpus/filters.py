"""Filters: a batch of documents as read -> their normalised text, why each is rejected, and the keys of duplicates."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qalam_core.arabic import NORMALISATIONS, Rules, normalise_array
from qalam_core.corpus import language
from qalam_core.corpus.duplicates import BANDS, Digests, band_keys
from qalam_core.corpus.exclusion import Excluded
from qalam_core.corpus.measures import MEASURES, Floats
from qalam_core.corpus.mojibake import repair_array
from qalam_core.corpus.pii import mask_array
from qalam_core.corpus.sources import slice_name
from qalam_core.corpus.words import Hashes, Numbers, Words, words
from qalam_core.errors import RecipeError, did_you_mean
from qalam_core.filter_profiles import FILTER_PROFILES, RULES
from qalam_core.recipe import Corpus, Filters, Frozen, Source

T = TypeVar("T")

REASONS = (
    "empty", "excluded", "damaged", "mojibake", "too_short", "too_long", "not_arabic", *RULES, "duplicate",
    "near_duplicate",
)  # fmt: skip
"""Why a document is rejected, in the order in which that is checked."""

Thresholds = tuple[tuple[str, float], ...]
"""(rule, threshold), in the order in which they are applied."""

Reasons = NDArray[np.object_]
"""For each document an element of REASONS, or "" when it is kept."""

_LOST = "\ufffd"  # what decoders put where bytes are no character; normalisation keeps it

# Letters of the Arabic script (Arabic, Supplement, Extended-A and -B) as they are after NFKC.
_ARABIC = (
    "[\u0620-\u063f\u0641-\u064a\u066e\u066f\u0671-\u06d3\u06d5\u06ee\u06ef\u06fa-\u06fc\u06ff"
    "\u0750-\u077f\u0870-\u0887\u0889-\u088f\u08a0-\u08c9]+"
)


class FilterSettings(Frozen):
    """Everything that the decision about a document depends on, besides its text."""

    normalisation: Rules
    repair: bool
    mask_pii: bool
    min_chars: int
    max_chars: int
    min_arabic: float
    max_damaged: float
    rules: Thresholds
    languages: tuple[str, ...]  # () where no rule asks for them
    near_duplicates: bool

    @classmethod
    def of(cls, corpus: Corpus, filters: Filters) -> FilterSettings:
        """From the recipe's corpus section, for a source with these filters."""
        rules = _thresholds(corpus, filters)
        return cls(
            normalisation=NORMALISATIONS[corpus.normalisation], repair=corpus.repair, mask_pii=corpus.mask_pii,
            min_chars=corpus.min_chars, max_chars=corpus.max_chars, min_arabic=corpus.min_arabic,
            max_damaged=corpus.max_damaged, rules=rules,
            languages=corpus.languages if "min_language" in dict(rules) else (), near_duplicates=corpus.near_duplicates,
        )  # fmt: skip


def filters_by_slice(corpus: Corpus) -> dict[str, Filters]:
    """The filters of each source, by its name. Raises RecipeError when sources of one name have different ones."""
    return _by_slice(corpus, "filters", lambda source: source.filters or corpus.filters)


def weights_by_slice(corpus: Corpus) -> dict[str, float]:
    """The weight of each source, by its name. Raises RecipeError when sources of one name have different ones."""
    return _by_slice(corpus, "weights", lambda source: source.weight)


def _by_slice(corpus: Corpus, what: str, value: Callable[[Source], T]) -> dict[str, T]:
    found: dict[str, T] = {}
    for source in corpus.sources:
        chosen, name = value(source), slice_name(source)
        if found.setdefault(name, chosen) != chosen:
            raise RecipeError(
                f'corpus.sources: "{name}" names two sources with different {what} ({found[name]} and '
                f"{chosen}); give one of them another name"
            )
    return found


def _thresholds(corpus: Corpus, filters: Filters) -> Thresholds:
    """The rules of a filter profile, with the recipe's thresholds where it has its own."""
    return tuple(
        (rule, corpus.thresholds.get(rule, threshold))
        for rule, threshold in FILTER_PROFILES[filters].items()
        if corpus.languages or rule != "min_language"
    )


@dataclass
class Filtered:
    """A batch of documents, and what was found about each."""

    read: pa.Array
    slices: pa.Array  # their names
    texts: pa.Array  # normalised
    digests: Digests
    reasons: Reasons
    cut: NDArray[np.bool_]
    replaced: NDArray[np.bool_]  # U+FFFD is in the text
    repaired: NDArray[np.bool_]  # wholly
    repaired_in_part: NDArray[np.bool_]
    not_repaired: NDArray[np.bool_]  # although the text is damaged
    masked: NDArray[np.bool_]  # addresses or numbers are masked in it
    long: NDArray[np.bool_]  # enough words for near-duplicate detection
    keys: Hashes  # band keys of those


def check_languages(settings: FilterSettings) -> None:
    """Raises RecipeError for languages that cannot be identified."""
    for code in settings.languages:
        if code not in language.known():
            hint = did_you_mean(code, language.known(), "they are ISO 639 codes such as ar, arz, fa")
            raise RecipeError(f'corpus.languages: "{code}" is not known; {hint}')


def filter_batch(batch: pa.RecordBatch, settings: FilterSettings, excluded: Excluded | None = None) -> Filtered:
    """Normalise documents, and decide which to reject for their own text; duplicates are found later, in order."""
    read, slices = batch.column("text"), batch.column("source")
    texts, outcomes = repair_array(read)
    if not settings.repair:  # damage is only counted
        texts, outcomes = read, np.where(outcomes == "", "", "not").astype(np.object_)
    texts = normalise_array(texts, settings.normalisation)
    spelled, masked = texts, np.zeros(len(texts), np.bool_)
    if settings.mask_pii:
        texts, masked = mask_array(texts)
        # Heads of rejected documents are kept as they were read; where that may hide what is masked, as normalised.
        read = pc.if_else(pa.array(masked), texts, mask_array(read)[0])
    found, cut = words(texts), batch.column("cut").to_numpy(zero_copy_only=False)
    lost = pc.count_substring(texts, _LOST).to_numpy()
    whole, part, unrepaired = (outcomes == outcome for outcome in ("whole", "part", "not"))
    reasons = _basic(texts, found, cut, lost, part, settings)
    digests = digests_of(texts)
    if excluded is not None:
        reasons[excluded.holds(spelled, digests) & (reasons != "empty")] = "excluded"
    reasons = first_violation(texts, found, settings.rules, settings.languages, reasons)
    long, keys = np.zeros(len(texts), np.bool_), np.zeros((0, BANDS), np.uint64)
    if settings.near_duplicates:
        long, keys = band_keys(found)
    return Filtered(read, slices, texts, digests, reasons, cut, lost > 0, whole, part, unrepaired, masked, long, keys)


def _basic(
    texts: pa.Array, found: Words, cut: NDArray[np.bool_], lost: Numbers, part: NDArray[np.bool_],
    settings: FilterSettings,
) -> Reasons:  # fmt: skip
    """The reasons from damage, length and script alone."""
    characters = pc.utf8_length(texts).to_numpy()
    letters = pc.replace_substring_regex(found.distinct, pattern=r"\PL+", replacement="")
    foreign = pc.replace_substring_regex(letters, pattern=_ARABIC, replacement="")
    total = found.summed(pc.utf8_length(letters).to_numpy())
    arabic = total - found.summed(pc.utf8_length(foreign).to_numpy())
    conditions = [
        cut,
        characters == 0,
        lost > settings.max_damaged * characters,  # before others, of which damage may be the cause
        part,
        characters < settings.min_chars,
        characters > settings.max_chars,
        arabic < settings.min_arabic * np.maximum(total, 1),  # a text without letters is not Arabic
    ]
    names = ["too_long", "empty", "damaged", "mojibake", "too_short", "too_long", "not_arabic"]
    reasons = np.select(conditions, names, default="")
    return reasons.astype(np.object_)


def first_violation(
    texts: pa.Array, found: Words, rules: Sequence[tuple[str, float]], languages: Collection[str] = (),
    reasons: Reasons | None = None,
) -> Reasons:  # fmt: skip
    """The first of `rules` (name, threshold) that each text violates; reasons that are given are kept."""
    reasons = np.full(len(texts), "", np.object_) if reasons is None else reasons.copy()
    measured: dict[str, Floats] = {}
    for rule, threshold in rules:
        left, measure = np.flatnonzero(reasons == ""), rule[4:]
        if not len(left):
            break
        if measure == "language":
            values = language.likelihood(texts.take(pa.array(left)), languages)
        else:
            measured = measured if measure in measured else measured | MEASURES[measure](texts, found)
            values = measured[measure][left]
        violated = values < threshold if rule.startswith("min_") else values > threshold
        reasons[left[violated]] = rule
    return reasons


def digests_of(texts: pa.Array) -> Digests:
    """The first 16 bytes of each text's sha256."""
    _, offsets, data = texts.buffers()
    borders = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1].tolist()
    view, sha256 = memoryview(data or b""), hashlib.sha256
    heads = b"".join([sha256(view[a:b]).digest()[:16] for a, b in pairwise(borders)])
    return np.frombuffer(heads, "S16")
