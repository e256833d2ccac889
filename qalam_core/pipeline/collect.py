"""Garbage collection: deletes runs and artifacts that no kept run needs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from qalam_core.errors import StoreError
from qalam_core.runs import RunRecord, Runs
from qalam_core.store import Store

FRESH_SECONDS = 24 * 3600.0
"""Artifacts that no run needs are kept this long after their last use: a build may be running, or be resumed."""


@dataclass(frozen=True)
class Collected:
    """What is, or would be, deleted."""

    runs: tuple[str, ...]
    artifacts: tuple[str, ...]  # `<stage>/<folder>`, partial ones of killed builds included
    abandoned: tuple[str, ...]  # temporary files and folders that killed processes left, relative to the store
    bytes: int
    kept: tuple[str, ...]  # runs, oldest first
    lost: tuple[str, ...]  # for each kept run, how it can no longer be built again; one sentence each
    busy: tuple[str, ...]  # locks of running builds, during which no artifact is deleted
    deleted: bool


def collect(
    store: Store, keep: int, delete: bool = False, fresh_seconds: float = FRESH_SECONDS, now: float | None = None
) -> Collected:
    """Delete what no kept run needs; without `delete` only list it.

    Of each recipe name the last `keep` runs are kept, the champion, the run that a rollback would return to, the last
    run from scratch that was compared with a chain, and the runs whose weights or report these were built with. Of the
    runs before, what they had read is kept, and not their packages: a chain of warm starts would keep every package for
    ever. Any other artifact is kept while a build is running, and for `fresh_seconds` after its last use; so is a
    partial one, from which a killed build continues, and what killed processes left.
    """
    if keep < 1:
        raise StoreError(f"{keep} runs cannot be kept; name at least 1")
    runs = Runs(store)
    records = runs.records()
    kept = _kept(runs, records, keep)
    unneeded = [run for run in records if run not in kept]
    busy = tuple(store.held_locks())
    held = {f"{stage}/{key}" for run in kept for stage, keys in records[run].artifacts.items() for key in keys}
    held |= {f"seen/{records[run].lineage[0].seen}" for run in kept if records[run].lineage}
    horizon = (time.time() if now is None else now) - fresh_seconds
    held |= {key for run in kept for key in _of_tokenizer(records[run])}
    found = {} if busy else store.artifacts()
    unused = [name for name, used in found.items() if name not in held and used < horizon]
    abandoned = [] if busy else store.abandoned(horizon)
    paths = [*(f"runs/{run}" for run in unneeded), *(f"artifacts/{name}" for name in unused), *abandoned]
    size = sum(map(store.size, paths))
    lost = [line for run in records if run in kept for line in _lost(run, records[run], set(unneeded))]
    if delete:
        for run in unneeded:
            runs.delete(run)
        unused = [name for name in unused if store.delete_artifact(name, horizon)]
        for name in abandoned:
            store.delete_abandoned(name)
    remaining = tuple(run for run in records if run in kept)
    return Collected(
        tuple(unneeded), tuple(unused), tuple(abandoned), size, remaining, tuple(lost), busy, delete
    )  # fmt: skip


def _of_tokenizer(record: RunRecord) -> tuple[str, ...]:
    """What a run's build read of the run whose tokenizer it was to keep."""
    kept = record.tokenizer
    return (f"vocab/{kept.artifact}", f"seen/{kept.seen}") if kept else ()


def _lost(run: str, record: RunRecord, deleted: Set[str]) -> Iterator[str]:
    """How a run can no longer be built again when some runs are deleted."""
    before = [ancestor.run for ancestor in record.lineage if ancestor.run in deleted]
    if record.proposal:  # it is kept as it was proposed
        pass
    elif record.parent in deleted:
        yield f"{run}: not from its parent's weights, nor from text: it began from {record.parent}"
    elif before:
        yield f"{run}: from its parent's weights, and not from text: {_named(before)} came before it"
    compared = [other for other in dict.fromkeys((record.incumbent, *record.anchors)) if other in deleted]
    if compared:
        yield f"{run}: without its verdict: the gate compared it with {_named(compared)}"


def _named(runs: Sequence[str]) -> str:
    return runs[0] if len(runs) == 1 else f"{runs[0]} and {len(runs) - 1} more"


def _kept(runs: Runs, records: Mapping[str, RunRecord], keep: int) -> set[str]:
    by_name: dict[str, list[str]] = {}
    for run, record in records.items():  # oldest first
        by_name.setdefault(record.recipe.name, []).append(run)
    kept: set[str] = set()
    for name, ids in by_name.items():
        kept.update(ids[-keep:])
        kept.update(run for run in (runs.champion(name), runs.rollback_target(name)) if run and run in records)
        compared = [run for run in ids if not (one := records[run]).lineage and one.incumbent in records
                    and records[one.incumbent].lineage]  # fmt: skip
        kept.update(compared[-1:])  # by which the drift of the chain is known
    # one level only: the runs that these were built with are not read when a kept run is built again
    return kept | {needed for run in kept for needed in records[run].needed_runs() if needed in records}
