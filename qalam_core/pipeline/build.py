"""The order of the stages, and the whole pipeline in one process.
Takes a recipe, and an executor that runs stages: in place, as Prefect tasks, or only as a plan. Everything that builds,
plans, measures or reproduces a model goes through `tokenized` and `stages_in_order`; nothing else knows the order.
It does not know how a stage is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

__all__ = ["STAGES", "Executor", "InPlace", "Tokenized", "build", "stages_in_order", "tokenized"]

STAGES: tuple[type[Stage], ...] = (Ingest, Prepare, Vocab, Tokenize, Train, Export, Evaluate, Gate)
"""Every kind of stage, in order."""


class Executor(Protocol):
    """Runs stages; a stage that the store has already is reused."""

    def run(self, stage: Stage) -> Artifact:
        """Run one stage."""

    def map(self, stages: Sequence[Stage]) -> list[Artifact]:
        """Run independent stages of one kind, side by side where that is possible."""


class Tokenized(NamedTuple):
    """A corpus, and its token shards under a tokenizer."""

    documents: list[Artifact]
    corpus: Artifact
    tokenizer: Artifact
    tokens: list[Artifact]


def tokenized(
    recipe: Recipe, files: Sequence[SourceFile], executor: Executor, tokenizer: Artifact | None = None
) -> Tokenized:
    """The stages up to token shards; a `tokenizer` that is given is used instead of training one."""
    documents = executor.map([Ingest.of(file) for file in files])
    corpus = executor.run(Prepare.of(recipe, documents))
    words = tokenizer or executor.run(Vocab.of(recipe, corpus))
    tokens = executor.map(Tokenize.all_of(corpus, words))
    return Tokenized(documents, corpus, words, tokens)


def stages_in_order(recipe: Recipe, files: Sequence[SourceFile], runs: Runs, executor: Executor) -> list[Artifact]:
    """All stages, from source files to a verdict; -> their artifacts, in order."""
    documents, corpus, tokenizer, tokens = tokenized(recipe, files, executor)
    checkpoint = executor.run(Train.of(recipe, tokenizer, tokens, runs))
    package = executor.run(Export.of(recipe, corpus, tokenizer, checkpoint))
    evaluation = executor.run(Evaluate.of(recipe, package, checkpoint, corpus, tokens))
    decision = executor.run(Gate.of(recipe, evaluation, runs))
    return [*documents, corpus, tokenizer, *tokens, checkpoint, package, evaluation, decision]


@dataclass(frozen=True)
class InPlace:
    """Runs stages one after the other in this process; `progress` counts training steps."""

    store: Store
    progress: Progress = no_progress

    def run(self, stage: Stage) -> Artifact:
        """Run one stage."""
        return self.store.build(stage, self.progress if isinstance(stage, Train) else no_progress)

    def map(self, stages: Sequence[Stage]) -> list[Artifact]:
        """Run stages one after the other."""
        return [self.run(stage) for stage in stages]


def build(recipe: Recipe, store: Store, progress: Progress = no_progress) -> Published:
    """The whole pipeline in this process, without Prefect; `progress` counts training steps.

    What the store has already is not built again. Raises a QalamError that says what the user can do.
    """
    runs = Runs(store)
    artifacts = stages_in_order(recipe, resolve(recipe.corpus.sources), runs, InPlace(store, progress))
    return publish(runs, recipe, artifacts)
