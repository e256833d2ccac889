"""The order of the stages, in one place; an executor runs them in this process or as Prefect tasks, or plans them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from qalam_core.corpus.sources import SourceFile, resolve
from qalam_core.pipeline.evaluate import Evaluate
from qalam_core.pipeline.export import Export
from qalam_core.pipeline.gate import Gate
from qalam_core.pipeline.ingest import Ingest
from qalam_core.pipeline.prepare import Prepare
from qalam_core.pipeline.publish import Published, publish
from qalam_core.pipeline.stage import Stage
from qalam_core.pipeline.tokenize import Tokenize
from qalam_core.pipeline.train import Train
from qalam_core.pipeline.vocab import Vocab
from qalam_core.progress import Progress, no_progress
from qalam_core.recipe import Recipe
from qalam_core.runs import Runs
from qalam_core.store import Artifact, Store

STAGES: tuple[type[Stage], ...] = (Ingest, Prepare, Vocab, Tokenize, Train, Export, Evaluate, Gate)
"""Every kind of stage, in order."""


class Executor(Protocol):
    """Runs stages, and reuses the artifacts that the store has already."""

    def run(self, stage: Stage) -> Artifact:
        """Run one stage."""

    def map(self, stages: Sequence[Stage]) -> list[Artifact]:
        """Run independent stages of one kind; an executor may do so in parallel."""
        return [self.run(stage) for stage in stages]


class Tokenized(NamedTuple):
    """A corpus, and its token shards under a tokenizer."""

    documents: list[Artifact]
    corpus: Artifact
    tokenizer: Artifact
    tokens: list[Artifact]


def tokenized(
    recipe: Recipe, files: Sequence[SourceFile], executor: Executor, tokenizer: Artifact | None = None
) -> Tokenized:
    """The stages up to token shards; with a `tokenizer` none is trained."""
    documents = executor.map([Ingest.of(file) for file in files])
    corpus = executor.run(Prepare.of(recipe, documents))
    tokenizer = tokenizer or executor.run(Vocab.of(recipe, corpus))
    return Tokenized(documents, corpus, tokenizer, executor.map(Tokenize.all_of(corpus, tokenizer)))


def stages_in_order(recipe: Recipe, files: Sequence[SourceFile], runs: Runs, executor: Executor) -> list[Artifact]:
    """All stages from source files to the verdict; -> their artifacts, in order."""
    list(runs.champions(recipe.name))  # the gate reads their records: a damaged one is found before the training
    documents, corpus, tokenizer, tokens = tokenized(recipe, files, executor)
    checkpoint = executor.run(Train.of(recipe, tokenizer, tokens, runs))
    package = executor.run(Export.of(recipe, corpus, tokenizer, checkpoint))
    evaluation = executor.run(Evaluate.of(recipe, package, checkpoint, corpus, tokens))
    decision = executor.run(Gate.of(recipe, evaluation, runs))
    return [*documents, corpus, tokenizer, *tokens, checkpoint, package, evaluation, decision]


@dataclass(frozen=True)
class InPlace(Executor):
    """Runs stages sequentially in this process; `progress` counts training steps."""

    store: Store
    progress: Progress = no_progress

    def run(self, stage: Stage) -> Artifact:
        """Run one stage."""
        return self.store.build(stage, self.progress if isinstance(stage, Train) else no_progress)


class NotBuiltError(Exception):
    """A stage has no artifact in the store."""


@dataclass(frozen=True)
class Reuse(Executor):
    """Takes every stage from the store. Raises NotBuiltError at the first one that would have to be built."""

    store: Store
    found: list[tuple[str, Artifact]] = field(default_factory=list)  # label and artifact of each stage so far

    def run(self, stage: Stage) -> Artifact:
        """Look one stage up."""
        identity = stage.identity
        self.store.mark_used(self.store.reference(identity.stage, identity.digest))  # first: gc keeps what is in use
        artifact = self.store.find(identity)
        if artifact is None:
            raise NotBuiltError(stage.label)
        self.found.append((stage.label, artifact))
        return artifact


def build(recipe: Recipe, store: Store, progress: Progress = no_progress) -> Published:
    """The whole pipeline in this process, without Prefect; `progress` counts training steps.

    Artifacts that the store has already are reused. Raises QalamError.
    """
    runs = Runs(store)
    artifacts = stages_in_order(recipe, resolve(recipe.corpus.sources), runs, InPlace(store, progress))
    return publish(runs, recipe, artifacts)
