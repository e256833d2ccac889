"""Policy that tasks and flows share: caching, retries, which store a run may use, how many trainings run at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from prefect import Task, runtime
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State, TaskRun
from prefect.concurrency.sync import concurrency
from prefect.settings import get_current_settings

from qalam_core.errors import QalamError, StoreError
from qalam_core.object_store import store_at
from qalam_core.progress import waiting

# The store decides about reuse: Prefect's cache key contains a task's source, which does not change with the stage.
# Results stay in memory: they are references of a few bytes.
POLICY: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}


def _not_the_users(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Retry errors that may be temporary (network, busy disk), but not those that the user must correct."""
    return not isinstance(state.result(raise_on_failure=False), QalamError)


# For tasks that read external sources; a task that only computes would fail in the same way again.
RETRIES: dict[str, Any] = {"retries": 2, "retry_delay_seconds": [2, 10], "retry_condition_fn": _not_the_users}

TRAINING_SLOTS = "qalam-training"
"""The global concurrency limit around training: one slot for each GPU."""

SLOT_SECONDS = 60
"""Lease of a training slot: a slot whose holder was killed is freed after this time. Prefect's minimum."""


PRIVATE = "QALAM_PRIVATE_SERVER"
"""Environment variable: the address of the server that a build has started for itself, as its settings name none."""


def server() -> str:
    """The address of the API of a server that others see too; "" for a build without one."""
    url = get_current_settings().api.url
    return url if url and url != os.environ.get(PRIVATE) else ""


REFUSED = "Refused"
"""The name of the Failed state of a run whose model the gate did not pass; the events have notices of their own."""


def tag_of(recipe: str) -> str:
    """The tag of every run of the recipe with this name."""
    return f"recipe:{recipe}"


def run_name(what: str) -> Callable[[], str]:
    """For `flow_run_name`: `what`, formatted with the run's parameters, and the deployment that started the run."""

    def name() -> str:
        named = what.format(**runtime.flow_run.parameters)
        return f"{named} ({runtime.deployment.name})" if runtime.deployment.id else named

    return name


def confined(store: str) -> str:
    """The URL, or the absolute path, of `store`. Raises StoreError when a deployment's run requests another store than
    the one that its worker serves ($QALAM_STORE)."""
    place, served = store_at(store).place, os.environ.get("QALAM_STORE")
    if runtime.deployment.id and served and place != (known := store_at(served).place):
        raise StoreError(f"store {place}: this worker serves only {known}; run with store={served}")
    return place


@contextmanager
def training_slot() -> Iterator[None]:
    """Context manager that acquires a training slot of the server.

    Without a server only the store's locks apply. On a server without this limit training is not restricted, and
    Prefect logs that in the run. A training continues while the server is unavailable.
    """
    if not server():
        yield
        return
    slot = concurrency(TRAINING_SLOTS, occupy=1, lease_duration=SLOT_SECONDS, raise_on_lease_renewal_failure=False)
    with ExitStack() as held:
        with waiting(f"a training slot of the server (its concurrency limit {TRAINING_SLOTS})"):
            held.enter_context(slot)
        yield
