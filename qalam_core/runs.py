"""Runs, which builds publish, and champions.

Layout:
    <store>/runs/<run id>/                 run.json, tokenizer.json, model/, report.json, report.md, report.html
    <store>/champions/<recipe name>.jsonl  one line for each promotion; the last line is the champion
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from qalam_core.errors import StoreError
from qalam_core.evaluation.results import Bits, Report, Verdict
from qalam_core.files import json_object, read_bytes, replace_file, sha256_file, sync
from qalam_core.recipe import Frozen, Recipe
from qalam_core.store import Store, delete_folder

Record = TypeVar("Record", bound=Frozen)


class Parent(Frozen):
    """The run whose weights a training began with."""

    run: str
    package: str  # sha256 of the manifest of its package


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


class RunRecord(Frozen):
    """run.json: what a run was built from and with, and its result."""

    created: str  # ISO 8601, UTC
    recipe: Recipe
    artifacts: dict[str, tuple[str, ...]]  # stage -> digests, in the order of the build
    timings: dict[str, float]  # stage -> seconds
    incumbent: str  # the run that the gate compared it with, "" for none
    parent: str  # the run whose weights training began with, "" for none
    verdict: Verdict
    bits_per_byte: Bits
    package_mb: float
    parameters: int
    code: str  # version of al-qalam
    machine: dict[str, str]
    dependencies: dict[str, str]  # distribution -> version

    def needed_runs(self) -> tuple[str, ...]:
        """The runs that a rebuild reads; garbage collection keeps them."""
        return tuple(run for run in dict.fromkeys((self.parent, self.incumbent)) if run)


class Promotion(Frozen):
    """One line of the history of a recipe name's champions."""

    run: str
    when: str  # ISO 8601, UTC
    why: str
    who: str = "unknown"
    action: Literal["promote", "rollback"] = "promote"


class Runs:
    """The runs and champions of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._home = store.root / "runs"

    @staticmethod
    def run_id(name: str, key: str) -> str:
        """The id of the run of recipe `name` whose artifacts have the digest `key`."""
        return f"{name}-{key[:12]}"

    def publish(self, run: str, fill: Callable[[Path], object]) -> None:
        """Create a run, whose files `fill` writes into a folder; does nothing when the run exists.

        The folder is renamed when it is complete, so that a run is complete or absent.
        """
        home = self._home / run
        with self.store.disk_errors("publish"), self.store.locked(run):
            if home.exists():
                return
            partial = self._home / f".{run}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            fill(partial)
            for path in sorted(partial.rglob("*")):
                if path.is_file():
                    sync(path)
            partial.rename(home)
            sync(home.parent)

    def copy_from(self, other: Runs, run: str) -> None:
        """Copy a run from another store; does nothing when it exists here."""
        folder = other.folder(run)
        self.publish(run, lambda partial: shutil.copytree(folder, partial, dirs_exist_ok=True))

    def delete(self, run: str) -> None:
        """Delete a run; its artifacts and the history of champions are kept."""
        folder = self.folder(run)
        with self.store.disk_errors("gc"), self.store.locked(run):
            delete_folder(folder)

    def __contains__(self, run: str) -> bool:
        return bool(run) and Path(run).name == run and (self._home / run / "run.json").is_file()

    def folder(self, run: str) -> Path:
        """The folder of a run. Raises StoreError when there is no run of that id."""
        if run not in self:
            raise StoreError(f"run {run!r} is not in {self.store.root}; `qalam runs` lists those that are")
        return self._home / run

    def record(self, run: str) -> RunRecord:
        """run.json of a run. Raises StoreError."""
        file = self.folder(run) / "run.json"
        return _parsed(RunRecord, read_bytes(file), str(file))

    def report(self, run: str) -> Report:
        """report.json of a run. Raises StoreError."""
        file = self.folder(run) / "report.json"
        try:
            return Report.model_validate_json(file.read_bytes())
        except (FileNotFoundError, ValidationError):
            raise StoreError(f"{file}: missing or damaged; restore it from a copy, or delete the run") from None

    def package(self, run: str) -> Parent:
        """A run and the digest of its package, as recorded by a training that begins with its weights."""
        return Parent(run=run, package=sha256_file(self.folder(run) / "model" / "manifest.json"))

    def ids(self) -> list[str]:
        """Ids of all runs, oldest first."""
        return list(self.records())

    def records(self) -> dict[str, RunRecord]:
        """Id -> record of all runs, oldest first."""
        found = [(path.parent.name, self.record(path.parent.name)) for path in self._home.glob("[!.]*/run.json")]
        return dict(sorted(found, key=lambda pair: (pair[1].created, pair[0])))

    def newest_of(self, name: str) -> list[str]:
        """Ids of the runs of recipe `name`, newest first by modification time; no record is read."""
        found = []
        for path in self._home.glob(f"{name}-*/run.json"):
            with suppress(FileNotFoundError):  # deleted meanwhile by garbage collection
                if path.parent.name[len(name) + 1 :].isalnum():
                    found.append((-path.stat().st_mtime_ns, path.parent.name))
        return [run for _, run in sorted(found)]

    def promotions(self, name: str) -> list[Promotion]:
        """The promotions under recipe name `name`, oldest first; the last one is the champion."""
        file = self._history(name)
        with self.store.disk_errors("publish"):
            try:
                lines = file.read_bytes().splitlines()
            except FileNotFoundError:
                return []
        return [_parsed(Promotion, line, f"{file}:{number}") for number, line in enumerate(lines, 1)]

    def champion(self, name: str) -> str | None:
        """Run id of the champion under `name`."""
        promotions = self.promotions(name)
        return promotions[-1].run if promotions else None

    def champions(self, name: str) -> Iterator[tuple[str, RunRecord]]:
        """The champions under `name`, newest first, with their records; deleted ones are skipped.

        Raises StoreError when the current one was deleted.
        """
        for number, promotion in enumerate(reversed(self.promotions(name))):
            if number == 0 or promotion.run in self:
                yield promotion.run, self.record(promotion.run)

    def promote(self, name: str, promotion: Promotion) -> None:
        """Make a run the champion under `name`, by one more line of the history; does nothing when it is already."""
        self.folder(promotion.run)
        with self.store.disk_errors("publish"), self.store.locked(f"champion-{name}"):
            if self.champion(name) == promotion.run:
                return
            line = json.dumps(promotion.canonical(), ensure_ascii=False, sort_keys=True) + "\n"
            history = self._history(name)
            earlier = history.read_bytes() if history.exists() else b""
            # not an append: on a full disk it could leave a partial line, which every later build would refuse
            replace_file(history, earlier + line.encode())

    def rollback(self, name: str, when: str, why: str, who: str) -> str:
        """Undo the last promotion under `name` that is in force, by one more line; -> the run that is champion again.

        Deleted runs are skipped. Raises StoreError when there is no earlier champion.
        """
        before, champion = self.rollback_target(name), self.champion(name)
        if champion is None:
            raise StoreError(f"{name!r} has no champion in {self.store.root}; `qalam runs` lists the runs")
        if before is None:
            raise StoreError(f"{champion} is the first champion of {name} that still exists; nothing came before it")
        self.promote(name, Promotion(run=before, when=when, why=why, who=who, action="rollback"))
        return before

    def rollback_target(self, name: str) -> str | None:
        """The run that a rollback of `name` would make champion."""
        in_force: list[str] = []
        for promotion in self.promotions(name):
            if promotion.action == "rollback":
                while in_force and in_force[-1] != promotion.run:
                    in_force.pop()
            else:
                in_force.append(promotion.run)
        champion = self.champion(name)
        return next((run for run in reversed(in_force) if run != champion and run in self), None)

    def _history(self, name: str) -> Path:
        return self.store.root / "champions" / f"{name}.jsonl"


def _parsed(kind: type[Record], content: bytes, place: str) -> Record:
    """A record from its JSON. Raises StoreError, with `place`, when it is damaged."""
    try:
        return kind.model_validate(json_object(content))
    except ValueError:  # ValidationError too, whose message has many lines
        raise StoreError(
            f"{place}: damaged, or written by another release; restore it from a copy, or use another store"
        ) from None
