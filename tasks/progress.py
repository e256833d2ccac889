"""Progress of a running stage, told to whoever watches: a terminal, and Prefect's progress artifacts.
Takes (done, total) calls from a stage and passes them on, thinned out; gives nothing back.
It does not know what a stage does, nor how a terminal draws.
"""

from __future__ import annotations

import time
from typing import Protocol
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext

from qalam_core.store import Artifact, Progress

__all__ = ["Watcher", "report_to", "watch", "watchers"]

ARTIFACT_SECONDS = 2.0  # an update is an API call of some 20 ms


class Watcher(Protocol):
    """Somebody who wants to see stages move, in the process that runs them."""

    def moved(self, stage: str, label: str, unit: str, done: int, total: int) -> None:
        """`label` of `stage` did `done` of `total` units; 0 means the total is not known yet."""

    def finished(self, label: str, artifact: Artifact) -> None:
        """`label` is done."""


watchers: list[Watcher] = []
"""Who watches in this process; the command line adds its progress bars."""


def watch(stage: str, label: str, unit: str) -> Progress:
    """The callback to hand to a stage; inside a task run it also keeps a Prefect progress artifact."""
    shown: UUID | None = None
    since = time.monotonic()

    def moved(done: int, total: int) -> None:
        nonlocal shown, since
        for watcher in watchers:
            watcher.moved(stage, label, unit, done, total)
        now = time.monotonic()
        if total and now - since >= ARTIFACT_SECONDS and TaskRunContext.get():
            since = now
            percent = 100.0 * done / total
            if shown is None:
                created = create_progress_artifact(percent, key=stage, description=f"{label}, {total} {unit}")
                assert isinstance(created, UUID)
                shown = created
            else:
                update_progress_artifact(shown, percent)

    return moved


def report_to(label: str, artifact: Artifact) -> None:
    """Tell everyone who watches that `label` is done."""
    for watcher in watchers:
        watcher.finished(label, artifact)
