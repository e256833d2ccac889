"""The review of two models as one record, and what a busy reviewer reads of it: the verdict and five sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from qalam_core.recipe import Frozen
from qalam_core.review.data import DataChanges
from qalam_core.review.model_tests import ModelTestFlips
from qalam_core.review.recipe import RecipeChanges
from qalam_core.review.results import Alarm, Behaviour, TextChange, TokenizerChanges, WeightChanges

SECTIONS = ("recipe", "data", "tokenizer", "behaviour", "weights")
"""Of a review, in the order in which they are read."""

_NAMED = 3  # things that a sentence names
_WORD = 40  # characters of a name in a sentence

Gate = Literal["passed", "refused", "waiting", "none"]


class Decision(NamedTuple):
    """What the gate decided about the new model."""

    state: Literal["passed", "refused", "waiting"]
    against: str  # the run that it was compared with, "" for none
    reasons: tuple[str, ...]


class Model(Frozen):
    """One of the two models."""

    name: str  # a run id, or the name of a package's folder
    run: str  # the run whose recipe and corpus were compared; "" for none
    package: str  # sha256 of the package's manifest


class Review(Frozen):
    """What changed from the old model to the new one; a section that is None is in `missing`."""

    old: Model
    new: Model
    gate: Gate  # what the gate decided about the new model; none: nothing, or about another comparison
    reasons: tuple[str, ...]  # of the gate
    verdict: str  # one sentence
    sentences: dict[str, str]  # section -> one sentence
    alarms: tuple[Alarm, ...]  # high ones first
    missing: dict[str, str]  # section -> why it was not looked at
    recipe: RecipeChanges | None
    data: DataChanges | None
    tokenizer: TokenizerChanges | None
    behaviour: Behaviour | None
    tests: ModelTestFlips | None
    weights: WeightChanges | None

    @property
    def title(self) -> str:
        """The two models."""
        return f"Review of {self.new.name} against {self.old.name}"

    @property
    def clean(self) -> bool:
        """Whether the gate passed it, everything was looked at, and nothing raised an alarm."""
        return self.gate == "passed" and not self.alarms and not self.unseen()

    def unseen(self) -> tuple[str, ...]:
        """What was not looked at, and why: one sentence each."""
        parts = [part for part in (self.data, self.tokenizer, self.behaviour, self.weights) if part]
        return (*(f"{section}: {why}" for section, why in self.missing.items()),
                *(why for part in parts for why in part.unavailable))  # fmt: skip


def reviewed(
    old: Model, new: Model, decided: Decision | None, *, recipe: RecipeChanges | None, data: DataChanges | None,
    tokenizer: TokenizerChanges | None, behaviour: Behaviour | None, tests: ModelTestFlips | None,
    weights: WeightChanges | None, missing: Mapping[str, str],
) -> Review:  # fmt: skip
    """The record of a review; `decided` is None where no gate has judged the new model."""
    parts = (recipe, data, tokenizer, behaviour, tests, weights)
    alarms = [alarm for part in parts if part for alarm in part.alarms]
    alarms.sort(key=lambda alarm: alarm.severity != "high")
    says = {
        "recipe": _recipe(recipe) if recipe else "", "data": _data(data) if data else "",
        "tokenizer": _tokenizer(tokenizer) if tokenizer else "",
        "behaviour": _behaviour(behaviour, tests) if behaviour else "", "weights": _weights(weights) if weights else "",
    }  # fmt: skip
    same = decided is not None and decided.against == old.name
    found = Review(
        old=old, new=new, gate=decided.state if decided and same else "none",
        reasons=decided.reasons if decided and same else (),
        verdict="", sentences={name: says[name] or f"Not available: {missing[name]}." for name in SECTIONS},
        alarms=tuple(alarms), missing=dict(missing), recipe=recipe, data=data, tokenizer=tokenizer,
        behaviour=behaviour, tests=tests, weights=weights,
    )  # fmt: skip
    return found.model_copy(update={"verdict": _verdict(found, decided)})


def _verdict(review: Review, decided: Decision | None) -> str:
    name = review.new.name
    gate = {
        "passed": f"The gate passed {name}", "refused": f"The gate refused {name}",
        "waiting": f"The gate leaves {name} to a person",
        "none": f"No gate has judged {name}",
    }[review.gate]  # fmt: skip
    if review.gate == "none" and decided:
        result = "passed" if decided.state == "passed" else "did not pass"
        against = decided.against or "no champion"
        gate = f"The gate {result} {name}, which it compared with {against}, and not with {review.old.name}"
    high = sum(alarm.severity == "high" for alarm in review.alarms)
    of_them = "" if not high else ", high" if high == len(review.alarms) else f", {high} of them high"
    alarms = _counted(len(review.alarms), "alarm") + of_them
    unseen = review.unseen()
    if not review.alarms:
        alarms = "no alarm in what was looked at" if unseen else "no alarm"
    gaps = f"; {_counted(len(unseen), 'thing')} could not be looked at" if unseen else ""
    return f"{gate}; {alarms}{gaps}."


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(_short(name) for name in names[:_NAMED]) + more


def _short(text: str) -> str:
    return text if len(text) <= _WORD else f"{text[: _WORD - 1]}…"


def _percent(value: float) -> str:
    return f"{value:+.1%}" if math.isfinite(value) else "not a number"


def _recipe(found: RecipeChanges) -> str:
    looser = [f"{one.key} {_short(one.old)} -> {_short(one.new)}" for one in found.looser]
    others = [one.key for one in found.values if not one.looser]
    versions = [f"{one.key} {_short(one.old)} -> {_short(one.new)}" for one in found.versions]
    parts = [f"the gate is looser ({_some(looser)})"] if looser else []
    if others:
        parts.append(f"{_differ(len(others), 'other value' if looser else 'value', 'the recipe')} ({_some(others)})")
    if versions:
        parts.append(f"{_differ(len(versions), 'version', 'the code')} ({_some(versions)})")
    return _sentence(parts) if parts else "The recipe and the versions of the code are the same."


def _differ(count: int, what: str, whose: str) -> str:
    return f"{_counted(count, what)} of {whose} {'differs' if count == 1 else 'differ'}"


def _data(found: DataChanges) -> str:
    overall = found.overall
    if found.unmatched:
        counts = f"there are {overall.new:,} documents, and were {overall.old:,}"
        return _sentence([counts, f"they cannot be matched, as {found.unmatched}"])
    if not (overall.added or overall.gone or overall.moved):
        others = ", but some are of other sources now" if found.sources else ""
        return f"The {overall.new:,} documents are the same, in the same splits{others}."

    def most(what: str) -> str:
        rows = sorted((row for row in found.sources if getattr(row, what)), key=lambda row: -getattr(row, what))
        return f" ({_some([f'{getattr(row, what):,} in {_short(row.name)}' for row in rows])})" if len(rows) > 1 else ""

    parts = [
        f"{getattr(overall, what):,} {said}{more}"
        for what, said, more in (
            ("added", "new", most("added")), ("gone", "gone", _because(found) or most("gone")),
            ("moved", "in another split", f" ({_some([f'{n:,} {way}' for way, n in found.moves.items()])})"),
        ) if getattr(overall, what)
    ]  # fmt: skip
    counts = f"{_counted(overall.new, 'document')}, {overall.old:,} before: {', '.join(parts)}"
    return _sentence([*filter(None, (_first(found.alarms),)), counts])


def _because(found: DataChanges) -> str:
    reasons = [f"{count:,}: {why.partition(':')[0]}" for why, count in found.gone_because.items()]
    return f" ({_some(reasons)})" if reasons else ""


def _tokenizer(found: TokenizerChanges) -> str:
    if found.same:
        return f"The tokenizer is the same, with {found.sizes[1]:,} entries."
    parts = [f"{_counted(found.gained, 'word')} gained, {found.lost:,} lost and {found.renumbered:,} renumbered"]
    if found.algorithm[0] != found.algorithm[1]:
        parts.append(f"the algorithm was {found.algorithm[0]}, and is {found.algorithm[1]}")
    parts += [f"a word of the {one.name} takes {one.new:.2f} tokens, and took {one.old:.2f}" for one in found.texts]
    return _sentence(parts)


def _behaviour(found: Behaviour, tests: ModelTestFlips | None) -> str:
    if not found.texts:
        return _first(found.alarms) or "No text was measured."
    held_out = found.texts[0]
    parts = [
        f"on {_counted(held_out.counted.documents, 'document')} of {held_out.name} the new model needs "
        f"{held_out.new:.4f} bits per byte, where the old one needs {held_out.old:.4f} ({_percent(held_out.change)})"
    ]
    parts += filter(None, [_first(found.alarms) or _most(held_out), tests.sentence if tests else ""])
    return _sentence(parts)


def _most(text: TextChange) -> str:
    """The slice that changed most, where there are several."""
    finite = [part for part in text.slices if math.isfinite(part.change)]
    if len(finite) < 2:
        return ""
    part = max(finite, key=lambda part: abs(part.change))
    return f"most changed is {_short(part.name)} ({_percent(part.change)})"


def _weights(found: WeightChanges) -> str:
    if first := _first(found.alarms):
        return _sentence([first])
    if not found.tensors:
        return "Every weight that both models have is the same."
    most = found.tensors[0]
    moved = f"{len(found.tensors):,} of {len(found.tensors) + found.unchanged:,} tensors moved"
    return _sentence(
        [f"{moved}, most {most.name} (by {most.relative:.0%} of its norm); no head, position or single row stands out"]
    )


def _first(alarms: Sequence[Alarm]) -> str:
    """The first alarm, as a part of a sentence."""
    high = sorted(alarms, key=lambda alarm: alarm.severity != "high")
    more = f" (and {_counted(len(high) - 1, 'further alarm')})" if len(high) > 1 else ""
    text = high[0].message.rstrip(".") if high else ""
    return f"{text[:1].lower()}{text[1:]}{more}"


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."
