"""A stack that `qalam up` started, as tests look at it and hurt it."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil

from al_qalam.tasks.policy import TRAINING_SLOTS
from qalam_core.recipe import Recipe
from tests.flows.processes import RefusedError, call, free_port, own_signals, qalam, write_recipe

SECRET = "a-password-that-must-not-be-found"
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
BUILD = "build_model/nightly-build"
LONG = 4_000  # steps: some ten seconds
T = TypeVar("T")


def until(what: Callable[[], T], seconds: float, why: str) -> T:
    """Poll until `what` gives something true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.25)
    raise AssertionError(f"not within {seconds} s: {why}")


class Receiver:
    """A webhook of our own: what was posted to it."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        posts = self.posts

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/{SECRET}"

    def got(self, text: str) -> dict[str, Any] | None:
        return next((post for post in self.posts if text in json.dumps(post, ensure_ascii=False)), None)


class Stack:
    """A stack that `qalam up` started, and means to look at it and to hurt it."""

    def __init__(self, folder: Path, corpus: Path, receiver: Receiver) -> None:
        self.folder, self.store, self.receiver = folder, folder / "store", receiver
        self.texts = folder / "texts"
        self.texts.mkdir()
        shutil.copy(corpus, self.texts / "stories.jsonl")
        # 31 test documents are noise; refusals are asked for
        self.recipe_file = write_recipe(folder / "daily.toml", self.texts, gate={"tolerance": 1.0})
        self.recipe = Recipe.load(self.recipe_file)
        self.environment = {
            "QALAM_STORE": str(self.store), "HF_TOKEN": SECRET, "QALAM_NOTIFY": receiver.url,
            # the defaults are a minute, and ours are two seconds: tests should not wait
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "3",
            "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "2",
        }  # fmt: skip
        self.port = free_port()
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.ours: list[subprocess.Popen[bytes]] = []

    def up(self) -> None:
        done = qalam("up", self.recipe_file, "--port", self.port, **self.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        self.said = done.stdout

    def down(self) -> None:
        for process in self.ours:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        done = qalam("down", **self.environment)
        assert done.returncode == 0, done.stderr

    # -- processes

    def process(self, name: str) -> psutil.Process:
        """The server or the worker, whoever started it last."""
        found = [
            process for process in psutil.process_iter(["cmdline", "environ"])
            if (process.info["environ"] or {}).get("PREFECT_API_URL") == self.api
            and [name, "start"] == (process.info["cmdline"] or [])[3:5] and process.status() != psutil.STATUS_ZOMBIE
        ]  # fmt: skip
        assert len(found) == 1, (name, found)
        return found[0]

    def start_again(self, command: list[str], environment: dict[str, str]) -> None:
        with (self.folder / "again.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=self.folder,
                preexec_fn=own_signals,
            )  # fmt: skip
            self.ours.append(process)

    def flow_process(self, identity: str) -> psutil.Process:
        """The process of a run, below the worker."""

        def find() -> psutil.Process | None:
            children = self.process("worker").children(recursive=True)
            engines = (one for one in children if "prefect.engine" in one.cmdline())
            return next((one for one in engines if one.environ().get("PREFECT__FLOW_RUN_ID") == identity), None)

        return until(find, 60, "a flow process")

    # -- runs

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = call(self.api, f"deployments/name/{name}")
        return found

    def start(self, deployment_name: str = BUILD, /, **parameters: Any) -> str:
        deployment = self.deployment(deployment_name)
        run = call(self.api, f"deployments/{deployment['id']}/create_flow_run", {
            "state": {"type": "SCHEDULED"}, "parameters": parameters, "enforce_parameter_schema": True})  # fmt: skip
        identity: str = run["id"]
        return identity

    def long(self, name: str, steps: int = LONG) -> dict[str, Any]:
        """Parameters for a build that trains for a while, under a name of its own."""
        # a seed of its own, or the store would have the weights that another test trained
        seed = zlib.crc32(name.encode()) % 10_000
        recipe = self.recipe.model_copy(update={"name": name, "seed": seed}).canonical()
        recipe["train"] |= {"steps": steps, "checkpoint_every": 200, "log_every": 100, "validate_every": steps}
        return {"recipe": recipe}

    def run(self, identity: str) -> dict[str, Any]:
        found: dict[str, Any] = call(self.api, f"flow_runs/{identity}")
        return found

    def ended(self, identity: str, seconds: float = 120) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            try:
                run = self.run(identity)
            except (OSError, RefusedError):  # a server that is starting again
                return None
            return run if run["state_type"] in ENDED else None

        return until(look, seconds, f"an end of {identity}")

    def completed(self, identity: str, seconds: float = 120) -> dict[str, Any]:
        run = self.ended(identity, seconds)
        assert run["state_type"] == "COMPLETED", (run["state"]["message"], self.logs(identity)[-5:])
        return run

    def logs(self, identity: str) -> list[str]:
        rows = call(self.api, "logs/filter", {
            "logs": {"flow_run_id": {"any_": [identity]}}, "limit": 200, "sort": "TIMESTAMP_ASC"})  # fmt: skip
        return [row["message"] for row in rows]

    def artifacts(self, identity: str) -> dict[str, Any]:
        rows = call(self.api, "artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [identity]}}})
        return {row["key"]: row["data"] for row in rows}

    def table(self, identity: str, key: str) -> list[dict[str, Any]]:
        data = self.artifacts(identity)[key]
        rows: list[dict[str, Any]] = data if isinstance(data, list) else json.loads(data)
        return rows

    def training_checkpoint(self, identity: str) -> Path:
        """Wait until this run's training has left a checkpoint; -> the folder that it is in."""
        seed = self.run(identity)["parameters"]["recipe"]["seed"]  # other tests leave trainings unfinished

        def look() -> Path | None:
            assert self.run(identity)["state_type"] not in ENDED, self.run(identity)["state"]["message"]
            for spec in self.store.glob("artifacts/train/*.partial/spec.json"):
                found = json.loads(spec.read_text(encoding="utf-8"))["settings"]["seed"]
                if found == seed and [*spec.parent.glob("checkpoint-*")]:
                    return spec.parent
            return None

        return until(look, 90, "a checkpoint")

    def slots(self) -> int:
        found = call(self.api, f"v2/concurrency_limits/{TRAINING_SLOTS}")
        active: int = found["active_slots"]
        return active


def steps(messages: list[str]) -> list[int]:
    return [int(found[1]) for message in messages if (found := re.match(r"step (\d+) of \d+: loss", message))]


def last_step(folder: Path) -> int:
    return max(int(path.stem.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))


def trainer_is_gone(folder: Path) -> bool:
    """Whether no process trains in this folder."""
    spec = str(folder / "spec.json")
    return not any(spec in " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))
