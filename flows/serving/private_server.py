"""The server of a build that names none: Prefect's API in a process of its own, with its database in $PREFECT_HOME.

It has a session of its own: a terminal sends Ctrl-C to every process of the build's, which still reports to it how it
ended. It ends after the build however that ends: then its standard input ends.
"""

from __future__ import annotations

import atexit
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import IO, NamedTuple

STARTING_SECONDS = 120  # on a cold and busy machine
STOPPING_SECONDS = 5

_EXCEPTION = re.compile(r"[\w.]+(Error|Exception): ")  # the last line of a traceback


class ServerError(Exception):
    """It did not start."""


class _Server(NamedTuple):
    url: str
    process: subprocess.Popen[bytes]
    errors: IO[bytes]  # what it has written to standard error


@contextmanager
def private_server(meanwhile: Callable[[], object]) -> Iterator[None]:
    """Context manager in which Prefect's clients use such a server, unless their settings name another; `meanwhile` is
    called while it starts. It ends with this process, as Prefect sends its last logs then. Raises ServerError."""
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    from al_qalam.tasks.policy import PRIVATE

    settings = get_current_settings()
    if settings.api.url or not settings.server.ephemeral.enabled:
        yield
        return
    try:
        server = _started()
    except OSError as error:
        raise ServerError(f"it did not start: {error}") from None
    variables = {"PREFECT_API_URL": server.url, PRIVATE: server.url}
    os.environ.update(variables)
    refresh_global_settings_context()
    try:
        meanwhile()
        _wait(server)
        yield
    finally:
        for name in variables:
            del os.environ[name]
        refresh_global_settings_context()


@cache
def _started() -> _Server:
    """The server of this process."""
    from prefect.settings import get_current_settings

    environment = {**os.environ, **get_current_settings().to_environment_variables(exclude_unset=True)}
    # as Prefect starts its own: without what only a lasting server needs
    environment |= {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    environment["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "ERROR"  # into `errors`
    errors = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (open as long as the process)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(listening.fileno())], stdin=subprocess.PIPE, stdout=errors,
            stderr=errors, env=environment, pass_fds=[listening.fileno()], start_new_session=True,
        )  # fmt: skip
        server = _Server(f"http://127.0.0.1:{listening.getsockname()[1]}/api", process, errors)
    atexit.register(_stop, server)
    return server


def _wait(server: _Server) -> None:
    """Until it responds: a connection waits for that, as its socket listens already."""
    try:
        with urllib.request.urlopen(f"{server.url}/health", timeout=STARTING_SECONDS):  # noqa: S310 (a loopback address)
            return
    except OSError as error:
        _stop(server)
        _started.cache_clear()
        server.errors.seek(0)
        lines = server.errors.read().decode(errors="replace").strip().splitlines()
        last = [line for line in lines if _EXCEPTION.match(line)][-1:] or lines[-1:] or [str(error)]
        raise ServerError(f"it did not start: {last[0]}") from None


def _stop(server: _Server) -> None:
    assert server.process.stdin
    server.process.stdin.close()
    try:
        server.process.wait(2 * STOPPING_SECONDS)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


def main() -> None:
    """Serve on the socket whose file descriptor is the first argument, until standard input ends."""
    import uvicorn

    application = "prefect.server.api.server:create_app"
    config = uvicorn.Config(
        application, factory=True, log_level="error", lifespan="on", timeout_graceful_shutdown=STOPPING_SECONDS
    )
    server = uvicorn.Server(config)

    def end() -> None:
        os.read(0, 1)  # unlike sys.stdin, it may still wait when the interpreter ends
        server.should_exit = True

    threading.Thread(target=end, daemon=True).start()
    server.run([socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
