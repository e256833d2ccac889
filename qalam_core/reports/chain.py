"""A chain of nights, each of which began with the weights of the one before: what each cost, what it measured, and how
far the chain has drifted from a model that was trained from scratch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from qalam_core.errors import DamagedError
from qalam_core.evaluation.results import Report
from qalam_core.recipe import Optimisation, Recipe
from qalam_core.reports.tables import ratio
from qalam_core.runs import RunRecord, Runs

SHOWN = 60
"""The last nights of a chain, which a report shows."""

_SEARCHED = 400  # the newest runs, among which those from scratch are looked for

_REST = ("export", "evaluate", "gate")  # stages that come after the training, and are not of the data


class Cost(NamedTuple):
    """Seconds of a build, of one worker; what it reused took next to none."""

    data: float
    training: float
    rest: float


class New(NamedTuple):
    """A night's held-out documents that the run before it does not hold out."""

    documents: int
    bits: float  # per byte


class Drift(NamedTuple):
    """How many more bits per byte a chain needs than a model from scratch, as a share; with the gate's confidence."""

    value: float
    low: float
    high: float


class Cold(NamedTuple):
    """A run from scratch that the gate compared with a chain."""

    run: str
    champion: str  # the last night of the chain then
    first: str  # its first one
    nights: int  # of the chain then, the first one not counted
    confidence: float  # of each end of the drift
    drift: Drift | None
    problem: str  # why there is none, in words that follow the run's id


@dataclass(frozen=True)
class Night:
    """A run of a chain, or one from scratch that was compared with it."""

    run: str
    number: int  # nights since the chain's first run; of a run from scratch, until the one that it was compared with
    record: RunRecord | None  # None: it was deleted from the store, or cannot be read
    new: New | None  # None where there are none, or where one of the two reports is not there
    next_day: float | None  # bits per byte on the text of the night after it, where that one's gate measured it
    cold: Cold | None  # of a run from scratch

    @property
    def cost(self) -> Cost | None:
        """None where it is not recorded what the build did itself."""
        if not self.record or not self.record.built:
            return None
        seconds = self.record.timings
        rest = sum(seconds.get(stage, 0.0) for stage in _REST)
        training = seconds.get("train", 0.0)
        return Cost(sum(seconds.values()) - training - rest, training, rest)


@dataclass(frozen=True)
class Chain:
    """The runs of a chain and those from scratch that were compared with it, as far as the store has them."""

    runs: tuple[str, ...]  # the first one began from scratch, each other one with the weights of the one before
    nights: tuple[Night, ...]  # the last ones, in order; a run from scratch is behind the one that it was compared with
    cold: tuple[Cold, ...]  # all that were found, oldest first
    before: Cold | None  # the first run, where it was itself compared with an earlier chain

    @property
    def missing(self) -> list[str]:
        """The runs among the last nights that were deleted from the store, or cannot be read."""
        return [night.run for night in self.nights if not night.record]

    @property
    def hidden(self) -> int:
        """How many earlier nights are not shown."""
        return len(self.runs) - min(len(self.runs), SHOWN)


def chain_of(runs: Runs, run: str, record: RunRecord, report: Report | None = None) -> Chain | None:
    """The chain that `run` is the last night of, or that it was compared with if it began from scratch itself.

    None when neither is there. The run itself need not be in the store yet. Without its `report`, no report is read,
    and no night has figures of its new text.
    """
    newest = record if record.lineage else _read(runs, record.incumbent)
    if not newest or not newest.lineage:
        return None
    names = (*reversed([ancestor.run for ancestor in newest.lineage]), run if record.lineage else record.incumbent)
    known: dict[str, RunRecord | None] = {run: record}

    def found(name: str) -> RunRecord | None:
        if name not in known:
            one = _read(runs, name)
            known[name] = one and one.model_copy(update={"lineage": one.lineage[:1]})  # the rest is of years
        return known[name]

    numbers = {name: number for number, name in enumerate(names)}
    others = [name for name in dict.fromkeys((run, *runs.newest_of(record.recipe.name))) if name not in numbers]
    cold = []
    for name in others[:_SEARCHED]:
        one = found(name)
        if one and not one.lineage and numbers.get(one.incumbent) and (champion := found(one.incumbent)):
            cold.append((one.created, _cold(name, one, champion, names[0], numbers[one.incumbent])))
    compared = tuple(one for _, one in sorted(cold))
    first, before = found(names[0]), None
    if first and (champion := _read(runs, first.incumbent)) and champion.lineage:
        before = _cold(names[0], first, champion, champion.lineage[-1].run, len(champion.lineage))
    for name in names[-SHOWN:]:
        found(name)
    reports = _Reports(runs, run, report) if report else None
    return Chain(names, tuple(_nights(names, compared, known, reports)), compared, before)


def _read(runs: Runs, run: str) -> RunRecord | None:
    with suppress(DamagedError):
        return runs.record(run) if run else None
    return None


class _Reports:
    """What is new in the reports of a store; one that is not there yet is given. Keeps the documents' digests alone."""

    def __init__(self, runs: Runs, run: str, report: Report) -> None:
        self._runs, self._given = runs, {run: report}
        self._digests: dict[str, frozenset[str]] = {"": frozenset()}

    def new(self, run: str, before: str) -> New | None:
        """Of `run`, what `before` does not hold out, "" for all; None where nothing is new, or one cannot be read."""
        try:
            report = self._report(run)
            known = self._digests.get(before) or frozenset(self._report(before).document_digests if before else ())
        except DamagedError:
            return None
        if before and not known:
            return None  # its documents were not recorded
        self._digests = {"": frozenset(), before: known, run: frozenset(report.document_digests)}
        new = [place for place, digest in enumerate(report.document_digests) if digest not in known]
        nats, size = (sum(values[place] for place in new) for values in (report.document_nats, report.document_bytes))
        return New(len(new), nats / size / math.log(2)) if size and math.isfinite(nats) else None

    def _report(self, run: str) -> Report:
        return self._given.get(run) or self._runs.report(run)


def _nights(
    names: Sequence[str], cold: Sequence[Cold], records: Mapping[str, RunRecord | None], reports: _Reports | None
) -> Iterator[Night]:  # fmt: skip
    for number, run in list(enumerate(names))[-SHOWN:]:
        compared = [one for one in cold if one.champion == run]
        later = (*names[number + 1 : number + 2], *(one.run for one in compared))
        measured = (_measured_again(run, record) for name in later if (record := records.get(name)))
        new = reports.new(run, names[number - 1] if number else "") if reports else None
        yield Night(run, number, records[run], new, next((bits for bits in measured if bits), None), None)
        for one in compared:
            yield Night(one.run, number, records[one.run], reports.new(one.run, run) if reports else None, None, one)


def _measured_again(run: str, later: RunRecord) -> float | None:
    """What the package of `run` needed on the documents of a `later` one; of common documents, none is new."""
    comparison = later.verdict.comparison
    if not comparison or not comparison.measured_again or later.incumbent != run:
        return None
    return comparison.overall.champion if math.isfinite(comparison.overall.champion) else None


def _cold(run: str, record: RunRecord, champion: RunRecord, first: str, nights: int) -> Cold:
    """`record` is from scratch, and `champion` so many `nights` behind `first`."""
    drift, problem = _drift(record), ""
    own, theirs = _settings(record.recipe), _settings(champion.recipe)
    if differing := [key for key in own if own[key] != theirs[key]]:
        drift, problem = None, f"has other settings than the chain ({', '.join(differing)})"
    elif not drift:
        problem = "could not be compared with the chain"
    return Cold(run, record.incumbent, first, nights, record.recipe.gate.confidence, drift, problem)


def _drift(record: RunRecord) -> Drift | None:
    """The comparison of a model from scratch with the chain's, seen from the chain."""
    if not record.verdict.comparison:
        return None
    found = record.verdict.comparison.overall
    low, high = (ratio(1.0, 1.0 + end) - 1 for end in (found.change.high, found.change.low))
    drift = Drift(ratio(found.champion, found.model) - 1, low, high)
    return drift if all(map(math.isfinite, drift)) else None


_HOW = {"accumulate", "processes", "threads", "device", "dtype", "compile", "distributed"}


def _settings(recipe: Recipe) -> dict[str, object]:
    """The settings that a model's quality depends on; not how they are computed, nor the text."""
    parts = {
        "model": recipe.model.model_dump(), "train": recipe.train.narrowed(Optimisation).model_dump(exclude=_HOW),
        "tokenizer": recipe.tokenizer.model_dump(exclude={"keep", "regrow"}),
        "corpus": {"normalisation": recipe.corpus.normalisation},
    }  # fmt: skip
    return {f"{section}.{key}": value for section, values in parts.items() for key, value in values.items()}


def drift_text(chain: Chain, recipe: Recipe) -> str:
    """How far the chain has drifted from the last model from scratch that it was compared with, or why that is unknown.

    `recipe` is that of the run whose chain it is.
    """
    measured = [place for place, one in enumerate(chain.cold) if one.drift]
    sentences = []
    nights = len(chain.runs) - 1
    if measured:
        last = chain.cold[measured[-1]]
        sentences.append(_measured(last))
        if later := nights - last.nights:
            sentences.append(f"{_counted(later)} {'has' if later == 1 else 'have'} come after that comparison.")
    else:
        sentences.append(
            f"How far the chain of {_counted(nights)} since run {chain.runs[0]} has drifted from a model that was "
            "trained from scratch is unknown: no such comparison with it is in the store."
        )
        sentences.append(_cure(recipe))
        if chain.before and chain.before.drift:
            sentences.append(f"Before it: {_measured(chain.before)}")
    unmeasured = chain.cold[measured[-1] + 1 :] if measured else chain.cold
    sentences += [f"Run {one.run}, which began from scratch, {one.problem}: its report has the reason."
                  for one in unmeasured[-1:]]  # fmt: skip
    return " ".join(sentences)


def _measured(cold: Cold) -> str:
    assert cold.drift
    value, low, high = cold.drift
    shown = "" if low > 0 or high < 0 else " So neither is shown to be better."
    return (
        f"The chain of {_counted(cold.nights)} since run {cold.first} needs {abs(value):.1%} "
        f"{'more' if value >= 0 else 'fewer'} bits per byte ({low:+.1%} to {high:+.1%}, each end with "
        f"{100 * cold.confidence:g}% confidence) than run {cold.run}, which began from scratch.{shown}"
    )


def _cure(recipe: Recipe) -> str:
    train = recipe.train
    if train.start in ("champion", "continue") and train.cold_every:
        return f"By train.cold_every = {train.cold_every}, one build in so many is from scratch, which measures it."
    return (
        'train.cold_every measures it, with train.start "champion" or "continue": with 7, one build in seven begins '
        "from scratch, and the gate compares it with the chain."
    )


def _counted(nights: int) -> str:
    return f"{nights:,} night" if nights == 1 else f"{nights:,} nights"
