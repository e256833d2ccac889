"""Prefect's settings as environment variables: for a build without a server, for a server, and for its clients.
This module must not import Prefect, which reads its settings when it is imported.
"""

from __future__ import annotations

import os
from pathlib import Path

from qalam_core.errors import StoreError

CALLER = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "qalam_core",  # put the library's and the trainer's lines into the run's log
    # in seconds, the minimum that Prefect allows; missing heartbeats reveal a run whose process is gone
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # with exponential backoff about four minutes, so that a run survives a restart of the server
    "PREFECT_CLIENT_MAX_RETRIES": "7",
}
"""For every client of a server; a worker passes them on to its runs."""

_RECORDER = {
    # without batches a server falls behind mapped tasks, and a build's own one exits before it has recorded them
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    # in whole seconds: Prefect truncates, and with 0 its server uses a full core
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}

LOCAL_SERVER = {
    **CALLER,
    **_RECORDER,
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # leases of slots in files survive a restart of the server, and so still expire
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}
"""For a server on one machine, with SQLite; docs/operations.md has the settings of a larger one."""


def server_may_be_configured() -> bool:
    """Whether $PREFECT_API_URL is set, or the working directory has settings of Prefect, which may name a server."""
    files = {"prefect.toml": b"", "pyproject.toml": b"tool.prefect", ".env": b"PREFECT_"}
    return bool(os.environ.get("PREFECT_API_URL")) or any(
        Path(name).is_file() and mark in Path(name).read_bytes() for name, mark in files.items()
    )


def private_settings(home: Path) -> dict[str, str]:
    """For a build without a server, which has one of its own with its database in the folder `home`."""
    return {
        **CALLER,
        **_RECORDER,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the command line prints; the API still records INFO
        "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # and says how the build ended, also without a server
    }


def private(home: Path) -> None:
    """Create a PREFECT_HOME that only its owner may read: its database has the parameters and logs of all runs. Raises
    StoreError."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o700)
        (home / "prefect.db").touch(0o600)  # SQLite gives the files beside it the same mode
        for pattern in ("prefect.db*", "*.log"):
            for path in home.glob(pattern):
                path.chmod(0o600)
    except PermissionError:
        raise StoreError(
            f"{home}: belongs to another user; set PREFECT_HOME to a folder of your own, or choose another --store"
        ) from None
