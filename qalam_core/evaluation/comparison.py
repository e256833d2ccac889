"""Comparison with earlier champions on the documents that both were measured on, matched by their text alone.

A model passes when it is shown not to be worse than a champion by more than a margin (non-inferiority); that no
difference was found is no pass. docs/metrics.md has the formulas.

Sources: Piaggio et al., Reporting of Noninferiority and Equivalence Randomized Trials, JAMA 308 (2012), for the rule;
Holm, A Simple Sequentially Rejective Multiple Test Procedure (1979), for slices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qalam_core.evaluation.intervals import Estimate, effective, estimate
from qalam_core.evaluation.results import Check, Compared, Comparison, Interval, Report, rounded
from qalam_core.recipe import Requirements

MIN_SHARED = 0.5  # of the champion's bytes, and of those of each of its slices
MIN_EFFECTIVE = 30  # effective number of documents, below which nothing is compared
QUARTILE = 0.75  # of the changes against all champions: 0.75 is that of the champion with the better quarter's end
RECENT, DRIFT = 4, 1 / 3  # the mean of so many models may be worse by this share of the margin
MAX_ANCHORS = 400

_VANISHED = 0.1  # a slice with less of its bytes is gone, if it had this many effective documents
_SLICE_EFFECTIVE = 10
_DROPPED, _HARDER, _SURE = 0.1, 0.02, 0.999  # documents that are gone: share, how much harder, how surely

CURE = 'a person may accept it: qalam promote RUN --accept-new-yardstick --why "..."'

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Remeasured:
    """A package, measured on the documents of another model's report, in its order."""

    nats: tuple[float, ...] = ()
    excluded: tuple[bool, ...] = ()  # documents that the package's model, or a model before it, has read
    problem: str = ""  # why it could not be measured


@dataclass(frozen=True)
class Exchanged:
    """Two models whose reports have too few documents in common, each measured on the other's documents."""

    champion: Remeasured  # on the documents of the model's report
    model: Remeasured  # on those of the champion's


@dataclass(frozen=True)
class Anchor:
    """An earlier champion."""

    report: Report | None  # None where its run was deleted
    level: float | None = None  # of its comparison; None where it was compared with none


@dataclass(frozen=True)
class Champion(Anchor):
    """The champion, and what it passed under."""

    report: Report
    gate: Requirements | None = None  # None where that is not to be compared
    shares: Mapping[str, float] = field(default_factory=dict)  # of model tests, that it had to pass
    exchanged: Exchanged | None = None  # where the reports have too few documents in common
    levels: Mapping[str, float] = field(default_factory=dict)  # of its run and those before it, newest first


@dataclass(frozen=True)
class _Paired:
    """Nats of a model and of a champion on the same documents."""

    nats: Floats
    theirs: Floats
    size: Floats
    here: NDArray[np.int64]  # the documents' places in the model's report

    def estimate(self, chosen: Flags, seed_sd: float) -> Estimate:
        """Of the ratio of bits per byte, with the noise of both seeds."""
        return estimate(self.nats[chosen], self.theirs[chosen], math.sqrt(2) * seed_sd)

    def compared(self, chosen: Flags, gate: Requirements) -> Compared:
        nats, theirs, size = self.nats[chosen], self.theirs[chosen], self.size[chosen]
        low, high = _ends(self.estimate(chosen, gate.seed_sd), gate.confidence)
        bytes_as_bits = math.log(2) * size.sum()
        return Compared(
            documents=len(size), effective=round(effective(size), 1),
            model=rounded(nats.sum() / bytes_as_bits), champion=rounded(theirs.sum() / bytes_as_bits),
            change=Interval(low=low, high=high),
        )  # fmt: skip

    @property
    def everything(self) -> Flags:
        return np.ones(len(self.nats), np.bool_)


def _ends(found: Estimate, confidence: float) -> tuple[float, float]:
    """Both ends of a change, each one-sided at `confidence`."""
    low, high = found.interval(2 * confidence - 1)
    return rounded(low - 1), rounded(high - 1)


def _log(found: Estimate) -> float:
    return math.log(found.ratio) if found.ratio > 0 else math.nan


def common(report: Report, other: Report) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The places, in each of two reports, of the documents that both have."""
    if report.document_digests == other.document_digests:
        here = np.arange(len(report.document_digests))
        return here, here
    places = {digest: place for place, digest in enumerate(other.document_digests)}
    pairs = [(n, places[digest]) for n, digest in enumerate(report.document_digests) if digest in places]
    here, there = np.array(pairs, np.int64).reshape(-1, 2).T
    return here, there


def _shared(report: Report, other: Report) -> _Paired:
    """The documents that both reports have."""
    here, there = common(report, other)
    return _Paired(_floats(report.document_nats)[here], _floats(other.document_nats)[there],
                   _floats(report.document_bytes)[here], here)  # fmt: skip


def _floats(values: Sequence[float]) -> Floats:
    return np.array(values, np.float64)


def comparable(report: Report, champion: Report) -> bool:
    """Whether the two reports have enough documents in common; else the champion has to be measured again."""
    shared = _shared(report, champion)
    size = _floats(champion.document_bytes)
    kept = np.isin(champion.document_digests, report.document_digests)
    if not np.isfinite(shared.theirs).all() or effective(shared.size) < MIN_EFFECTIVE:
        return False
    slices = [mask for name, mask in _slices(champion) if effective(size[mask]) >= MIN_EFFECTIVE
              and not _is_vanished(report, champion, name, mask)]  # fmt: skip
    return all(size[mask & kept].sum() >= MIN_SHARED * size[mask].sum() for mask in (np.isfinite(size), *slices))


def _slices(report: Report) -> Iterator[tuple[str, Flags]]:
    """The documents of each source."""
    numbers = np.array(report.document_slices, np.int64)
    for number, name in enumerate(report.sources):
        if (mask := numbers == number).any():
            yield name, mask


def _is_vanished(report: Report, champion: Report, name: str, mask: Flags) -> bool:
    """Whether a slice of the champion's test documents is gone, both by its texts and by its name."""
    size = _floats(champion.document_bytes)
    needed = _VANISHED * size[mask].sum()
    if effective(size[mask]) < _SLICE_EFFECTIVE:
        return False
    by_text = size[mask & np.isin(champion.document_digests, report.document_digests)].sum()
    by_name = sum(_floats(report.document_bytes)[own].sum() for other, own in _slices(report) if other == name)
    return bool(max(by_text, by_name) < needed)


def compare(
    report: Report, champion: Champion, anchors: Iterable[Anchor], gate: Requirements
) -> tuple[Comparison | None, list[Check]]:
    """The model against the champion and those before it, newest first; -> the checks of the gate.

    The comparison is None when the model could not be compared.
    """
    vanished = [name for name, mask in _slices(champion.report) if _is_vanished(report, champion.report, name, mask)]
    again = not comparable(report, champion.report)
    paired, problem = _measured_again(report, champion) if again else (_shared(report, champion.report), "")
    if again and vanished and not problem:
        problem = f"the champion's slice {_quoted(vanished)} is not in the test split, by text or name"
    theirs = ""
    if again and not problem:
        theirs, problem = _on_the_champions_documents(champion, gate)
    problem = problem or _harder_dropped(report, champion.report)
    yardstick = _yardstick(report, champion.report, paired, problem, again, theirs)
    if paired is None:
        return None, [yardstick]
    estimated = paired.estimate(paired.everything, gate.seed_sd)
    overall = paired.compared(paired.everything, gate)
    numbers = np.array(report.document_slices, np.int64)[paired.here] if report.document_slices else ()
    parts = {
        name: paired.compared(mask, gate)
        for number, name in enumerate(report.sources) if (mask := np.equal(numbers, number)).any()
    } if len(numbers) else {}  # fmt: skip
    comparison = Comparison(
        overall=overall, sources=parts, measured_again=again, level=rounded((champion.level or 1.0) * estimated.ratio),
        levels=dict(islice(champion.levels.items(), MAX_ANCHORS)),
    )  # fmt: skip
    before = [(anchor.level, _on_common_documents(report, anchor)) for anchor in anchors]  # their reports are large
    checks = [
        yardstick,
        _champion(overall, gate, again),
        *_earlier(champion, before, estimated, gate),
        _worse_slices(report, champion.report, paired, [pair for _, pair in before if pair], again, vanished, gate),
    ]
    return comparison, checks


def _on_common_documents(report: Report, anchor: Anchor) -> _Paired | None:
    """The model and an earlier champion, or None where too few documents were measured with both."""
    shared = _shared(report, anchor.report) if anchor.report else None
    return shared if shared and effective(shared.size) >= MIN_EFFECTIVE and np.isfinite(shared.theirs).all() else None


def _measured_again(report: Report, champion: Champion) -> tuple[_Paired | None, str]:
    """The champion's package on this report's documents, or why there is no such measurement."""
    if champion.exchanged is None:
        return None, "the champion's package was not measured again"
    return _paired(report, champion.exchanged.champion, "the champion")


def _on_the_champions_documents(champion: Champion, gate: Requirements) -> tuple[str, str]:
    """The change there, and a sentence when the model is not shown to be as good; else a corpus that was made easier,
    as by cutting its documents, would be its own yardstick."""
    assert champion.exchanged
    paired, problem = _paired(champion.report, champion.exchanged.model, "the model")
    if paired is None:
        return "", f"on the champion's test documents, {problem}"
    # the report's figures are the champion's
    change = replace(paired, nats=paired.theirs, theirs=paired.nats).compared(paired.everything, gate).change
    found = f"on {len(paired.nats)} of the champion's the change is {change.low:+.2%} to {change.high:+.2%}"
    if change.high < gate.tolerance:
        return found, ""
    return found, f"{found}, and all of it must be below {gate.tolerance:+.2%}"


def _paired(report: Report, other: Remeasured, whose: str) -> tuple[_Paired | None, str]:
    """A report's figures and those of another model's package on its documents, or why there are none."""
    if other.problem:
        return None, other.problem
    fresh = np.flatnonzero(~np.array(other.excluded, np.bool_))
    nats, theirs, size = (
        _floats(values)[fresh] for values in (report.document_nats, other.nats, report.document_bytes)
    )
    if not np.isfinite(theirs).all():
        return None, f"the figures of {whose} are not finite"
    if effective(size) < MIN_EFFECTIVE:
        read = len(report.document_bytes) - len(fresh)
        return None, (
            f"{f'without the {read} that {whose} has read, ' if read else ''}the test documents count as "
            f"{effective(size):.1f} of equal size, and {MIN_EFFECTIVE} are needed"
        )
    return _Paired(nats, theirs, size, fresh), ""


def _harder_dropped(report: Report, champion: Report) -> str:
    """A sentence when the test documents that are gone were surely harder for the champion than those that are left."""
    size, nats = _floats(champion.document_bytes), _floats(champion.document_nats)
    kept = np.isin(champion.document_digests, report.document_digests)
    share = size[~kept].sum() / size.sum()
    gone, left = estimate(nats[~kept], size[~kept]), estimate(nats[kept], size[kept])
    if share < _DROPPED or not math.isfinite(gone.error + left.error):
        return ""
    excess = math.log(gone.ratio / left.ratio)
    if excess <= math.log1p(_HARDER) + math.hypot(gone.width(_SURE), left.width(_SURE)):
        return ""
    return (
        f"{share:.0%} of the champion's test text is gone, and it was the harder part: the champion needs "
        f"{math.expm1(excess):.0%} more bits per byte there than on what is left"
    )


def _yardstick(
    report: Report, champion: Report, paired: _Paired | None, problem: str, again: bool, theirs: str
) -> Check:  # fmt: skip
    count = 0.0 if paired is None else round(effective(paired.size), 1)
    if problem:
        message = f"The model cannot be compared with the champion: {problem}; {CURE}."
    elif again:
        message = (
            f"Of the champion's {len(champion.document_bytes)} test documents too few are among the model's, so that "
            f"its package was measured again, on {len(paired.nats) if paired else 0} of the model's "
            f"{len(report.document_bytes)}, which count as {count:g} of equal size; {theirs}."
        )
    else:
        message = (
            f"Model and champion were measured on {len(paired.nats) if paired else 0} common documents, which count as "
            f"{count:g} of equal size; {MIN_EFFECTIVE} are needed."
        )
    return Check(name="yardstick", value=count, limit=MIN_EFFECTIVE, passed=not problem, message=message)


def _champion(found: Compared, gate: Requirements, again: bool) -> Check:
    change = found.change
    return Check(
        name="champion", value=change.high, limit=gate.tolerance, passed=change.high < gate.tolerance,
        message=f"The model needs {found.model:.4f} bits per byte, the champion {found.champion:.4f} on "
        f"{'these' if again else 'the same'} {found.documents} documents: a change of {change.low:+.2%} to "
        f"{change.high:+.2%} (each end with {gate.confidence:.0%} confidence); all of it must be below "
        f"{gate.tolerance:+.2%}.",
    )  # fmt: skip


def _earlier(
    champion: Champion, before: Sequence[tuple[float | None, _Paired | None]], estimated: Estimate, gate: Requirements
) -> list[Check]:
    """Not worse than the better quarter of all champions either, so that small losses do not add up.

    Where two have too few documents in common, and where an earlier one was deleted, the changes from one champion to
    the next are multiplied instead. One model differs from the next by its seed, so that the mean of the last ones
    shows a smaller loss than one model does.
    """
    change, high = _log(estimated), _ends(estimated, gate.confidence)[1]
    changes, highs, linked, total, level = [change], [high], 0, len(before), champion.level
    for theirs, shared in before:
        if shared:
            found = shared.estimate(shared.everything, gate.seed_sd)
            changes.append(_log(found))
            highs.append(_ends(found, gate.confidence)[1])
        elif level is not None:
            gap = level / (theirs or 1.0)
            changes.append(change + math.log(gap))
            highs.append((1 + high) * gap - 1)
            linked += 1
        if theirs is None:
            level = None  # those before it were measured by another yardstick
    if not total:
        return []
    value = rounded(np.quantile(highs, QUARTILE))
    checks = [Check(
        name="earlier champions", value=value, limit=gate.tolerance, passed=value < gate.tolerance,
        message=f"Against three quarters of the champions so far, the change is at most {value:+.2%} "
        f"({gate.confidence:.0%} confidence); it must be below {gate.tolerance:+.2%}. Of {total} before the champion, "
        f"{len(highs) - 1 - linked} were compared on common documents, {linked} through those between, and "
        f"{total + 1 - len(highs)} could not be.",
    )]  # fmt: skip
    if len(changes) >= RECENT:
        mean = np.quantile(changes, QUARTILE) - sum(changes[: RECENT - 1]) / RECENT
        drift, limit = rounded(math.expm1(mean)), rounded(gate.tolerance * DRIFT)
        checks.append(Check(
            name="drift", value=drift, limit=limit, passed=drift < limit,
            message=f"The mean of the model and the {RECENT - 1} champions before it differs by {drift:+.2%} from the "
            f"better quarter of the champions so far; it must be below {limit:+.2%}.",
        ))  # fmt: skip
    return checks


def _worse_slices(
    report: Report, champion: Report, paired: _Paired, before: Sequence[_Paired], again: bool, vanished: Sequence[str],
    gate: Requirements,
) -> Check:  # fmt: skip
    """Fails for a source that is surely worse, as both reports divide the documents, or that is gone. Surely worse than
    the champion, or than a quarter of all champions: small losses of one source would add up unseen in the whole."""
    limit, parts = gate.slice_tolerance, _divided(report, champion)
    tested = list[tuple[float, str, Callable[[], str]]]()

    def test(name: str, probability: float, said: Callable[[], str]) -> None:
        if math.isfinite(probability):
            tested.append((probability, name, said))

    def change(mask: Flags) -> str:
        found = paired.compared(mask, gate).change
        return f"({found.low:+.2%} to {found.high:+.2%} on {int(mask.sum())} documents)"

    for name, mask in parts:
        each = [pair.estimate(mask[pair.here], gate.seed_sd).probability_above(1 + limit) for pair in (paired, *before)]
        test(name, each[0], partial(change, mask[paired.here]))
        finite = [probability for probability in each if math.isfinite(probability)]
        if len(finite) >= RECENT:
            test(name, float(np.quantile(finite, 1 - QUARTILE)), lambda: "than a quarter of the champions so far")
    worse = dict[str, str]()
    for rank, (probability, name, said) in enumerate(sorted(tested, key=lambda row: row[0])):
        if probability > (1 - gate.confidence) / (len(tested) - rank):
            break
        worse.setdefault(name, said())
    shown = ", ".join(f'"{name}" {said}' for name, said in worse.items())
    faults = [f"The model is surely worse by more than {limit:.0%} on {shown}."] if worse else []
    gone = [] if again else vanished
    if gone:
        faults.append(f"The champion's slice {_quoted(gone)} is not in the test split, by text or name.")
    names = {name for _, name, _ in tested}
    untested = [name for name, _ in parts if name not in names]
    message = f"Of {len(names)} slices, none is surely worse than the champions by more than {limit:.0%}."
    if untested:  # a person should know, and one document is no fault
        message += f" There are too few documents to tell for {_quoted(untested)}."
    return Check(
        name="slices", value=float(len(worse) + len(gone)), limit=0.0, passed=not faults,
        message=" ".join(faults or [message]),
    )  # fmt: skip


def _divided(report: Report, champion: Report) -> list[tuple[str, Flags]]:
    """The slices of the model's test documents, as either report divides them, each once."""
    places = {digest: place for place, digest in enumerate(champion.document_digests)}
    there = np.array([places.get(digest, -1) for digest in report.document_digests], np.int64)
    parts: dict[bytes, tuple[str, Flags]] = {}
    for name, mask in _slices(champion):
        parts.setdefault((own := np.where(there >= 0, mask[there], False)).tobytes(), (name, own))
    for name, mask in _slices(report):
        parts.setdefault(mask.tobytes(), (name, mask))
    return list(parts.values())


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


# setting of the gate -> 1 where a larger value is looser, -1 where a smaller one is
_LOOSER = {
    "beat_unigram": -1, "beat_ngram": -1, "beat_characters": -1, "tolerance": 1, "slice_tolerance": 1,
    "confidence": -1, "seed_sd": -1, "max_unknown": 1, "max_repeated": 1, "max_empty": 1, "max_copied": 1,
    "max_package_mb": 1, "max_load_seconds": 1,
}  # fmt: skip


def loosened(gate: Requirements, before: Requirements) -> list[str]:
    """The settings that are looser in `gate` than they were before."""
    return [key for key, sign in _LOOSER.items() if sign * getattr(gate, key) > sign * getattr(before, key)]


def settings_check(gate: Requirements, before: Requirements, weaker: Iterable[str] = ()) -> Check:
    """Fails when a model would pass that could not have when the champion did; `weaker` is what tests require less."""
    looser = [
        f"{key}: {_shown(getattr(before, key))} -> {_shown(getattr(gate, key))}" for key in loosened(gate, before)
    ]
    looser += weaker
    message = "No setting of the gate is looser than those that the champion passed under."
    if looser:
        message = (
            f"Settings of the gate are looser than those that the champion passed under ({', '.join(looser)}); "
            'a person may accept it: qalam promote RUN --accept-looser-gate --why "...".'
        )
    return Check(
        name="gate settings", value=float(len(looser)), limit=0.0, passed=not looser, message=message
    )  # fmt: skip


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
