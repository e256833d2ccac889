"""The registry: what is done with runs after they were built: reproduce one, measure a champion again, roll it back,
make room.
Takes a store and run ids; gives values that say what was found, and changes champions or deletes only when asked.
It does not know how anything is built or measured, and never guesses which run is meant.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from qalam_core.errors import CorpusError, StoreError
from qalam_core.evaluation.gate import Verdict
from qalam_core.pipeline import build as stages
from qalam_core.recipe import STAGES, Recipe
from qalam_core.store import Artifact, Progress, Store, silent

__all__ = ["Collected", "Reproduction", "Row", "collect", "corpus_of", "needs", "remeasure", "reproduce", "rollback"]

FRESH_SECONDS = 24 * 3600.0
"""What no run holds is kept for so long after its last use: a build may be between two stages, or be resumed."""

_MEASURED = {"tokens_per_second", "memory_mb", "mfu"}  # what a line of metrics.jsonl says of the machine


def needs(record: Mapping[str, Any]) -> list[str]:
    """Runs that the build behind `record` (a run.json) read, beyond its sources.

    The run whose weights training began with, and the champion that the gate compared it with. `reproduce` puts
    these runs into the fresh store, and `collect` keeps them.
    """
    return [run for run in dict.fromkeys((record.get("parent"), record.get("rival"))) if run]


def corpus_of(store: Store, run: str = "") -> Artifact:
    """The prepared corpus of `run`, or without one that which the store used last. Raises StoreError."""
    if run:
        return store.artifact("prepare", store.run_record(run)["artifacts"]["prepare"][0])
    last_use = store.artifacts()
    found = [name for name in last_use if re.fullmatch("prepare/[0-9a-f]{64}", name)]
    if not found:
        raise StoreError(f"{store.root}: holds no prepared corpus yet; `qalam build RECIPE` makes one")
    return store.artifact(*max(found, key=lambda name: (last_use[name], name)).split("/"))


# -- reproduce ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One artifact, as recorded and as built again."""

    stage: str
    then: str  # digests; "" where there was none
    now: str
    differing: tuple[str, ...]  # files whose bytes differ, or that only one of the two has
    compared: bool = True  # whether the recorded artifact is still there to be compared with

    @property
    def matches(self) -> bool:
        """The same digest, and the same bytes as far as they are still there."""
        return self.then == self.now and not self.differing


@dataclass(frozen=True)
class Reproduction:
    """What came of building a run again."""

    run: str  # that was to be reproduced
    again: str  # what it is called in the fresh store
    rows: tuple[Row, ...]  # every artifact in the pipeline's order, then the run folder itself
    notes: tuple[str, ...]  # what is different about the circumstances: versions, machine

    @property
    def matches(self) -> bool:
        """Whether every artifact is what it was."""
        return all(row.matches for row in self.rows)


def reproduce(store: Store, run: str, fresh: Store, progress: Progress = silent) -> Reproduction:
    """Build `run`'s recorded recipe again in the empty store `fresh`, and compare artifact by artifact.

    `progress` counts training steps, the long part. Files that hold times or the like (metrics.jsonl,
    budgets.json, verdict.json) are compared without them. Sources are read from where the run read them:
    raises CorpusError before anything long begins when one is gone or holds other text, and StoreError when
    `fresh` is not empty or a run that the build needs was deleted.
    """
    record = store.run_record(run)
    recipe = Recipe.parse(record["recipe"], f"run {run}")
    if fresh.runs() or any((fresh.root / "artifacts").glob("*/*")):
        raise StoreError(f"store {fresh.root}: not empty; a run is reproduced in a store of its own")
    _same_sources(store, record, recipe, run)
    for needed in needs(record):
        fresh.take_run(store, needed)
        if needed == record.get("rival") or recipe.train.warm_start == "champion":  # else named, champion of nothing
            fresh.promote(recipe.name, needed, record["created"], f"champion when {run} was built", "reproduce")
    published = stages.build(recipe, fresh, progress)
    now: dict[str, list[Artifact]] = {}
    for artifact in published.artifacts:
        now.setdefault(artifact.stage, []).append(artifact)
    rows = [
        _row(store, stage, then, again)
        for stage in sorted({*record["artifacts"], *now}, key=_place)
        for then, again in zip_longest(record["artifacts"].get(stage, []), now.get(stage, []))
    ]
    kept, built = store.run_folder(run), published.folder
    names = {path.name for folder in (kept, built) for path in (folder / "model").iterdir()}
    files = ["tokenizer.json", "report.json", *(f"model/{name}" for name in sorted(names))]
    differing = tuple(name for name in files if _stable(kept / name) != _stable(built / name))
    rows.append(Row("run", run, published.run, differing))
    return Reproduction(run, published.run, tuple(rows), tuple(_circumstances(record, fresh.run_record(published.run))))


def _same_sources(store: Store, record: Mapping[str, Any], recipe: Recipe, run: str) -> None:
    """Raise CorpusError when a source is gone or is not what `run` was made of."""
    try:
        files = stages.resolve(recipe.corpus)
    except CorpusError as error:
        raise CorpusError(f"run {run} cannot be built again, a source is gone: {error}") from None
    recorded = [
        Artifact("ingest", digest, store.artifact_folder("ingest", digest)) for digest in record["artifacts"]["ingest"]
    ]
    if len(files) != len(recorded):
        raise CorpusError(
            f"run {run} cannot be built again: its sources were {len(recorded)} files, and are {len(files)} now"
        )
    for file, artifact in zip(files, recorded, strict=True):
        if not artifact.path.exists():  # collected; the rows of the comparison will say what differs
            continue
        then = artifact.manifest["part"]["sha256"]
        if then != file.sha256:
            raise CorpusError(
                f"run {run} cannot be built again: {file.path} has changed since (its sha256 was {then[:12]}, "
                f"and is {file.sha256[:12]}); put the text of that time back"
            )


def _row(store: Store, stage: str, then: str | None, now: Artifact | None) -> Row:
    if then is None or now is None:
        return Row(stage, then or "", now.digest if now else "", ())
    kept = store.artifact_folder(stage, then)
    if not kept.exists():
        return Row(stage, then, now.digest, (), compared=False)
    before, after = Artifact(stage, then, kept).manifest["files"], now.manifest["files"]
    differing = [
        name for name in sorted({*before, *after})
        if name not in before or name not in after
        or (before[name] != after[name] and _stable(kept / name) != _stable(now.path / name))
    ]  # fmt: skip
    return Row(stage, then, now.digest, tuple(differing))


def _stable(path: Path) -> object:
    """What a file must give again: its bytes, or, where it holds times, everything but these."""
    if not path.exists():
        return None
    content = path.read_bytes()
    if path.name == "metrics.jsonl":
        lines = [json.loads(line) for line in content.splitlines()]
        return [{key: value for key, value in line.items() if key not in _MEASURED} for line in lines]
    if path.name == "budgets.json":
        return {key: value for key, value in json.loads(content).items() if key != "load_seconds"}
    if path.name == "verdict.json":
        checks = json.loads(content)["checks"]
        return [check if check["name"] != "load time" else check["limit"] for check in checks]
    return content


def _place(stage: str) -> tuple[int, str]:
    return (STAGES.index(stage) if stage in STAGES else len(STAGES), stage)


def _circumstances(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What about the code, its libraries and the machine is not as it was."""
    flat = [{"al-qalam": record["code"], **record["dependencies"], **record["machine"]} for record in (then, now)]
    return [
        f"{name} was {flat[0].get(name, 'absent')}, and is {flat[1].get(name, 'absent')}"
        for name in sorted({*flat[0], *flat[1]}) if flat[0].get(name) != flat[1].get(name)
    ]  # fmt: skip


# -- champions ------------------------------------------------------------------------------------


def remeasure(
    store: Store, recipe: Recipe, run: str, corpus: Artifact, tokens: Sequence[Artifact], progress: Progress = silent
) -> Verdict:
    """Measure the package of `run` anew on the test split of `corpus`, and judge it by the recipe's gate.

    `tokens` are the shards of `corpus` under the run's own tokenizer. On the same documents it must be what the
    run's report says; on others the floors and the budgets count. Nothing of it is kept in the store.
    Raises StoreError when artifacts of the run were deleted.
    """
    record = store.run_record(run)
    package, checkpoint = (store.artifact(stage, record["artifacts"][stage][0]) for stage in ("export", "train"))
    # it is measured as it was built, and judged by what is asked of a champion today
    recipe = Recipe.parse(record["recipe"], f"run {run}").model_copy(update={"gate": recipe.gate})
    with tempfile.TemporaryDirectory(prefix=".measuring-", dir=store.root) as folder:
        # a store of its own: an evaluation that was cached would notice nothing
        evaluation = stages.evaluate(Store(Path(folder)), recipe, package, checkpoint, corpus, tokens, progress)
        return stages.judge(store, recipe, evaluation, run)


def rollback(store: Store, name: str, when: str, why: str, who: str) -> str:
    """Undo the last promotion under `name` that still stands; -> the run that is champion again.

    Nothing is taken out of the history: a line is added. A run that was deleted meanwhile is passed over.
    Raises StoreError when nothing came before.
    """
    before = _before(store, name)
    if before is None:
        if (champion := store.champion(name)) is None:
            raise StoreError(f"{name!r} has no champion in {store.root}; `qalam runs` lists what there is")
        raise StoreError(f"{champion} is the first champion of {name} that is still there; nothing came before it")
    store.promote(name, before, when, why, who, action="rollback")
    return before


def _before(store: Store, name: str) -> str | None:
    """The run that a rollback of `name` would make champion."""
    standing: list[str] = []
    for line in store.promotions(name):
        if line.get("action") == "rollback":
            while standing and standing[-1] != line["run"]:
                standing.pop()
        else:
            standing.append(line["run"])
    champion = store.champion(name)
    return next((run for run in reversed(standing) if run != champion and store.has_run(run)), None)


# -- making room ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collected:
    """What is (or was) deleted, and what stands in the way of more."""

    runs: tuple[str, ...]
    artifacts: tuple[str, ...]  # `<stage>/<digest>`, and what killed builds and repairs left beside them
    bytes: int
    kept: tuple[str, ...]  # runs, oldest first
    busy: tuple[str, ...]  # locks that builds at work hold: no artifact is deleted meanwhile
    deleted: bool


def collect(
    store: Store, keep: int, delete: bool = False, fresh_seconds: float = FRESH_SECONDS, now: float | None = None
) -> Collected:
    """Delete what no kept run needs; only say so unless `delete`.

    Kept are, under each recipe name, the last `keep` runs, the champion, the run that a rollback would
    return to, and the runs that these need. An artifact that none of them holds stays while any build is
    at work, and for `fresh_seconds` after its last use; so does a partial one, from which a killed build
    goes on.
    """
    if keep < 1:
        raise StoreError(f"{keep} runs cannot be kept; name at least 1")
    runs = store.runs()
    records = {run: store.run_record(run) for run in runs}
    kept = _kept(store, records, keep)
    doomed = [run for run in runs if run not in kept]
    busy = tuple(store.held())
    held = {f"{stage}/{digest}" for run in kept for stage, all_ in records[run]["artifacts"].items() for digest in all_}
    horizon = (time.time() if now is None else now) - fresh_seconds
    unused = [] if busy else [
        name for name, used in store.artifacts().items() if name not in held and used < horizon
    ]  # fmt: skip
    folders = [store.root / "runs" / run for run in doomed] + [store.root / "artifacts" / name for name in unused]
    size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    if delete:
        for run in doomed:
            store.delete_run(run)
        unused = [name for name in unused if store.delete_artifact(name, horizon)]
    return Collected(tuple(doomed), tuple(unused), size, tuple(run for run in runs if run in kept), busy, delete)


def _kept(store: Store, records: Mapping[str, Mapping[str, Any]], keep: int) -> set[str]:
    by_name: dict[str, list[str]] = {}
    for run, record in records.items():  # oldest first
        by_name.setdefault(record["recipe"]["name"], []).append(run)
    kept: set[str] = set()
    for name, runs in by_name.items():
        kept.update(runs[-keep:])
        kept.update(run for run in (store.champion(name), _before(store, name)) if run and run in records)
    return kept | _needed(records, sorted(kept))


def _needed(records: Mapping[str, Mapping[str, Any]], runs: Sequence[str]) -> set[str]:
    """The runs that `runs` need and that are there. What those need in turn was only needed to build them."""
    return {needed for run in runs for needed in needs(records[run]) if needed in records}
