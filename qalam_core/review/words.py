"""Which words a model says more or less often than another, and which became cheaper or dearer.

Two honest trainings differ in every word, by far more than the choice of the texts explains. So the noise of a word's
change is taken from the pair itself: from the changes of other words that are about as frequent. Its centre and its
width are the median and the median absolute deviation, which a few changed words do not move. Limits of alarms are
beside them, with what honest trainings reach.

Shapes: V tokens that are compared, N words of the texts, W distinct ones.
"""

from __future__ import annotations

import re
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from qalam_core.evaluation.results import rounded
from qalam_core.package.runtime.tokenizer import Vocabulary
from qalam_core.review.reading import Reading, Texts
from qalam_core.review.results import WordCost, WordShare

LISTED = 12
HALF = 0.5  # tokens, added to how often a word is said
SHARE_Z, SHARE_WIDTH, SHARE_EXCESS = 8.0, 0.2, 4.0
"""A word's share raises an alarm when log(ratio) has this z, its noise being at least the second, and when the model
says it this many times as often as texts have it (or texts have it as many times as often). On 0.11 MB of news, 24
pairs of models of 200 steps, retrained with other days or continued by a day, reached z = 6.5 at most; a word said 43
times as often in a retrained model had 12. In a continued night in which others moved by 20 times, it had 4.6."""
COST_Z, COST_WIDTH, COST_NATS = 7.0, 0.15, 4.0
"""The same of a word's cost in nats. The same pairs reached z = 5.9, where days of text were removed, else 5.1."""
LEAST_COUNT = 4  # of a word whose cost is compared
FREQUENT = 1e-3
_BIN = 200  # words of about the same frequency
_TAIL, _TAIL_SD = 0.02, 2.326  # so many of a normal distribution are further away than so many standard deviations
_TO_SD = 1.4826  # the median absolute deviation of a normal distribution is its standard deviation divided by this
_WORD = re.compile(
    "(?:[^\\W_]|[\u0300-\u036f\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u08ca-\u08ff])+"
)  # and marks

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Ids = NDArray[np.int64]


def shares(
    old: Reading, new: Reading, old_words: Vocabulary, new_words: Vocabulary, elsewhere: Floats
) -> tuple[tuple[WordShare, ...], tuple[WordShare, ...], float]:
    """-> tokens that the new model says more often, those that it says less often, and the ratio of frequent ones.

    Of different vocabularies the tokens are compared that both have, that begin a word, and that no token begins with
    which only one of them has: else a word would seem to be said less because it has become one token. `elsewhere` are
    the shares (V,) that the new model's tokens have in other texts of the same kind.
    """
    old_V, new_V = comparable(old_words, new_words)
    old_mass_V, new_mass_V, written_V = old.mass[old_V], new.mass[new_V], new.written[new_V]
    ratio_V = np.log((new_mass_V + HALF) / (old_mass_V + HALF))
    z_V = against_others(ratio_V, np.log((old_mass_V + HALF) * (new_mass_V + HALF)), SHARE_WIDTH)
    # a word that texts have as often as the model says it is news, and not a fault
    most_V = np.maximum(written_V, elsewhere[new_V] * new.positions)
    excess_V = np.where(ratio_V > 0, new_mass_V / (most_V + 1), written_V / (new_mass_V + HALF))
    alarm_V = (np.abs(z_V) >= SHARE_Z) & (excess_V >= SHARE_EXCESS)

    def listed(sign: int) -> tuple[WordShare, ...]:
        order = np.lexsort((-sign * ratio_V, ~alarm_V))  # alarms first
        return tuple(
            WordShare(
                word=new_words.words[new_V[n]],
                old=_figures(old_mass_V[n] / old.positions), new=_figures(new_mass_V[n] / new.positions),
                written=_figures(written_V[n] / new.positions),
                ratio=_figures(np.exp(ratio_V[n])), z=rounded(z_V[n]), alarm=bool(alarm_V[n]),
            )
            for n in order.tolist() if sign * ratio_V[n] > 0
        )[:LISTED]  # fmt: skip

    frequent = np.abs(ratio_V[np.maximum(old_mass_V / old.positions, new_mass_V / new.positions) >= FREQUENT])
    return listed(1), listed(-1), _figures(np.exp(np.quantile(frequent, 0.99))) if len(frequent) else 1.0


def comparable(old: Vocabulary, new: Vocabulary) -> tuple[Ids, Ids]:
    """The ids of the tokens whose shares can be compared, in both vocabularies."""
    if old.words == new.words and old.merges == new.merges:
        never = {new.specials.pad, new.specials.start, *new.specials.others} - {new.specials.end}
        every = np.array([index for index in range(len(new.words)) if index not in never], np.int64)
        return every, every
    numbers = {word: number for number, word in enumerate(old.words)}
    special = {*new.specials.ids()}
    both = [word for index, word in enumerate(new.words) if word in numbers and index not in special]
    if new.algorithm == "bpe":
        single = sorted({*old.words} ^ {*new.words})
        both = [word for word in both if word.startswith(" ") and not _begins(word, single)]
    own = {word: number for number, word in enumerate(new.words)}
    return np.array([numbers[word] for word in both], np.int64), np.array([own[word] for word in both], np.int64)


def _begins(word: str, ordered: list[str]) -> bool:
    """Whether one of the ordered words begins with a word."""
    place = bisect_left(ordered, word)
    return place < len(ordered) and ordered[place].startswith(word)


def costs(texts: Texts, old: Reading, new: Reading) -> tuple[tuple[WordCost, ...], tuple[WordCost, ...]]:
    """-> words of the texts that became cheaper, and those that became dearer; a space belongs to the word after it."""
    begins, ends, numbers, names = _words(texts)
    if not names:
        return (), ()
    old_N, new_N = old.between(begins, ends), new.between(begins, ends)
    count_W = np.bincount(numbers, minlength=len(names))
    old_W, new_W = (np.bincount(numbers, nats, len(names)) / count_W for nats in (old_N, new_N))
    change_W = new_W - old_W
    squares_W = np.bincount(numbers, (new_N - old_N - change_W[numbers]) ** 2, len(names))
    kept = np.flatnonzero(count_W >= LEAST_COUNT)
    error_W = np.sqrt(squares_W[kept] / (count_W[kept] * (count_W[kept] - 1)))
    z_W = np.zeros(len(names))
    z_W[kept] = against_others(change_W[kept], np.log(count_W[kept]), COST_WIDTH, error_W)
    alarm_W = (z_W >= COST_Z) & (change_W >= COST_NATS)  # one that became cheaper was learnt

    def listed(sign: int) -> tuple[WordCost, ...]:
        order = kept[np.lexsort((-sign * z_W[kept], ~alarm_W[kept]))]
        return tuple(
            WordCost(
                word=names[n], count=int(count_W[n]), old=rounded(old_W[n]), new=rounded(new_W[n]), z=rounded(z_W[n]),
                alarm=bool(alarm_W[n]),
            )
            for n in order.tolist() if sign * z_W[n] > 0
        )[:LISTED]  # fmt: skip

    return listed(-1), listed(1)


def _words(texts: Texts) -> tuple[Ids, Ids, Ids, list[str]]:
    """-> where each word begins and ends on the axis, its number, and the distinct words by number."""
    names: dict[str, int] = {}
    spans: list[tuple[int, int, int]] = []
    for border, text in zip(texts.borders.tolist(), texts.texts, strict=False):
        for found in _WORD.finditer(text):
            begin, end = found.span()
            begin -= begin > 0 and text[begin - 1] == " "
            spans.append((border + begin, border + end, names.setdefault(found[0], len(names))))
    begins, ends, numbers = np.array(spans, np.int64).reshape(-1, 3).T
    return begins, ends, numbers, list(names)


def against_others(change: Floats, frequency: Floats, narrowest: float, error: Floats | None = None) -> Floats:
    """z of each change, against the changes of the _BIN others that are most alike in frequency.

    The standard deviation is the larger one of those that the median absolute deviation and the outermost fiftieth of
    the others tell, as tails are heavy where a model has learnt little; at least `narrowest`, and with the change's own
    `error` on top.
    """
    order = np.argsort(frequency, kind="stable")
    bins = [part for part in np.array_split(order, max(1, len(order) // _BIN)) if len(part)]
    centre, width = np.zeros(len(change)), np.full(len(change), narrowest)
    for part in bins:
        centre[part] = np.median(change[part])
        away = np.abs(change[part] - centre[part])
        width[part] = max(narrowest, _TO_SD * float(np.median(away)), float(np.quantile(away, 1 - _TAIL)) / _TAIL_SD)
    z: Floats = (change - centre) / (width if error is None else np.hypot(width, error))
    return z


def _figures(value: float) -> float:
    """To four significant digits."""
    return float(f"{value:.4g}")
