"""Policy that tasks and flows share: caching, retries, which store a run may use, how many trainings run at once.
It does not know what a stage does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import Task, runtime
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State, TaskRun
from prefect.concurrency.sync import concurrency
from prefect.settings import get_current_settings

from qalam_core.errors import QalamError, StoreError

__all__ = ["POLICY", "RETRIES", "SLOT_SECONDS", "TRAINING_SLOTS", "confined", "training_slot"]

# Reuse is the store's: Prefect's own cache looks at a task's source lines, which for tasks this thin
# never change. Results stay in memory: they are references of a few bytes.
POLICY: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}


def _not_the_users(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Retry what may pass (a network, a busy disk), never what the user must mend."""
    return not isinstance(state.result(raise_on_failure=False), QalamError)


# For tasks that read from elsewhere; what only computes fails the same way again.
RETRIES: dict[str, Any] = {"retries": 2, "retry_delay_seconds": [2, 10], "retry_condition_fn": _not_the_users}

TRAINING_SLOTS = "qalam-training"
"""The global concurrency limit around training: as many trainings at once as it has slots, one a GPU."""

SLOT_SECONDS = 60
"""How long a training slot outlives a holder that was killed; the least that Prefect allows."""


def confined(store: str) -> str:
    """The absolute path of `store`. Raises StoreError when a run that was started over the API wants another folder
    than the one that its worker serves ($QALAM_STORE)."""
    root, served = Path(store).resolve(), os.environ.get("QALAM_STORE")
    if runtime.deployment.id and served and root != Path(served).resolve():
        raise StoreError(f"store {root}: this worker serves {Path(served).resolve()} alone; run with store={served}")
    return str(root)


@contextmanager
def training_slot() -> Iterator[None]:
    """Context manager that acquires a training slot of the server.

    Without a server only the store's locks apply. A server without the limit does not restrict training, and Prefect
    says so in the run's log. A server that is unavailable for a while does not end a training.
    """
    if not get_current_settings().api.url:
        yield
        return
    with concurrency(TRAINING_SLOTS, occupy=1, lease_duration=SLOT_SECONDS, raise_on_lease_renewal_failure=False):
        yield
