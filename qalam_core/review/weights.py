"""What changed between the weights of two models.

Two trainings from other seeds differ in every value, so movement alone says nothing. Alarms are for structure that no
training makes: heads that are other heads of the old model, positions that have their neighbours' rows, and single rows
that moved while the rest of their tensor stayed.

Shapes: C channels (dim), H heads, D head dim, P positions, R rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from qalam_core.evaluation.results import rounded
from qalam_core.package.editing.diff import Difference, TensorChange, diff
from qalam_core.package.read import Package
from qalam_core.package.runtime.data_reader import quote
from qalam_core.package.statistics import neighbours
from qalam_core.review.results import (
    Alarm,
    HeadMoved,
    NeighbourChange,
    RowMovement,
    TensorMovement,
    WeightChanges,
)

ROWS = 16
SHIFTS = range(-8, 9)
PARTS = ("query", "key", "value", "output")
SIMILAR, MORE_SIMILAR = 0.7, 0.3
"""A head is another one when its cosine to it is at least the first, and larger than to itself by the second."""
SHIFTED = 0.5  # positions are shifted when that explains half of what moved
ROW_TIMES, ROW_MOVED, ROW_SHARE = 8.0, 0.5, 0.01
"""Rows that moved by so many times the median row, by so much of their length unless no others moved at all, and are
at most this share of all. Nights that continue reached 3.4 times, trainings from scratch 1.5."""
_NORM = re.compile(r"(?:^|\.)(?:ln\w*|[qk]_norm)\.")  # vectors, one value a row
_LEAST = 1e-3  # of the median row's relative movement
_NEAREST = 5

Floats = NDArray[np.float64]


def weight_changes(old: Package, new: Package) -> WeightChanges:
    """Compare the tensors that both have, rows of tokens by word. Memory: one tensor of each in float64."""
    if broken := [*_not_finite(old, "old"), *_not_finite(new, "new")]:
        return WeightChanges(
            tensors=(), layers=(), unchanged=0, rows=(), heads=(), shift=0, neighbours=(), alarms=tuple(broken),
            unavailable=("Weights that are not finite cannot be compared.",),
        )  # fmt: skip
    longest = max(len(tensor) for tensor in new.weights.values())
    found = diff(old, new, shown=longest)
    comparable = _same_shape(old, new)
    heads = tuple(_heads(old, new)) if comparable else ()
    positions = [package.weights.get("pos_embedding") for package in (old, new)]
    shift = 0 if positions[0] is None or positions[1] is None else _shift(positions[0], positions[1])
    rows, single = _rows(found.tensors)
    return WeightChanges(
        tensors=tuple(TensorMovement(name=one.name, moved=_figures(one.moved), before=_figures(one.before))
                      for one in found.tensors),
        layers=tuple(_layers(found.tensors)),
        unchanged=len(old.weights) - len(found.only_first) - len(found.reshaped) - len(found.tensors),
        rows=rows,
        heads=heads,
        shift=shift,
        neighbours=_neighbours(old, new),
        alarms=(*_reconfigured(found), *_alarms(heads, shift, single)),
        unavailable=tuple(_unavailable(found, comparable)),
    )  # fmt: skip


def _same_shape(old: Package, new: Package) -> bool:
    first, second = old.config, new.config
    return (first.block, first.dim, first.num_heads, first.head_size) == (
        second.block, second.dim, second.num_heads, second.head_size
    )  # fmt: skip


def _layers(changes: Sequence[TensorChange]) -> Iterator[TensorMovement]:
    """Of all changed tensors of a layer together."""
    sums: dict[int, list[float]] = {}
    for change in changes:
        if change.name.startswith("blocks."):
            squares = sums.setdefault(int(change.name.split(".")[1]), [0.0, 0.0])
            squares[0] += change.moved**2
            squares[1] += change.before**2
    for layer, (moved, before) in sorted(sums.items()):
        yield TensorMovement(
            name=f"layer {layer}", moved=_figures(math.sqrt(moved)), before=_figures(math.sqrt(before))
        )


def _rows(changes: Sequence[TensorChange]) -> tuple[tuple[RowMovement, ...], tuple[RowMovement, ...]]:
    """-> the rows of matrices that moved most beyond their tensor's median row; those that moved alone."""
    moved: list[RowMovement] = []
    single: list[RowMovement] = []
    for change in changes:
        if change.rows < 2 * ROWS or change.name.endswith(".bias") or _NORM.search(change.name):
            continue
        relative = [row.moved / max(row.before, 1e-12) for row in change.largest]
        median = max(_LEAST, float(np.median(relative + [0.0] * (change.rows - len(relative)))))
        rows = [
            RowMovement(
                tensor=change.name, row=row.row, word=row.word, moved=_figures(row.moved), before=_figures(row.before),
                times=_figures(share / median),
            )
            for row, share in zip(change.largest, relative, strict=True)
        ]  # fmt: skip
        rows.sort(key=lambda row: (-row.times, row.row))
        moved += rows[:ROWS]
        few = max(1, ROW_SHARE * change.rows)
        alone = [
            row for row in rows
            if row.times >= ROW_TIMES and (row.moved >= ROW_MOVED * row.before or change.changed <= few)
        ]  # fmt: skip
        if len(alone) <= few:
            single += alone
    moved.sort(key=lambda row: -row.times)
    return tuple(moved[:ROWS]), tuple(single)


def _heads(old: Package, new: Package) -> Iterator[HeadMoved]:
    """Heads whose parts are those of another head of the same layer."""
    for layer in range(min(old.config.num_layers, new.config.num_layers)):
        olds, news = _parts(old, layer), _parts(new, layer)
        moved: dict[tuple[int, int], list[tuple[str, float]]] = {}
        for part, before, after in zip(PARTS, olds, news, strict=True):
            cosines = after @ before.T
            for head in range(len(cosines)):
                was = int(np.argmax(cosines[head]))
                if was != head and cosines[head, was] >= max(SIMILAR, cosines[head, head] + MORE_SIMILAR):
                    moved.setdefault((head, was), []).append((part, float(cosines[head, was])))
        for (head, was), parts in sorted(moved.items()):
            yield HeadMoved(
                layer=layer, head=head, was=was, parts=tuple(part for part, _ in parts),
                similarity=rounded(min(cosine for _, cosine in parts)),
            )  # fmt: skip


def _parts(package: Package, layer: int) -> list[Floats]:
    """Of query, key, value and output: (H, values), each head's weights as one row of length 1."""
    config, block = package.config, f"blocks.{layer}"
    H, C, D = config.num_heads, config.dim, config.head_size
    if config.block == "original":
        qkv = list(package.weights[f"{block}.qkv.weight"].reshape(3, H, D, C))
    else:  # a head of keys or values that several heads of queries share moves with each of them
        qkv = [package.weights[f"{block}.{part}.weight"].reshape(-1, D, C) for part in ("q", "k", "v")]
        qkv = [part.repeat(H // len(part), axis=0) for part in qkv]
    out_CHD = package.weights[f"{block}.out.weight"].reshape(C, H, D)
    parts = []
    for part in (*qkv, out_CHD.transpose(1, 0, 2)):
        flat = part.reshape(H, -1).astype(np.float64)
        parts.append(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-30))
    return parts


def _shift(old_PC: NDArray[np.float32], new_PC: NDArray[np.float32]) -> int:
    """By how many positions the rows moved; 0 where no shift explains the change."""
    size = min(len(old_PC), len(new_PC))
    if old_PC.shape[1:] != new_PC.shape[1:] or size < 4 * SHIFTS.stop:
        return 0
    old, new = old_PC[:size].astype(np.float64), new_PC[:size].astype(np.float64)
    errors = {}
    for shift in SHIFTS:
        first = slice(max(0, shift), size + min(0, shift))
        second = slice(max(0, -shift), size - max(0, shift))
        errors[shift] = float(np.median(((new[second] - old[first]) ** 2).sum(1)))
    best = min(SHIFTS, key=lambda shift: (errors[shift], abs(shift)))
    return best if errors[best] < SHIFTED * errors[0] else 0


def _neighbours(old: Package, new: Package) -> tuple[NeighbourChange, ...]:
    """Of the frequent words that both have, those whose nearest words changed, the most changed first."""
    olds, news = (dict(_nearest(package)) for package in (old, new))
    changes = [
        NeighbourChange(word=word, old=before, new=news[word])
        for word, before in olds.items()
        if word in news and set(before) != set(news[word])
    ]
    return tuple(sorted(changes, key=lambda change: change.kept))


def _nearest(package: Package) -> Iterator[tuple[str, tuple[str, ...]]]:
    for word, nearest in neighbours(package.weights["embedding.weight"], package.vocabulary):
        yield word, tuple(other for other, _ in nearest[:_NEAREST])


def _alarms(heads: Sequence[HeadMoved], shift: int, rows: Sequence[RowMovement]) -> Iterator[Alarm]:
    pairs = {(head.layer, head.head, head.was): head for head in heads}
    for head in heads:
        back = pairs.get((head.layer, head.was, head.head))
        if back is not None and head.head > head.was:
            continue  # said with the other one
        whole = head.parts == PARTS and (back is None or back.parts == PARTS)
        what = "" if head.parts == PARTS else f" in {' and '.join(head.parts)} alone"
        if back is not None:
            message = f"Heads {head.head} and {head.was} of layer {head.layer} are swapped{what}."
        else:
            message = f"Head {head.head} of layer {head.layer} is the old head {head.was}{what}."
        # swapped as a whole, the function is the same
        yield Alarm(section="weights", severity="low" if whole and back is not None else "high", message=message)
    if shift:
        yield Alarm(
            section="weights", severity="high",
            message=f"Positions are shifted: position p has the row of the old position p {'+' if shift > 0 else '-'} "
            f"{abs(shift)}.",
        )  # fmt: skip
    for row in rows[:ROWS]:
        which = f"{quote(row.word)} ({row.tensor})" if row.word else f"{row.row} of {row.tensor}"
        yield Alarm(
            section="weights", severity="high",
            message=f"Row {which} moved {row.moved:.3g} of {row.before:.3g}, {row.times:.3g} times the median row.",
        )  # fmt: skip


def _reconfigured(found: Difference) -> Iterator[Alarm]:
    """Values of the configuration that differ although no tensor's shape does: no other line would show it."""
    if found.reshaped or found.only_first or found.only_second:
        return
    for name, (old, new) in found.config.items():
        if name not in ("VOCAB_SIZE", "PARAMETERS"):  # which follow from the words
            message = f"{name} of the configuration is {new}, and was {old}."
            yield Alarm(section="weights", severity="low", message=message)


def _not_finite(package: Package, which: str) -> Iterator[Alarm]:
    for name, tensor in package.weights.items():
        if not math.isfinite(float(np.abs(tensor).max())):
            message = f"{name} of the {which} model has values that are not finite."
            yield Alarm(section="weights", severity="high", message=message)


def _unavailable(found: Difference, comparable: bool) -> Iterator[str]:
    if found.reshaped:
        yield f"{len(found.reshaped)} tensors have another shape and were not compared."
    if found.only_first or found.only_second:
        yield (
            f"{len(found.only_first)} tensors are in the old model alone and {len(found.only_second)} in the new one "
            "alone; they were not compared."
        )
    if not comparable:
        yield "The models have other blocks, widths or numbers of heads, so heads were not compared."


def _figures(value: float) -> float:
    """To four significant digits."""
    return float(f"{value:.4g}")
