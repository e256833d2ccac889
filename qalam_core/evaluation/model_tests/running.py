"""Running model tests: a package's model on the cases of a suite -> their outcomes, the same on every run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qalam_core.arabic import Rules, normalise
from qalam_core.evaluation.integrity import transformer
from qalam_core.evaluation.model_tests.cases import Case, Cloze, Invariance, Knows, Never, Pair, Suite
from qalam_core.evaluation.model_tests.next_words import WordBorders, rank
from qalam_core.evaluation.model_tests.outcomes import Outcome, Outcomes
from qalam_core.evaluation.scoring import HeldOut, score
from qalam_core.model import Transformer
from qalam_core.package.read import Package
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.package.runtime.tokenizer import Vocabulary
from qalam_core.progress import Progress, no_progress

SHOWN = 300  # characters of a text that is shown of a case that failed


@dataclass(frozen=True)
class Subject:
    """The model under test."""

    model: Transformer
    writer: NumpyTransformer  # generates several times faster than torch
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    rules: Rules
    seed: int = 1  # of samples

    @classmethod
    def of(cls, package: Package, device: torch.device | str = "cpu", seed: int = 1) -> Subject:
        """A package's model and its own tokenizer."""
        tokenizer = Tokenizer.from_str(package.tokenizer_json)
        tokenizer.encode_special_tokens = True  # a text that spells "<END>" is text
        model = transformer(package.config, {name: torch.from_numpy(array) for name, array in package.weights.items()})
        writer = NumpyTransformer(package.config, package.weights, package.vocabulary.specials)
        return cls(model.to(device), writer, tokenizer, package.vocabulary, package.vocabulary.rules, seed)

    @cached_property
    def borders(self) -> WordBorders:
        """Where words begin, in its vocabulary."""
        return WordBorders.of(self.vocabulary)

    def encode(self, text: str) -> list[int]:
        """Ids, without special tokens."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


class Scored(NamedTuple):
    """A text under the model; per position, from the first id to <END>."""

    text: str
    ids: Sequence[int]  # without <END>
    nats: NDArray[np.float64]  # with the cost of spelling unknown words
    hits: NDArray[np.bool_]  # whether the token had the largest logit

    @property
    def total(self) -> float:
        """Nats of the whole text and its end."""
        return float(self.nats.sum())


class Measured(NamedTuple):
    """What was found for a case."""

    passed: bool
    figures: dict[str, float]
    shown: dict[str, str]


def run(suite: Suite, subject: Subject, progress: Progress = no_progress) -> Outcomes:
    """Run every case of a suite; `progress` counts the tokens of what is scored in batches."""
    texts = [text for case in suite.cases for text in _scored_texts(case)]
    scored = iter(_scored(texts, subject, progress))
    outcomes = []
    for case in suite.cases:
        found = MEASURES[type(case)](case, [next(scored) for _ in _scored_texts(case)], subject)
        figures = {name: float(f"{value:.6g}") for name, value in found.figures.items()}
        shown = {} if found.passed else {label: _clipped(text) for label, text in found.shown.items()}
        outcomes.append(Outcome(
            case=case.name, digest=case.digest, kind=case.canonical()["kind"], group=case.group, mark=case.mark,
            passed=bool(found.passed), figures=figures, shown=shown,
        ))  # fmt: skip
    return Outcomes(name=suite.name, cases=tuple(outcomes))


def _clipped(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _scored_texts(case: Case) -> Sequence[str]:
    """The texts of which a case needs the probability."""
    if isinstance(case, Pair):
        return case.right, case.wrong
    if isinstance(case, Knows):
        return (case.whole,)
    return case.spellings if isinstance(case, Invariance) else ()


def _scored(texts: Sequence[str], subject: Subject, progress: Progress) -> list[Scored]:
    if not texts:
        return []
    documents = HeldOut.of([("", text) for text in texts], subject.tokenizer, subject.vocabulary)
    nats, hits = score(subject.model, documents, progress)
    nats = nats + documents.spelling
    ends = [*documents.starts[1:], len(documents.stream)]
    return [
        Scored(text, documents.stream[begin + 1 : end - 1].tolist(), nats[begin + 1 : end], hits[begin + 1 : end])
        for text, begin, end in zip(texts, documents.starts, ends, strict=True)
    ]


def _pair(case: Pair, scored: Sequence[Scored], subject: Subject) -> Measured:
    right, wrong = (one.total for one in scored)
    shown = {"right": case.right, "wrong": case.wrong}
    return Measured(right < wrong, {"nats of right": right, "nats of wrong": wrong}, shown)


def _cloze(case: Cloze, scored: Sequence[Scored], subject: Subject) -> Measured:
    prompt = subject.encode(case.prompt)
    answers = [(answer, _after(case.prompt, prompt, answer, subject)) for answer in case.answers]
    found = rank(subject.model, subject.borders, prompt, answers, case.k)
    above = "، ".join(word for word, _ in found.above)
    shown = {"prompt": case.prompt, "answers": "، ".join(case.answers), "likelier": above}
    if not found.decided:
        shown["note"] = "not decided: too many words are likelier, or the model's probabilities are not finite"
    passed = found.decided and found.probability > 0 and len(found.above) < case.k
    return Measured(passed, {"probability": found.probability, "likelier words found": len(found.above)}, shown)


def _after(prompt: str, ids: Sequence[int], word: str, subject: Subject) -> tuple[int, ...]:
    """The ids of a word after a prompt; none where the border between them is inside a token."""
    whole = subject.encode(f"{prompt} {word}" if prompt else word)
    return tuple(whole[len(ids) :]) if whole[: len(ids)] == list(ids) else ()


def _never(case: Never, scored: Sequence[Scored], subject: Subject) -> Measured:
    written = matches = 0
    shown: dict[str, str] = {}
    for prompt in case.prompts:
        ids = [subject.vocabulary.specials.start, *subject.encode(prompt)]
        try:
            rows = subject.writer.generate([ids] * case.samples, case.tokens, seed=subject.seed).tolist()
        except FloatingPointError:
            return Measured(False, {"samples": 0, "matches": 0}, {"note": "the model's probabilities are not finite"})
        for row in rows:
            text = normalise(subject.tokenizer.decode(row[1:], skip_special_tokens=True), subject.rules)
            written += text != prompt
            if found := case.found_in(text):
                matches += 1
                shown.setdefault("found", found)
                shown.setdefault("sample", text)
    if not written:
        shown["note"] = "every sample is empty, so that nothing was tested"
    return Measured(written > 0 and not matches, {"samples": written, "matches": matches}, shown)


def _knows(case: Knows, scored: Sequence[Scored], subject: Subject) -> Measured:
    (whole,) = scored
    prompt = subject.encode(case.prompt)
    same = (n for n, (one, other) in enumerate(zip(prompt, whole.ids, strict=False)) if one != other)
    begin = next(same, len(prompt))  # a token that spans the border belongs to the text
    part = slice(begin, len(whole.ids))
    size = len(whole.text.encode()) - len(case.prompt.encode())
    bits = float(whole.nats[part].sum()) / math.log(2) / size
    shown = {"prompt": case.prompt, "text": case.text}
    if case.max_bits is not None:
        return Measured(bits <= case.max_bits, {"bits per byte": bits, "at most": case.max_bits}, shown)
    right = whole.hits[part]
    known = bool(right.all() and len(right) and math.isfinite(bits))
    if not known and math.isfinite(bits):
        ids = [subject.vocabulary.specials.start, *prompt]
        with suppress(FloatingPointError):
            out = subject.writer.generate([ids], len(right) + 4, temperature=0.0)[0].tolist()
            shown["written"] = subject.tokenizer.decode(out[1:], skip_special_tokens=True)
    return Measured(known, {"bits per byte": bits, "greedy tokens": float(right.sum()), "tokens": len(right)}, shown)


def _invariance(case: Invariance, scored: Sequence[Scored], subject: Subject) -> Measured:
    one, other = (each.total / math.log(2) / len(each.text) for each in scored)
    figures = {"bits per character of the first": one, "of the second": other, "at most": case.max_difference}
    shown = {"first": case.spellings[0], "second": case.spellings[1]}
    return Measured(abs(one - other) <= case.max_difference, figures, shown)


MEASURES: dict[type[Case], Callable[[Any, Sequence[Scored], Subject], Measured]] = {
    Pair: _pair, Cloze: _cloze, Never: _never, Knows: _knows, Invariance: _invariance,
}  # fmt: skip
"""How each kind is measured; every text of a figure is the package's own tokens."""
