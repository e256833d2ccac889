"""Processes for the flow tests: the command `qalam`, Prefect servers of our own, and requests to their API."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from al_qalam.flows.serving.prefect_env import LOCAL_SERVER
from qalam_core.recipe import to_toml
from tests.conftest import tiny_recipe


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of Prefect and of this project."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "QALAM_"))}
    return {**kept, "NO_COLOR": "1", "COLUMNS": "160", **more}


def qalam(*arguments: object, cwd: str | Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", "from al_qalam.flows.cli.main import main; main()", *map(str, arguments)], cwd=cwd,
        env=clean_environment(**environment), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def users_packages(folder: Path) -> None:
    """Give a working folder packages of the user, with the names that most Prefect projects use; ours must not import
    them."""
    for name in ("flows", "tasks", "deployments"):
        (folder / name).mkdir()
        code = f"raise ImportError('the package {name} of the user')\n"
        (folder / name / "__init__.py").write_text(code, encoding="utf-8")


class RefusedError(Exception):
    """An HTTP error status of the API."""

    def __init__(self, code: int, answer: str) -> None:
        super().__init__(f"{code}: {answer}")
        self.code, self.answer = code, answer


def call(api: str, path: str, body: Any = None, method: str | None = None, auth: str = "") -> Any:
    """One request to Prefect's API; a body makes it a POST."""
    headers = {"Content-Type": "application/json"}
    if auth:
        headers["Authorization"] = "Basic " + base64.b64encode(auth.encode()).decode()
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(f"{api}/{path}", data, headers, method=method)
    for patience in (1, 2, 4, 8, 0):
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                text = response.read()
                return json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            with error:  # else the connection stays open until garbage collection, in some later test
                if error.code != 503 or not patience:  # SQLite is busy: the server asks to be asked again
                    raise RefusedError(error.code, error.read().decode()) from None
        except TimeoutError:
            if body is not None or not patience:  # what was not a question may have been done
                raise
        time.sleep(patience)
    raise AssertionError("unreachable")


def said_once(api: str, run: str, decision: str) -> bool:
    """Whether the log of a run that failed on purpose has `decision` once, and no traceback."""
    for _ in range(20):  # logs are sent every two seconds
        rows = call(api, "logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200})
        text = "\n".join(row["message"] for row in rows)
        if "Finished in state Failed" in text:
            break
        time.sleep(1)
    return text.count(decision) == 1 and not re.search("Traceback|TypeError|unexpected exception", text)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def own_signals() -> None:
    """For a child's `preexec_fn`: tests that were started in the background ignore SIGINT, and a Prefect worker that
    ignores it does not exit on SIGTERM either; those under `nohup` ignore SIGHUP."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def prepared(home: Path, database: Path) -> Path:
    """Make a PREFECT_HOME with a database that needs no migrations, which take several seconds; -> `home`."""
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(database, home / "prefect.db")
    return home


@contextmanager
def prefect_server(home: Path, port: int = 0, /, **environment: str) -> Iterator[str]:
    """Context manager that runs a Prefect server on 127.0.0.1; yields the address of its API."""
    port = port or free_port()
    home.mkdir(parents=True, exist_ok=True)
    log = (home / "log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        env=clean_environment(**{**LOCAL_SERVER, "PREFECT_HOME": str(home), **environment}),
        stdout=log, stderr=log, start_new_session=True, preexec_fn=own_signals,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}/api"
    try:
        for _ in range(480):
            assert server.poll() is None, (home / "log").read_text()
            try:
                call(address, "health")
                break
            except (OSError, RefusedError):
                time.sleep(0.25)
        else:
            pytest.fail("the Prefect server did not respond within two minutes")
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        log.close()


def write_recipe(path: Path, corpus: Path, /, **parts: dict[str, Any]) -> Path:
    """Write the tiny recipe, named after its file, so that tests find their own runs on the server."""
    recipe = tiny_recipe(corpus, **parts).model_copy(update={"name": path.stem})
    path.write_text(to_toml(recipe), encoding="utf-8")
    return path
