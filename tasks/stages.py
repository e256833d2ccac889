"""The nine tasks of a build: qalam_core.stages with Prefect's policy around each.
Takes the store's path, the recipe and artifacts; gives artifacts.
It does not know their order, and holds no logic.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import Task, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State, TaskRun
from prefect.states import Completed

from qalam_core import stages
from qalam_core.errors import QalamError
from qalam_core.recipe import Corpus, Recipe
from qalam_core.sources import SourceFile
from qalam_core.stages import Published
from qalam_core.store import Artifact, Store
from tasks.progress import report_to, watch

# Reuse is the store's: Prefect's own cache looks at a task's source lines, which for tasks this thin
# never change. Results stay in memory: they are references of a few bytes.
POLICY: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}


def _not_the_users(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Retry what may pass (a network, a busy disk), never what the user must mend."""
    return not isinstance(state.result(raise_on_failure=False), QalamError)


def _shown(label: str, artifact: Artifact) -> Any:
    """The artifact, in the state that tells whether it was built or reused."""
    report_to(label, artifact)
    if artifact.cached:
        return Completed(name="Cached", message=f"{artifact.stage} {artifact.digest[:12]} reused", data=artifact)
    return artifact


@task(
    name="resolve",
    task_run_name="resolve",
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=_not_the_users,
    **POLICY,
)
def resolve(corpus: Corpus) -> list[SourceFile]:
    """Find the files behind the sources and digest their content."""
    return stages.resolve(corpus)


@task(
    name="ingest", task_run_name="ingest {file.name}", tags=["data"],
    retries=2, retry_delay_seconds=[2, 10], retry_condition_fn=_not_the_users, **POLICY,
)  # fmt: skip
def ingest(store: str, file: SourceFile) -> Any:
    """Read one source file into Arrow documents."""
    label = f"ingest {file.name}"
    return _shown(label, stages.ingest(Store(Path(store)), file, watch("ingest", label, "bytes")))


@task(name="prepare", task_run_name="prepare", tags=["data"], **POLICY)
def prepare(store: str, recipe: Recipe, documents: Sequence[Artifact]) -> Any:
    """Normalise, filter, deduplicate and split."""
    return _shown(
        "prepare", stages.prepare(Store(Path(store)), recipe, documents, watch("prepare", "prepare", "bytes"))
    )


@task(name="vocab", task_run_name="vocab", tags=["data"], **POLICY)
def vocab(store: str, recipe: Recipe, corpus: Artifact) -> Any:
    """Train the tokenizer."""
    return _shown("vocab", stages.vocab(Store(Path(store)), recipe, corpus, watch("vocab", "vocab", "bytes")))


@task(name="tokenize", task_run_name="tokenize {shard}", tags=["data"], **POLICY)
def tokenize(store: str, corpus: Artifact, shard: str, tokenizer: Artifact) -> Any:
    """Turn one corpus shard into one token shard."""
    label = f"tokenize {shard}"
    progress = watch("tokenize", label, "bytes")
    return _shown(label, stages.tokenize(Store(Path(store)), corpus, shard, tokenizer, progress))


@task(name="train", task_run_name="train", tags=["training"], **POLICY)
def train(store: str, recipe: Recipe, tokenizer: Artifact, tokens: Sequence[Artifact]) -> Any:
    """Train in a process of its own, from the last checkpoint if there is one."""
    progress = watch("train", "train", "steps")
    return _shown("train", stages.train(Store(Path(store)), recipe, tokenizer, tokens, progress))


@task(name="export", task_run_name="export", **POLICY)
def export(store: str, recipe: Recipe, corpus: Artifact, tokenizer: Artifact, checkpoint: Artifact) -> Any:
    """Write the model as Python source."""
    return _shown("export", stages.export(Store(Path(store)), recipe, corpus, tokenizer, checkpoint))


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
    return _shown(
        "evaluate", stages.evaluate(Store(Path(store)), recipe, package, checkpoint, corpus, tokens, progress)
    )


@task(name="gate", task_run_name="gate", **POLICY)
def gate(store: str, recipe: Recipe, evaluation: Artifact) -> Any:
    """Judge the report."""
    return _shown("gate", stages.gate(Store(Path(store)), recipe, evaluation))


@task(name="publish", task_run_name="publish", **POLICY)
def publish(store: str, recipe: Recipe, artifacts: Sequence[Artifact]) -> Published:
    """Create the run, move the champion on a pass, and show the report in Prefect."""
    published = stages.publish(Store(Path(store)), recipe, artifacts)
    report = (published.folder / "report.md").read_text(encoding="utf-8")
    create_markdown_artifact(report, key="report", description=published.run)
    return published
