"""The local stack: a Prefect server and a worker as processes of this machine, started and stopped together.
Its files:

    <store>/server/stack.json   the API's address, and the id of each process
    <store>/server/lock         held by `qalam up` and `qalam down`
    <store>/server/*.log        output of the server and the worker
    <store>/server/             Prefect's home: its database and leases
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
from pydantic import Field

from al_qalam.flows.serving.prefect_env import LOCAL_SERVER, private
from qalam_core.errors import QalamError
from qalam_core.files import read_bytes, replace_file, try_lock
from qalam_core.recipe import Frozen

STARTING_SECONDS = 120  # on a cold and busy machine
STOPPING_SECONDS = 30


WORKER = "local"  # its name on the server

Name = Literal["server", "worker"]


class Record(Frozen):
    """stack.json."""

    api: str = ""
    processes: Mapping[Name, Annotated[int, Field(strict=True, gt=0, lt=1 << 31)]] = Field(default_factory=dict)


class Stack:
    """The server and the worker of one store."""

    def __init__(self, store: Path) -> None:
        self.home = store.resolve() / "server"
        self._record = self.home / "stack.json"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Context manager that keeps others from starting and stopping. Raises QalamError while another one does."""
        private(self.home)
        with (self.home / "lock").open("w") as lock:
            if not try_lock(lock):
                raise QalamError(f"{self.home}: another `qalam up` or `qalam down` is at work; wait until it has ended")
            yield

    def states(self) -> dict[str, str]:
        """What `start` has to do for the server and for the worker: "new", "running", or "restarted" for one that was
        started and has died."""
        alive, recorded = self._alive(), self._read().processes
        return {
            name: "running" if name in alive else "restarted" if name in recorded else "new"
            for name in ("server", "worker")
        }

    def start(self, port: int | None, pool: str, limit: int, ready: Callable[[str], None]) -> str:
        """Start the server on 127.0.0.1 unless it runs, call `ready` with the API's address, then start a worker for
        `pool` that runs `limit` flows at once unless one runs; -> the address. `port` None is the port of before, at
        first 4200. Raises QalamError after stopping what was started."""
        states, recorded = self.states(), self._read().api
        api = recorded if recorded and port is None else f"http://127.0.0.1:{port or 4200}/api"
        if recorded not in ("", api) and "running" in states.values():
            raise QalamError(
                f"{self.home}: its {' and '.join(name for name, how in states.items() if how == 'running')} "
                f"use {recorded}; leave out --port, or stop them with `qalam down`"
            )
        environment = {**os.environ, **LOCAL_SERVER, "PREFECT_HOME": str(self.home), "PREFECT_API_URL": api}
        secret = environment.get("PREFECT_SERVER_API_AUTH_STRING")
        if secret:  # the worker needs the server's password
            environment["PREFECT_API_AUTH_STRING"] = os.environ["PREFECT_API_AUTH_STRING"] = secret
        try:
            if states["server"] != "running":
                where = urllib.parse.urlsplit(api)
                assert where.hostname
                assert where.port
                _check_free(where.hostname, where.port)
                arguments = ["server", "start", "--host", where.hostname, "--port", str(where.port)]
                server, number = self._spawn("server", arguments, environment, api), where.port
                # and not another one, which was faster
                self._wait("server", server, lambda: _ask(f"{api}/health") is not None and _listens(server, number))
            ready(api)
            if states["worker"] != "running":
                # Prefect's default is 10 s; on one machine a query every 2 s costs nothing
                polling = {"PREFECT_WORKER_QUERY_SECONDS": "2", **environment}
                worker = ["worker", "start", "--pool", pool, "--type", "process"]  # or it asks the server, once
                worker += ["--limit", str(limit), "--name", WORKER]
                since = time.time()
                process = self._spawn("worker", worker, polling, api)
                self._wait("worker", process, lambda: _reported(api, pool, since))
        except BaseException:
            self._stop([name for name, how in states.items() if how != "running"])
            raise
        return api

    def stop(self) -> list[str]:
        """Stop the processes that `start` started, and no others; -> the names of those that ran. Active runs are
        stopped too; their training writes a checkpoint first."""
        if not self.home.is_dir():
            return []
        with self.alone():
            stopped = self._stop(["server", "worker"])
            self._record.unlink(missing_ok=True)
        return stopped

    def _stop(self, names: Sequence[str]) -> list[str]:
        alive = self._alive()
        ending = [name for name in ("worker", "server") if name in alive and name in names]
        for name in ending:  # the worker first: it reports its end to the server
            _end(alive[name])
        return sorted(ending)

    def _spawn(self, name: Name, arguments: list[str], environment: Mapping[str, str], api: str) -> psutil.Process:
        file = self.home / f"{name}.log"
        file.touch(0o600)
        with file.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect", *arguments], env=environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True, cwd=self.home.parent.parent,
                # a shell's background jobs ignore SIGINT, and a Prefect worker that ignores it does not exit on SIGTERM
                preexec_fn=_default_signals,
            )  # fmt: skip
        found = psutil.Process(process.pid)
        try:
            record = Record(api=api, processes={**self._read().processes, name: found.pid})
            replace_file(self._record, (json.dumps(record.canonical(), indent=1, sort_keys=True) + "\n").encode())
        except BaseException:  # the disk is full: nobody would know the process
            _end(found)
            raise
        return found

    def _wait(self, name: str, process: psutil.Process, ready: Callable[[], bool]) -> None:
        log = self.home / f"{name}.log"
        for _ in range(STARTING_SECONDS * 4):
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                raise QalamError(f"the {name} exited at startup: {' '.join(last)}; see {log}")
            if ready():
                return
            time.sleep(0.25)
        raise QalamError(f"the {name} did not respond within {STARTING_SECONDS} s; see {log}")

    def _read(self) -> Record:
        """The record; empty when there is none. Raises QalamError when it is damaged."""
        try:
            return Record.model_validate_json(read_bytes(self._record))
        except FileNotFoundError:
            return Record()
        except (IsADirectoryError, ValueError):
            raise QalamError(
                f"{self._record}: damaged; end the processes `prefect server start` and `prefect worker start` of this "
                "store yourself, if they run (`ps -ef` lists them), then delete the file"
            ) from None

    def _alive(self) -> dict[str, psutil.Process]:
        """The recorded processes that still run.

        A process that has reused an id has another command, or another server. Its start time would not tell: it moves
        when the clock is set.
        """
        alive, record = dict[str, psutil.Process](), self._read()
        for name, pid in record.processes.items():
            try:
                process = psutil.Process(pid)
                command, server = process.cmdline()[1:5], process.environ().get("PREFECT_API_URL")
                if command == ["-m", "prefect", name, "start"] and server == record.api:
                    alive[name] = process
            except (psutil.NoSuchProcess, psutil.AccessDenied):  # of another user; a zombie is no such process
                continue
        return alive


def _ask(url: str, body: bytes | None = None) -> Any:
    """The answer of the local server, None while it gives none; a body makes it a POST."""
    headers = {"Content-Type": "application/json"}
    if secret := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(secret.encode()).decode()}"
    request = urllib.request.Request(url, body, headers)  # noqa: S310 (a loopback address)
    try:
        with urllib.request.urlopen(request, timeout=1) as response:  # noqa: S310
            return json.loads(response.read())
    except urllib.error.HTTPError as error:  # it responds, but is not ready yet
        error.close()
    except (OSError, ValueError):
        pass
    return None


def _reported(api: str, pool: str, since: float) -> bool:
    """Whether the worker of a stack, not another one of its pool, has reported to the server since a time (Unix)."""
    workers = _ask(f"{api}/work_pools/{pool}/workers/filter", b"{}") or []
    reports = [worker["last_heartbeat_time"] for worker in workers if worker["name"] == WORKER]
    return any(datetime.fromisoformat(when).timestamp() >= since for when in reports if when)


def _listens(server: psutil.Process, port: int) -> bool:
    """Whether a server, or a process that it has started, listens on a port."""
    try:
        family = [server, *server.children(recursive=True)]
        found = [connection for process in family for connection in process.net_connections("tcp4")]
    except psutil.NoSuchProcess:
        return False
    return any(each.laddr.port == port for each in found if each.status == psutil.CONN_LISTEN)


def _check_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        # as Prefect's server does, so that a port in TIME_WAIT counts as free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise QalamError(f"port {port} is in use by another program; choose one with --port") from None


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
