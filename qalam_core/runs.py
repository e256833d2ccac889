"""Runs, which builds publish, and champions.

Layout:
    <store>/runs/<run id>/                 run.json, tokenizer.json, model/, report.json, report.md, report.html;
                                           with a champion to compare with, review.json and review.html
    <store>/champions/<recipe name>.jsonl  one line for each promotion; the last line is the champion

A run id contains the verdict, so that one model may have several runs. What was decided about a model, its rollback or
an exception, therefore holds for every run with the same model (`model_digest`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from qalam_core.errors import DamagedError, StoreError
from qalam_core.evaluation.results import Bits, Repetition, Report, Verdict
from qalam_core.files import NOT_THERE, digest, json_object, read_bytes, sha256_bytes
from qalam_core.recipe import Frozen, Recipe, RecipeName
from qalam_core.store import Store
from qalam_core.tokens.fit import Judged

Record = TypeVar("Record", bound=Frozen)


class Parent(Frozen):
    """The run whose weights a training began with."""

    run: str
    package: str  # sha256 of the manifest of its package


class Ancestor(Frozen):
    """A run whose weights a later training began with, directly or through others."""

    run: str
    package: str  # sha256 of the manifest of its package
    corpus: str  # digest of its prepared corpus
    seen: str  # digest of the record of what it and its ancestors have read
    documents: dict[str, int]  # that it was trained on, by source
    changes: tuple[str, ...]  # of the recipe, to the run that began with it
    accepted: tuple[str, ...]  # exceptions that a person made when promoting it, with their reasons
    state: str = ""  # sha256 of its training's state, where the later training continued from that


class SeenFacts(Frozen):
    """Distinct documents by source; texts that fold to the same words are one document."""

    own: dict[str, int]  # that the training has read
    lineage: dict[str, int]  # that it or a training before it has read
    gone: dict[str, int]  # that an ancestor has read, and that are in no split of this corpus
    repetition: Repetition = Repetition()  # of this corpus and of its ancestors'


class KeptTokenizer(Frozen):
    """The champion's tokenizer that a build was to keep, and whether it did."""

    run: str
    artifact: str  # digest of its tokenizer artifact
    content: str  # sha256 of its tokenizer.json
    seen: str  # digest of the record of what the run and its ancestors have read
    judged: Judged


class SourceRead(Frozen):
    """What training read of a source, in tokens; a window of the context counts for the source where it begins."""

    tokens: int  # that the source has
    read: int


class TrainFacts(Frozen):
    """The result of a training, with the values that "auto" settings resolved to."""

    parameters: int
    steps: int
    validation_loss: float | None  # nats per token; None without a validation split
    tokens_seen: int
    epochs: float
    torch: str
    device: str
    dtype: str
    compile: str
    threads: int
    processes: int
    best_step: int | None  # the step of these weights, with early stopping
    warm_start: Parent | None
    sources: dict[str, SourceRead] = Field({})  # of the new and the drawn text, where an earlier training went on


class ProposedFacts(Frozen):
    """The size of a proposed package."""

    parameters: int
    bytes: int
    files: int


class Proposal(Frozen):
    """A package that a person edited, imported or merged, and proposed: no training of this store made its weights."""

    package: str  # sha256 of its manifest, as proposed
    why: str
    who: str
    edits: tuple[str, ...]  # as its card lists them: number, note, changes
    changes: tuple[str, ...]  # against the package of its parent, as `qalam diff` prints them
    unknown: str  # why it is not known what its model has read; "" where it has read what its parent has
    share: float = 0.0  # of the values that it and the edits before it changed, since the last training; at most that


class Built(Frozen):
    """What a build did of a stage, rather than reuse it."""

    amount: int  # bytes of text, or steps of a training; 0 for other stages
    seconds: float  # of one worker


class RunRecord(Frozen):
    """run.json: what a run was built from and with, and its result."""

    created: str  # ISO 8601, UTC
    recipe: Recipe
    artifacts: dict[str, tuple[str, ...]]  # stage -> digests, in the order of the build
    timings: dict[str, float]  # stage -> seconds
    built: dict[str, Built] = Field(default_factory=dict)  # by stage; without what was reused
    incumbent: str  # the run that the gate compared it with, "" for none
    anchors: tuple[str, ...]  # earlier champions that the gate compared it with as well
    lineage: tuple[Ancestor, ...]  # the run whose weights it began with, then that run's, and so on; () for none
    seen: SeenFacts
    tokenizer: KeptTokenizer | None = None  # None: one was trained, whatever the champion has
    proposal: Proposal | None = None  # None: it was built
    verdict: Verdict
    bits_per_byte: Bits
    package_mb: float
    parameters: int
    code: str  # version of al-qalam
    machine: dict[str, str]
    dependencies: dict[str, str]  # distribution -> version
    files: dict[str, str] = Field(default_factory=dict)  # sha256 of what is read of the run again, by RECORDED

    @property
    def parent(self) -> str:
        """The run whose weights training or an edit began with, "" for none."""
        return self.lineage[0].run if self.lineage else ""

    @property
    def origin(self) -> str:
        """What the weights come from, in a few words."""
        if self.proposal:
            return f"an edit of run {self.parent}" if self.parent else "a package that no run of this store exported"
        return f"begun from run {self.parent}" if self.parent else "from scratch"

    def needed_runs(self) -> tuple[str, ...]:
        """The runs that garbage collection keeps for a rebuild. Anchors may be hundreds, and are not kept."""
        return tuple(run for run in dict.fromkeys((self.parent, self.incumbent)) if run)


class Name(BaseModel):
    """The part of a recipe by which champions are recorded."""

    name: RecipeName


class Files(Frozen, extra="ignore"):
    """The part of run.json by which a run's other files are checked."""

    files: dict[str, str] = Field(default_factory=dict)


class Why(Frozen, extra="ignore"):
    """The part of a proposal that lists of runs show."""

    why: str
    who: str


class Summary(Frozen, extra="ignore"):
    """The part of run.json that lists of runs show; a lineage of years is skipped, not read."""

    created: AwareDatetime
    recipe: Name
    verdict: Verdict
    bits_per_byte: Bits
    package_mb: float
    parameters: int
    proposal: Why | None = None


class Promotion(Frozen):
    """One line of the history of a recipe name's champions."""

    run: str
    model: str  # its model_digest
    when: str  # ISO 8601, UTC
    why: str
    who: str
    action: Literal["promote", "rollback"] = "promote"
    accepted: tuple[str, ...] = ()  # exceptions that a person made, as `exceptions` names them
    undone: str = ""  # of a rollback: the model_digest of the champion before it

    def __str__(self) -> str:
        return f"on {self.when[:10]} by {self.who}: {self.why}"


State = Literal["champion", "passed", "waiting", "refused", "accepted", "rolled-back"]
"""What may hold for a run now. One that the gate did not pass is refused, or waits until a person promotes it; it is
accepted once a person has promoted it. A champion may be replaced, or rolled back."""

_LIMIT = 1 << 30  # bytes of a file of a run that is read at once

_MANIFEST = "model/manifest.json"
RECORDED = (_MANIFEST, "report.json")
"""Files of a run whose sha256 is in run.json: its figures and what is decided about it are those of the model that was
measured. The manifest has the digests of all other files of the package."""

ACCEPTABLE = {"yardstick": "new-yardstick", "gate settings": "looser-gate", "lineage": "unknown-lineage"}
"""Check -> the exception for a model that failed it. These checks find no fault: they say that a person must judge."""


def exceptions(verdict: Verdict) -> dict[str, tuple[str, ...]]:
    """The exceptions that promoting a model with this verdict needs -> the names of the checks that failed.

    Where every exception is of ACCEPTABLE, the model waits for a person; "refused" is that of all other checks.
    """
    if not verdict.failed() and not verdict.passed:
        return {"refused": ()}
    needed: dict[str, tuple[str, ...]] = {}
    for name in verdict.failed():
        exception = ACCEPTABLE.get(name, "refused")
        needed[exception] = (*needed.get(exception, ()), name)
    return needed


def states(verdicts: Mapping[str, Verdict], promotions: Sequence[Promotion]) -> dict[str, list[State]]:
    """Run -> what holds for it now, for runs of one recipe name and the history of its champions."""
    undone, champion = _undone(promotions), promotions[-1].run if promotions else None
    rolled_back = {line.run for line in promotions if line.model in undone}
    promoted = {line.run for line in promotions}
    found: dict[str, list[State]] = {}
    for run, verdict in verdicts.items():
        needed = exceptions(verdict)
        holds: dict[State, bool] = {
            "champion": run == champion,
            "passed": verdict.passed,
            "waiting": bool(needed) and "refused" not in needed and run not in promoted,
            "refused": "refused" in needed,
            "accepted": bool(needed) and run in promoted,
            "rolled-back": run in rolled_back,
        }
        found[run] = [state for state, is_so in holds.items() if is_so]
    return found


def outcome(verdict: Verdict, states: Sequence[State]) -> str:
    """What the gate and people decided, in a few words, with the names of the checks that failed."""
    decided = next(state for state in ("accepted", "waiting", "refused", "passed") if state in states)
    failed = f": {', '.join(verdict.failed())}" if verdict.failed() else ""
    return decided + failed + (", rolled back" if "rolled-back" in states else "")


def model_digest(package: Path) -> str:
    """Digest of what a package's model is, as its manifest says: configuration, vocabulary and tensors.

    Not of its card and code: a card has figures, and code changes with a release. Raises DamagedError, and OSError when
    it cannot be read.
    """
    file = package / "manifest.json"
    try:
        manifest = json_object(read_bytes(file))
        files = {name: manifest["files"][name] for name in ("config.py", "vocab.py")}
        return digest({"files": files, "tensors": manifest["tensors"]})
    except (*NOT_THERE, ValueError, KeyError, TypeError):
        raise _missing(file) from None


class Runs:
    """The runs and champions of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @staticmethod
    def run_id(name: str, key: str) -> str:
        """The id of the run of recipe `name` whose artifacts have the digest `key`."""
        return f"{name}-{key[:12]}"

    def publish(self, run: str, fill: Callable[[Path], object]) -> None:
        """Create a run, whose files `fill` writes into a folder; does nothing when the run exists.

        A run is complete or absent.
        """
        self.store.publish_run(run, fill)

    def copy_from(self, other: Runs, run: str) -> None:
        """Copy a run from another store; does nothing when it exists here."""
        folder = other.folder(run)
        self.publish(run, lambda partial: shutil.copytree(folder, partial, dirs_exist_ok=True))

    def delete(self, run: str) -> None:
        """Delete a run; its artifacts and the history of champions are kept."""
        self.folder(run)
        self.store.delete_run(run)

    def __contains__(self, run: str) -> bool:
        with self.store.disk_errors():
            plain = bool(run) and Path(run).name == run and run[0] != "."
            return plain and self.store.run_file(run, "run.json").is_file()

    def folder(self, run: str) -> Path:
        """The folder of a run. Raises DamagedError when there is no run of that id."""
        if run not in self:
            raise DamagedError(f"run {run!r} is not in {self.store.place}; `qalam runs` lists those that are")
        with self.store.disk_errors():
            return self.store.run_file(run)

    def record(self, run: str) -> RunRecord:
        """run.json of a run. Raises StoreError."""
        return _parsed(RunRecord, self._content(run, "run.json"), f"{self.store.place}/runs/{run}/run.json")

    def report(self, run: str) -> Report:
        """report.json of a run. Raises StoreError."""
        try:
            return Report.model_validate_json(self._content(run, "report.json"))
        except ValidationError:
            raise _missing(self.store.run_file(run, "report.json")) from None

    def package(self, run: str) -> Parent:
        """A run and the digest of its package, as recorded by a training that begins with its weights."""
        return Parent(run=run, package=sha256_bytes(self._content(run, _MANIFEST)))

    def package_folder(self, run: str) -> Path:
        """The folder of a run's package. Raises DamagedError when it is not the one that was published."""
        self.package(run)
        return self.folder(run) / "model"

    def _content(self, run: str, name: str) -> bytes:
        """A file of a run. Raises DamagedError when it is no file, or has changed since the run was published, and
        StoreError when it cannot be read."""
        content = self._read(run, name)
        if name in RECORDED:
            try:
                recorded = Files.model_validate_json(self._read(run, "run.json")).files.get(name)
            except ValidationError:
                raise DamagedError(_damaged(f"{self.store.place}/runs/{run}/run.json")) from None
            if recorded and recorded != sha256_bytes(content):
                raise DamagedError(
                    f"{self.store.run_file(run, name)}: changed since the run was published, so that what was measured "
                    "does not hold for it; restore it from a copy, or delete the run (an edit is made in a copy of the "
                    "package, and proposed)"
                )
        return content

    def _read(self, run: str, name: str) -> bytes:
        if run not in self:
            self.folder(run)
        with self.store.disk_errors():
            file = self.store.run_file(run, name)
            try:
                return read_bytes(file, _LIMIT)
            except (*NOT_THERE, ValueError):
                raise _missing(file) from None

    def ids(self) -> list[str]:
        """Ids of all runs, oldest first."""
        return list(self.records())

    def records(self) -> dict[str, RunRecord]:
        """Id -> record of all runs, oldest first."""
        with self.store.disk_errors():
            found = [(run, self.record(run)) for run in self.store.run_names()]
        return dict(sorted(found, key=lambda pair: (pair[1].created, pair[0])))

    def summaries(self, name: str = "") -> dict[str, Summary]:
        """Id -> summary of all runs, or of those of recipe `name`, oldest first. Raises StoreError."""
        found = []
        with self.store.disk_errors():
            for run in self.store.run_names():
                path = self.store.run_file(run, "run.json")
                with suppress(*NOT_THERE):  # deleted meanwhile by garbage collection, or no run
                    try:
                        summary = Summary.model_validate_json(path.read_bytes())
                    except ValidationError:
                        raise DamagedError(_damaged(str(path))) from None
                    if name in ("", summary.recipe.name):
                        found.append((run, summary))
        return dict(sorted(found, key=lambda pair: (pair[1].created, pair[0])))

    def states(self, summaries: Mapping[str, Summary]) -> dict[str, list[State]]:
        """Run -> what holds for it now."""
        found: dict[str, list[State]] = {}
        for name in dict.fromkeys(summary.recipe.name for summary in summaries.values()):
            verdicts = {run: summary.verdict for run, summary in summaries.items() if summary.recipe.name == name}
            found |= states(verdicts, self.promotions(name))
        return found

    def newest_of(self, name: str) -> list[str]:
        """Ids of the runs of recipe `name`, newest first by modification time; no record is read."""
        found = []
        with self.store.disk_errors():
            for run in self.store.run_names():
                with suppress(*NOT_THERE):  # deleted meanwhile by garbage collection, or no run
                    if run.startswith(f"{name}-") and run[len(name) + 1 :].isalnum():
                        found.append((-self.store.last_change(run), run))
        return [run for _, run in sorted(found)]

    def promotions(self, name: str) -> list[Promotion]:
        """The promotions under recipe name `name`, oldest first; the last one is the champion."""
        with self.store.disk_errors("publish"):
            return self._promotions(name, self.store.history(name))

    def _promotions(self, name: str, history: bytes) -> list[Promotion]:
        place = f"{self.store.place}/champions/{name}.jsonl"
        lines = enumerate(history.splitlines(), 1)
        return [_parsed(Promotion, line, f"{place}:{number}") for number, line in lines]

    def champion(self, name: str) -> str | None:
        """Run id of the champion under `name`."""
        promotions = self.promotions(name)
        return promotions[-1].run if promotions else None

    def champions(self, name: str) -> Iterator[tuple[str, RunRecord]]:
        """The champions under `name` that were not rolled back, newest first, with their records.

        Deleted ones are skipped. Raises StoreError when the current one was deleted.
        """
        for number, promotion in enumerate(reversed(_in_force(self.promotions(name)))):
            if number == 0 or promotion.run in self:
                yield promotion.run, self.record(promotion.run)

    def model(self, run: str) -> str:
        """The digest of a run's model. Raises StoreError."""
        self.package(run)  # as it was published
        with self.store.disk_errors():
            return model_digest(self.store.run_file(run, _MANIFEST).parent)

    def rolled_back(self, name: str, model: str) -> Promotion | None:
        """The rollback from a model under `name`, unless a person has promoted it again since."""
        return _undone(self.promotions(name)).get(model)

    def exceptions(self, run: str) -> dict[str, str]:
        """The exceptions that a person makes by promoting `run` -> why each is needed."""
        record = self.record(run)
        needed = {
            name: f"it failed: {', '.join(checks) or 'the gate'}" for name, checks in exceptions(record.verdict).items()
        }
        if undone := self.rolled_back(record.recipe.name, self.model(run)):
            needed["rolled-back"] = f"it was rolled back {undone}"
        return needed

    def accepted(self, run: str) -> tuple[str, ...]:
        """The exceptions that were made for the model of `run`, each with its reason."""
        record, model = self.record(run), self.model(run)
        lines = [line for line in self.promotions(record.recipe.name) if line.model == model]
        found = dict.fromkeys(f"{what}: {line.why}" for line in lines for what in line.accepted)
        if not lines and not record.verdict.passed:
            return ("the gate did not pass it, and nobody promoted it",)
        return tuple(found)

    def promote(
        self, name: str, run: str, *, when: str, why: str, who: str, accepted: Sequence[str] = ()
    ) -> None:  # fmt: skip
        """Make a run the champion under `name`, by one more line of the history; does nothing when it is already."""
        promotion = Promotion(run=run, model=self.model(run), when=when, why=why, who=who, accepted=tuple(accepted))
        self._decide(name, lambda earlier: None if earlier and earlier[-1].run == run else promotion)

    def offer(self, name: str, run: str, when: str) -> str:
        """Make a run that passed the gate the champion under `name`; -> "", or why a person must do so.

        A model that was rolled back, or was champion before and is not now, does not return by itself, and one that was
        compared with another champion than the present one (two builds at once) has to be compared with this one. Of a
        model that is the champion, a new run with another package (its card's figures, its code) takes the place of the
        one that was promoted; an earlier run, and one whose package is the champion's byte for byte, do not.
        """
        record = self.record(run)
        proposal = record.proposal
        why = f"passed the gate, proposed by {proposal.who}: {proposal.why}" if proposal else "passed the gate"
        promotion = Promotion(run=run, model=self.model(run), when=when, why=why, who="gate")
        obstacle = ""

        def decide(earlier: Sequence[Promotion]) -> Promotion | None:
            nonlocal obstacle
            before, obstacle = [line for line in earlier if line.model == promotion.model], ""
            if before and before[-1] != earlier[-1]:
                undone = _undone(earlier).get(promotion.model)
                obstacle = f"rolled back {undone}" if undone else f"it was champion before, promoted {before[-1]}"
                return None
            champion = earlier[-1].run if earlier else ""
            if champion != record.incumbent and not before:
                against = record.incumbent or "no champion"
                obstacle = (
                    f"it was compared with {against}, and {champion or 'none'} is champion now; the same command "
                    "again compares it with that"
                )
                return None
            same = champion in self and self.package(champion).package == self.package(run).package
            return None if same or run in [line.run for line in before] else promotion

        self._decide(name, decide)
        return obstacle

    def repeated(self, name: str) -> dict[str, str]:
        """Run of recipe `name` that was never promoted -> the promoted run whose package is the same, byte for byte."""
        promoted = {line.run for line in self.promotions(name) if line.run in self}
        packages = {self.package(run).package: run for run in sorted(promoted)}
        found = {run: packages.get(self.package(run).package) for run in self.newest_of(name) if run not in promoted}
        return {run: champion for run, champion in found.items() if champion}

    def rollback(self, name: str, when: str, why: str, who: str) -> str:
        """Return to the champion under `name` before the current one, by one more line; -> its run.

        Runs that were deleted, and champions with the same model or one that was rolled back, are skipped. Raises
        StoreError when there is no earlier champion.
        """
        target = ""

        def decide(promotions: Sequence[Promotion]) -> Promotion:
            nonlocal target
            if not promotions:
                raise StoreError(f"{name!r} has no champion in {self.store.place}; `qalam runs` lists the runs")
            champion, before = promotions[-1], self._before(promotions)
            if before is None:
                raise StoreError(
                    f"{champion.run} is the first champion of {name} that still exists and was not rolled back; "
                    "nothing came before it"
                )
            target = before.run
            line = {"when": when, "why": why, "who": who, "action": "rollback", "undone": champion.model}
            return Promotion.model_validate({"run": before.run, "model": before.model, **line})

        self._decide(name, decide)
        return target

    def rollback_target(self, name: str) -> str | None:
        """The run that a rollback of `name` would make champion."""
        before = self._before(self.promotions(name))
        return before.run if before else None

    def _before(self, promotions: Sequence[Promotion]) -> Promotion | None:
        """The newest champion in force with another model than the current one."""
        found = (line for line in reversed(_in_force(promotions)) if line.model != promotions[-1].model)
        return next((line for line in found if line.run in self), None)

    def _decide(self, name: str, decide: Callable[[Sequence[Promotion]], Promotion | None]) -> None:
        """Add the line that `decide` returns for the history so far; again where another machine adds one meanwhile."""
        with self.store.disk_errors("publish"), self.store.locked(f"champion-{name}"):
            while line := decide(self._promotions(name, earlier := self.store.history(name))):
                added = json.dumps(line.canonical(), ensure_ascii=False, sort_keys=True) + "\n"
                # the whole, not an append: on a full disk that could leave part of a line, which builds would refuse
                if self.store.replace_history(name, earlier, earlier + added.encode()):
                    return


def _undone(promotions: Sequence[Promotion]) -> dict[str, Promotion]:
    """Model -> the rollback from it; without models that a person promoted again since."""
    found: dict[str, Promotion] = {}
    for promotion in promotions:
        if promotion.action == "rollback":
            found[promotion.undone] = promotion
        else:
            found.pop(promotion.model, None)
    return found


def _in_force(promotions: Sequence[Promotion]) -> list[Promotion]:
    """The promotions that no rollback has undone, oldest first; the last one is of the champion."""
    found: list[Promotion] = []
    for promotion in promotions:
        if promotion.action == "rollback":
            while found and found[-1].run != promotion.run:
                found.pop()
        if promotion.action == "promote" or not found:
            found.append(promotion)
    undone = _undone(promotions)  # another run of the same model may be among them
    return [promotion for promotion in found if promotion.model not in undone]


def _missing(file: Path) -> DamagedError:
    return DamagedError(f"{file}: missing or damaged; restore it from a copy, or delete the run")


def _parsed(kind: type[Record], content: bytes, place: str) -> Record:
    """A record from its JSON. Raises DamagedError, with `place`."""
    try:
        return kind.model_validate(json_object(content))
    except ValueError:  # ValidationError too, whose message has many lines
        raise DamagedError(_damaged(place)) from None


def _damaged(place: str) -> str:
    return f"{place}: damaged, or written by another release; restore it from a copy, or use another store"
