"""The local stack: a Prefect server and a worker as processes of this machine, started and stopped together.
Takes a store, gives running processes and stops exactly those; what they say is in files beside them.
It does not know what is deployed.

    <store>/server/stack.json   the address, and each process by id and time of birth
    <store>/server/*.log        what they say
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

__all__ = ["Stack"]

STARTING_SECONDS = 120  # a cold start beside other work
STOPPING_SECONDS = 30


class Stack:
    """The server and the worker of one store."""

    def __init__(self, store: Path) -> None:
        self.home = store.resolve() / "server"
        self._record = self.home / "stack.json"

    def start(self, port: int, pool: str, limit: int, ready: Callable[[str], None]) -> str:
        """Start the server on the loopback, call `ready` with its API's address, start a worker for `pool` that runs
        `limit` flows at once; -> the address. Raises QalamError, and leaves nothing running."""
        if self._alive():
            raise QalamError(f"{self.home}: its server and worker run already; `qalam down` stops them")
        with socket.socket() as probe:
            # a port that a server has just left is free for the next one, as it is for Prefect's
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                raise QalamError(f"port {port} is taken by another program; choose one with --port") from None
        api = f"http://127.0.0.1:{port}/api"
        environment = {**os.environ, **LOCAL_SERVER, "PREFECT_HOME": str(self.home), "PREFECT_API_URL": api}
        secret = environment.get("PREFECT_SERVER_API_AUTH_STRING")
        if secret:  # who protects the server means its worker, too
            environment["PREFECT_API_AUTH_STRING"] = os.environ["PREFECT_API_AUTH_STRING"] = secret
        try:
            server = self._spawn(
                "server", ["server", "start", "--host", "127.0.0.1", "--port", str(port)], environment, api
            )
            self._wait(server, api)
            ready(api)
            # it asks for work every two seconds: on one machine that costs nothing
            worker = ["worker", "start", "--pool", pool, "--limit", str(limit), "--name", "local"]
            self._spawn("worker", worker, {**environment, "PREFECT_WORKER_QUERY_SECONDS": "2"}, api)
        except BaseException:
            self.stop()
            raise
        return api

    def stop(self) -> list[str]:
        """Stop what `start` started, and nothing else; -> the names of what ran. Runs in the middle of something are
        told to stop, and save their training."""
        alive = self._alive()
        for name in ("worker", "server"):  # the worker first: it tells the server
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
                # a shell that started us in the background had SIGINT ignored, and a worker that ignores it never ends
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
                raise QalamError(f"the server ended at once: {' '.join(last)}; {log} says more")
            try:
                with urllib.request.urlopen(f"{api}/health", timeout=1):  # noqa: S310 (the address is ours)
                    return
            except urllib.error.HTTPError as error:  # it answers, and is not ready yet
                error.close()
            except OSError:
                pass
            time.sleep(0.25)
        raise QalamError(f"the server did not answer within {STARTING_SECONDS} s; {log} says more")

    def _read(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self._record.read_text(encoding="utf-8"))
        return record

    def _alive(self) -> dict[str, psutil.Process]:
        """Our processes that run. A process id that another program has got since is not ours: it was born later."""
        try:
            recorded = self._read()["processes"]
        except (FileNotFoundError, ValueError, KeyError):
            return {}
        alive = {}
        for name, (pid, born) in recorded.items():
            try:
                process = psutil.Process(int(pid))
                if process.create_time() == born and process.status() != psutil.STATUS_ZOMBIE:
                    alive[name] = process
            except psutil.NoSuchProcess:
                continue
        return alive


def _default_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(process: psutil.Process) -> None:
    """SIGTERM; SIGKILL for what is left of it and of its children."""
    family = [process, *process.children(recursive=True)]
    process.terminate()
    _, left = psutil.wait_procs(family, timeout=STOPPING_SECONDS)
    for one in left:
        one.kill()
    psutil.wait_procs(left, timeout=5)
