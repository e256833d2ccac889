"""A local stack, started by `qalam up`, with functions to inspect it and to kill its processes."""

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from al_qalam.tasks.policy import TRAINING_SLOTS
from qalam_core.progress import every
from qalam_core.recipe import Recipe
from tests.flows.processes import RefusedError, call, free_port, own_signals, qalam, users_packages, write_recipe

SECRET = "a-password-that-must-not-be-found"
REPORTS = "https://models.example.org/runs"
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
BUILD, ON_NEW_CORPUS = "build_model/nightly-build-daily", "build_model/on-new-corpus-daily"
EVALUATE, REPRODUCE = "evaluate_champion/evaluate-champion-daily", "reproduce_champion/reproduce-champion-daily"
PROPOSE = "propose_model/propose-daily"
LONG = 500  # training steps, about three seconds on a free core
T = TypeVar("T")


def until(what: Callable[[], T | None], seconds: float, why: str) -> T:
    """Poll until `what` returns a true value; -> that value. It is called at least once."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {why}"
        time.sleep(0.5)
    return found


class Receiver:
    """A webhook that records what is posted to it."""

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
    """A local stack, started by `qalam up` in a folder in which the user has packages of his own."""

    def __init__(self, folder: Path, corpus: Path, receiver: Receiver) -> None:
        self.folder, self.store, self.receiver = folder, folder / "store", receiver
        users_packages(folder)
        self.texts = folder / "texts"
        self.texts.mkdir()
        shutil.copy(corpus, self.texts / "stories.jsonl")
        # with 31 test documents the gate's measurements are noisy; tests that need a refusal configure one
        self.recipe_file = write_recipe(folder / "daily.toml", self.texts, gate={"tolerance": 1.0})
        self.recipe = Recipe.load(self.recipe_file)
        self.environment = {
            "QALAM_STORE": str(self.store), "HF_TOKEN": SECRET, "QALAM_NOTIFY": receiver.url,
            "QALAM_REPORT_URL": REPORTS,
            # shorter intervals than the defaults, so that tests wait less
            "QALAM_PROGRESS_SECONDS": "2",  # default 30
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",  # default 60
            "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "2",  # default 5
            "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "2",  # default 15; frees slots of expired leases
            "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT2S",  # default 5 s; detects missing heartbeats
            # default 30; workers fetch runs 10 s early, so a shorter wait would be no wait at all
            "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "14",
            "PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "3",  # default 30
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }  # fmt: skip
        self.port = free_port()
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.started: list[subprocess.Popen[bytes]] = []

    def up(self) -> None:
        done = qalam("up", self.recipe_file, "--port", self.port, cwd=self.folder, **self.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        self.output = done.stdout

    def down(self) -> None:
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        done = qalam("down", **self.environment)
        assert done.returncode == 0, done.stderr

    # -- processes

    def kill(self, *names: str) -> None:
        """Kill the server or the worker, with its descendants, as a power failure does."""
        for process in [self.process(name) for name in names]:
            for one in [process, *process.children(recursive=True)]:
                one.kill()

    def process(self, name: str) -> psutil.Process:
        """The running server or worker, started by `qalam up` or by `start_again`."""
        found = [
            process for process in psutil.process_iter(["cmdline", "environ", "ppid"])
            if (process.info["environ"] or {}).get("PREFECT_API_URL") == self.api
            and [name, "start"] == (process.info["cmdline"] or [])[3:5] and process.status() != psutil.STATUS_ZOMBIE
        ]  # fmt: skip
        # a child that was forked and has not called exec yet shows its parent's command line
        numbers = {process.pid for process in found}
        found = [process for process in found if process.info["ppid"] not in numbers]
        assert len(found) == 1, (name, found)
        return found[0]

    def start_again(self, command: list[str], environment: dict[str, str]) -> None:
        with (self.folder / "again.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=self.folder,
                preexec_fn=own_signals,
            )  # fmt: skip
            self.started.append(process)

    def flow_process(self, identity: str) -> psutil.Process:
        """The process of a run, a descendant of the worker."""

        def find() -> psutil.Process | None:
            children = self.process("worker").children(recursive=True)
            engines = (one for one in children if "prefect.engine" in one.cmdline())
            return next((one for one in engines if one.environ().get("PREFECT__FLOW_RUN_ID") == identity), None)

        return until(find, 120, "a flow process")

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
        """Parameters for a build with a long training, and a name of its own."""
        # a seed of its own, or the store would contain the checkpoint of another test's training
        seed = zlib.crc32(name.encode()) % 10_000
        recipe = self.recipe.model_copy(update={"name": name, "seed": seed}).canonical()
        recipe["train"] |= {"steps": steps, "checkpoint_every": 100, "log_every": 100, "validate_every": steps}
        return {"recipe": recipe}

    def run(self, identity: str) -> dict[str, Any]:
        found: dict[str, Any] = call(self.api, f"flow_runs/{identity}")
        return found

    def ended(self, identity: str, seconds: float = 240) -> dict[str, Any]:
        def ended_run() -> dict[str, Any] | None:
            try:
                run = self.run(identity)
            except (OSError, RefusedError):  # the server is restarting
                return None
            return run if run["state_type"] in ENDED else None

        return until(ended_run, seconds, f"{identity} has ended")

    def completed(self, identity: str, seconds: float = 240) -> dict[str, Any]:
        run = self.ended(identity, seconds)
        assert run["state_type"] == "COMPLETED", (run["state"]["message"], self.logs(identity)[-5:])
        return run

    def logs(self, identity: str) -> list[str]:
        rows = call(self.api, "logs/filter", {
            "logs": {"flow_run_id": {"any_": [identity]}}, "limit": 200, "sort": "TIMESTAMP_ASC"})  # fmt: skip
        return [row["message"] for row in rows]

    def heartbeats(self, identity: str) -> list[dict[str, Any]]:
        resource = {"id": [f"prefect.flow-run.{identity}"]}
        found: list[dict[str, Any]] = call(self.api, "events/filter", {
            "filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": resource}})["events"]  # fmt: skip
        return found

    def artifacts(self, identity: str) -> dict[str, Any]:
        rows = call(self.api, "artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [identity]}}})
        return {row["key"]: row["data"] for row in rows}

    def table(self, identity: str, key: str) -> list[dict[str, Any]]:
        data = self.artifacts(identity)[key]
        rows: list[dict[str, Any]] = data if isinstance(data, list) else json.loads(data)
        return rows

    def training_checkpoint(self, identity: str) -> Path:
        """Wait until this run's training has written a checkpoint; -> the training's folder."""
        seed = self.run(identity)["parameters"]["recipe"]["seed"]  # other tests leave unfinished trainings

        def folder() -> Path | None:
            assert self.run(identity)["state_type"] not in ENDED, self.run(identity)["state"]["message"]
            for spec in self.store.glob("artifacts/train/*.partial/spec.json"):
                found = json.loads(spec.read_text(encoding="utf-8"))["settings"]["seed"]
                if found == seed and [*spec.parent.glob("checkpoint-*")]:
                    return spec.parent
            return None

        return until(folder, 180, "a checkpoint")

    def allow_trainings(self, count: int) -> None:
        """Set how many trainings may run at once, as `qalam deploy --slots` does."""
        call(self.api, f"v2/concurrency_limits/{TRAINING_SLOTS}", {"limit": count}, method="PATCH")

    def slots(self) -> int:
        """The number of training slots in use."""
        found = call(self.api, f"v2/concurrency_limits/{TRAINING_SLOTS}")
        active: int = found["active_slots"]
        return active


def steps(messages: list[str]) -> list[int]:
    return [int(found[1]) for message in messages if (found := re.match(r"step (\d+) of \d+: loss", message))]


def last_step(folder: Path) -> int:
    return max(int(path.stem.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))


def trainers(folder: Path) -> list[psutil.Process]:
    """The training processes that run in this folder."""
    spec = str(folder / "spec.json")
    return [p for p in psutil.process_iter(["cmdline"]) if spec in " ".join(p.info["cmdline"] or [])]


@contextmanager
def slowed(folder: Path) -> Iterator[None]:
    """The training in this folder advances a fifteenth of the time: it lasts, and other tests have the cores."""
    running = trainers(folder)

    def signal_all(number: int) -> None:
        for process in running:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def advance() -> None:
        signal_all(signal.SIGCONT)
        time.sleep(0.1)
        signal_all(signal.SIGSTOP)

    signal_all(signal.SIGSTOP)
    try:
        with every(1.4, advance):
            yield
    finally:
        signal_all(signal.SIGCONT)
