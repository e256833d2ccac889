"""The order of the stages, in one place; an executor runs them in this process or as Prefect tasks, or plans them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from qalam_core.arabic import NORMALISATIONS
from qalam_core.corpus.sources import SourceFile, resolve
from qalam_core.evaluation.model_tests.cases import suites
from qalam_core.pipeline.evaluate import Evaluate
from qalam_core.pipeline.export import Export
from qalam_core.pipeline.filter import Filter
from qalam_core.pipeline.fingerprint import Fingerprint
from qalam_core.pipeline.fold import Fold
from qalam_core.pipeline.gate import Gate, Incumbents, incumbents
from qalam_core.pipeline.ingest import Ingest
from qalam_core.pipeline.keep import earlier_tokenizer, kept_tokenizer
from qalam_core.pipeline.lineage import WarmStart, warm_start
from qalam_core.pipeline.match import Match
from qalam_core.pipeline.prepare import Documents, Prepare
from qalam_core.pipeline.propose import Candidate, Propose
from qalam_core.pipeline.publish import Published, publish
from qalam_core.pipeline.seen import Seen
from qalam_core.pipeline.stage import Stage
from qalam_core.pipeline.tokenize import Tokenize
from qalam_core.pipeline.train import Train
from qalam_core.pipeline.vocab import EarlierTokenizer, Vocab
from qalam_core.progress import Progress, no_progress
from qalam_core.recipe import Recipe
from qalam_core.runs import KeptTokenizer, Runs
from qalam_core.store import Artifact, Store

STAGES: tuple[type[Stage], ...] = (
    Ingest,
    Filter,
    Match,
    Fold,
    Prepare,
    Vocab,
    Tokenize,
    Train,
    Fingerprint,
    Seen,
    Export,
    Evaluate,
    Gate,
)
"""Every kind of stage, in order; `Fold` is only in builds that begin with another run's weights."""


class Executor(Protocol):
    """Runs stages, and reuses the artifacts that the store has already."""

    def run(self, stage: Stage) -> Artifact:
        """Run one stage."""

    def map(self, stages: Sequence[Stage]) -> list[Artifact]:
        """Run independent stages of one kind; an executor may do so in parallel."""
        return [self.run(stage) for stage in stages]


class Tokenized(NamedTuple):
    """A corpus, and its token shards under a tokenizer."""

    corpus: Artifact
    tokenizer: Artifact
    tokens: list[Artifact]
    kept: KeptTokenizer | None


class Past(Protocol):
    """The earlier runs that a build depends on."""

    def warm_start(self, recipe: Recipe, documents: Documents) -> WarmStart | None:
        """The run whose weights training begins with, None for random ones."""

    def tokenizer(self, recipe: Recipe, corpus: Artifact) -> EarlierTokenizer | None:
        """The tokenizer to keep while it fits, None to train one in any case."""

    def incumbents(self, recipe: Recipe, evaluation: Artifact) -> Incumbents:
        """The runs that the gate compares an evaluated model with."""


@dataclass(frozen=True)
class History(Past):
    """The earlier runs as the history of champions has them now."""

    runs: Runs

    def warm_start(self, recipe: Recipe, documents: Documents) -> WarmStart | None:
        """The run that the recipe names, or the champion."""
        # the gate reads their records, and the champion's package: a damaged one is found at once
        for run, _ in list(self.runs.champions(recipe.name))[:1]:
            self.runs.package(run)
        return warm_start(recipe, documents, self.runs)

    def tokenizer(self, recipe: Recipe, corpus: Artifact) -> EarlierTokenizer | None:
        """The champion's, if the recipe asks for it."""
        return earlier_tokenizer(recipe, corpus, self.runs)

    def incumbents(self, recipe: Recipe, evaluation: Artifact) -> Incumbents:
        """The champion, and those before it."""
        return incumbents(recipe, evaluation, self.runs)


def tokenized(
    recipe: Recipe, documents: Documents, executor: Executor, seen: Artifact | None = None,
    tokenizer: Artifact | None = None, past: Past | None = None,
) -> Tokenized:  # fmt: skip
    """The stages from documents to token shards; with a `tokenizer` none is trained, with a `past` perhaps none.

    With `seen`, nothing is held out that the models of that record have read.
    """
    corpus, earlier = executor.run(Prepare.of(recipe, documents, seen)), None
    if tokenizer is None:
        earlier = past.tokenizer(recipe, corpus) if past else None
        tokenizer = executor.run(Vocab.of(recipe, corpus, earlier))
    tokens = executor.map(Tokenize.all_of(corpus, tokenizer))
    return Tokenized(corpus, tokenizer, tokens, kept_tokenizer(earlier, tokenizer))


def ingested(recipe: Recipe, files: Sequence[SourceFile], executor: Executor) -> Documents:
    """The documents of source files, as read and filtered, and which of them repeat others."""
    read = executor.map([Ingest.of(file) for file in files])
    filtered = executor.map(Filter.all_of(recipe, files, read))
    matches = executor.map(Match.all_of(filtered))
    return Documents(read, filtered, matches, size=sum(file.size for file in files))


def read_by(corpus: Artifact, start: WarmStart | None, executor: Executor) -> list[Artifact]:
    """Fingerprints of the training shards and, last, the record of what a model that is trained on them has read."""
    fingerprints = executor.map(Fingerprint.all_of(corpus))
    return [*fingerprints, executor.run(Seen.of(corpus, fingerprints, start))]


def stages_in_order(recipe: Recipe, files: Sequence[SourceFile], past: Past, executor: Executor) -> list[Artifact]:
    """All stages from source files to the verdict; -> their artifacts, in order."""
    artifacts = evaluated(recipe, files, past, executor)
    corpus = next(artifact for artifact in artifacts if artifact.stage == Prepare.name)
    seen, package, evaluation = artifacts[-3:]
    decision = executor.run(Gate.of(recipe, corpus, seen, package, evaluation, past.incumbents(recipe, evaluation)))
    return [*artifacts, decision]


def evaluated(recipe: Recipe, files: Sequence[SourceFile], past: Past, executor: Executor) -> list[Artifact]:
    """All stages before the verdict; the evaluation is the last."""
    tests = suites(recipe.tests, NORMALISATIONS[recipe.corpus.normalisation])  # first, to find mistakes at once
    documents = ingested(recipe, files, executor)
    start = past.warm_start(recipe, documents)
    if start:
        documents = documents._replace(folds=executor.map(Fold.all_of(recipe, documents.filtered)))
    corpus, tokenizer, tokens, kept = tokenized(recipe, documents, executor, start.seen if start else None, past=past)
    checkpoint = executor.run(Train.of(recipe, tokenizer, tokens, start, corpus))
    *fingerprints, seen = read_by(corpus, start, executor)
    package = executor.run(Export.of(recipe, corpus, tokenizer, checkpoint, seen, start, kept))
    evaluation = executor.run(Evaluate.of(recipe, package, checkpoint, corpus, tokens, seen, tests))
    found = [*documents.read, *documents.filtered, *documents.matches, *documents.folds]
    text = [*found, corpus, tokenizer, *tokens]
    return [*text, checkpoint, *fingerprints, seen, package, evaluation]


def proposed(candidate: Candidate, files: Sequence[SourceFile], past: Past, executor: Executor) -> list[Artifact]:
    """All stages from a package to the verdict; -> their artifacts, in order.

    `files` are those of the recipe's sources, needed where the candidate has no corpus.
    """
    recipe, seen = candidate.recipe, candidate.seen
    tests = suites(recipe.tests, NORMALISATIONS[recipe.corpus.normalisation])
    package = executor.run(Propose.of(candidate.package))
    documents = Documents([], []) if candidate.corpus else ingested(recipe, files, executor)
    corpus = candidate.corpus or executor.run(Prepare.of(recipe, documents, seen))
    tokens = executor.map(Tokenize.all_of(corpus, candidate.tokenizer or package))
    evaluation = executor.run(Evaluate.of(recipe, package, None, corpus, tokens, seen, tests))
    decision = executor.run(Gate.of(recipe, corpus, seen, package, evaluation, past.incumbents(recipe, evaluation)))
    tokenizer = [candidate.tokenizer] if candidate.tokenizer else []
    text = [*documents.read, *documents.filtered, *documents.matches, corpus, *tokenizer, *tokens]
    return [*text, *([seen] if seen else ()), package, evaluation, decision]


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
        return self.map([stage])[0]

    def map(self, stages: Sequence[Stage]) -> list[Artifact]:
        """Look stages up."""
        made = list[Artifact]()
        for stage, artifact in zip(stages, self.store.at_once(self._reused, stages), strict=True):
            if artifact is None:
                raise NotBuiltError(stage.label)
            self.found.append((stage.label, artifact))
            made.append(artifact)
        return made

    def _reused(self, stage: Stage) -> Artifact | None:
        return self.store.reuse(stage.identity)


def propose(candidate: Candidate, store: Store, progress: Progress = no_progress) -> Published:
    """Measure a proposed package, and publish it, in this process, without Prefect. Raises QalamError."""
    runs = Runs(store)
    artifacts = proposed(candidate, sources_of(candidate, store), History(runs), InPlace(store, progress))
    return publish(runs, candidate.recipe, artifacts, candidate)


def sources_of(candidate: Candidate, store: Store) -> list[SourceFile]:
    """The files that a candidate's corpus is prepared from; none where it has one."""
    return [] if candidate.corpus else resolve(candidate.recipe.corpus.sources, store.digests)


def build(recipe: Recipe, store: Store, progress: Progress = no_progress) -> Published:
    """The whole pipeline in this process, without Prefect; `progress` counts training steps.

    Artifacts that the store has already are reused. Raises QalamError.
    """
    runs = Runs(store)
    files = resolve(recipe.corpus.sources, store.digests)
    artifacts = stages_in_order(recipe, files, History(runs), InPlace(store, progress))
    return publish(runs, recipe, artifacts)
