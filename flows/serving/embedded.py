"""Prefect's server of a build without one: a process of its own that ends when the build has ended, in whatever way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

PORT_IN_USE = 3
"""Exit status of uvicorn, and of this module, when the server could not start; Prefect then tries another port."""


def start() -> None:
    """Start Prefect's embedded server, unless another one is set; Prefect would start it in the build's group.

    What ends the build, such as Ctrl-C in a terminal, `timeout` or a closed terminal, goes to all processes of its
    group, and a flow tries for minutes to tell a server that is gone that it has ended.
    """
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if settings.api.url or not settings.server.ephemeral.enabled:
        return
    from prefect.server.api.server import SubprocessASGIServer

    class Embedded(SubprocessASGIServer):  # the flow finds it by the registry of its base class
        def _run_uvicorn_command(self) -> subprocess.Popen[bytes]:
            reading, _ = os.pipe()  # closed by the kernel when this process has ended
            try:
                return subprocess.Popen(
                    [sys.executable, "-m", __name__, str(self.port)],
                    env={**os.environ, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"},
                    stdin=reading, start_new_session=True,
                )  # fmt: skip
            finally:
                os.close(reading)

    Embedded().start()


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _serve(port: int) -> None:
    import uvicorn

    threading.Thread(target=_end_with_parent, daemon=True).start()
    uvicorn.run(
        "prefect.server.api.server:create_app", factory=True, host="127.0.0.1", port=port, log_level="error",
        lifespan="on",
    )  # fmt: skip


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
