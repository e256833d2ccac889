"""The plan of a build: which stages would be reused, which would be built, and why, before anything runs.
Takes a recipe and a store, and neither locks nor writes; gives rows for people, and the artifacts when nothing is to be
built.
It compares with the last run of the recipe's name: a setting, an input or a file that changed, old value and new.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from qalam_core.corpus.sources import resolve
from qalam_core.errors import StoreError
from qalam_core.pipeline.build import STAGES, stages_in_order
from qalam_core.pipeline.ingest import Ingest
from qalam_core.pipeline.stage import Stage
from qalam_core.pipeline.tokenize import Tokenize
from qalam_core.recipe import Recipe
from qalam_core.runs import RunRecord, Runs
from qalam_core.store import Artifact, ArtifactFile, Identity, Manifest, Store

__all__ = ["Plan", "Reasons", "Row", "plan"]

_SHOWN = 60  # characters of a value


@dataclass(frozen=True)
class Row:
    """A stage, whether it is reused or built, and why it is built."""

    stage: str
    label: str
    action: Literal["reuse", "build"]
    reasons: tuple[str, ...] = ()
    digest: str = ""  # "" where it depends on the result of a stage before it


@dataclass(frozen=True)
class Plan:
    """All stages of a build, in order."""

    rows: tuple[Row, ...]
    against: str  # the run that it was compared with, "" when there is none
    artifacts: tuple[Artifact, ...] = ()  # of every stage, when all are reused

    @property
    def complete(self) -> bool:
        """Whether nothing is to be built."""
        return all(row.action == "reuse" for row in self.rows)


def plan(recipe: Recipe, store: Store) -> Plan:
    """What `build` would do. Raises the errors that the recipe and its sources cause."""
    runs = Runs(store)
    reasons = Reasons(runs, recipe.name)
    executor = _Planner(store, reasons)
    artifacts: list[Artifact] = []
    try:
        artifacts = stages_in_order(recipe, resolve(recipe.corpus.sources), runs, executor)
    except _UnknownError:  # the result of a stage that was never built is needed to go on
        seen = {row.stage for row in executor.rows}
        last = executor.rows[-1].stage
        executor.rows += [
            Row(kind.name, kind.name, "build", (f"after {last}",)) for kind in STAGES if kind.name not in seen
        ]
    found = Plan(tuple(executor.rows), reasons.against, tuple(artifacts))
    return found if found.complete else replace(found, artifacts=())


class _UnknownError(Exception):
    """Ends the plan where stages depend on the result of one that was never built."""


@dataclass
class _Planner:
    """An executor that builds nothing.

    A stage that is to be built is represented by the last run's artifact of its kind, under its new digest: what
    follows it is then known but for what only its result can say.
    """

    store: Store
    reasons: Reasons
    rows: list[Row] = field(default_factory=list)
    _new: set[str] = field(default_factory=set)  # digests of what is to be built

    def run(self, stage: Stage) -> Artifact:
        """Reuse a stage, or represent what would be built."""
        rebuilt = {name: made.stage for name, made in _artifacts_behind(stage) if made.digest in self._new}
        if not rebuilt and (artifact := self.store.find(stage.identity)) is not None:
            self.rows.append(Row(stage.name, stage.label, "reuse", (), artifact.digest))
            return artifact
        key = stage.identity.digest
        self.rows.append(
            Row(stage.name, stage.label, "build", self.reasons.why(stage, rebuilt), "" if rebuilt else key)
        )
        self._new.add(key)
        before = self.reasons.closest(stage)
        if before is None:
            return _Absent(stage.name, key, self.store.artifact_folder(stage.name, key))
        return replace(before, digest=key)

    def map(self, stages: Sequence[Stage]) -> list[Artifact]:
        """Several of them."""
        return [self.run(stage) for stage in stages]


class _Absent(Artifact):
    """An artifact that was never built: its digest is known, its result is not."""

    @property
    def manifest(self) -> Manifest:
        raise _UnknownError


def _artifacts_behind(stage: Stage) -> Iterator[tuple[str, Artifact]]:
    """The artifacts that a stage reads, or reads a file of, by the input's name."""
    for name, found in stage.inputs.items():
        made = found.artifact if isinstance(found, ArtifactFile) else found
        if isinstance(made, Artifact):
            yield name, made


class Reasons:
    """Why stages are built, compared with the last run of a recipe's name."""

    def __init__(self, runs: Runs, name: str) -> None:
        self.against, self._record = _last_run(runs, name)
        self._store = runs.store
        self._known: dict[str, list[Artifact]] = {}

    def why(self, stage: Stage, rebuilt: Mapping[str, str] = MappingProxyType({})) -> tuple[str, ...]:
        """One sentence for each difference: a setting, an input, the stage's own version.

        `rebuilt` are inputs that are not known yet, and the stages that they are waiting for.
        """
        if self._record is None:
            return ("first build",)
        before, lost = self.closest(stage), "its earlier result was deleted or damaged"
        waiting = tuple(f"{name} is built again" for name in dict.fromkeys(rebuilt.values()))
        if before is None:
            what = str(stage.file.path) if isinstance(stage, Ingest) else stage.label
            return (f"{what} is new or changed" if self._last(stage.name) else lost, *waiting)
        known = {name: found for name, found in stage.identity.inputs.items() if name not in rebuilt}
        earlier = {name: found for name, found in before.manifest.inputs.items() if name not in rebuilt}
        found = (*_changed_settings(before.manifest, stage.identity), *_changed_inputs(earlier, known), *waiting)
        if found and isinstance(stage, Ingest):
            return tuple(f"{stage.file.path}: {reason}" for reason in found)
        return found or (lost,)

    def closest(self, stage: Stage) -> Artifact | None:
        """The last run's artifact that this stage replaces, if it is still there."""
        last, inputs = self._last(stage.name), stage.identity.inputs
        if isinstance(stage, Ingest):
            # the same content, or the only file of its source
            of_source = [made for made in last if made.manifest.settings["name"] == stage.settings.name]
            same = [made for made in last if made.manifest.inputs == inputs]
            return (same or of_source)[0] if same or len(of_source) == 1 else None
        if isinstance(stage, Tokenize):
            last = [made for made in last if made.manifest.inputs["shard"] == inputs["shard"]]
        return last[0] if last else None

    def _last(self, stage: str) -> list[Artifact]:
        """The last run's artifacts of a kind, but for those that were deleted."""
        if stage not in self._known:
            keys = self._record.artifacts.get(stage, ()) if self._record else ()
            made = (Artifact(stage, key, self._store.artifact_folder(stage, key)) for key in keys)
            self._known[stage] = [artifact for artifact in made if _is_readable(artifact)]
        return self._known[stage]


def _is_readable(artifact: Artifact) -> bool:
    try:
        return artifact.manifest is not None
    except StoreError:
        return False


def _last_run(runs: Runs, name: str) -> tuple[str, RunRecord | None]:
    for run in runs.newest_of(name):
        with suppress(StoreError):  # a damaged record is no reason not to build
            return run, runs.record(run)
    return "", None


def _changed_settings(before: Manifest, now: Identity) -> Iterator[str]:
    if before.version != now.version:
        yield f"version of the stage: {before.version} -> {now.version}"
    yield from _changed_values("", before.settings, now.settings)


def _changed_values(prefix: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys((*new, *old)):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _changed_values(f"{prefix}{key}.", before, after)
        elif min(len(str(before)), len(str(after))) > _SHOWN:
            yield f"{prefix}{key} changed"
        else:
            yield f"{prefix}{key}: {_shown(before)} -> {_shown(after)}"


def _shown(value: Any) -> str:
    text = "none" if value is None else " ".join(str(value).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _changed_inputs(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    """One sentence for each kind of input: "documents: 1 new", "tokenizer: 0123456789ab -> ba9876543210"."""
    for kind in dict.fromkeys(map(_kind, (*new, *old))):
        before, after = ([found for name, found in inputs.items() if _kind(name) == kind] for inputs in (old, new))
        if before == after:
            continue
        gone, fresh = len(set(before) - set(after)), len(set(after) - set(before))
        if len(before) <= 1 and len(after) <= 1:
            yield f"{kind}: {_short(before)} -> {_short(after)}"
        elif gone or fresh:
            counts = ((fresh, "new or changed"), (gone, "gone or changed"))
            yield f"{kind}: " + ", ".join(f"{count} {what}" for count, what in counts if count)
        else:
            yield f"{kind}: in another order"


def _kind(name: str) -> str:
    return re.sub(r"-[0-9]{5}$", "", name)


def _short(digests: Sequence[str]) -> str:
    return digests[0][:12] if digests else "none"
