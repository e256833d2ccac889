"""Servers for a team: with a password, and on PostgreSQL."""

from __future__ import annotations

import getpass
import http.server
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prefect.events import Event, Resource

from al_qalam.flows.serving.prefect_env import CALLER, private
from al_qalam.tasks.events import CORPUS_UPDATED, GATE_REFUSED
from qalam_core.files import replace_file
from tests.flows.processes import (
    RefusedError,
    call,
    clean_environment,
    free_port,
    own_signals,
    prefect_server,
    prepared,
    qalam,
    write_recipe,
)
from tests.flows.stack import until

PASSWORD = "admin:a-password"


@pytest.fixture
def postgres(processes: None) -> Iterator[str]:
    """The address of a running PostgreSQL server."""
    found = [shutil.which("initdb"), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")))]
    initdb = next((path for path in found if path), None)
    if initdb is None:
        pytest.skip("PostgreSQL is not installed here (Debian: apt-get install postgresql)")
    home = Path(tempfile.mkdtemp(prefix="qalam-pg-"))
    port = free_port()
    root = os.geteuid() == 0  # PostgreSQL refuses to run as root
    user = "postgres" if root else getpass.getuser()
    as_user = ["runuser", "-u", "postgres", "--"] if root else []
    if root:
        shutil.chown(home, "postgres", "postgres")
    control = [*as_user, str(Path(initdb).with_name("pg_ctl")), "-D", str(home / "data"), "-w"]
    options = f"-p {port} -h 127.0.0.1 -k {home} -c fsync=off"
    try:
        subprocess.run(
            [*as_user, initdb, "-A", "trust", "-D", str(home / "data")], check=True, capture_output=True, cwd="/"
        )
        log = str(home / "log")
        subprocess.run([*control, "-l", log, "-o", options, "start"], check=True, stdout=subprocess.DEVNULL, cwd="/")
        yield f"postgresql+asyncpg://{user}@127.0.0.1:{port}/postgres"
        subprocess.run([*control, "-m", "fast", "stop"], check=True, capture_output=True, cwd="/")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def test_only_the_owner_reads_a_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(0o755)
    (home / "server.log").write_text("of an earlier version")
    private(home)
    with closing(sqlite3.connect(home / "prefect.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE runs (id)")
        modes = {path.name: path.stat().st_mode & 0o777 for path in home.iterdir()}
    assert modes == dict.fromkeys(("prefect.db", "prefect.db-wal", "prefect.db-shm", "server.log"), 0o600)
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_server_with_a_password(database: Path, tmp_path: Path) -> None:
    with prefect_server(prepared(tmp_path / "server", database), PREFECT_SERVER_API_AUTH_STRING=PASSWORD) as api:
        body: dict[str, Any] = {}
        for path in ("flow_runs/filter", "deployments/filter", "work_pools/filter"):
            with pytest.raises(RefusedError) as refused:
                call(api, path, body)
            assert refused.value.code == 401
            with pytest.raises(RefusedError) as refused:
                call(api, path, body, auth="admin:guess")
            assert refused.value.code == 401
            assert call(api, path, body, auth=PASSWORD) == []
        done = qalam("deploy", PREFECT_API_URL=api, PREFECT_HOME=str(tmp_path / "caller"))
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
        assert "PREFECT_API_AUTH_STRING" in done.stderr


@pytest.mark.parametrize(
    ("answer", "command"),
    [(b"{}", "deploy"), (b"{}", "build"), (b"{}", "watch"), (b"<html>", "deploy"), (b"<html>", "watch")],
)
def test_a_program_that_is_not_prefect_is_one_line(
    answer: bytes, command: str, processes: None, corpus_file: Path, tmp_path: Path
) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None: ...

    recipe = write_recipe(tmp_path / "mine.toml", corpus_file)
    more = {"watch": [tmp_path, "--recipe", recipe, "--once", "--every", "0.1"]}.get(command, [recipe])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        api = f"http://127.0.0.1:{other.server_port}/api"
        with_password = api.replace("//", f"//{PASSWORD}@")
        done = qalam(command, *more, "--store", tmp_path / "store", PREFECT_API_URL=with_password)
        other.shutdown()
    assert done.returncode == 2, done.stderr
    assert PASSWORD.partition(":")[2] not in done.stderr
    assert re.search(rf"^error: .*{api}.*is it a Prefect server\?$|^error: no Prefect server responds at {api};",
                     done.stderr, re.MULTILINE), done.stderr  # fmt: skip
    assert "Traceback" not in done.stderr


def test_an_event_reaches_a_server_that_comes_back(database: Path, corpus_file: Path, tmp_path: Path) -> None:
    """`qalam watch` and an event of a build: the server is down, is back, and refuses a wrong password."""
    recipe, port = write_recipe(tmp_path / "mine.toml", corpus_file), free_port()
    caller = {
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_API_AUTH_STRING": PASSWORD,
        "PREFECT_HOME": str(tmp_path / "caller"),
    }  # fmt: skip
    command = ["watch", corpus_file.parent, "--recipe", recipe, "--store", tmp_path / "store", "--every", "0.2"]
    left = Event(event=GATE_REFUSED, resource=Resource({"prefect.resource.id": "qalam.recipe.mine"}))
    waiting = tmp_path / "store" / "outbox" / f"{left.id}.json"
    replace_file(waiting, left.model_dump_json().encode())

    down = qalam(*command, "--once", **caller)
    assert down.returncode == 2
    assert re.search(rf"^error: http://127.0.0.1:{port}/api: the server does not respond", down.stderr, re.MULTILINE)
    assert "Traceback" not in down.stderr
    assert waiting.exists()
    assert not (tmp_path / "store" / "watched").exists()

    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        running = subprocess.Popen(
            [sys.executable, "-c", "from al_qalam.flows.cli.main import main; main()", *map(str, command)],
            env=clean_environment(**caller), stdout=out, stderr=err, start_new_session=True, preexec_fn=own_signals,
        )  # fmt: skip
    try:
        until(lambda: "trying again every 0.2 s" in (tmp_path / "err").read_text(), 60, "the watcher has warned")
        home = prepared(tmp_path / "server", database)
        with prefect_server(home, port, PREFECT_SERVER_API_AUTH_STRING=PASSWORD) as api:
            until(lambda: "changed:" in (tmp_path / "out").read_text(), 60, "the watcher has sent its event")
            until(lambda: not waiting.exists(), 30, "the build's event is sent")

            def received() -> list[str]:
                body = {"filter": {"event": {"prefix": ["qalam."]}}}
                return sorted(event["event"] for event in call(api, "events/filter", body, auth=PASSWORD)["events"])

            both = [CORPUS_UPDATED, GATE_REFUSED]
            until(lambda: received() == both, 30, "the server has both events")
            replace_file(waiting, left.model_dump_json().encode())  # as after a crash before it was deleted
            until(lambda: not waiting.exists(), 30, "it is sent again")
            (tmp_path / "store" / "watched").rename(tmp_path / "moved")
            wrong = qalam(*command, "--once", **{**caller, "PREFECT_API_AUTH_STRING": "admin:guess"})
            assert wrong.returncode == 2
            assert "status 401; set PREFECT_API_AUTH_STRING" in wrong.stderr
            assert not (tmp_path / "store" / "watched").exists()
            assert received() == both
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        running.wait(30)
    assert (tmp_path / "err").read_text().count("trying again") == 1


def test_a_run_on_postgresql(postgres: str, corpus_file: Path, tmp_path: Path) -> None:
    """Server, deployments and worker as in docs/operations.md, and a run of a deployment."""
    recipe = write_recipe(tmp_path / "team.toml", corpus_file)
    settings = {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": postgres, "PREFECT_SERVER_API_AUTH_STRING": PASSWORD,
    }  # fmt: skip
    with prefect_server(tmp_path / "server", **settings) as api:
        caller = {
            **CALLER, "PREFECT_API_URL": api, "PREFECT_API_AUTH_STRING": PASSWORD,
            "QALAM_STORE": str(tmp_path / "store"),
            "PREFECT_HOME": str(tmp_path / "caller"), "PREFECT_WORKER_QUERY_SECONDS": "1",
        }  # fmt: skip
        for _ in range(2):
            done = qalam("deploy", recipe, **caller)
            assert done.returncode == 0, done.stderr
        assert "updated" not in done.stdout
        with (tmp_path / "worker.log").open("w") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "prefect", "worker", "start", "--pool", "qalam-cpu"],
                env=clean_environment(**caller), stdout=log, stderr=log, start_new_session=True, preexec_fn=own_signals,
            )  # fmt: skip
        try:
            deployment = call(api, "deployments/name/build_model/nightly-build-team", auth=PASSWORD)
            run = call(api, f"deployments/{deployment['id']}/create_flow_run", {}, auth=PASSWORD)
            for _ in range(480):
                state = call(api, f"flow_runs/{run['id']}", auth=PASSWORD)["state"]
                if state["type"] in ("COMPLETED", "FAILED", "CRASHED"):
                    break
                time.sleep(0.5)
            assert state["type"] == "COMPLETED", (state, (tmp_path / "worker.log").read_text())
        finally:
            os.killpg(worker.pid, signal.SIGTERM)
            worker.wait(30)
        assert list((tmp_path / "store" / "runs").glob("team-*"))
        assert PASSWORD not in (tmp_path / "worker.log").read_text()
