"""What a review measured of two models, as frozen records. "old" and "new" are the two models throughout.

Nats are of one model's own tokens; bits per byte do not depend on the tokenizer. A figure that could not be measured is
None or NaN, and `unavailable` says why: it is never counted as good.
"""

from __future__ import annotations

import math
from typing import Literal

from qalam_core.evaluation.results import Counted
from qalam_core.recipe import Frozen

Severity = Literal["high", "low"]


class Alarm(Frozen):
    """A change that a person should look at; two honest trainings of one recipe raise none."""

    section: str  # "recipe", "data", "tokenizer", "behaviour", "weights"
    severity: Severity  # "low": the models behave the same, or the change may well be meant
    message: str  # one sentence; it may quote words of the text, so escape it


class PieceChange(Frozen):
    """A piece of a text: one token of the new model, or as many as form complete characters."""

    text: str
    old: float  # nats of the old model's tokens over the same characters
    new: float

    @property
    def change(self) -> float:
        """In nats; negative where the piece became cheaper."""
        return self.new - self.old


class DocumentChange(Frozen):
    """A document that gained or lost much, with an excerpt around its largest change."""

    slice: str
    digest: str  # 48 bits of the sha256 of the text, in hexadecimal
    bytes: int
    old: float  # bits per byte of the whole document
    new: float
    start: int  # the character at which the excerpt begins
    characters: int  # of the whole document
    pieces: tuple[PieceChange, ...]  # the excerpt

    @property
    def change(self) -> float:
        """-0.1: a tenth fewer bits."""
        return self.new / self.old - 1 if self.old > 0 else math.nan


class PartChange(Frozen):
    """Bits per byte of a part of the texts: a slice, or a range of positions in the context."""

    name: str  # of the slice; "0-31" of positions, whose change is relative to that of all of them
    documents: int
    bytes: int
    old: float  # bits per byte
    new: float
    z: float | None  # of the change, against the noise of documents and of seeds; None where there is too little text
    alarm: bool = False  # surely dearer, by more than a margin

    @property
    def change(self) -> float:
        """-0.1: a tenth fewer bits."""
        return self.new / self.old - 1 if self.old > 0 else math.nan


class WordShare(Frozen):
    """How much a model says a token: its probability, averaged over all positions of the texts."""

    word: str
    old: float
    new: float
    written: float  # the share that it has in the texts; a model that predicts well is near it
    ratio: float  # new / old, both with half a token added, so that words that are never said do not stand out
    z: float  # of log(ratio), against other words that are said as often
    alarm: bool = False


class WordCost(Frozen):
    """What a word that is in the texts costs, on average; whole words, whatever the tokenizers."""

    word: str
    count: int
    old: float  # nats
    new: float
    z: float  # of the change, against that of other words
    alarm: bool = False

    @property
    def change(self) -> float:
        """In nats."""
        return self.new - self.old


class TextChange(Frozen):
    """Both models on the same texts. Lists begin with the most remarkable."""

    name: str  # "held-out text", "training text"
    counted: Counted  # documents measured, of how many given; size in bytes
    old: float  # bits per byte
    new: float
    z: float | None
    gained: tuple[DocumentChange, ...]  # documents that became cheaper by most nats
    lost: tuple[DocumentChange, ...]
    slices: tuple[PartChange, ...]
    positions: tuple[PartChange, ...]  # by position in the new model's context
    more: tuple[WordShare, ...]  # words that the new model says more often
    less: tuple[WordShare, ...]
    cheaper: tuple[WordCost, ...]
    dearer: tuple[WordCost, ...]
    frequent_ratio: float  # of words said at least once in a thousand: 99% have a ratio within this and 1 / this
    by_first_token: bool  # whether shares are of first tokens of words, because the tokenizers differ
    alarm: bool = False  # surely dearer, by more than a margin

    @property
    def change(self) -> float:
        """-0.1: a tenth fewer bits."""
        return self.new / self.old - 1 if self.old > 0 else math.nan


class NextWord(Frozen):
    """A token that may follow a prompt, and its probability under both models; 0 where a model does not have it."""

    word: str
    old: float
    new: float


class PromptChange(Frozen):
    """What the models say after a prompt."""

    prompt: str  # "" is the beginning of a document, <START>
    divergence: float  # Jensen-Shannon, bits: 0 the same, 1 nothing in common
    old_to_new: float  # Kullback-Leibler, bits: KL(old || new)
    new_to_old: float
    next_words: tuple[NextWord, ...]  # the most probable under either, those that changed most first
    same: str  # the greedy continuation, as far as both agree
    old: str  # how the old model goes on from there; "" at <END>
    new: str


class Behaviour(Frozen):
    """How the models behave on texts and prompts."""

    texts: tuple[TextChange, ...]  # the held-out text first
    prompts: tuple[PromptChange, ...]
    alarms: tuple[Alarm, ...]
    unavailable: tuple[str, ...] = ()  # what was not measured, and why: one sentence each


class TensorMovement(Frozen):
    """How far a tensor, or all tensors of a layer, moved: Euclidean norms. Rows of tokens are compared by word."""

    name: str  # "embedding.weight"; of a layer, "layer 0"
    moved: float
    before: float

    @property
    def relative(self) -> float:
        """Share of the old norm; infinite where that was 0. Two trainings from other seeds: about 1.4."""
        return self.moved / self.before if self.before else math.inf


class RowMovement(Frozen):
    """A row that moved most, relative to its own length."""

    tensor: str
    row: int  # in the new model
    word: str  # "" where rows have no words
    moved: float
    before: float
    times: float  # its relative movement, as a multiple of the median row's


class HeadMoved(Frozen):
    """A head whose values are another head's of the old model."""

    layer: int
    head: int
    was: int
    parts: tuple[str, ...]  # of "query", "key", "value", "output": those that moved; all four: the function is the same
    similarity: float  # cosine of the parts with the old head's; 1 is the same


class NeighbourChange(Frozen):
    """The nearest words of a frequent word, by cosine similarity of embeddings."""

    word: str
    old: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def kept(self) -> int:
        """How many of the old ones are among the new ones."""
        return len({*self.old} & {*self.new})


class WeightChanges(Frozen):
    """What changed in the weights."""

    tensors: tuple[TensorMovement, ...]  # the largest relative movement first; only those that moved
    layers: tuple[TensorMovement, ...]  # in order; only those that moved
    unchanged: int  # tensors that are equal
    rows: tuple[RowMovement, ...]
    heads: tuple[HeadMoved, ...]
    shift: int  # new position p has the row of old position p + shift
    neighbours: tuple[NeighbourChange, ...]  # the fewest kept first
    alarms: tuple[Alarm, ...]
    unavailable: tuple[str, ...] = ()  # what was not compared, and why: one sentence each


class TokensPerWord(Frozen):
    """How many tokens a word of a text takes, words being separated by white space."""

    name: str  # "held-out text", "raw text"
    words: int
    old: float
    new: float
    old_unknown: float  # share of the tokens that are <UNK>
    new_unknown: float


class TokenizerChanges(Frozen):
    """What changed between two tokenizers."""

    same: bool  # the same words, merges and normalisation
    algorithm: tuple[str, str]
    sizes: tuple[int, int]
    gained: int
    lost: int
    renumbered: int  # words of both with another id
    gained_words: tuple[str, ...]  # the lowest ids first, which are the most frequent; bounded
    lost_words: tuple[str, ...]
    normalisation_changed: bool
    texts: tuple[TokensPerWord, ...]
    alarms: tuple[Alarm, ...]
    unavailable: tuple[str, ...] = ()
