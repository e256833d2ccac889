"""How two models behave on the same texts: documents, slices, positions and words; and what they say after prompts.

Shapes: D documents, K pieces (see reading.py), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qalam_core.errors import PackageError
from qalam_core.evaluation.intervals import estimate
from qalam_core.evaluation.results import Counted, rounded
from qalam_core.evaluation.scoring import digest_of
from qalam_core.package.read import Package
from qalam_core.package.runtime.data_reader import quote
from qalam_core.progress import Progress, no_progress
from qalam_core.review import words
from qalam_core.review.prompts import DIVERGENCE, prompt_change
from qalam_core.review.reading import Model, Reading, Texts, read_texts
from qalam_core.review.results import (
    Alarm,
    Behaviour,
    DocumentChange,
    PartChange,
    PieceChange,
    PromptChange,
    TextChange,
)

TEXT_BYTES = 125_000
"""Of each kind of text; see `benchmarks/bench_review.py` for what they take."""
DOCUMENTS, EXCERPT = 5, 280
SURELY = 1e-3
"""An honest change raises an alarm less often than this, by each kind of alarm."""
MARGIN, SLICE_MARGIN, POSITION_MARGIN = 0.02, 0.03, 0.05
"""How much dearer texts, a slice, and a range of positions (beyond all texts) surely have to be."""
_EFFECTIVE = 5  # documents of equal size; of fewer no z is given

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


class _Read(NamedTuple):
    """Texts, and what both models make of them."""

    name: str
    texts: Texts
    counted: Counted
    old: Reading
    new: Reading


def behaviour(
    old: Package,
    new: Package,
    texts: Mapping[str, Sequence[tuple[str, str]]],
    prompts: Sequence[str],
    *,
    seed: int,
    seed_sd: float = 0.005,
    progress: Progress = no_progress,
) -> Behaviour:
    """Compare two models on `texts`: by name, the held-out text first, (slice, normalised text) pairs.

    Of each, about TEXT_BYTES are measured, drawn with the seed. `seed_sd` is the standard deviation of bits per byte
    over seeds, as a share. `progress` counts scored tokens, of one model and one kind of text at a time.
    """
    models = Model.of(old, "old"), Model.of(new, "new")
    changes, unavailable, read = list[TextChange](), list[str](), list[_Read]()
    for name, pairs in texts.items():
        chosen, counted = Texts.sample(pairs, TEXT_BYTES, seed)
        if not chosen.texts:
            unavailable.append(f"The {name} is empty, so nothing was measured on it.")
            continue
        try:
            read.append(_Read(name, chosen, counted, *(read_texts(model, chosen, progress) for model in models)))
        except PackageError as error:
            alarm = Alarm(section="behaviour", severity="high", message=str(error))
            return Behaviour(
                texts=(), prompts=(), alarms=(alarm,), unavailable=("Nothing could be measured on texts.",)
            )
    written = [each.new.written / each.new.positions for each in read]
    for name, chosen, counted, before, after in read:
        more, less, frequent = words.shares(before, after, old.vocabulary, new.vocabulary, np.max(written, axis=0))
        cheaper, dearer = words.costs(chosen, before, after)
        gained, lost = _documents(chosen, before, after)
        if not len(words.comparable(old.vocabulary, new.vocabulary)[0]):
            unavailable.append(f"The tokenizers have no comparable word, so none was counted in the {name}.")
        per_document = _per_document(chosen, before, after)
        whole = _part(name, per_document, seed_sd, MARGIN)
        if whole.z is None:
            unavailable.append(f"The {name} has too few documents ({len(chosen.texts)}) to tell a change from noise.")
        changes.append(TextChange(
            name=name, counted=counted, old=whole.old, new=whole.new, z=whole.z, gained=gained, lost=lost,
            slices=_slices(chosen, per_document, seed_sd), positions=_positions(chosen, before, after, seed_sd),
            more=more, less=less, cheaper=cheaper, dearer=dearer, frequent_ratio=frequent,
            by_first_token=old.vocabulary.words != new.vocabulary.words, alarm=whole.alarm,
        ))  # fmt: skip
    said = tuple(prompt_change(*models, prompt) for prompt in dict.fromkeys(("", *prompts)))
    alarms = (*(alarm for change in changes for alarm in _alarms(change)), *_prompt_alarms(said))
    return Behaviour(texts=tuple(changes), prompts=said, alarms=alarms, unavailable=tuple(unavailable))


class _Costs(NamedTuple):
    """Nats of both models, and bytes, of each of D documents or of the same part of each."""

    old: Floats
    new: Floats
    bytes: Ids

    def of(self, chosen: NDArray[Any]) -> _Costs:
        return _Costs(self.old[chosen], self.new[chosen], self.bytes[chosen])


def _per_document(texts: Texts, old: Reading, new: Reading) -> _Costs:
    begins, ends = texts.borders[:-1], texts.borders[1:]
    return _Costs(old.between(begins, ends), new.between(begins, ends), np.diff(texts.bytes_up_to[texts.borders]))


def _part(name: str, costs: _Costs, seed_sd: float, margin: float, tests: int = 1, level: float = 1.0) -> PartChange:
    """Bits per byte of a part; an alarm where it surely costs over (1 + margin) level times the old."""
    found = estimate(costs.new, costs.old * level, math.sqrt(2) * seed_sd)
    error = math.hypot(found.error, found.noise)
    z = rounded(math.log(found.ratio) / error) if found.effective >= _EFFECTIVE and error > 0 else None
    old, new = (float(nats.sum() / math.log(2) / max(1, costs.bytes.sum())) for nats in (costs.old, costs.new))
    return PartChange(
        name=name, documents=len(costs.old), bytes=int(costs.bytes.sum()), old=rounded(old), new=rounded(new), z=z,
        alarm=z is not None and found.probability_above(1 + margin) < SURELY / tests,
    )  # fmt: skip


def _slices(texts: Texts, costs: _Costs, seed_sd: float) -> tuple[PartChange, ...]:
    """Those that became dearer first."""
    names, slice_of = np.unique(np.array(texts.slices), return_inverse=True)
    parts = [
        _part(str(name), costs.of(slice_of == number), seed_sd, SLICE_MARGIN, len(names))
        for number, name in enumerate(names)
    ]
    return tuple(sorted(parts, key=lambda part: (not part.alarm, -part.change)))


def _positions(texts: Texts, old: Reading, new: Reading, seed_sd: float) -> tuple[PartChange, ...]:
    """Ranges of positions in the new model's context: 0-7, 8-15, 16-31, ...; each against the change of all.

    Of models that cut the texts into other tokens, the same position is another place in the text: none is an alarm.
    """
    alike = np.array_equal(old.ends, new.ends) and np.array_equal(old.columns, new.columns)
    begins, ends, columns_K = _pieces(new)
    old_K, new_K = old.between(begins, ends), new.between(begins, ends)
    bytes_K = texts.bytes_up_to[ends] - texts.bytes_up_to[begins]
    document_K = np.searchsorted(texts.borders, begins, side="right") - 1
    level = float(new_K.sum() / old_K.sum())
    first, ranges = 0, []
    while first <= columns_K.max():
        ranges.append((first, max(8, 2 * first)))
        first = ranges[-1][1]
    parts = []
    for first, end in ranges:
        inside = (columns_K >= first) & (columns_K < end)
        sums = [np.bincount(document_K[inside], values[inside]) for values in (old_K, new_K, bytes_K)]
        costs = _Costs(sums[0].astype(float), sums[1].astype(float), sums[2].astype(np.int64))
        costs = costs.of(costs.bytes > 0)
        part = _part(f"{first}-{end - 1}", costs, seed_sd, POSITION_MARGIN, len(ranges), level)
        parts.append(part.model_copy(update={"alarm": part.alarm and alike}))
    return tuple(parts)


def _pieces(new: Reading) -> tuple[Ids, Ids, Ids]:
    """-> where each piece begins and ends, and its first token's position in the context; a text's end is a piece."""
    knots = new.knots  # at the end of a text, the START of the next
    ends = new.ends[knots]
    return ends[:-1], ends[1:], new.columns[knots[:-1] + 1]


def _documents(
    texts: Texts, old: Reading, new: Reading
) -> tuple[tuple[DocumentChange, ...], tuple[DocumentChange, ...]]:
    """-> the documents that gained most nats, and those that lost most."""
    costs = _per_document(texts, old, new)
    change_D = costs.new - costs.old
    begins, ends, _ = _pieces(new)
    old_K, new_K = old.between(begins, ends), new.between(begins, ends)

    def document(number: int) -> DocumentChange:
        text, (begin, end) = texts.texts[number], texts.borders[number : number + 2].tolist()
        part = slice(*np.searchsorted(begins, [begin, end - 1]).tolist())  # without the piece of the text's end
        first, last = _excerpt(begins[part], ends[part], (new_K[part] - old_K[part]) * np.sign(change_D[number]))
        pieces = [
            PieceChange(text=text[start - begin : stop - begin], old=rounded(before), new=rounded(after))
            for start, stop, before, after in zip(
                begins[part][first:last].tolist(), ends[part][first:last].tolist(),
                old_K[part][first:last].tolist(), new_K[part][first:last].tolist(), strict=True,
            )
        ]  # fmt: skip
        bits = 1 / math.log(2) / max(1, int(costs.bytes[number]))
        return DocumentChange(
            slice=texts.slices[number], digest=digest_of([text])[:12], bytes=int(costs.bytes[number]),
            old=rounded(costs.old[number] * bits), new=rounded(costs.new[number] * bits),
            start=int(begins[part][first] - begin) if pieces else 0, characters=len(text), pieces=tuple(pieces),
        )  # fmt: skip

    order = np.argsort(change_D, kind="stable").tolist()
    gained = [document(number) for number in order[:DOCUMENTS] if change_D[number] < 0]
    lost = [document(number) for number in order[::-1][:DOCUMENTS] if change_D[number] > 0]
    return tuple(gained), tuple(lost)


def _excerpt(begins: Ids, ends: Ids, change: Floats) -> tuple[int, int]:
    """The range of pieces, of at most EXCERPT characters, whose changes have the largest sum."""
    last = np.maximum(np.searchsorted(ends, begins + EXCERPT, side="right"), np.minimum(len(ends), 1))
    sums = np.concatenate([[0.0], np.cumsum(change)])
    best = int(np.argmax(sums[last] - sums[:-1])) if len(change) else 0
    return best, int(last[best]) if len(change) else 0


def _alarms(change: TextChange) -> Iterator[Alarm]:
    def alarm(message: str) -> Alarm:
        return Alarm(section="behaviour", severity="high", message=message)

    if change.alarm:
        yield alarm(f"The {change.name} costs {change.change:+.1%} bits per byte.")
    for part in change.slices:
        if part.alarm:
            yield alarm(f"Slice {quote(part.name)} of the {change.name} costs {part.change:+.1%}.")
    for part in change.positions:
        if part.alarm:
            yield alarm(f"Positions {part.name} of the context cost {part.change:+.1%} ({change.name}).")
    for word in (*change.more, *change.less):
        if word.alarm:
            verb = f"{word.ratio:.3g} times as often" if word.ratio > 1 else f"{1 / word.ratio:.3g} times less often"
            yield alarm(f"The new model says {quote(word.word)} {verb} ({change.name}).")
    for cost in change.dearer:
        if cost.alarm:
            yield alarm(f"{quote(cost.word)} costs {cost.change:+.1f} nats each time ({change.name}).")


def _prompt_alarms(prompts: Sequence[PromptChange]) -> Iterator[Alarm]:
    for prompt in prompts:
        if prompt.divergence >= DIVERGENCE:
            after = f"after {quote(prompt.prompt)}" if prompt.prompt else "at the beginning of a document"
            yield Alarm(
                section="behaviour", severity="high",
                message=f"The next words {after} are others ({prompt.divergence:.2f} of 1 bit).",
            )  # fmt: skip
