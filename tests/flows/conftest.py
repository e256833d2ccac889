"""Fixtures of the flow tests: a Prefect server, and a local stack with a worker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qalam_core.files import try_lock
from tests.flows.processes import clean_environment, prefect_server, prepared
from tests.flows.stack import Receiver, Stack


@pytest.fixture(scope="session")
def database(processes: None, shared_folder: Path) -> Path:
    """A new database of a Prefect server, made once for all workers."""
    home = shared_folder / "prefect"
    with (shared_folder / "prefect.lock").open("w") as lock:
        try_lock(lock, blocking=True)
        if not (home / "done").exists():
            subprocess.run(
                [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"], check=True,
                env=clean_environment(PREFECT_HOME=str(home)), capture_output=True,
            )  # fmt: skip
            (home / "done").touch()
    return home / "prefect.db"


@pytest.fixture(scope="session")
def api(database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API address of a Prefect server."""
    with prefect_server(prepared(tmp_path_factory.mktemp("prefect"), database)) as address:
        yield address


@pytest.fixture(scope="module")
def stack(database: Path, corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    receiver = Receiver()
    stack = Stack(tmp_path_factory.mktemp("stack"), corpus_file, receiver)
    prepared(stack.store / "server", database)
    stack.up()
    try:
        yield stack
    finally:
        stack.down()
        receiver.server.shutdown()
        receiver.server.server_close()


@pytest.fixture(scope="module")
def daily(stack: Stack) -> dict[str, Any]:
    """A completed run of the deployment, which has built the champion of `daily`."""
    return stack.completed(stack.start())
