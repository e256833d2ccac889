"""The tasks of a build: one for each kind of stage, `resolve` before them and `publish` after them.
A stage's task returns its artifact, in a state named Cached when it was reused.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

from prefect import Task, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from al_qalam.tasks.events import announce
from al_qalam.tasks.links import report_link, review_link
from al_qalam.tasks.outcome import without_tracebacks
from al_qalam.tasks.policy import POLICY, RETRIES, training_slot
from al_qalam.tasks.progress import shown, watch
from qalam_core.corpus.sources import SourceFile
from qalam_core.corpus.sources import resolve as resolve_sources
from qalam_core.object_store import store_at
from qalam_core.pipeline.propose import Candidate
from qalam_core.pipeline.publish import Published
from qalam_core.pipeline.publish import publish as publish_run
from qalam_core.pipeline.stage import Stage, throughput, waits
from qalam_core.recipe import Corpus, Recipe
from qalam_core.runs import Runs
from qalam_core.store import Artifact

_OPTIONS: dict[str, dict[str, Any]] = {
    "ingest": {"tags": ["data"], **RETRIES},
    "filter": {"tags": ["data"]},
    "match": {"tags": ["data"]},
    "fold": {"tags": ["data"]},
    "fingerprint": {"tags": ["data"]},
    "prepare": {"tags": ["data"]},
    "vocab": {"tags": ["data"]},
    "tokenize": {"tags": ["data"]},
    "train": {"tags": ["training"]},
}
"""Options of a stage's task, in addition to the common policy."""


known: list[SourceFile] = []
"""The files of the sources, where this process found them just before it started a flow, as the command line does."""


@task(name="resolve", task_run_name="resolve", **RETRIES, **POLICY)
def resolve(corpus: Corpus) -> list[SourceFile]:
    """Find the files of the sources and compute the digests of their content."""
    with watch("resolve", "resolve", "files") as progress:
        progress(0, 0)
        return known or resolve_sources(corpus.sources)


@task(name="stage", **POLICY)
def run_stage(store: str, stage: Stage) -> Any:
    """Build a stage's artifact, or reuse it."""
    without_tracebacks()  # also here because a process worker only runs tasks
    slot = training_slot if stage.name == "train" else nullcontext
    with watch(stage.name, stage.label, stage.unit) as progress:
        artifact = store_at(store).build(stage, progress, slot)
    return shown(stage, artifact)


@cache
def task_of(kind: type[Stage]) -> Task[..., Any]:
    """The task for stages of a kind, with the stage's name."""
    options = {"description": kind.__doc__, **_OPTIONS.get(kind.name, {})}
    return run_stage.with_options(name=kind.name, task_run_name="{stage.label}", **options)


@task(name="publish", task_run_name="publish", **POLICY)
def publish(
    store: str, recipe: Recipe, artifacts: Sequence[Artifact], candidate: Candidate | None = None
) -> Published:  # fmt: skip
    """Create the run, promote it if the gate passed, show the report in Prefect, and leave an event for automations."""
    home = store_at(store)
    published = publish_run(Runs(home), recipe, artifacts, candidate)
    announce(home, published, recipe.name)  # at once: what follows needs the server
    report = (published.folder / "report.md").read_text(encoding="utf-8")
    create_markdown_artifact(report, key="report", description=published.run)
    if link := report_link(published.run):
        create_link_artifact(link, "the full report", key="report-page", description=published.run)
    if not isinstance(published.review, str) and (link := review_link(published.run)):
        create_link_artifact(link, "the review against the champion", key="review-page", description=published.run)
    create_table_artifact([_row(artifact) for artifact in artifacts], key="stages", description=published.run)
    return published


def _row(artifact: Artifact) -> dict[str, Any]:
    return {
        "stage": artifact.stage, "result": "cached" if artifact.cached else "built",
        "seconds": round(artifact.seconds, 1), "waited": waits(artifact).removeprefix("waited "),
        "speed": throughput([artifact]), "digest": artifact.digest[:12],
    }  # fmt: skip
