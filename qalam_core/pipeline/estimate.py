"""How much a build did or will do, and how long that takes at the rates of earlier runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from qalam_core.corpus.prepare import CorpusFacts
from qalam_core.errors import DamagedError
from qalam_core.pipeline.filter import Filter
from qalam_core.pipeline.ingest import Ingest
from qalam_core.pipeline.stage import text_bytes
from qalam_core.pipeline.tokenize import Tokenize, TokenizeFacts
from qalam_core.pipeline.train import Train
from qalam_core.recipe import Continuing, Optimisation, Recipe
from qalam_core.runs import Built, RunRecord, Runs, TrainFacts
from qalam_core.store import Artifact
from qalam_core.training.continuing import schedule

UNITS = {Ingest.name: "bytes", Filter.name: "bytes", Tokenize.name: "bytes", Train.name: "steps"}
"""Stages whose time is in proportion to what they do; that of others is taken to be as long as before."""

_RUNS = 20  # the last nights may have built nothing of a stage


@dataclass(frozen=True)
class Work:
    """What a stage will do."""

    stage: str
    amount: int  # in its unit of UNITS; 0 for other stages
    seconds: float | None  # of one worker; None where no recent run has built the stage


def built(artifacts: Sequence[Artifact]) -> dict[str, Built]:
    """Stage -> what a build did of it, without what it reused."""
    read = {artifact.digest: text_bytes(artifact) for artifact in artifacts if artifact.stage == Ingest.name}

    def amount(artifact: Artifact) -> int:
        if artifact.stage == Filter.name:
            return sum(read.get(digest, 0) for digest in artifact.manifest.inputs.values())
        if artifact.stage == Train.name:
            return artifact.facts(TrainFacts).steps
        return text_bytes(artifact) if artifact.stage in UNITS else 0

    made: dict[str, list[Artifact]] = {}
    for artifact in artifacts:
        if not artifact.cached:
            made.setdefault(artifact.stage, []).append(artifact)
    return {
        stage: Built(amount=sum(map(amount, of_stage)), seconds=round(sum(each.seconds for each in of_stage), 3))
        for stage, of_stage in made.items()
    }


def work(stages: Iterable[str], amounts: Mapping[str, int], records: Sequence[RunRecord]) -> tuple[Work, ...]:
    """What `stages` will do, with the `amounts` of those in UNITS; `records` are the last runs, newest first."""
    return tuple(
        Work(stage, amounts.get(stage, 0), _seconds(stage, amounts.get(stage, 0), records)) for stage in stages
    )


def last_records(runs: Runs, name: str) -> list[RunRecord]:
    """The records of the last runs of a recipe's name, newest first, without damaged ones."""
    found = []
    for run in islice(runs.newest_of(name), _RUNS):
        with suppress(DamagedError):
            record = runs.record(run)
            if not record.proposal:  # which was only measured
                found.append(record)
    return found


def kept_share(runs: Runs, records: Sequence[RunRecord]) -> float:
    """Bytes of the last run's text that are tokenized, as a share of what it read; 1 where that is not known."""
    for record in records[:1]:
        with suppress(DamagedError):
            facts = [runs.store.manifest("ingest", key).facts for key in record.artifacts["ingest"]]
            read = sum(int(one["bytes"]) for one in facts)
            corpus = runs.store.manifest("prepare", record.artifacts["prepare"][0])
            splits = CorpusFacts.model_validate(corpus.facts).splits
            tokenized = sum(part.bytes for name, part in splits.items() if name != "test")
            return tokenized / read if read else 1.0
    return 1.0


def continued_steps(runs: Runs, records: Sequence[RunRecord], recipe: Recipe, new: float) -> int:
    """About how many steps a training takes that continues with `new` bytes of text, at the last run's tokens per byte;
    those of the recipe where there is no such run."""
    for record in records[:1]:
        with suppress(DamagedError):
            manifests = [runs.store.manifest(Tokenize.name, key) for key in record.artifacts["tokenize"]]
            made = [TokenizeFacts.model_validate(manifest.facts) for manifest in manifests]
            tokens = new * sum(one.tokens for one in made) / max(1, sum(one.bytes for one in made))
            read = round(tokens / (1 - recipe.train.replay))
            optimisation, continuing = recipe.train.narrowed(Optimisation), recipe.train.narrowed(Continuing)
            return schedule(optimisation, continuing, read, recipe.model.max_seq_len).steps
    return recipe.train.steps


def _seconds(stage: str, amount: int, records: Sequence[RunRecord]) -> float | None:
    for record in records:
        before = record.built.get(stage)
        if before and stage not in UNITS:
            return before.seconds
        if before and before.amount:
            return before.seconds * amount / before.amount
    return None
