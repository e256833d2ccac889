"""The nine tasks of a build: qalam_core.pipeline.build with Prefect's policy around each.
Takes the store's path, the recipe and artifacts; gives artifacts.
It does not know their order, and holds no logic.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from al_qalam.tasks.events import announce
from al_qalam.tasks.policy import POLICY, RETRIES, training_slot
from al_qalam.tasks.progress import shown, watch
from qalam_core.corpus.sources import SourceFile
from qalam_core.pipeline import build as stages
from qalam_core.pipeline.build import Published
from qalam_core.recipe import Corpus, Recipe
from qalam_core.store import Artifact, Store


@task(name="resolve", task_run_name="resolve", **RETRIES, **POLICY)
def resolve(corpus: Corpus) -> list[SourceFile]:
    """Find the files behind the sources and digest their content."""
    return stages.resolve(corpus)


@task(name="ingest", task_run_name="ingest {file.name}", tags=["data"], **RETRIES, **POLICY)
def ingest(store: str, file: SourceFile) -> Any:
    """Read one source file into Arrow documents."""
    label = f"ingest {file.name}"
    return shown(label, stages.ingest(Store(Path(store)), file, watch("ingest", label, "bytes")))


@task(name="prepare", task_run_name="prepare", tags=["data"], **POLICY)
def prepare(store: str, recipe: Recipe, documents: Sequence[Artifact]) -> Any:
    """Normalise, filter, deduplicate and split."""
    return shown("prepare", stages.prepare(Store(Path(store)), recipe, documents, watch("prepare", "prepare", "bytes")))


@task(name="vocab", task_run_name="vocab", tags=["data"], **POLICY)
def vocab(store: str, recipe: Recipe, corpus: Artifact) -> Any:
    """Train the tokenizer."""
    return shown("vocab", stages.vocab(Store(Path(store)), recipe, corpus, watch("vocab", "vocab", "bytes")))


@task(name="tokenize", task_run_name="tokenize {shard}", tags=["data"], **POLICY)
def tokenize(store: str, corpus: Artifact, shard: str, tokenizer: Artifact) -> Any:
    """Turn one corpus shard into one token shard."""
    label = f"tokenize {shard}"
    progress = watch("tokenize", label, "bytes")
    return shown(label, stages.tokenize(Store(Path(store)), corpus, shard, tokenizer, progress))


@task(name="train", task_run_name="train", tags=["training"], **POLICY)
def train(store: str, recipe: Recipe, tokenizer: Artifact, tokens: Sequence[Artifact]) -> Any:
    """Train in a process of its own, from the last checkpoint if there is one."""
    progress = watch("train", "train", "steps")
    return shown("train", stages.train(Store(Path(store)), recipe, tokenizer, tokens, progress, training_slot))


@task(name="export", task_run_name="export", **POLICY)
def export(store: str, recipe: Recipe, corpus: Artifact, tokenizer: Artifact, checkpoint: Artifact) -> Any:
    """Write the model as Python source."""
    return shown("export", stages.export(Store(Path(store)), recipe, corpus, tokenizer, checkpoint))


@task(name="evaluate", task_run_name="evaluate", **POLICY)
def evaluate(
    store: str,
    recipe: Recipe,
    package: Artifact,
    checkpoint: Artifact,
    corpus: Artifact,
    tokens: Sequence[Artifact],
) -> Any:
    """Measure the package on the held-out split."""
    progress = watch("evaluate", "evaluate", "documents")
    return shown("evaluate", stages.evaluate(Store(Path(store)), recipe, package, checkpoint, corpus, tokens, progress))


@task(name="gate", task_run_name="gate", **POLICY)
def gate(store: str, recipe: Recipe, evaluation: Artifact) -> Any:
    """Judge the report."""
    return shown("gate", stages.gate(Store(Path(store)), recipe, evaluation))


@task(name="publish", task_run_name="publish", **POLICY)
def publish(store: str, recipe: Recipe, artifacts: Sequence[Artifact]) -> Published:
    """Create the run, move the champion on a pass, show the report in Prefect, and tell the server's automations."""
    published = stages.publish(Store(Path(store)), recipe, artifacts)
    report = (published.folder / "report.md").read_text(encoding="utf-8")
    create_markdown_artifact(report, key="report", description=published.run)
    page = published.folder / "report.html"
    create_link_artifact(page.as_uri(), "the whole report, on the machine that built it", key="report-page")
    create_table_artifact([_row(artifact) for artifact in artifacts], key="stages", description=published.run)
    announce(published, recipe.name)
    return published


def _row(artifact: Artifact) -> dict[str, Any]:
    return {
        "stage": artifact.stage, "result": "cached" if artifact.cached else "built",
        "seconds": round(artifact.seconds, 1), "speed": stages.speed([artifact]), "digest": artifact.digest[:12],
    }  # fmt: skip
