"""The review of two models: runs or package folders, joined with what the store has about them.

A section whose artifacts were deleted, or that a package alone cannot answer, is missing from the review, with the
reason: what was not looked at has not passed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from qalam_core.corpus.prepare import CorpusFacts, PrepareSettings
from qalam_core.errors import QalamError, StoreError
from qalam_core.files import disk_problem, read_bytes, sha256_bytes
from qalam_core.package import read
from qalam_core.pipeline.export import PACKAGE
from qalam_core.progress import Progress, no_progress
from qalam_core.recipe import Recipe
from qalam_core.review.data import DataChanges, Prepared, data_changes
from qalam_core.review.recipe import recipe_changes
from qalam_core.review.summary import Decision, Model, Review, reviewed
from qalam_core.runs import RunRecord, Runs, states
from qalam_core.store import Artifact

HELD_OUT_BYTES = 300_000
"""Held-out text that is measured, and as much of the training text."""

_RAW_BYTES = 100_000  # of text as it was read
SEED = 20_120_823
"""Of samples; not the recipe's, so that two reviews of a model show the same documents."""

Section = TypeVar("Section")


@dataclass(frozen=True)
class Side:
    """One of the two models."""

    name: str  # a run id, or the name of a package's folder
    folder: Path  # of the package
    runs: Runs
    run: str = ""  # whose recipe and corpus these are: its own, or of a package the one that it was exported by
    record: RunRecord | None = None  # of that run
    problem: str = ""  # why there is no record

    @classmethod
    def of(cls, runs: Runs, what: str) -> Side:
        """A run id, or a package folder. Raises QalamError when it is neither."""
        folder = Path(what)
        if not folder.is_dir():
            return cls(what, runs.folder(what) / PACKAGE, runs, what, runs.record(what))
        name = folder.resolve().name
        run = _exported_by(runs, read(folder).manifest["provenance"])
        if not run:
            return cls(name, folder, runs, problem=f"the package {name} is not of a run in the store")
        return cls(name, folder, runs, run, runs.record(run))

    @classmethod
    def recorded(cls, runs: Runs, run: str) -> Side:
        """A run that may have been deleted, or damaged, since it was recorded."""
        folder = runs.store.root / "runs" / run / PACKAGE
        try:
            return cls(run, folder, runs, run, runs.record(run))
        except StoreError as error:
            return cls(run, folder, runs, problem=str(error))

    @property
    def corpus(self) -> Artifact:
        """Its prepared corpus. Raises StoreError."""
        artifact = self.runs.store.reference("prepare", self._known.artifacts["prepare"][0])
        if not artifact.exists():
            raise StoreError(f"the corpus of run {self.run} was deleted from the store")
        return artifact

    @property
    def recipe(self) -> Recipe:
        """Its recipe. Raises StoreError."""
        return self._known.recipe

    @property
    def _known(self) -> RunRecord:
        if self.record is None:
            raise StoreError(self.problem)
        return self.record

    @property
    def versions(self) -> dict[str, str]:
        """Of the code that built it."""
        record = self.record
        return {"al-qalam": record.code, **record.dependencies, "python": record.machine["python"]} if record else {}

    @property
    def model(self) -> Model:
        """As the review names it."""
        try:
            package = sha256_bytes(read_bytes(self.folder / "manifest.json"))
        except (OSError, ValueError):
            package = ""
        return Model(name=self.name, run=self.run, package=package)

    @property
    def decision(self) -> Decision | None:
        """What the gate decided about a run."""
        if self.record is None or self.run != self.name:
            return None
        verdict = self.record.verdict
        state = next(
            one for one in states({self.run: verdict}, ())[self.run] if one in ("passed", "waiting", "refused")
        )
        return Decision(state, self.record.incumbent, tuple(verdict.reasons()))

    @property
    def prepared(self) -> Prepared:
        """Its prepared corpus. Raises StoreError."""
        corpus = self.corpus
        settings = PrepareSettings.model_validate(corpus.manifest.settings)
        return Prepared(corpus.path, corpus.facts(CorpusFacts), settings.normalisation)


def review(old: Side, new: Side, progress: Progress = no_progress) -> Review:
    """Compare two models, section by section; one that cannot be looked at is missing, with the reason."""
    missing: dict[str, str] = {}

    def section(name: str, make: Callable[[], Section]) -> Section | None:
        try:
            return make()
        except QalamError as error:
            missing[name] = str(error)
        except OSError as error:
            missing[name] = (
                disk_problem(error) or f"{Path(error.filename or '').name} cannot be read ({error.strerror})"
            )
        return None

    recipe = section("recipe", lambda: recipe_changes(old.recipe, new.recipe, old.versions, new.versions))
    data = section("data", lambda: _data(old, new))
    return reviewed(
        old.model, new.model, new.decision, recipe=recipe, data=data, tokenizer=None, behaviour=None, weights=None,
        missing=missing | dict.fromkeys(("tokenizer", "behaviour", "weights"), "it is not measured"),
    )  # fmt: skip


def _data(old: Side, new: Side) -> DataChanges:
    return data_changes(old.prepared, new.prepared, SEED)


def _exported_by(runs: Runs, provenance: dict[str, str]) -> str:
    """The newest run whose package has this provenance, "" for none."""
    wanted = [provenance.get(name) for name in ("corpus", "checkpoint")]
    stages = ("prepare", "train")
    found = [run for run, record in runs.records().items() if [record.artifacts[s][0] for s in stages] == wanted]
    return found[-1] if found else ""
