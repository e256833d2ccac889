"""How well a tokenizer fits a text, and whether an earlier tokenizer fits new text well enough to be kept.

Counting is in pipeline/vocab.py: these records are read without importing a tokenizer.
"""

from __future__ import annotations

from qalam_core.recipe import Frozen

ENOUGH_BYTES = 100_000  # of new text; the tokens per byte of less vary by more than a limit


class Fit(Frozen):
    """Counts of a text under a tokenizer."""

    documents: int
    bytes: int  # UTF-8
    tokens: int
    spelled: int  # tokens that are one byte of a longer character, or <UNK>

    @property
    def tokens_per_byte(self) -> float:
        """0 for no text."""
        return self.tokens / self.bytes if self.bytes else 0.0

    @property
    def spelled_share(self) -> float:
        """Of the tokens; 0 for no text."""
        return self.spelled / self.tokens if self.tokens else 0.0


class Judged(Frozen):
    """An earlier tokenizer, measured on new text."""

    before: Fit  # on held-out text of the corpus that it was trained on
    new: Fit
    limit: float  # of `regrow`
    kept: bool
    regrown: Fit | None  # the new text under the tokenizer that was trained instead
    shared: int  # entries that are in both

    @property
    def rise(self) -> float:
        """How many more tokens per byte the new text takes, as a share."""
        return self.new.tokens_per_byte / self.before.tokens_per_byte - 1 if self.new.bytes else 0.0


def fits(new: Fit, before: Fit, limit: float) -> bool:
    """Whether new text takes at most the share `limit` more tokens per byte, and at most so much more of its tokens are
    spelled. Less text than ENOUGH_BYTES always fits."""
    return new.bytes < ENOUGH_BYTES or (
        new.tokens_per_byte <= before.tokens_per_byte * (1 + limit)
        and new.spelled_share <= before.spelled_share + limit
    )
