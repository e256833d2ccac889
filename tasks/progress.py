"""Progress of a running stage: passed to watchers in this process (a terminal) and to Prefect's progress artifacts."""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol
from uuid import UUID

from httpx import HTTPError
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Completed

from qalam_core.pipeline.stage import Stage, throughput
from qalam_core.progress import Progress
from qalam_core.store import Artifact

log = logging.getLogger("qalam_core.progress")

ARTIFACT_SECONDS = 2.0  # each update is an API call of about 20 ms


class Watcher(Protocol):
    """An object in the flow's process that shows progress."""

    def moved(self, stage: str, label: str, unit: str, done: int, total: int) -> None:
        """`label` of `stage` has done `done` of `total` units; a total of 0 is not known yet."""

    def finished(self, stage: Stage, artifact: Artifact) -> None:
        """`stage` has finished."""


watchers: list[Watcher] = []
"""The watchers in this process; the command line adds its progress bars."""


def watch(stage: str, label: str, unit: str) -> Progress:
    """The callback to pass to a stage; inside a task run it also updates a Prefect progress artifact."""
    logging.getLogger("qalam_core").setLevel(logging.INFO)  # here because a process worker only runs tasks
    artifact: UUID | None = None
    since = time.monotonic()

    def moved(done: int, total: int) -> None:
        nonlocal artifact, since
        for watcher in watchers:
            watcher.moved(stage, label, unit, done, total)
        now = time.monotonic()
        if total and now - since >= ARTIFACT_SECONDS and TaskRunContext.get():
            since = now
            percent = 100.0 * done / total
            try:
                if artifact is None:
                    created = create_progress_artifact(percent, key=stage, description=f"{label}, {total} {unit}")
                    assert isinstance(created, UUID)
                    artifact = created
                else:
                    update_progress_artifact(artifact, percent)
            except (HTTPError, PrefectHTTPStatusError) as error:
                # while the server restarts an update is lost, but training continues
                log.warning("the progress of %s cannot be shown: %s", label, type(error).__name__)

    return moved


def shown(stage: Stage, artifact: Artifact) -> Any:
    """Report to the watchers that `stage` has finished; -> the artifact, inside a state named Cached if reused."""
    for watcher in watchers:
        watcher.finished(stage, artifact)
    if artifact.cached:
        return Completed(name="Cached", message=f"{artifact.stage} {artifact.digest[:12]} reused", data=artifact)
    speed = throughput([artifact])
    log.info("%s: built in %.1f s%s", stage.label, artifact.seconds, f", {speed}" if speed else "")
    return artifact
