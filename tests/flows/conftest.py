"""Fixtures of the flow tests: a Prefect server, and a local stack with a worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.processes import prefect_server
from tests.flows.stack import Receiver, Stack


@pytest.fixture(scope="module")  # a server that idles until the end of the session would use a tenth of a core
def api(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API address of a Prefect server."""
    with prefect_server(tmp_path_factory.mktemp("prefect")) as address:
        yield address


@pytest.fixture(scope="module")
def stack(processes: None, corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    receiver = Receiver()
    stack = Stack(tmp_path_factory.mktemp("stack"), corpus_file, receiver)
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
