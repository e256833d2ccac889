"""Progress of a running stage: passed to watchers in this process (a terminal), to the run's log, and to Prefect's
progress artifacts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol
from uuid import UUID

from httpx import HTTPError
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Completed

from qalam_core.pipeline.stage import Stage, throughput, waits
from qalam_core.progress import Progress, Tracker, every, interval
from qalam_core.store import Artifact

log = logging.getLogger("qalam_core.progress")

ARTIFACT_SECONDS = 10.0  # each update is an API call of about 20 ms


class Watcher(Protocol):
    """An object in the flow's process that shows progress."""

    def moved(self, tracker: Tracker) -> None:
        """The work of `tracker` has begun, or has moved."""

    def stopped(self, tracker: Tracker) -> None:
        """The work of `tracker` has ended, or has failed."""

    def finished(self, stage: Stage, artifact: Artifact) -> None:
        """`stage` has finished."""


watchers: list[Watcher] = []
"""The watchers in this process; the command line adds its progress bars."""


@contextmanager
def tracked(label: str, unit: str) -> Iterator[Tracker]:
    """Context manager of a `Progress` that the watchers show."""
    tracker = Tracker(label, unit, *(watcher.moved for watcher in watchers))
    try:
        yield tracker
    finally:
        for watcher in watchers:
            watcher.stopped(tracker)


@contextmanager
def watch(stage: str, label: str, unit: str) -> Iterator[Progress]:
    """Context manager, in a task, of the callback to pass to a stage; it also logs lines, and updates an artifact."""
    logging.getLogger("qalam_core").setLevel(logging.INFO)  # here because a process worker only runs tasks
    with tracked(label, unit) as tracker:
        artifact = _Artifact(stage, tracker)
        with every(interval(), lambda: _log(tracker)), every(ARTIFACT_SECONDS, artifact.update):
            yield tracker
        artifact.complete()


def _log(tracker: Tracker) -> None:
    if tracker.begun is not None:  # before that it waits, and `waiting` says for what
        log.info("%s: %s", tracker.label, tracker)


class _Artifact:
    """Prefect's progress artifact of a stage: made once some progress is known, so that short stages have none."""

    def __init__(self, key: str, tracker: Tracker) -> None:
        self._key, self._tracker = key, tracker
        self._id: UUID | None = None
        self._shown = 0.0

    def update(self) -> None:
        """Show the tracker's progress."""
        self._show(self._tracker.percent)

    def complete(self) -> None:
        """Show that the stage has ended."""
        if self._id:
            self._show(100.0)

    def _show(self, percent: float) -> None:
        if percent == self._shown:
            return
        try:
            if self._id is None:
                what = f"{self._tracker.label}, {self._tracker.total} {self._tracker.unit}"
                created = create_progress_artifact(percent, key=self._key, description=what)
                assert isinstance(created, UUID)
                self._id = created
            else:
                update_progress_artifact(self._id, percent)
            self._shown = percent
        except (HTTPError, PrefectHTTPStatusError) as error:
            # while the server restarts an update is lost, but training continues
            log.warning("the progress of %s cannot be shown: %s", self._tracker.label, type(error).__name__)


def shown(stage: Stage, artifact: Artifact) -> Artifact:
    """Report to the watchers, and in the run's log, that `stage` has finished."""
    for watcher in watchers:
        watcher.finished(stage, artifact)
    if not artifact.cached:
        figures = filter(None, (f"built in {artifact.seconds:.1f} s", throughput([artifact]), waits(artifact)))
        log.info("%s: %s", stage.label, ", ".join(figures))
    return artifact


def ended(artifacts: Sequence[Artifact]) -> Any:
    """What the task of some stages returns: their artifacts, inside a state named Cached if all were reused."""
    if not all(artifact.cached for artifact in artifacts):
        return artifacts
    first, *others = artifacts
    message = f"{first.stage} {first.digest[:12]}{f' and {len(others)} more' if others else ''} reused"
    return Completed(name="Cached", message=message, data=artifacts)
