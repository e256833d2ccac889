"""What each character of texts costs under a model, so that models with different tokenizers can be compared.

Texts are laid one behind the other on one axis of characters; each has one place more than it has characters, which
stands for its end. A token covers the characters from the end of the token before it to its own end, and its nats are
spread evenly over them. So the nats up to a character are a piecewise linear function, whose knots are where tokens
end, and the nats of any span are a difference of two of its values. Spans of whole tokens are exact.

Shapes: D documents, N positions of the stream, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qalam_core.errors import PackageError
from qalam_core.evaluation.integrity import transformer
from qalam_core.evaluation.results import Counted
from qalam_core.evaluation.sampling import budgets, lowest
from qalam_core.evaluation.scoring import Floats, HeldOut, Ids, predictions
from qalam_core.model import Transformer
from qalam_core.package.read import Package
from qalam_core.progress import Progress, no_progress


@dataclass(frozen=True)
class Model:
    """A package, ready to compute."""

    name: str  # "old" or "new"
    package: Package
    tokenizer: Tokenizer
    transformer: Transformer

    @classmethod
    def of(cls, package: Package, name: str = "new") -> Model:
        """The weights are shared with the package, not copied."""
        tokenizer = Tokenizer.from_str(package.tokenizer_json)
        tokenizer.encode_special_tokens = True  # a text that spells "<END>" is text
        tensors = {name: torch.from_numpy(array) for name, array in package.weights.items()}
        return cls(name, package, tokenizer, transformer(package.config, tensors))


@dataclass(frozen=True)
class Texts:
    """Texts on the axis of characters."""

    slices: tuple[str, ...]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, str]]) -> Texts:
        """(slice, text) pairs."""
        return cls(tuple(name for name, _ in pairs), tuple(text for _, text in pairs))

    @classmethod
    def sample(cls, pairs: Sequence[tuple[str, str]], limit: int, seed: int) -> tuple[Texts, Counted]:
        """Some of (slice, text) pairs, of about `limit` bytes, drawn by a hash of `seed` and the text.

        Small slices are drawn whole, as of the test split. Of a text of more than an eighth of the limit, the beginning
        is taken. The order is kept.
        """
        filled = [(name, _beginning(text, limit // 8)) for name, text in pairs if text.strip()]
        sizes = np.array([len(text.encode()) for _, text in filled], np.int64)
        chosen = np.ones(len(filled), np.bool_)
        if sizes.sum() > limit:
            salt = seed.to_bytes(8, "big", signed=True)
            digests = [hashlib.blake2b(text.encode(), digest_size=8, key=salt).digest() for _, text in filled]
            drawn = np.array([int.from_bytes(digest, "big") for digest in digests], np.uint64)
            _, slice_of = np.unique([name for name, _ in filled], return_inverse=True)
            for number, budget in enumerate(budgets(np.bincount(slice_of, sizes).astype(np.int64), limit).tolist()):
                members = np.flatnonzero(slice_of == number)
                chosen[members] = lowest(drawn[members], sizes[members], budget)
        texts = cls.of([pair for pair, keep in zip(filled, chosen.tolist(), strict=True) if keep])
        return texts, Counted(documents=len(texts.texts), of=len(pairs), size=int(sizes[chosen].sum()))

    @cached_property
    def borders(self) -> Ids:
        """(D + 1,) where each text begins, and the end of the last."""
        return np.cumsum([0, *(len(text) + 1 for text in self.texts)])

    @cached_property
    def bytes_up_to(self) -> Ids:
        """(places + 1,) the bytes in UTF-8 of everything before each place on the axis; an end has none."""
        codes = np.frombuffer(" ".join((*self.texts, "")).encode("utf-32-le", "replace"), np.uint32)
        sizes = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
        sizes[self.borders[1:] - 1] = 0
        return np.concatenate([[0], np.cumsum(sizes)])


def _beginning(text: str, size: int) -> str:
    """The words of a text of which the first `size` bytes hold the ends; at least one character."""
    if len(text) * 4 <= size or len(text.encode()) <= size:
        return text
    part = text.encode()[:size].decode(errors="ignore") or text[:1]
    return part[: part.rfind(" ")] if part.rfind(" ") > 0 else part


@dataclass(frozen=True)
class Reading:
    """A model's costs and predictions over texts."""

    ends: Ids  # (N,) the place on the axis where each position's token ends; START at the text's begin
    nats: Floats  # (N,) with the spelling of unknown words
    columns: Ids  # (N,) position in the context, -1 at START
    mass: Floats  # (V,) probability of each token, summed over all positions
    written: Ids  # (V,) how often each token is there

    @cached_property
    def knots(self) -> Ids:
        """Positions with distinct ends, ascending: between two of them lie whole characters and whole tokens."""
        return np.flatnonzero(np.append(np.diff(self.ends) > 0, True))

    def up_to(self, places: NDArray[np.int64]) -> Floats:
        """The nats of everything before places on the axis."""
        knots = self.knots
        found: Floats = np.interp(places, self.ends[knots], np.cumsum(self.nats)[knots])
        return found

    def between(self, begins: Ids, ends: Ids) -> Floats:
        """The nats of spans of the axis."""
        return self.up_to(ends) - self.up_to(begins)

    @property
    def positions(self) -> int:
        """How many tokens were predicted."""
        return int((self.columns >= 0).sum())


def read_texts(model: Model, texts: Texts, progress: Progress = no_progress) -> Reading:
    """Score texts; memory: 40 bytes per token, and one chunk of logits. Raises PackageError for NaN."""
    pairs = list(zip(texts.slices, texts.texts, strict=True))
    held_out = HeldOut.of(pairs, model.tokenizer, model.package.vocabulary)
    ends = np.empty(len(held_out.stream), np.int64)
    for start, border, text in zip(held_out.starts.tolist(), texts.borders.tolist(), texts.texts, strict=False):
        offsets = model.tokenizer.encode(text, add_special_tokens=False).offsets
        own = np.maximum.accumulate(np.array([0, *(end for _, end in offsets), len(text) + 1], np.int64))
        ends[start : start + len(own)] = border + own
    nats, columns = np.zeros(len(ends)), np.full(len(ends), -1, np.int64)
    mass_V = torch.zeros(model.transformer.vocab_size, dtype=torch.float64)
    for place_N, column_N, logits_NV, target_N in predictions(model.transformer, held_out, progress):
        log_NV = torch.log_softmax(logits_NV, -1)
        nats[place_N] = -log_NV.gather(1, target_N[:, None])[:, 0].double().cpu().numpy()
        columns[place_N] = column_N
        mass_V += log_NV.exp().sum(0).double().cpu()
    if not math.isfinite(nats.sum()):
        raise PackageError(f"The {model.name} model gives probabilities that are not finite.")
    written_V = np.bincount(held_out.stream[columns >= 0], minlength=len(mass_V))
    return Reading(ends, nats + held_out.spelling, columns, mass_V.numpy(), written_V)
