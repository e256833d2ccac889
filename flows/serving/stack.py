"""The local stack: a Prefect server and a worker as processes of this machine, started and stopped together.
Its files:

    <store>/server/stack.json   the API's address, and each process by id and start time
    <store>/server/*.log        output of the server and the worker
    <store>/server/             Prefect's home: its database and leases
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from al_qalam.flows.serving.prefect_env import LOCAL_SERVER
from qalam_core.errors import QalamError
from qalam_core.files import replace_file

STARTING_SECONDS = 120  # on a cold and busy machine
STOPPING_SECONDS = 30


class Stack:
    """The server and the worker of one store."""

    def __init__(self, store: Path) -> None:
        self.home = store.resolve() / "server"
        self._record = self.home / "stack.json"

    def start(self, port: int, pool: str, limit: int, ready: Callable[[str], None]) -> str:
        """Start the server on 127.0.0.1, call `ready` with the API's address, then start a worker for `pool` that runs
        `limit` flows at once; -> the address. Raises QalamError after stopping what was started."""
        if self._alive():
            raise QalamError(f"{self.home}: its server and worker are running already; `qalam down` stops them")
        with socket.socket() as probe:
            # as Prefect's server does, so that a port in TIME_WAIT counts as free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                raise QalamError(f"port {port} is in use by another program; choose one with --port") from None
        api = f"http://127.0.0.1:{port}/api"
        environment = {**os.environ, **LOCAL_SERVER, "PREFECT_HOME": str(self.home), "PREFECT_API_URL": api}
        secret = environment.get("PREFECT_SERVER_API_AUTH_STRING")
        if secret:  # the worker needs the server's password
            environment["PREFECT_API_AUTH_STRING"] = os.environ["PREFECT_API_AUTH_STRING"] = secret
        try:
            server = self._spawn(
                "server", ["server", "start", "--host", "127.0.0.1", "--port", str(port)], environment, api
            )
            self._wait(server, api)
            ready(api)
            # Prefect's default is 10 s; on one machine a query every 2 s costs nothing
            polling = {"PREFECT_WORKER_QUERY_SECONDS": "2", **environment}
            worker = ["worker", "start", "--pool", pool, "--limit", str(limit), "--name", "local"]
            self._spawn("worker", worker, polling, api)
        except BaseException:
            self.stop()
            raise
        return api

    def stop(self) -> list[str]:
        """Stop the processes that `start` started, and no others; -> the names of those that ran. Active runs are
        stopped too; their training writes a checkpoint first."""
        alive = self._alive()
        for name in ("worker", "server"):  # the worker first: it reports its end to the server
            if name in alive:
                _end(alive[name])
        self._record.unlink(missing_ok=True)
        return sorted(alive)

    def _spawn(self, name: str, arguments: list[str], environment: Mapping[str, str], api: str) -> psutil.Process:
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect", *arguments], env=environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True, cwd=self.home.parent.parent,
                # a shell's background jobs ignore SIGINT, and a Prefect worker that ignores it does not exit on SIGTERM
                preexec_fn=_default_signals,
            )  # fmt: skip
        found = psutil.Process(process.pid)
        record: dict[str, Any] = self._read() if self._record.exists() else {"api": api, "processes": {}}
        record["processes"][name] = [found.pid, found.create_time()]
        replace_file(self._record, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
        return found

    def _wait(self, server: psutil.Process, api: str) -> None:
        log = self.home / "server.log"
        for _ in range(STARTING_SECONDS * 4):
            if not server.is_running() or server.status() == psutil.STATUS_ZOMBIE:
                last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                raise QalamError(f"the server exited at startup: {' '.join(last)}; see {log}")
            try:
                with urllib.request.urlopen(f"{api}/health", timeout=1):  # noqa: S310 (a loopback address)
                    return
            except urllib.error.HTTPError as error:  # it responds, but is not ready yet
                error.close()
            except OSError:
                pass
            time.sleep(0.25)
        raise QalamError(f"the server did not respond within {STARTING_SECONDS} s; see {log}")

    def _read(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self._record.read_text(encoding="utf-8"))
        return record

    def _alive(self) -> dict[str, psutil.Process]:
        """The recorded processes that still run; the start time excludes a process that has reused an id."""
        try:
            recorded = self._read()["processes"]
        except (FileNotFoundError, ValueError, KeyError):
            return {}
        alive = {}
        for name, (pid, started) in recorded.items():
            try:
                process = psutil.Process(int(pid))
                if process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE:
                    alive[name] = process
            except psutil.NoSuchProcess:
                continue
        return alive


def _default_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(process: psutil.Process) -> None:
    """Send SIGTERM; after STOPPING_SECONDS send SIGKILL to it and its children where they still run."""
    family = [process, *process.children(recursive=True)]
    process.terminate()
    _, left = psutil.wait_procs(family, timeout=STOPPING_SECONDS)
    for one in left:
        one.kill()
    psutil.wait_procs(left, timeout=5)
