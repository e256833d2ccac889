"""Prefect's settings, as environment variables: for an embedded build, for a server, and for whoever calls one.
Takes folders, gives mappings; each value that is not Prefect's default says why.
It does not start anything, and does not import Prefect: its settings are read when it is imported.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["CALLER", "LOCAL_SERVER", "embedded"]

CALLER = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "qalam_core",  # what the library and the trainer say is in the run's log
    # the least that Prefect allows; a run whose process is gone is known by their absence
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # a server that restarts in the middle of a run is waited for, about four minutes in all
    "PREFECT_CLIENT_MAX_RETRIES": "7",
}
"""For every process that runs flows: a worker hands them to its runs."""

_RECORDER = {
    # without batches a server falls behind mapped tasks, and an embedded one loses their records at its end
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    # whole seconds: Prefect truncates, and at 0 its server spins on a core
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}

LOCAL_SERVER = {
    **CALLER,
    **_RECORDER,
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # a slot's lease outlives a restart of the server, and so ends when it should
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}
"""For a server of one machine, on SQLite; docs/operations.md has what a larger one adds."""


def embedded(store: Path) -> dict[str, str]:
    """For a build without a server: Prefect runs inside the process, with its home in the store."""
    return {
        **CALLER,
        **_RECORDER,
        "PREFECT_HOME": str(store / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # a cold start beside other work
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # we print; the API still keeps INFO
    }
