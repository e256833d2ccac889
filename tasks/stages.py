"""The tasks of a build: one for each kind of stage, `resolve` before them and `publish` after them.
A task builds one stage, or several of thousands of a kind; it returns their artifacts, in a state named Cached when all
were reused.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from threading import Event
from typing import Any

from prefect import Task, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.states import Cancelled

from al_qalam.tasks.events import announce
from al_qalam.tasks.links import report_link, review_link
from al_qalam.tasks.outcome import without_tracebacks
from al_qalam.tasks.policy import POLICY, RETRIES, training_slot
from al_qalam.tasks.progress import ended, shown, watch
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


stopped = Event()
"""Set when a build has failed or is interrupted: the tasks in threads of this process end with the stage at hand."""

ROWS = 500  # of a kind of stage in a table of Prefect

known: list[SourceFile] = []
"""The files of the sources, where this process found them just before it started a flow, as the command line does."""


@task(name="resolve", task_run_name="resolve", **RETRIES, **POLICY)
def resolve(corpus: Corpus, store: str) -> list[SourceFile]:
    """Find the files of the sources and compute the digests of their content, unless the store remembers them."""
    with watch("resolve", "resolve", "files") as progress:
        progress(0, 0)
        return known or resolve_sources(corpus.sources, store_at(store).digests)


@task(name="stages", **POLICY)
def run_stages(store: str, stages: Sequence[Stage]) -> Any:
    """Build the artifacts of stages, or reuse them, one after the other."""
    return _run_all(store, stages)  # a worker gets a copy of this function, and of `stopped` if it were named here


def _run_all(store: str, stages: Sequence[Stage]) -> Any:
    without_tracebacks()  # also here because a process worker only runs tasks
    made = list[Artifact]()
    for stage in stages:
        if stopped.is_set():
            return Cancelled(message=f"the build was stopped; {len(made)} of {len(stages)} are finished")
        made.append(_run(store, stage))
    return ended(made)


def _run(store: str, stage: Stage) -> Artifact:
    slot = training_slot if stage.name == "train" else nullcontext
    with watch(stage.name, stage.label, stage.unit) as progress:
        artifact = store_at(store).build(stage, progress, slot)
    return shown(stage, artifact)


def _named(parameters: dict[str, Any]) -> str:
    """The name of a task's run: the label of its stage, or of the first of several."""
    first, *others = parameters["stages"]
    return f"{first.label} and {len(others)} more" if others else str(first.label)


@cache
def task_of(kind: type[Stage]) -> Task[..., Any]:
    """The task for stages of a kind, with the stage's name."""
    options = {"description": kind.__doc__, **_OPTIONS.get(kind.name, {})}
    named: Any = _named  # Prefect's type of it has a class method that no function has
    return run_stages.with_options(name=kind.name, task_run_name=named, **options)


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
    create_table_artifact(rows(artifacts), key="stages", description=published.run)
    return published


def rows(artifacts: Sequence[Artifact]) -> list[dict[str, Any]]:
    """The table `stages`: a row for each artifact, but one for all of a kind of more than ROWS."""
    kinds: dict[str, list[Artifact]] = {}
    for artifact in artifacts:
        kinds.setdefault(artifact.stage, []).append(artifact)
    return [
        row for kind in kinds.values()
        for row in (map(_row, kind) if len(kind) <= ROWS else [_row_of_all(kind)])
    ]  # fmt: skip


def _row(artifact: Artifact) -> dict[str, Any]:
    return {
        "stage": artifact.stage, "result": "cached" if artifact.cached else "built",
        "seconds": round(artifact.seconds, 1), "waited": waits(artifact).removeprefix("waited "),
        "speed": throughput([artifact]), "digest": artifact.digest[:12],
    }  # fmt: skip


def _row_of_all(kind: Sequence[Artifact]) -> dict[str, Any]:
    cached = sum(artifact.cached for artifact in kind)
    return {
        "stage": kind[0].stage, "result": f"{cached:,} cached, {len(kind) - cached:,} built",
        "seconds": round(sum(artifact.seconds for artifact in kind), 1), "waited": "",
        "speed": throughput(kind), "digest": "",
    }  # fmt: skip
