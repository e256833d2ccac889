"""The plan of a build: which stages are reused, which are built, why, and how long that takes, before anything runs; it
writes nothing.

The reasons compare with the last run of the recipe's name: which setting, input or file changed, old value -> new.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from qalam_core.corpus.sources import resolve
from qalam_core.errors import DamagedError
from qalam_core.pipeline.build import STAGES, Executor, History, stages_in_order
from qalam_core.pipeline.estimate import Work, continued_steps, kept_share, last_records, work
from qalam_core.pipeline.filter import Filter
from qalam_core.pipeline.fingerprint import Fingerprint
from qalam_core.pipeline.fold import Fold
from qalam_core.pipeline.ingest import Ingest
from qalam_core.pipeline.lineage import changed_values
from qalam_core.pipeline.match import Match
from qalam_core.pipeline.prepare import Prepare
from qalam_core.pipeline.stage import Stage, text_bytes
from qalam_core.pipeline.tokenize import Tokenize
from qalam_core.pipeline.train import Train
from qalam_core.pipeline.vocab import Vocab
from qalam_core.recipe import Recipe
from qalam_core.runs import RunRecord, Runs
from qalam_core.store import Artifact, ArtifactFile, Manifest, Store


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
    against: str  # the run that it was compared with, "" for none
    work: tuple[Work, ...]  # of the stages that are to be built

    @property
    def complete(self) -> bool:
        """Whether nothing is to be built."""
        return all(row.action == "reuse" for row in self.rows)

    @property
    def seconds(self) -> float | None:
        """What all the work takes one worker; None where no recent run has done a part of it."""
        seconds = [part.seconds for part in self.work if part.seconds is not None]
        return sum(seconds) if len(seconds) == len(self.work) else None


def plan(recipe: Recipe, store: Store) -> Plan:
    """What `build` would do. Raises the errors that the recipe and its sources cause."""
    store = store.manifests()
    runs = Runs(store)
    reasons = Reasons(runs, recipe.name)
    planner = _Planner(store, reasons)
    try:
        stages_in_order(recipe, resolve(recipe.corpus.sources, store.digests), History(runs), planner)
    except _UnknownError:
        after = f"after {planner.rows[-1].stage}"
        names = [kind.name for kind in STAGES]
        rest = names[names.index(planner.rows[-1].stage) + 1 :]
        planner.rows += [Row(name, name, "build", (after,)) for name in rest]
    stages = dict.fromkeys(row.stage for row in planner.rows if row.action == "build")
    amounts = {Train.name: recipe.train.steps, **planner.amounts}
    records = last_records(runs, recipe.name) if stages else []
    kept, new = kept_share(runs, records), amounts.get(Ingest.name, 0)  # about as much of the text is kept as before
    if Prepare.name in stages:  # its shards are not known
        amounts[Tokenize.name] = round(kept * (new if planner.keeps_tokenizer else sum(planner.texts.values())))
    if Train.name in stages and recipe.train.start == "continue" and planner.continues:
        amounts[Train.name] = continued_steps(runs, records, recipe, kept * new)
    return Plan(tuple(planner.rows), reasons.against, work(stages, amounts, records))


class _UnknownError(Exception):
    """The next stages depend on the result of a stage that was never built."""


class _Absent(Artifact):
    """An artifact that was never built: its digest is known, its result is not."""

    @property
    def manifest(self) -> Manifest:
        raise _UnknownError


@dataclass
class _Planner(Executor):
    """An executor that builds nothing.

    A stage that is to be built is represented by the last run's artifact of its kind under its new digest, so that the
    stages after it are known except for what depends on its result.
    """

    store: Store
    reasons: Reasons
    rows: list[Row] = field(default_factory=list)
    texts: dict[str, int] = field(default_factory=dict)  # bytes of each source file, by the digest of its documents
    amounts: Counter[str] = field(default_factory=Counter)  # of stages in UNITS that are to be built
    keeps_tokenizer: bool = False
    continues: bool = True  # False where training takes weights alone, such as those of an edit
    _new: dict[str, str] = field(default_factory=dict)  # digest -> stage, of what is to be built

    def run(self, stage: Stage) -> Artifact:
        """Reuse the artifact of a stage, or represent the one that would be built."""
        return self.map([stage])[0]

    def map(self, stages: Sequence[Stage]) -> list[Artifact]:
        """The same of several."""
        return list(map(self._represented, stages, self.store.at_once(self._found, stages)))

    def _found(self, stage: Stage) -> Artifact | None:
        return None if self._rebuilt(stage) else self.store.find(stage.identity)

    def _rebuilt(self, stage: Stage) -> dict[str, str]:
        """Its inputs that are to be built, and the stages that will."""
        inputs = {
            name: found.artifact if isinstance(found, ArtifactFile) else found for name, found in stage.inputs.items()
        }
        return {name: self._new[made.digest] for name, made in inputs.items() if made.digest in self._new}

    def _represented(self, stage: Stage, artifact: Artifact | None) -> Artifact:
        if artifact is not None:
            self.rows.append(Row(stage.name, stage.label, "reuse", (), artifact.digest))
            if isinstance(stage, Ingest):
                self.texts[artifact.digest] = text_bytes(artifact)
            return artifact
        if isinstance(stage, Train):
            self.continues = stage.settings.continuing is not None
        rebuilt = self._rebuilt(stage)
        key, why = stage.identity.digest, self.reasons.why(stage, rebuilt)
        self.rows.append(Row(stage.name, stage.label, "build", why, "" if rebuilt else key))
        if isinstance(stage, Ingest):
            self.texts[key] = stage.file.size
        self.amounts[stage.name] += self._amount(stage)
        if isinstance(stage, Vocab) and stage.earlier:  # probably it has the same content
            self.keeps_tokenizer = True
            return replace(stage.earlier.artifact, digest=key).with_manifest(stage.earlier.artifact.manifest)
        self._new[key] = stage.name
        before = self.reasons.closest(stage)
        if before is None or before.manifest.version != stage.version:  # the facts of other versions may differ
            return _Absent(stage.name, key, self.store.artifact_folder(stage.name, key))
        return replace(before, digest=key).with_manifest(before.manifest)

    def _amount(self, stage: Stage) -> int:
        if isinstance(stage, Ingest):
            return stage.file.size
        if isinstance(stage, Filter):
            return sum(self.texts[made.digest] for made in stage.documents)
        if isinstance(stage, Tokenize):
            return stage.shard.artifact.manifest.files[stage.shard.name].bytes
        return stage.settings.optimisation.steps if isinstance(stage, Train) else 0


_OF_EARLIER = ("keep", "earlier:", "seen:")  # settings and inputs of Vocab, of which one reason says more


class Reasons:
    """Why stages are built, compared with the last run of a recipe's name."""

    def __init__(self, runs: Runs, name: str) -> None:
        self.against, self._record = _last_run(runs, name)
        self._store = runs.store
        self._known: dict[str, list[Artifact]] = {}

    def why(self, stage: Stage, rebuilt: Mapping[str, str] = MappingProxyType({})) -> tuple[str, ...]:
        """One reason for each difference: the stage's version, a setting, an input.

        `rebuilt` are the inputs that are not known yet, with the stages that will build them.
        """
        if self._record is None:
            return ("first build",)
        before, lost = self.closest(stage), "its earlier result was deleted or damaged"
        waiting = tuple(f"{name} is built again" for name in dict.fromkeys(rebuilt.values()))
        if before is None:
            what = str(stage.file.path) if isinstance(stage, Ingest) else stage.label
            return (f"{what} is new or changed" if self._last(stage.name) else lost, *waiting)
        old, new = before.manifest, stage.identity
        version = () if old.version == new.version else (f"version of the stage: {old.version} -> {new.version}",)
        unknown = {_kind(name) for name in rebuilt}
        inputs = (
            {name: digest for name, digest in of.inputs.items() if _kind(name) not in unknown} for of in (old, new)
        )
        found = (*version, *changed_values(old.settings, new.settings), *_changed_inputs(*inputs), *waiting)
        if isinstance(stage, Vocab) and stage.earlier and stage.settings.keep:
            limit = f"{stage.settings.keep.limit:.1%} more tokens per byte"
            kept = f"keeps the tokenizer of run {stage.run_of_earlier}, unless its new text takes over {limit}"
            return (*(each for each in found if not each.startswith(_OF_EARLIER)), kept)
        if found and isinstance(stage, Ingest):
            return tuple(f"{stage.file.path}: {reason}" for reason in found)
        return found or (lost,)

    def closest(self, stage: Stage) -> Artifact | None:
        """The last run's artifact that this stage replaces, unless it was deleted."""
        last, inputs = self._last(stage.name), stage.identity.inputs
        if isinstance(stage, Ingest):
            # the same content, or the only file of its source
            of_source = [made for made in last if made.manifest.settings.get("name") == stage.settings.name]
            same = [made for made in last if made.manifest.inputs == inputs]
            return (same or of_source)[0] if same or len(of_source) == 1 else None
        if isinstance(stage, Filter):
            shared = [len(set(made.manifest.inputs.values()) & set(inputs.values())) for made in last]
            last = [last[shared.index(max(shared))]] if any(shared) or len(last) == 1 else []
        if isinstance(stage, Match):
            number = stage.settings.partition
            last = [made for made in last if made.manifest.settings["partition"] == number]
        if isinstance(stage, (Fold, Tokenize, Fingerprint)):
            part = "documents" if isinstance(stage, Fold) else "shard"
            last = [made for made in last if made.manifest.inputs.get(part) == inputs[part]]
        return last[0] if last else None

    def _last(self, stage: str) -> list[Artifact]:
        """The last run's artifacts of a kind, without deleted and damaged ones."""
        if stage not in self._known:
            keys = self._record.artifacts.get(stage, ()) if self._record else ()
            found = []
            for artifact in self._store.at_once(lambda key: self._store.reference(stage, key), keys):
                with suppress(DamagedError):
                    found.append(artifact.with_manifest(artifact.manifest))
            self._known[stage] = found  # complete, because the threads of a mapped task ask at the same time
        return self._known[stage]


def _last_run(runs: Runs, name: str) -> tuple[str, RunRecord | None]:
    for run in runs.newest_of(name):
        with suppress(DamagedError):  # a damaged record must not prevent a build
            if not (record := runs.record(run)).proposal:
                return run, record
    return "", None


def _changed_inputs(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    """One reason for each kind of input: "documents: 1 new", "tokenizer: 0123456789ab -> ba9876543210"."""
    old_kinds, new_kinds = _by_kind(old), _by_kind(new)
    for kind in dict.fromkeys((*new_kinds, *old_kinds)):
        before, after = old_kinds.get(kind, []), new_kinds.get(kind, [])
        if before == after:
            continue
        gone, fresh = len(set(before) - set(after)), len(set(after) - set(before))
        if len(before) <= 1 and len(after) <= 1:
            yield f"{kind}: {''.join(before)[:12] or 'none'} -> {''.join(after)[:12] or 'none'}"
        elif gone or fresh:
            counts = ((fresh, "new or changed"), (gone, "gone or changed"))
            yield f"{kind}: " + ", ".join(f"{count} {what}" for count, what in counts if count)
        else:
            yield f"{kind}: in another order"


def _by_kind(inputs: Mapping[str, str]) -> dict[str, list[str]]:
    """Digests, grouped by the name of their input without its number."""
    kinds: dict[str, list[str]] = {}
    for name, found in inputs.items():
        kinds.setdefault(_kind(name), []).append(found)
    return kinds


def _kind(name: str) -> str:
    return re.sub(r"-[0-9]{5}$", "", name)
