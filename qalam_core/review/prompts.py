"""What two models say after a prompt: the distributions of the next word, and the greedy continuations.

Shapes: V vocabulary, W words that both vocabularies have, and one place for all others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qalam_core.evaluation.results import rounded
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.review.reading import Model
from qalam_core.review.results import NextWord, PromptChange

DIVERGENCE = 0.7
"""Bits after a prompt that raise an alarm; retrained and continued models of 200 steps reached 0.49."""
CONTINUED, NEXT_WORDS = 32, 8
_TINY = 1e-12  # the least probability of a word, so that divergences are finite

Floats = NDArray[np.float64]


def prompt_change(old: Model, new: Model, prompt: str) -> PromptChange:
    """Compare what follows a prompt; "" is the beginning of a document. A prompt is cut to half a context."""
    before, old_rest = _continued(old, prompt)
    after, new_rest = _continued(new, prompt)
    words, old_W, new_W = _common(old, new, before, after)
    middle_W = (old_W + new_W) / 2
    order = np.argsort(-np.abs(new_W - old_W), kind="stable")[:NEXT_WORDS].tolist()
    same = _same(old_rest, new_rest)
    return PromptChange(
        prompt=prompt,
        divergence=rounded((_divergence(old_W, middle_W) + _divergence(new_W, middle_W)) / 2),
        old_to_new=rounded(_divergence(old_W, new_W)),
        new_to_old=rounded(_divergence(new_W, old_W)),
        next_words=tuple(NextWord(word=words[n], old=_figures(old_W[n]), new=_figures(new_W[n])) for n in order),
        same="".join(new_rest[:same]),
        old="".join(old_rest)[len("".join(new_rest[:same])) :],
        new="".join(new_rest[same:]),
    )


def _continued(model: Model, prompt: str) -> tuple[Floats, list[str]]:
    """-> (V,) probabilities of the next token, and the greedy continuation as pieces of complete characters."""
    config = model.package.config
    half = max(1, config.max_seq_len // 2)
    specials = model.package.vocabulary.specials
    ids = [specials.start, *model.tokenizer.encode(prompt, add_special_tokens=False).ids][-half:]
    writer = NumpyTransformer(config, model.package.weights, specials)
    logits_V = writer(np.array([ids]))[0][0, -1].astype(np.float64)
    exp_V = np.exp(logits_V - logits_V.max())
    made = writer.generate([ids], min(CONTINUED, config.max_seq_len - len(ids)), 0)[0].tolist()[len(ids) :]
    made = made[: made.index(specials.end)] if specials.end in made else made
    pieces: list[str] = []
    shown = model.tokenizer.decode(ids[1:], skip_special_tokens=True)
    for count in range(1, len(made) + 1):
        text = model.tokenizer.decode([*ids[1:], *made[:count]], skip_special_tokens=True)
        if not text.endswith("\ufffd") or count == len(made):  # a token may be the first of a letter's two bytes
            pieces.append(text[len(shown) :])
            shown = text
    return exp_V / exp_V.sum(), pieces


def _common(old: Model, new: Model, old_V: Floats, new_V: Floats) -> tuple[list[str], Floats, Floats]:
    """-> the words that both have, and the probabilities of each and of all others, which are last."""
    olds, news = old.package.vocabulary.words, new.package.vocabulary.words
    numbers = {word: number for number, word in enumerate(olds)}
    specials = new.package.vocabulary.specials
    never = {specials.pad, specials.start} - {specials.end}
    both = [(numbers[word], number) for number, word in enumerate(news) if word in numbers and number not in never]
    at_old, at_new = np.array(both, np.int64).T
    rests = (max(0.0, 1 - part.sum()) for part in (old_V[at_old], new_V[at_new]))
    old_W, new_W = (np.append(part, rest) for part, rest in zip((old_V[at_old], new_V[at_new]), rests, strict=True))
    return [*(news[number] for number in at_new.tolist()), "…"], old_W, new_W


def _divergence(first_W: Floats, second_W: Floats) -> float:
    """Kullback-Leibler, in bits."""
    first_W, second_W = np.maximum(first_W, _TINY), np.maximum(second_W, _TINY)
    return max(0.0, float((first_W * np.log2(first_W / second_W)).sum()))


def _same(old: list[str], new: list[str]) -> int:
    """How many pieces of the new continuation are the beginning of the old one too."""
    text, length, count = "".join(old), 0, 0
    for piece in new:
        if not text.startswith(piece, length):
            break
        length, count = length + len(piece), count + 1
    return count


def _figures(value: float) -> float:
    """To four significant digits."""
    return float(f"{value:.4g}")
