"""Servers for a team: with a password, and on PostgreSQL."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from al_qalam.flows.serving.prefect_env import CALLER
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
        with (tmp_path / "worker.log").open("w") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "prefect", "worker", "start", "--pool", "qalam-cpu"],
                env=clean_environment(**caller), stdout=log, stderr=log, start_new_session=True, preexec_fn=own_signals,
            )  # fmt: skip
        try:
            deployment = call(api, "deployments/name/build_model/nightly-build", auth=PASSWORD)
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
