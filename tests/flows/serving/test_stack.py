"""Which processes are those of a stack. That it works is tested with one that runs: test_recovery.py."""

from __future__ import annotations

import errno
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from al_qalam.flows.serving import stack as stacks
from al_qalam.flows.serving.stack import Stack
from qalam_core.errors import QalamError
from tests.failing_disk import broken
from tests.flows.processes import free_port
from tests.flows.stack import until

API = "http://127.0.0.1:4299/api"


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    found = Stack(tmp_path / "store")
    found.home.mkdir(parents=True)
    return found


@contextmanager
def started(folder: Path, *command: str, api: str = API) -> Iterator[psutil.Process]:
    """A process with the command line of one of Prefect's, that only waits."""
    (folder / "prefect.py").write_text("input()\n", encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, "-m", "prefect", *command], cwd=folder, env={**os.environ, "PREFECT_API_URL": api},
        stdin=subprocess.PIPE,
    ) as process:  # fmt: skip
        found = psutil.Process(process.pid)
        try:
            until(lambda: "PREFECT_API_URL" in found.environ(), 10, "the kernel has it")  # not at once after exec
            yield found
        finally:
            process.kill()


def record(stack: Stack, **processes: object) -> None:
    (stack.home / "stack.json").write_text(json.dumps({"api": API, "processes": processes}), encoding="utf-8")


def test_a_recorded_process_is_ended(processes: None, stack: Stack, tmp_path: Path) -> None:
    with started(tmp_path, "server", "start") as server, started(tmp_path, "worker", "start") as worker:
        record(stack, server=server.pid, worker=worker.pid)
        assert stack.states() == {"server": "running", "worker": "running"}
        assert stack.stop() == ["server", "worker"]
    assert stack.stop() == []


@pytest.mark.parametrize(
    ("command", "api"),
    [
        (("worker", "start"), API),  # recorded as the server
        (("server", "services", "start"), API),
        (("server", "start"), "http://127.0.0.1:4298/api"),
    ],
)
def test_a_process_that_has_reused_an_id_is_not_ended(
    command: tuple[str, ...], api: str, processes: None, stack: Stack, tmp_path: Path
) -> None:
    with started(tmp_path, *command, api=api) as foreign:
        record(stack, server=foreign.pid, worker=os.getpid())
        assert stack.states() == {"server": "restarted", "worker": "restarted"}
        assert stack.stop() == []
        assert foreign.is_running()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"\xff", b'{"processes": []}', b'{"processes": {"server": "12"}}',
        b'{"processes": {"server": -1}}', b'{"processes": {"server": 0}}', b'{"processes": {"server": 1e30}}',
        b'{"processes": {"server": [12, 3.5]}}', b'{"processes": {"other": 12}}', b'{"api": 4200}', b'{"more": 1}',
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_record_is_one_line_and_stays(content: bytes, stack: Stack) -> None:
    """Without it nobody knows which processes run: to stop nothing and say so would hide them."""
    file = stack.home / "stack.json"
    file.write_bytes(content)
    for command in (stack.states, stack.stop):
        with pytest.raises(QalamError, match="damaged; end the processes") as found:
            command()
        assert "\n" not in str(found.value)
    assert file.read_bytes() == content


def test_a_folder_in_place_of_the_record_is_one_line(stack: Stack) -> None:
    (stack.home / "stack.json").mkdir()
    with pytest.raises(QalamError, match="damaged"):
        stack.states()


def test_only_one_starts_and_stops(stack: Stack) -> None:
    with stack.alone():
        for command in (stack.alone().__enter__, Stack(stack.home.parent).stop):
            with pytest.raises(QalamError, match="another `qalam up` or `qalam down` is at work"):
                command()
    with stack.alone():
        pass


def test_down_without_a_stack_writes_nothing(tmp_path: Path) -> None:
    assert Stack(tmp_path / "store").stop() == []
    assert not (tmp_path / "store").exists()


def test_the_server_of_another_stack_is_not_ones_own(
    processes: None, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stacks that start at the same time on a port that both found free: one server answers the health checks of
    both."""

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"true")

        def log_message(self, *_: object) -> None: ...

    monkeypatch.setattr(stacks, "STARTING_SECONDS", 1)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health) as other, started(tmp_path, "server") as mine:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        monkeypatch.setattr(stacks, "_check_free", lambda *_: None)
        monkeypatch.setattr(Stack, "_spawn", lambda *_: mine)
        with pytest.raises(QalamError, match="the server did not respond"):
            stack.start(other.server_port, "qalam-cpu", 1, lambda _: pytest.fail("it was taken for one's own"))
        other.shutdown()


def test_a_process_that_cannot_be_recorded_is_ended(
    processes: None, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: nobody would stop it."""
    made = list[subprocess.Popen[bytes]]()

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    with broken(stack.home, ("os.rename",), errno.ENOSPC), pytest.raises(OSError, match="No space left"):
        stack.start(free_port(), "qalam-cpu", 1, lambda _: None)
    (server,) = made
    assert not psutil.pid_exists(server.pid)
    server.wait()


def test_a_worker_that_does_not_start_is_one_line(
    processes: None, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(tmp_path, "worker", "start") as worker:
        (stack.home / "worker.log").write_text("first\nno module named prefect\n", encoding="utf-8")
        worker.kill()
        with pytest.raises(QalamError, match="the worker exited at startup: no module named prefect; see"):
            stack._wait("worker", worker, lambda: False)
