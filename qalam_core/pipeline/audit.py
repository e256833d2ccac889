"""Audits of a run: building it again in an empty store, and measuring its package again on the current corpus."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from qalam_core.corpus.sources import resolve
from qalam_core.errors import CorpusError, StoreError
from qalam_core.evaluation.gate import decide
from qalam_core.evaluation.results import Verdict
from qalam_core.pipeline.build import build
from qalam_core.pipeline.evaluate import Evaluate, measured
from qalam_core.progress import Progress, no_progress
from qalam_core.recipe import Recipe, Requirements
from qalam_core.runs import Promotion, RunRecord, Runs
from qalam_core.store import Artifact, Store

_MEASURED = {"tokens_per_second", "memory_mb", "mfu"}  # keys of metrics.jsonl that depend on the machine


def corpus_of(store: Store, run: str = "") -> Artifact:
    """The prepared corpus of `run`, or without a run the one that was used last. Raises StoreError."""
    if run:
        return store.artifact("prepare", Runs(store).record(run).artifacts["prepare"][0])
    last_use = store.artifacts()
    found = [name for name in last_use if re.fullmatch("prepare/[0-9a-f]{64}", name)]
    if not found:
        raise StoreError(f"{store.root}: has no prepared corpus yet; `qalam build RECIPE` makes one")
    return store.artifact(*max(found, key=lambda name: (last_use[name], name)).split("/"))


# -- reproduce ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One artifact, as recorded and as built again."""

    stage: str
    then: str  # digests; "" where there was none
    now: str
    differing: tuple[str, ...]  # files whose content differs, or that only one of the two has
    compared: bool = True  # False where the recorded artifact was garbage-collected

    @property
    def matches(self) -> bool:
        """Whether the digest is the same, and the files that can be compared."""
        return self.then == self.now and not self.differing


@dataclass(frozen=True)
class Reproduction:
    """The result of building a run again."""

    run: str
    again: str  # its id in the fresh store
    rows: tuple[Row, ...]  # every artifact in the pipeline's order, then the run folder
    notes: tuple[str, ...]  # differences between versions and machines

    @property
    def matches(self) -> bool:
        """Whether every artifact matches."""
        return all(row.matches for row in self.rows)


def reproduce(store: Store, run: str, fresh: Store, progress: Progress = no_progress) -> Reproduction:
    """Build `run`'s recorded recipe again in the empty store `fresh`, and compare artifact by artifact.

    `progress` counts training steps. Files with times (metrics.jsonl, budgets.json, verdict.json) are compared without
    them. Raises CorpusError, before anything is built, when a source of the run is missing or has changed; and
    StoreError when `fresh` is not empty or a run that the build needs was deleted.
    """
    runs, there = Runs(store), Runs(fresh)
    record = runs.record(run)
    if there.ids() or any((fresh.root / "artifacts").glob("*/*")):
        raise StoreError(f"store {fresh.root}: not empty; a run is reproduced in a store of its own")
    _check_sources(store, record, run)
    for needed in record.needed_runs():
        there.copy_from(runs, needed)
        # a parent that the recipe names need not be a champion
        if needed == record.incumbent or record.recipe.train.warm_start == "champion":
            why = f"champion when {run} was built"
            there.promote(record.recipe.name, Promotion(run=needed, when=record.created, why=why, who="reproduce"))
    published = build(record.recipe, fresh, progress)
    now = there.record(published.run)
    rows = [
        _row(store, fresh, stage, then, again)
        for stage in dict.fromkeys((*now.artifacts, *record.artifacts))
        for then, again in zip_longest(record.artifacts.get(stage, ()), now.artifacts.get(stage, ()))
    ]
    kept, built = runs.folder(run), published.folder
    names = {path.name for folder in (kept, built) for path in (folder / "model").iterdir()}
    files = ["tokenizer.json", "report.json", *(f"model/{name}" for name in sorted(names))]
    differing = tuple(name for name in files if _stable(kept / name) != _stable(built / name))
    rows.append(Row("run", run, published.run, differing))
    return Reproduction(run, published.run, tuple(rows), tuple(_circumstances(record, now)))


def _check_sources(store: Store, record: RunRecord, run: str) -> None:
    """Raise CorpusError when a source of `run` is missing or has changed."""
    try:
        files = resolve(record.recipe.corpus.sources)
    except CorpusError as error:
        raise CorpusError(f"run {run} cannot be built again, a source is missing: {error}") from None
    recorded = [store.reference("ingest", key) for key in record.artifacts["ingest"]]
    if len(files) != len(recorded):
        raise CorpusError(
            f"run {run} cannot be built again: its sources were {len(recorded)} files, and are {len(files)} now"
        )
    for file, artifact in zip(files, recorded, strict=True):
        # one that was garbage-collected is skipped: the comparison says what differs
        if artifact.exists() and (then := artifact.manifest.inputs["file"]) != file.digest:
            raise CorpusError(
                f"run {run} cannot be built again: {file.path} has changed since (its sha256 was {then[:12]}, "
                f"and is {file.digest[:12]}); restore the text of that time"
            )


def _row(store: Store, fresh: Store, stage: str, then: str | None, now: str | None) -> Row:
    if then is None or now is None:
        return Row(stage, then or "", now or "", ())
    before, after = store.reference(stage, then), fresh.reference(stage, now)
    if not before.exists():
        return Row(stage, then, now, (), compared=False)
    old, new = before.manifest.files, after.manifest.files
    changed = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return Row(stage, then, now, tuple(n for n in changed if _stable(before.path / n) != _stable(after.path / n)))


def _stable(path: Path) -> object:
    """What is compared of a file: its bytes; of a file with times, everything else; None of a missing one."""
    if not path.exists():
        return None
    content = path.read_bytes()
    if path.name == "metrics.jsonl":
        lines = map(json.loads, content.splitlines())
        return [{key: value for key, value in line.items() if key not in _MEASURED} for line in lines]
    if path.name == "budgets.json":
        return {key: value for key, value in json.loads(content).items() if key != "load_seconds"}
    if path.name == "verdict.json":
        checks = json.loads(content)["checks"]
        return [check if check["name"] != "load time" else check["limit"] for check in checks]
    return content


def _circumstances(then: RunRecord, now: RunRecord) -> list[str]:
    """Differences between the code, its dependencies and the machine."""
    flat = [{"al-qalam": record.code, **record.dependencies, **record.machine} for record in (then, now)]
    return [
        f"{name} was {flat[0].get(name, 'absent')}, and is {flat[1].get(name, 'absent')}"
        for name in sorted({*flat[0], *flat[1]}) if flat[0].get(name) != flat[1].get(name)
    ]  # fmt: skip


# -- measuring again ------------------------------------------------------------------------------


def remeasure(
    store: Store, recipe: Recipe, run: str, corpus: Artifact, tokens: Sequence[Artifact],
    progress: Progress = no_progress,
) -> Verdict:  # fmt: skip
    """Measure the package of `run` again on the test split of `corpus`, and decide by the recipe's requirements.

    `tokens` are the shards of `corpus` under the run's own tokenizer. The run's report takes the champion's place, so
    that figures on the same documents must not be worse. Nothing is kept in the store. Raises StoreError when artifacts
    of the run were deleted.
    """
    runs = Runs(store)
    record = runs.record(run)
    package, checkpoint = (store.artifact(stage, record.artifacts[stage][0]) for stage in ("export", "train"))
    # measured with the settings of the build, and decided by the current requirements
    as_built = record.recipe.model_copy(update={"gate": recipe.gate})
    stage = Evaluate.of(as_built, package, checkpoint, corpus, tokens)
    with tempfile.TemporaryDirectory(prefix=".measuring-", dir=store.root) as folder:
        # in a temporary store: a cached evaluation would detect nothing
        evaluation = Store(Path(folder)).build(stage, progress)
        return decide(*measured(evaluation), recipe.gate.narrowed(Requirements), runs.report(run))
