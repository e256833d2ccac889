"""The review of two models: runs or package folders, joined with what the store has about them.

A section whose artifacts were deleted, or that a package alone cannot answer, is missing from the review, with the
reason: what was not looked at has not passed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import ValidationError

from qalam_core.corpus.prepare import CorpusFacts, PrepareSettings
from qalam_core.corpus.readers import DOCUMENTS
from qalam_core.corpus.splits import read_texts
from qalam_core.errors import QalamError, StoreError
from qalam_core.evaluation.model_tests.outcomes import Outcomes
from qalam_core.evaluation.results import Counted, Report
from qalam_core.evaluation.sampling import HeldOutSample, held_out_sample
from qalam_core.files import NOT_THERE, read_bytes, sha256_bytes
from qalam_core.package import read
from qalam_core.package.read import Package
from qalam_core.pipeline.export import PACKAGE
from qalam_core.pipeline.lineage import seen_of
from qalam_core.pipeline.prepare import shards_of
from qalam_core.pipeline.propose import parent_of
from qalam_core.progress import Progress, no_progress
from qalam_core.recipe import Recipe
from qalam_core.reports.tables import NO_CHAMPION
from qalam_core.review.data import Prepared, data_changes
from qalam_core.review.model_tests import model_test_flips
from qalam_core.review.recipe import recipe_changes
from qalam_core.review.results import Behaviour
from qalam_core.review.summary import Decision, Model, Review, reviewed
from qalam_core.review.tokenizer import tokenizer_changes
from qalam_core.review.weights import weight_changes
from qalam_core.runs import RunRecord, Runs, states
from qalam_core.store import Artifact

REVIEW = "review.json"

TEXT_BYTES = 200_000
"""Of the held-out text, and of the training text, that are measured."""

RAW = "raw text"
_RAW_FILES, _RAW_DOCUMENTS, _RAW_CHARACTERS = 20, 200, 1000  # of text as it was read
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
        run = parent_of(runs, read(folder).manifest["provenance"])
        if not run:
            return cls(name, folder, runs, problem=f"the package {name} is not of a run in the store")
        return cls(name, folder, runs, run, runs.record(run))

    @classmethod
    def recorded(cls, runs: Runs, run: str) -> Side:
        """A run that may have been deleted, or damaged, since it was recorded."""
        folder = runs.store.run_file(run) / PACKAGE
        try:
            return cls(run, folder, runs, run, runs.record(run))
        except StoreError:  # whose message has a path of this machine
            problem = f"the record of run {run} is damaged" if run in runs else f"run {run} was deleted from the store"
            return cls(run, folder, runs, problem=problem)

    @property
    def corpus(self) -> Artifact:
        """Its prepared corpus. Raises StoreError."""
        artifact = self.runs.store.reference("prepare", self._known.artifacts["prepare"][0])
        if not artifact.exists():
            raise StoreError(f"the corpus of run {self.run} was deleted from the store")
        return artifact

    @property
    def has_corpus(self) -> bool:
        """Whether its prepared corpus is in the store."""
        try:
            return self.corpus.exists()
        except StoreError:
            return False

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
    def outcomes(self) -> tuple[Outcomes, ...]:
        """Of the tests that its recipe names. Raises StoreError for a package that is not a run's own."""
        if self.record is None or self.run != self.name:
            raise StoreError(
                self.problem or f"{self.name} is not a run, and its tests are not recorded; see `qalam test`"
            )
        try:  # beside the package: a run that is being published is not in the store yet
            return Report.model_validate_json(read_bytes(self.folder.parent / "report.json")).tests
        except (*NOT_THERE, ValidationError):
            raise StoreError(f"the report of run {self.run} is missing or damaged") from None

    @property
    def arrivals(self) -> Mapping[str, tuple[int, ...]] | str:
        """The new documents of its sources in the builds up to it, as its own review has them; or why it has none."""
        if not self._known.incumbent:
            return {}
        written = written_review(self.runs.folder(self.run), self._known)
        if isinstance(written, str):
            return f"run {self.run} has no readable review"
        return written.data.arrivals if written.data else f"the review of run {self.run} has no data"

    @property
    def prepared(self) -> Prepared:
        """Its prepared corpus. Raises StoreError."""
        corpus = self.corpus
        settings = PrepareSettings.model_validate(corpus.manifest.settings)
        seen = seen_of(self.runs, self._known)
        read = self.runs.store.here((seen,))[0].path if seen else None
        return Prepared(corpus.path, corpus.facts(CorpusFacts), settings.normalisation, read)


def written_review(folder: Path, record: RunRecord) -> Review | str:
    """The review that was written into a run's folder, or why there is none."""
    if not record.incumbent:
        return NO_CHAMPION
    try:
        return Review.model_validate_json(read_bytes(folder / REVIEW))
    except (*NOT_THERE, ValueError):
        return f"There is no readable review; `qalam review {record.incumbent} {folder.name}` makes one."


def review(old: Side, new: Side, progress: Progress = no_progress) -> Review:
    """Compare two models, section by section; one that cannot be looked at is missing, with the reason."""
    missing: dict[str, str] = {}

    def section(name: str, make: Callable[[], Section]) -> Section | None:
        try:
            return make()
        except QalamError as error:
            missing[name] = _without_paths(str(error), old, new)
        except OSError as error:
            missing[name] = f"{Path(error.filename or '').name or 'a file'} cannot be read ({error.strerror})"
        return None

    recipe = section("recipe", lambda: recipe_changes(old.recipe, new.recipe, old.versions, new.versions))
    data = section("data", lambda: data_changes(old.prepared, new.prepared, SEED, old.arrivals))
    source = next((side for side in (new, old) if side.has_corpus), new)
    tests = section("tests", lambda: model_test_flips(old.outcomes, new.outcomes))
    packages = section("weights", lambda: (_package(old), _package(new)))
    texts = section("behaviour", lambda: _samples(new, old))
    tokenizer = behaves = weights = None
    if packages:
        tokenizer = section("tokenizer", lambda: tokenizer_changes(*packages, _texts(source, texts)))
        weights = section("weights", lambda: weight_changes(*packages))
        if texts:
            behaves = section("behaviour", lambda: _behaviour(source, packages, texts, progress))
    else:
        missing |= dict.fromkeys(("tokenizer", "behaviour"), missing["weights"])
    if behaves:
        why = tuple(_without_paths(each, old, new) for each in behaves.unavailable)
        behaves = behaves.model_copy(update={"unavailable": why})
    return reviewed(
        old.model, new.model, new.decision, recipe=recipe, data=data, tokenizer=tokenizer, behaviour=behaves,
        tests=tests, weights=weights, missing=missing,
    )  # fmt: skip


def _package(side: Side) -> Package:
    """Of a run, as it was published: what the gate decided is not about another one. Raises QalamError."""
    if side.run == side.name and side.run in side.runs:
        side.runs.package(side.run)
    return read(side.folder, strict=side.run == side.name)


def _without_paths(message: str, *sides: Side) -> str:
    """A message without the places of this machine, on which a review must not depend."""
    for side in sides:
        message = message.replace(f"{side.folder}/", "").replace(str(side.folder), side.name)
        message = message.replace(str(side.runs.store.root), "the store")
    return message


def _behaviour(
    source: Side, packages: tuple[Package, Package], texts: Mapping[str, HeldOutSample], progress: Progress
) -> Behaviour:
    from qalam_core.review.behaviour import behaviour  # imports torch

    gate = source.recipe.gate
    found = behaviour(
        *packages, {name: sample.documents for name, sample in texts.items()}, gate.prompts, seed=SEED,
        seed_sd=gate.seed_sd, progress=progress,
    )  # fmt: skip
    counted = {text.name: text.counted.model_copy(update={"of": texts[text.name].counted.of}) for text in found.texts}
    measured = (text.model_copy(update={"counted": counted[text.name]}) for text in found.texts)
    return found.model_copy(update={"texts": tuple(measured)})


def _samples(new: Side, old: Side) -> dict[str, HeldOutSample]:
    """The texts that are measured, by name: of both corpora, so that what one model alone has read is among them."""
    if not new.has_corpus and not old.has_corpus:
        raise StoreError(f"the store has the text of neither {new.name} nor {old.name}")
    corpora = {side.corpus.digest: side.corpus for side in (new, old) if side.has_corpus}.values()
    samples = {}
    for name, split in {"held-out text": "test", "training text": "train"}.items():
        parts = [held_out_sample([shard.path for shard in shards_of(each, split)], TEXT_BYTES) for each in corpora]
        documents = list(dict.fromkeys(pair for part in parts for pair in part.documents))
        most = max(len(documents), *(part.counted.of for part in parts))
        size = sum(len(text.encode()) for _, text in documents)
        samples[name] = HeldOutSample(documents, Counted(documents=len(documents), of=most, size=size))
    return samples


def _texts(source: Side, samples: Mapping[str, HeldOutSample] | None) -> dict[str, list[str]]:
    """What is tokenized, by name; nothing where the store has no text of either model."""
    if not samples:
        return {"held-out text": [], RAW: []}
    return {"held-out text": [text for _, text in samples["held-out text"].documents], RAW: _raw(source)}


def _raw(source: Side) -> list[str]:
    """Some documents as they were read, with all marks, spread evenly over the source files and over each file."""
    store, corpus = source.runs.store, source.corpus
    keys = [key for name, key in sorted(corpus.manifest.inputs.items()) if name.startswith("documents-")]
    chosen = [keys[place] for place in _spread(len(keys), _RAW_FILES)]
    found: list[str] = []
    for artifact in (store.reference("ingest", key) for key in chosen):
        if artifact.exists():
            batches = list(read_texts(artifact.path / DOCUMENTS))  # mapped, not read
            ends = np.cumsum([0, *map(len, batches)])
            for row in _spread(int(ends[-1]), max(1, _RAW_DOCUMENTS // len(chosen))):
                at = int(np.searchsorted(ends, row, side="right")) - 1
                found.append(batches[at].column("text")[row - int(ends[at])].as_py()[:_RAW_CHARACTERS])
    return found


def _spread(count: int, most: int) -> list[int]:
    """At most so many places of `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist() if count else []
