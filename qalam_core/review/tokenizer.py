"""What changed between two tokenizers: their words, and how many tokens texts take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from tokenizers import Tokenizer

from qalam_core.evaluation.results import rounded
from qalam_core.package.read import Package
from qalam_core.review.results import Alarm, TokenizerChanges, TokensPerWord

LISTED = 24
AT_ONCE = 256  # texts, as an encoding takes a hundred times the memory of its ids
TEXT_BYTES = 1_000_000
DEARER, UNKNOWN = 0.05, 0.01
"""Texts that take so much more tokens per word, and so much more of <UNK>, raise an alarm. Tokenizers that were trained
on days of news that differ by one day in nine differ by below 0.01."""


def tokenizer_changes(old: Package, new: Package, texts: Mapping[str, Sequence[str]]) -> TokenizerChanges:
    """Compare two tokenizers on `texts` by name; at most TEXT_BYTES of each are tokenized, the first ones.

    Each tokenizer normalises what it is given. So raw text, with its vowel marks, shows what a model is given in use,
    and the corpus's own, normalised text what it was trained on.
    """
    first, second = old.vocabulary, new.vocabulary
    numbers = {word: number for number, word in enumerate(first.words)}
    known = {*second.words}
    gained = [word for word in second.words if word not in numbers]
    lost = [word for word in first.words if word not in known]
    measured = tuple(tokens_per_word(old, new, name, some) for name, some in texts.items() if any(some))
    empty = [name for name, some in texts.items() if not any(some)]
    return TokenizerChanges(
        same=first == second,
        algorithm=(first.algorithm, second.algorithm),
        sizes=(len(first.words), len(second.words)),
        gained=len(gained),
        lost=len(lost),
        renumbered=sum(numbers.get(word, number) != number for number, word in enumerate(second.words)),
        gained_words=tuple(gained[:LISTED]),
        lost_words=tuple(lost[:LISTED]),
        normalisation_changed=(first.rules, first.form) != (second.rules, second.form),
        texts=measured,
        alarms=tuple(_alarms(old, new, measured)),
        unavailable=tuple(f"The {name} is empty, so its tokens were not counted." for name in empty),
    )


def tokens_per_word(old: Package, new: Package, name: str, texts: Sequence[str]) -> TokensPerWord:
    """Tokens per word of texts, of which at most TEXT_BYTES are tokenized; words are separated by white space."""
    sizes = np.cumsum([len(text.encode("utf-8", "replace")) for text in texts])
    texts = [text[:TEXT_BYTES] for text in texts[: max(1, int(np.searchsorted(sizes, TEXT_BYTES, side="right")))]]
    words = sum(len(text.split()) for text in texts)
    (old_tokens, old_unknown), (new_tokens, new_unknown) = (_counts(package, texts) for package in (old, new))
    return TokensPerWord(
        name=name, words=words, old=rounded(old_tokens / max(1, words)), new=rounded(new_tokens / max(1, words)),
        old_unknown=rounded(old_unknown / max(1, old_tokens)), new_unknown=rounded(new_unknown / max(1, new_tokens)),
    )  # fmt: skip


def _counts(package: Package, texts: list[str]) -> tuple[int, int]:
    """-> tokens, and how many of them are <UNK>."""
    tokenizer = Tokenizer.from_str(package.tokenizer_json)
    tokenizer.encode_special_tokens = True
    tokens = unknown = 0
    for start in range(0, len(texts), AT_ONCE):
        for encoding in tokenizer.encode_batch_fast(texts[start : start + AT_ONCE], add_special_tokens=False):
            tokens += len(encoding.ids)
            unknown += encoding.ids.count(package.vocabulary.specials.unk)
    return tokens, unknown


def _alarms(old: Package, new: Package, measured: Sequence[TokensPerWord]) -> Iterator[Alarm]:
    def alarm(message: str) -> Alarm:
        return Alarm(section="tokenizer", severity="high", message=message)

    if old.vocabulary.algorithm != new.vocabulary.algorithm:
        yield alarm(f"The algorithm is {new.vocabulary.algorithm} instead of {old.vocabulary.algorithm}.")
    if (old.vocabulary.rules, old.vocabulary.form) != (new.vocabulary.rules, new.vocabulary.form):
        yield alarm("Text is normalised by other rules.")
    if old.vocabulary.split != new.vocabulary.split:
        yield alarm(f"Text is split as by {new.vocabulary.split} instead of {old.vocabulary.split}.")
    if [*old.vocabulary.specials.roles().values()] != [*new.vocabulary.specials.roles().values()]:
        yield alarm("The special tokens have other roles.")
    for text in measured:
        if text.new > text.old * (1 + DEARER):
            yield alarm(f"The {text.name} takes {text.new / text.old - 1:+.1%} tokens per word.")
        if text.new_unknown > text.old_unknown + UNKNOWN:
            yield alarm(
                f"{text.new_unknown:.1%} of the tokens of the {text.name} are unknown, before {text.old_unknown:.1%}."
            )
