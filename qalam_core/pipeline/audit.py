"""Audits of a run: building it again in an empty store, and measuring its package again on the current corpus."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

from qalam_core.arabic import NORMALISATIONS
from qalam_core.corpus.exclusion import Excluded
from qalam_core.corpus.sources import resolve
from qalam_core.errors import CorpusError, RecipeError, StoreError
from qalam_core.evaluation.comparison import Champion, comparable
from qalam_core.evaluation.gate import decide
from qalam_core.evaluation.model_tests.cases import suites
from qalam_core.evaluation.results import Verdict
from qalam_core.inputs import moved, read_by
from qalam_core.pipeline.build import InPlace, Past, proposed, stages_in_order
from qalam_core.pipeline.evaluate import Evaluate, measured
from qalam_core.pipeline.export import PACKAGE
from qalam_core.pipeline.gate import Incumbent, Incumbents
from qalam_core.pipeline.keep import recorded_tokenizer
from qalam_core.pipeline.lineage import WarmStart
from qalam_core.pipeline.prepare import Documents
from qalam_core.pipeline.propose import Candidate, Propose
from qalam_core.pipeline.publish import create_run
from qalam_core.pipeline.stage import Stage
from qalam_core.pipeline.vocab import EarlierTokenizer
from qalam_core.progress import Progress, no_progress
from qalam_core.recipe import Recipe, Requirements
from qalam_core.runs import RunRecord, Runs
from qalam_core.store import Artifact, Store

_MADE = (Propose.name, "export", "train", "seen")  # what a package is measured again from
_MEASURED = {"tokens_per_second", "memory_mb", "mfu"}  # keys of metrics.jsonl that depend on the machine


def corpus_of(store: Store, run: str = "") -> Artifact:
    """The prepared corpus of `run`, or without a run the one that was used last. Raises StoreError."""
    if run:
        return store.artifact("prepare", Runs(store).record(run).artifacts["prepare"][0])
    last_use = store.artifacts()
    found = [name for name in last_use if re.fullmatch("prepare/[0-9a-f]{64}", name)]
    if not found:
        raise StoreError(f"{store.place}: has no prepared corpus yet; `qalam build RECIPE` makes one")
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
    decided: bool = True  # False of a verdict, and what depends on it, for which a run was deleted

    @property
    def matches(self) -> bool:
        """Whether the digest is the same, and the files that can be compared."""
        return (self.then == self.now or not self.decided) and not self.differing


@dataclass(frozen=True)
class Reproduction:
    """The result of building a run again."""

    run: str
    again: str  # its id in the fresh store, "" when it was not reached because an ancestor differs
    rows: tuple[Row, ...]  # every artifact in the pipeline's order, then the run folder; of each run that was built
    basis: str  # what was built again, and what was taken from the store
    notes: tuple[str, ...]  # what was not compared, and differences between versions and machines

    @property
    def matches(self) -> bool:
        """Whether it was built, and every artifact matches."""
        return bool(self.again) and all(row.matches for row in self.rows)

    @property
    def count(self) -> str:
        """ "5 of 8 match, and 3 could not be compared": of deleted artifacts the digest alone is the same."""
        same = sum(row.matches and row.compared and row.decided for row in self.rows)
        unknown = sum(not (row.compared and row.decided) for row in self.rows if row.matches)
        more = f", and {unknown} could not be compared" if unknown else ""
        return f"{same} of {len(self.rows)} match{more}"


@dataclass(frozen=True)
class AsRecorded(Past):
    """The earlier runs that a run was built with, whatever the history of champions is now."""

    runs: Runs  # of the store that has their reports
    record: RunRecord
    start: WarmStart | None
    earlier: EarlierTokenizer | None

    def warm_start(self, recipe: Recipe, documents: Documents) -> WarmStart | None:
        """The recorded parent."""
        return self.start

    def tokenizer(self, recipe: Recipe, corpus: Artifact) -> EarlierTokenizer | None:
        """The recorded one."""
        return self.earlier

    def incumbents(self, recipe: Recipe, evaluation: Artifact) -> Incumbents:
        """The recorded ones, without those that were deleted."""
        champion, *anchors = (
            Incumbent.of(self.runs, run) if run in self.runs else None
            for run in (self.record.incumbent, *self.record.anchors)
        )
        return Incumbents(champion, tuple(anchor for anchor in anchors if anchor))


@dataclass(frozen=True)
class _Again(InPlace):
    """Builds in a fresh store; `home` is the one that has what is read of earlier runs."""

    home: Store = field(kw_only=True)

    def run(self, stage: Stage) -> Artifact:
        """Build one stage."""
        read = [
            artifact if names is None else tuple(artifact.file(name) for name in sorted(names))
            for artifact, names in read_by(stage) if not artifact.path.is_relative_to(self.store.root)
        ]  # fmt: skip
        copies = {(made.stage, made.digest): made.path for made, _ in read_by(self.home.here(tuple(read)))}
        return super().run(moved(stage, copies))


def reproduce(
    store: Store, run: str, fresh: Store, progress: Progress = no_progress, lineage: bool = False
) -> Reproduction:
    """Build `run`'s recorded recipe again in the empty store `fresh`, and compare artifact by artifact.

    A warm start begins with the weights that its parent has in `store`; with `lineage`, all its ancestors are built
    again as well, oldest first, each from the one before. No recipe gives the weights of a proposal: its package and
    its corpus are taken from `store`, and it is measured again. The runs that the gate compared it with are read in
    `store`. `progress` counts training steps. Files with times (metrics.jsonl, budgets.json, verdict.json) are compared
    without them. Raises CorpusError, before anything is built, when a source of a run is missing or has changed; and
    StoreError when `fresh` is not empty or a run that the build needs was deleted.
    """
    runs, there = Runs(store), Runs(fresh)
    record = runs.record(run)
    if there.ids() or any((fresh.root / "artifacts").glob("*/*")):
        raise StoreError(f"store {fresh.root}: not empty; a run is reproduced in a store of its own")
    chain = {run: record}
    if lineage:
        ancestors = reversed(record.lineage)
        chain = {**{one.run: _ancestor(runs, run, one.run) for one in ancestors}, **chain}
    for name, one in chain.items():
        if one.proposal:
            _check_proposal(runs, one, name)
        else:
            _check_sources(store, one, name)
    if not lineage:
        _check_parent(runs, record, run)
    for name, one in chain.items():
        _check_tokenizer(runs, one, name, chain)
    rows: list[Row] = []
    notes: list[str] = []
    rebuilt: tuple[str, str] | None = None  # a run in the fresh store, and the digest of its package
    for name, one in chain.items():
        start = WarmStart.recorded(runs, one)
        if start and lineage:
            there_seen = fresh.reference("seen", start.seen.digest)
            assert rebuilt
            state = start.state and replace(start.state, artifact=_training(there, rebuilt[0]))
            same = rebuilt[1] == start.parent.package and (state is None or state.is_as_recorded())
            if not (same and there_seen.exists()):
                notes.append(f"run {start.parent.run} differs, so that run {name}, which began with it, was not built")
                return Reproduction(run, "", tuple(rows), _basis(record, len(chain) - 1), tuple(notes))
            start = replace(start, path=there.folder(rebuilt[0]) / PACKAGE, seen=there_seen, state=state)
        earlier = None if one.proposal else recorded_tokenizer(fresh, one)
        if earlier and not (earlier.file.artifact.exists() and earlier.seen.exists()):
            earlier = recorded_tokenizer(store, one)
            notes.append(f"the tokenizer that run {name} was to keep was copied from the store")
        if one.proposal:
            again, found = _measured_again(runs, name, one, there, progress)
            notes.append(f"run {name} is a proposal: its package and its corpus were copied from the store")
        else:
            again, found = _again(runs, name, one, there, start, earlier, progress)
        rebuilt = again, there.package(again).package
        rows += found
        notes += [*_deleted(runs, name, one), *_circumstances(one, there.record(again))]
    return Reproduction(run, again, tuple(rows), _basis(record, len(chain) - 1), tuple(dict.fromkeys(notes)))


def _check_parent(runs: Runs, record: RunRecord, run: str) -> None:
    """Raise StoreError when what `run` began with is not in the store."""
    if (start := WarmStart.recorded(runs, record)) is None:
        return
    needed = (
        ("run", record.parent in runs), ("the record of what was read by run", start.seen.exists()),
        ("the state of the training of run", start.state is None or start.state.artifact.exists()),
    )  # fmt: skip
    for what, there in needed:
        if not there:
            raise StoreError(
                f"run {run} cannot be built again from its parent's weights: {what} {record.parent} was deleted"
            )


def _check_proposal(runs: Runs, record: RunRecord, run: str) -> None:
    """Raise StoreError when what a proposal is measured again from is not in the store."""
    found = Candidate.recorded(runs, record)
    for what, there in (
        ("package as it was proposed", found.package.path.exists()),
        ("corpus", found.corpus is None or found.corpus.exists()),
        ("tokenizer", found.tokenizer is None or found.tokenizer.exists()),
        ("record of what it has read", found.seen is None or found.seen.exists()),
    ):
        if not there:
            raise StoreError(f"run {run} cannot be measured again: it is a proposal, whose {what} was deleted")


def _training(runs: Runs, run: str) -> Artifact:
    return runs.store.reference("train", runs.record(run).artifacts["train"][0])


def _check_tokenizer(runs: Runs, record: RunRecord, run: str, chain: Mapping[str, RunRecord]) -> None:
    """Raise StoreError when the tokenizer that `run` was to keep is neither in the store nor built again."""
    earlier = None if record.proposal else recorded_tokenizer(runs.store, record)
    if earlier and earlier.run not in chain and not (earlier.file.artifact.exists() and earlier.seen.exists()):
        raise StoreError(
            f"run {run} cannot be built again: it was to keep the tokenizer of run {earlier.run}, which was deleted"
        )


def _ancestor(runs: Runs, run: str, ancestor: str) -> RunRecord:
    if ancestor not in runs:
        raise StoreError(
            f"the lineage of run {run} cannot be built again: run {ancestor} was deleted, and its recipe with it; "
            "without --lineage, only its parent's weights are needed"
        )
    return runs.record(ancestor)


def _again(
    runs: Runs, run: str, record: RunRecord, there: Runs, start: WarmStart | None,
    earlier: EarlierTokenizer | None, progress: Progress,
) -> tuple[str, list[Row]]:  # fmt: skip
    """Build a run in the fresh store, as it was built then; -> its id there, and the comparison."""
    past = AsRecorded(runs, record, start, earlier)
    executor = _Again(there.store, progress, home=runs.store)
    artifacts = stages_in_order(record.recipe, resolve(record.recipe.corpus.sources), past, executor)
    again = create_run(there, record.recipe, artifacts)
    return again, _compared(runs, run, record, there, again)


def _measured_again(
    runs: Runs, run: str, record: RunRecord, there: Runs, progress: Progress
) -> tuple[str, list[Row]]:  # fmt: skip
    """Measure a proposal in the fresh store, as it was then; -> its id there, and the comparison."""
    found, past = Candidate.recorded(runs, record), AsRecorded(runs, record, None, None)
    artifacts = proposed(found, (), past, _Again(there.store, progress, home=runs.store))
    again = create_run(there, record.recipe, artifacts, found)
    rows = _compared(runs, run, record, there, again)
    made = {artifact.stage for artifact in artifacts if artifact.path.is_relative_to(there.store.root)}
    return again, [row for row in rows if row.stage in (*made, "run")]


def _compared(runs: Runs, run: str, record: RunRecord, there: Runs, again: str) -> list[Row]:
    """A run, and the one that was made of it in the fresh store."""
    now = there.record(again)
    decided = not _deleted(runs, run, record)
    rows = [
        _row(runs.store, there.store, stage, then, digest, decided=decided or stage != "gate")
        for stage in dict.fromkeys((*now.artifacts, *record.artifacts))
        for then, digest in zip_longest(record.artifacts.get(stage, ()), now.artifacts.get(stage, ()))
    ]
    kept, built = runs.folder(run), there.folder(again)
    names = {path.name for folder in (kept, built) for path in (folder / PACKAGE).iterdir()}
    files = ["tokenizer.json", "report.json", *(f"{PACKAGE}/{name}" for name in sorted(names))]
    differing = tuple(name for name in files if _stable(kept / name) != _stable(built / name))
    return [*rows, Row("run", run, again, differing, decided=decided)]


def _deleted(runs: Runs, run: str, record: RunRecord) -> list[str]:
    """A line when the verdict of a run cannot be decided again."""
    gone = [other for other in (record.incumbent, *record.anchors) if other and other not in runs]
    if not gone:
        return []
    more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
    return [f"the verdict of {run} is not compared: run {gone[0]}{more}, which the gate compared it with, was deleted"]


def _basis(record: RunRecord, ancestors: int) -> str:
    if record.proposal:
        return "no recipe gives the weights of a proposal: the package was measured again as it was proposed"
    if not record.parent:
        return "the model was built again from text alone"
    if ancestors:
        before = f"{ancestors} runs" if ancestors > 1 else "run"
        return f"the model was built again from text alone, with the {before} before it"
    return (
        f"its parent's weights were copied from the store (run {record.parent}), and the rest was built again from "
        "text; --lineage builds the parent again as well"
    )


def _check_sources(store: Store, record: RunRecord, run: str) -> None:
    """Raise CorpusError when a source of `run`, its list of excluded texts or a file of tests is missing or changed."""
    exclude, excluded, tests = record.recipe.corpus.exclude, None, record.recipe.tests
    try:
        files = resolve(record.recipe.corpus.sources)
        excluded = Excluded.load(Path(exclude)).digest if exclude else None
        tested = suites(tests, NORMALISATIONS[record.recipe.corpus.normalisation])
    except (CorpusError, RecipeError) as error:
        raise CorpusError(f"run {run} cannot be built again, a source is missing: {error}") from None
    recorded = [store.reference("ingest", key) for key in record.artifacts["ingest"]]
    if len(files) != len(recorded):
        raise CorpusError(
            f"run {run} cannot be built again: its sources were {len(recorded)} files, and are {len(files)} now"
        )
    read = [(str(file.path), file.digest, artifact, "file") for file, artifact in zip(files, recorded, strict=True)]
    if excluded:
        read.append((exclude, excluded, store.reference("prepare", record.artifacts["prepare"][0]), "excluded"))
    evaluation = store.reference("evaluate", record.artifacts["evaluate"][0])
    read += [(file.path, suite.digest, evaluation, f"tests-{number:05d}")
             for number, (file, suite) in enumerate(zip(tests, tested, strict=True))]  # fmt: skip
    for path, now, artifact, name in read:
        # one that was garbage-collected is skipped: the comparison says what differs
        if artifact.exists() and (then := artifact.manifest.inputs[name]) != now:
            raise CorpusError(
                f"run {run} cannot be built again: {path} has changed since (its sha256 was {then[:12]}, "
                f"and is {now[:12]}); restore what it was then"
            )


def _row(store: Store, fresh: Store, stage: str, then: str | None, now: str | None, *, decided: bool) -> Row:
    if then is None or now is None or not decided:
        return Row(stage, then or "", now or "", (), decided=decided)
    before, after = store.reference(stage, then), fresh.reference(stage, now)
    if not before.exists() or not after.exists():
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
    store = store.doubting()
    runs = Runs(store)
    record = runs.record(run)
    made = {stage: store.artifact(stage, keys[0]) for stage, keys in record.artifacts.items() if stage in _MADE}
    package = made[Propose.name if record.proposal else "export"]
    # measured with the settings of the build, and decided by the current requirements
    as_built = record.recipe.model_copy(update={"gate": recipe.gate, "tests": recipe.tests})
    tests = suites(recipe.tests, NORMALISATIONS[as_built.corpus.normalisation])
    stage = Evaluate.of(as_built, package, made.get("train"), corpus, tokens, made.get("seen"), tests)
    with tempfile.TemporaryDirectory(prefix=".measuring-", dir=store.root) as folder:
        # in a temporary store: a cached evaluation would detect nothing
        evaluation = Store(Path(folder)).build(stage, progress)
        report, budgets = measured(evaluation)
        before = runs.report(run)
        # where the two have too few documents in common, the same package would be compared with itself
        champion = Champion(before) if comparable(report, before) else None
        return decide(report, budgets, recipe.gate.narrowed(Requirements), champion, shares=recipe.shares)
