"""The server of a build that names none: Prefect's API in a process of its own, with its database in $PREFECT_HOME.

It has a session of its own: a terminal sends Ctrl-C to every process of the build's, which still reports to it how it
ended. It ends after the build however that ends: then its standard input ends. One that is killed is started again.
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
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

STARTING_SECONDS = 120  # on a cold and busy machine
STOPPING_SECONDS = 5

_EXCEPTION = re.compile(r"[\w.]+(Error|Exception): ")  # the last line of a traceback


class ServerError(Exception):
    """It did not start."""


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
        server = _of_this_process()
    except OSError as error:
        raise ServerError(f"it did not start: {error}") from None
    variables = {"PREFECT_API_URL": server.url, PRIVATE: server.url}
    os.environ.update(variables)
    refresh_global_settings_context()
    try:
        meanwhile()
        server.wait()
        yield
    finally:
        for name in variables:
            del os.environ[name]
        refresh_global_settings_context()


class _Server:
    """The process, and the socket on which it listens: clients wait in its queue while a server starts."""

    def __init__(self) -> None:
        from prefect.settings import get_current_settings

        self._environment = {**os.environ, **get_current_settings().to_environment_variables(exclude_unset=True)}
        # as Prefect starts its own: without what only a lasting server needs
        self._environment |= {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        self._environment["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "ERROR"  # into the file
        self._errors = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (open as long as the process)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/api"
        self._ready = self._ending = False
        self._process = self._start()
        threading.Thread(target=self._keep, daemon=True).start()

    def wait(self) -> None:
        """Until it responds. Raises ServerError."""
        until = time.monotonic() + STARTING_SECONDS
        while self._process.poll() is None and time.monotonic() < until:
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=1):  # noqa: S310 (loopback)
                self._ready = True
                return
        self.stop()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        last = [line for line in lines if _EXCEPTION.match(line)][-1:] or lines[-1:] or ["it does not respond"]
        raise ServerError(f"it did not start: {last[0]}")

    def stop(self) -> None:
        """End it, when it has recorded what it was told."""
        self._ending = True
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(2 * STOPPING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listening.close()
        _of_this_process.cache_clear()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", __name__, str(self._listening.fileno())], stdin=subprocess.PIPE, stdout=self._errors,
            stderr=self._errors, env=self._environment, pass_fds=[self._listening.fileno()], start_new_session=True,
        )  # fmt: skip

    def _keep(self) -> None:
        """Start it again where it was killed, as for memory: a build need not end with it."""
        while self._process.wait() is not None and self._ready and not self._ending:
            self._process = self._start()


@cache
def _of_this_process() -> _Server:
    server = _Server()
    atexit.register(server.stop)
    return server


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
