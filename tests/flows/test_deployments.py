"""What runs by itself, with real processes: `qalam up`'s server and worker, deployments, events, and kills."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from flows.deployment import ZOMBIE_SECONDS
from flows.settings import CALLER
from qalam_core.recipe import Recipe
from tasks.policy import SLOT_SECONDS, TRAINING_SLOTS
from tests.conftest import sentences, tiny_recipe
from tests.flows.conftest import RefusedError, call, clean_environment, free_port, own_signals, qalam, write_recipe

pytestmark = pytest.mark.slow

SECRET = "a-password-that-must-not-be-found"
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
BUILD = "build_model/nightly-build"
T = TypeVar("T")
LONG = 6_000  # steps: some fifteen seconds


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
                if json.loads(spec.read_text(encoding="utf-8"))["seed"] == seed and [*spec.parent.glob("checkpoint-*")]:
                    return spec.parent
            return None

        return until(look, 90, "a checkpoint")

    def slots(self) -> int:
        found = call(self.api, f"v2/concurrency_limits/{TRAINING_SLOTS}")
        active: int = found["active_slots"]
        return active


@pytest.fixture(scope="module")
def stack(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    receiver = Receiver()
    stack = Stack(tmp_path_factory.mktemp("stack"), corpus_file, receiver)
    stack.up()
    try:
        yield stack
    finally:
        stack.down()
        receiver.server.shutdown()
        receiver.server.server_close()


@pytest.fixture(scope="module")
def built(stack: Stack) -> dict[str, Any]:
    """A run that was triggered, and has built the champion of `daily`."""
    return stack.completed(stack.start())


def steps(messages: list[str]) -> list[int]:
    return [int(found[1]) for message in messages if (found := re.match(r"step (\d+) of \d+: loss", message))]


def last_step(folder: Path) -> int:
    return max(int(path.stem.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))


# -- what is deployed -------------------------------------------------------------------------------


def test_what_is_on_the_server(stack: Stack) -> None:
    names = {f"build_model/{name}" for name in ("nightly-build", "on-new-corpus")}
    names |= {"evaluate_champion/evaluate-champion", "reproduce_champion/reproduce-champion", "train_model/train"}
    for name in sorted(names):
        deployment = stack.deployment(name)
        assert "qalam" in deployment["tags"]
        assert deployment["version"]
        assert deployment["description"]
        assert deployment["parameters"]["store"] == str(stack.store)
        assert deployment["work_pool_name"] == ("qalam-gpu" if name == "train_model/train" else "qalam-cpu")
        assert deployment["entrypoint"].count(":") == 0, "a module's path, not a file's"
    nightly = stack.deployment(BUILD)
    recipe = json.loads(json.dumps(stack.recipe.canonical()))
    assert nightly["parameters"]["recipe"] == {**recipe, "train": {**recipe["train"], "warm_start": "champion"}}
    assert stack.deployment("build_model/on-new-corpus")["parameters"]["recipe"] == recipe
    assert [row["schedule"]["cron"] for row in nightly["schedules"]] == ["0 2 * * *"]
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert call(stack.api, f"v2/concurrency_limits/{TRAINING_SLOTS}")["limit"] == 1
    assert "http://127.0.0.1" in stack.said


def test_deploying_again_adds_nothing(stack: Stack) -> None:
    def everything() -> dict[str, Any]:
        return {
            "automations": sorted((row["name"], row["id"] if "has new text" not in row["name"] else "")
                                  for row in call(stack.api, "automations/filter", {})),
            "deployments": sorted((row["name"], row["id"]) for row in call(stack.api, "deployments/filter", {})),
            "schedules": sorted(s["id"] for row in call(stack.api, "deployments/filter", {}) for s in row["schedules"]),
            "pools": sorted(row["name"] for row in call(stack.api, "work_pools/filter", {})),
            "blocks": sorted(row["name"] for row in call(stack.api, "block_documents/filter", {})),
        }  # fmt: skip

    before = everything()
    assert len(before["automations"]) == 5
    done = qalam("deploy", stack.recipe_file, PREFECT_API_URL=stack.api, **stack.environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(kept)") == 4
    assert everything() == before


def test_prefects_own_command_deploys_the_file(stack: Stack, tmp_path: Path) -> None:
    file = Path(__file__).parent.parent.parent / "deployments" / "prefect.yaml"
    environment = clean_environment(
        PREFECT_API_URL=stack.api, PREFECT_HOME=str(tmp_path), QALAM_RECIPE=str(stack.recipe_file), **CALLER,
        QALAM_STORE=str(stack.store),
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)],
        env=environment, capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("successfully created") == 5


def test_a_wrong_recipe_is_not_deployed(stack: Stack, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(stack.recipe_file.read_text(encoding="utf-8").replace("steps = ", "stps = "), encoding="utf-8")
    done = qalam("deploy", wrong, PREFECT_API_URL=stack.api, **stack.environment)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert 'did you mean "steps"' in done.stderr


def test_the_server_refuses_parameters_that_no_recipe_may_have(stack: Stack) -> None:
    recipe = stack.recipe.canonical()
    recipe["tokenizer"] |= {"vocab_size": 3}
    with pytest.raises(RefusedError) as refused:
        stack.start(recipe=recipe)
    assert refused.value.code in (409, 422)
    assert "vocab_size" in refused.value.answer or "260" in refused.value.answer


@pytest.mark.parametrize("what", [{"store": "/somewhere/else"}, {"tokenizer": "../" * 8, "tokens": []}])
def test_a_run_cannot_leave_the_store(stack: Stack, what: dict[str, Any]) -> None:
    """Whoever may start runs over the API may still not choose which folders of the worker's machine they touch."""
    if "store" in what:
        run = stack.ended(stack.start(**what))
        assert "serves" in run["state"]["message"]
    else:
        from flows.build_model import train_model

        with pytest.raises(Exception, match="is no artifact"):
            train_model.fn(stack.recipe, store=str(stack.store), **what)
        return
    assert run["state_type"] == "FAILED"
    assert "\n" not in run["state"]["message"].strip()
    assert not Path("/somewhere").exists()


# -- what runs --------------------------------------------------------------------------------------


def test_a_triggered_run_builds(stack: Stack, built: dict[str, Any]) -> None:
    assert built["name"] == "build daily"
    assert built["parameters"]["store"] == str(stack.store)
    artifacts = stack.artifacts(built["id"])
    assert "bits per byte" in artifacts["report"]
    table = stack.table(built["id"], "stages")
    assert [row["stage"] for row in table if row["stage"] != "ingest"] == [
        "prepare", "vocab", "tokenize", "tokenize", "train", "export", "evaluate", "gate",
    ]  # fmt: skip
    assert {row["result"] for row in table if row["stage"] == "train"} == {"built"}
    assert len(steps(stack.logs(built["id"]))) == 6, "the trainer's lines are in the run's log"
    assert list((stack.store / "runs").glob("daily-*/model/weights.py"))


def test_a_scheduled_run_comes_and_completes(stack: Stack, built: dict[str, Any]) -> None:
    deployment = stack.deployment(BUILD)
    (schedule,) = call(stack.api, f"deployments/{deployment['id']}/schedules", [
        {"active": True, "schedule": {"interval": 15, "anchor_date": "2026-01-01T00:00:00Z"}}])  # fmt: skip
    try:

        def scheduled() -> list[dict[str, Any]]:
            wanted = {"deployment_id": {"any_": [deployment["id"]]}, "state": {"type": {"any_": ["COMPLETED"]}}}
            found: list[dict[str, Any]] = call(stack.api, "flow_runs/filter", {"flow_runs": wanted})
            return [run for run in found if run["auto_scheduled"]]

        (run, *_) = until(scheduled, 90, "a scheduled run that completed")
    finally:
        call(stack.api, f"deployments/{deployment['id']}/schedules/{schedule['id']}", method="DELETE")
    assert {row["stage"] for row in stack.table(run["id"], "stages")} >= {"ingest", "train", "gate"}


def test_new_text_starts_a_build(stack: Stack, built: dict[str, Any]) -> None:
    watching = {"PREFECT_API_URL": stack.api, "PREFECT_HOME": str(stack.folder / "watcher"), **stack.environment}
    deployment = stack.deployment("build_model/on-new-corpus")

    def runs() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = call(stack.api, "flow_runs/filter", {
            "flow_runs": {"deployment_id": {"any_": [deployment["id"]]}}})  # fmt: skip
        return found

    before = {run["id"] for run in runs()}  # other tests start some, too
    watch = ("watch", stack.texts, "--recipe", stack.recipe_file, "--every", "0.2", "--once")
    first = qalam(*watch, **watching)  # what was there before anybody watched
    assert first.returncode == 0, first.stderr
    assert "1 changed" in first.stdout
    assert "changed:" not in qalam(*watch, **watching).stdout
    more = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in sentences(40, seed=5))
    (stack.texts / "more.jsonl").write_text(more + "\n", encoding="utf-8")
    assert "more.jsonl" in qalam(*watch, **watching).stdout

    def built_since() -> list[dict[str, Any]]:
        new = [run for run in runs() if run["id"] not in before]
        return new if len(new) == 2 and all(run["state_type"] in ENDED for run in new) else []

    try:
        assert {run["state_type"] for run in until(built_since, 180, "two builds, one for each event")} == {"COMPLETED"}
    finally:
        (stack.texts / "more.jsonl").unlink()


def test_refusals_and_champions_are_told(stack: Stack, built: dict[str, Any]) -> None:
    told = until(lambda: stack.receiver.got("is champion"), 30, "a champion's notice")
    assert "daily-" in told["subject"]
    assert "file://" in told["text"]
    recipe = stack.recipe.canonical()
    recipe["gate"] |= {"beat_unigram": 0.99}
    run = stack.ended(stack.start(recipe=recipe))
    assert run["state_type"] == "FAILED"
    assert run["state"]["message"].startswith("the gate refused")
    told = until(lambda: stack.receiver.got("the gate refused"), 30, "a refusal's notice")
    assert "99" in told["text"] or "required" in told["text"]
    assert "report" in told["text"]


def test_the_champion_is_looked_after(stack: Stack, corpus_file: Path) -> None:
    recipe = tiny_recipe(corpus_file).model_copy(update={"name": "kept"}).canonical()
    nothing = stack.completed(stack.start("evaluate_champion/evaluate-champion", recipe=recipe))
    assert nothing["state"]["message"] == "kept has no champion yet"
    stack.completed(stack.start(recipe=recipe))
    measured = stack.completed(stack.start("evaluate_champion/evaluate-champion", recipe=recipe))
    assert "still good" in measured["state"]["message"]
    again = stack.completed(stack.start("reproduce_champion/reproduce-champion", name="kept"))
    assert "is reproduced" in again["state"]["message"]
    assert all(row["same"] for row in stack.table(again["id"], "reproduction"))
    recipe["gate"] |= {"beat_unigram": 0.99}
    refused = stack.ended(stack.start("evaluate_champion/evaluate-champion", recipe=recipe))
    assert refused["state_type"] == "FAILED"
    assert "would not pass today" in refused["state"]["message"]
    assert not list(stack.store.glob(".measuring-*")) + list(stack.store.glob(".reproducing-*"))


def test_another_pool_trains(stack: Stack, built: dict[str, Any]) -> None:
    """Data stages here, training on the machines of qalam-gpu; a second build asks nobody."""
    worker = stack.process("worker")
    command = [arg if arg != "qalam-cpu" else "qalam-gpu" for arg in worker.cmdline()]
    command[command.index("--name") + 1] = "gpu"
    stack.start_again(command, worker.environ())
    gpu = stack.ours.pop()
    try:
        recipe = stack.recipe.model_copy(update={"name": "apart", "seed": 8}).canonical()
        run = stack.completed(stack.start(recipe=recipe, training="train_model/train"))
        trained = stack.deployment("train_model/train")["id"]
        (child,) = call(stack.api, "flow_runs/filter", {"flow_runs": {"deployment_id": {"any_": [trained]}}})
        assert child["state_type"] == "COMPLETED"
        assert child["work_pool_name"] == "qalam-gpu"
        assert steps(stack.logs(child["id"])), "the trainer's lines are where it trained"
        assert child["state"]["message"] in {
            path.name for path in (stack.store / "artifacts" / "train").iterdir() if path.name[-8:] != ".partial"
        }
        assert run["state_type"] == "COMPLETED"
    finally:
        os.killpg(gpu.pid, signal.SIGTERM)
        gpu.wait(30)
    again = stack.completed(stack.start(recipe=recipe, training="train_model/train"))
    assert {row["result"] for row in stack.table(again["id"], "stages")} == {"cached"}


# -- what goes wrong --------------------------------------------------------------------------------


def test_a_killed_flow_process_crashes_its_run_and_the_next_goes_on(stack: Stack) -> None:
    parameters = stack.long("flowkill")
    first = stack.start(**parameters)
    folder = stack.training_checkpoint(first)
    stack.flow_process(first).kill()
    crashed = stack.ended(first, 30)
    assert crashed["state_type"] == "CRASHED"
    until(lambda: stack.slots() == 0, SLOT_SECONDS + 30, "the training slot is free again")
    stopped = last_step(folder)
    second = stack.start(**parameters)
    stack.completed(second)
    assert steps(stack.logs(second))[0] > stopped >= 200, "it went on; it did not begin again"


def test_a_killed_worker_leaves_no_zombie(stack: Stack) -> None:
    parameters = stack.long("workerkill")
    first = stack.start(**parameters)
    folder = stack.training_checkpoint(first)
    worker = stack.process("worker")
    command, environment = worker.cmdline(), worker.environ()
    flow = stack.flow_process(first)
    for process in (worker, flow):
        process.kill()
    since = time.monotonic()
    stack.start_again(command, environment)
    crashed = stack.ended(first, ZOMBIE_SECONDS + 60)
    assert crashed["state_type"] == "CRASHED"
    assert "no heartbeat" in crashed["state"]["message"]
    until(lambda: stack.slots() == 0, SLOT_SECONDS + 30, "the training slot is free again")
    assert time.monotonic() - since < ZOMBIE_SECONDS + SLOT_SECONDS + 30
    assert last_step(folder) > 0
    second = stack.start(**parameters)  # the deployment's own slot is free, too
    stack.completed(second)
    assert steps(stack.logs(second))[0] > 200
    until(lambda: stack.receiver.got("crashed"), 30, "a crash's notice")


def test_a_killed_server_costs_a_run_nothing(stack: Stack) -> None:
    first = stack.start(**stack.long("serverkill"))
    stack.training_checkpoint(first)
    server = stack.process("server")
    command, environment = server.cmdline(), server.environ()
    for process in [*server.children(recursive=True), server]:
        process.kill()
    time.sleep(3)
    stack.start_again(command, environment)
    run = stack.completed(first, 180)
    assert run["run_count"] == 1


def test_cancelling_stops_the_training_with_a_checkpoint(stack: Stack) -> None:
    run = stack.start(**stack.long("cancelled", steps=10 * LONG))
    folder = stack.training_checkpoint(run)
    first = until(lambda: stack.artifacts(run).get("train"), 20, "a bar")
    until(lambda: stack.artifacts(run)["train"] > first, 20, "a bar that moves")
    before = last_step(folder)
    call(stack.api, f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    since = time.monotonic()
    until(lambda: _quiet(folder), 20, "the trainer has ended")
    assert time.monotonic() - since < 20
    assert stack.ended(run, 30)["state_type"] == "CANCELLED"
    assert last_step(folder) >= before
    until(lambda: stack.slots() == 0, SLOT_SECONDS + 30, "the training slot is free again")


def _quiet(folder: Path) -> bool:
    spec = str(folder / "spec.json")
    return not any(spec in " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))


def test_a_trainer_that_is_killed_is_one_line(stack: Stack) -> None:
    """As the kernel does when memory runs out."""
    run = stack.start(**stack.long("memory"))
    spec = str(stack.training_checkpoint(run) / "spec.json")
    next(p for p in psutil.process_iter(["cmdline"]) if spec in " ".join(p.info["cmdline"] or [])).kill()
    ended = stack.ended(run, 30)
    assert ended["state_type"] == "FAILED"
    assert re.search(r"training was killed at step \d+, most likely for memory", ended["state"]["message"])
    assert "\n" not in ended["state"]["message"].strip()


def test_trainings_take_turns(stack: Stack) -> None:
    """Two builds, one slot: what one trains, the other waits for."""
    both = [stack.start(**stack.long(name, steps=LONG // 4)) for name in ("one", "two")]
    # the deployment itself lets one through at a time: the second one is started through another deployment
    other = stack.start("build_model/on-new-corpus", **stack.long("three", steps=LONG // 4))
    seen = set()

    def look() -> bool:
        seen.add(sum(not _quiet(folder) for folder in stack.store.glob("artifacts/train/*.partial")))
        return all(stack.run(run)["state_type"] in ENDED for run in (*both, other))

    until(look, 180, "all three builds")
    assert {stack.run(run)["state_type"] for run in (*both, other)} == {"COMPLETED"}
    assert max(seen) == 1


def test_a_lost_store_is_one_line(stack: Stack, built: dict[str, Any]) -> None:
    """A mount that went away: the run says so, and nothing is built beside it."""
    gone = stack.store / "artifacts" / "ingest"
    gone.rename(gone.with_name("moved"))
    gone.write_text("not a folder")
    recipe = stack.recipe.model_copy(update={"name": "lost"}).canonical()
    try:
        run = stack.ended(stack.start(recipe=recipe))
    finally:
        gone.unlink()
        gone.with_name("moved").rename(gone)
    assert run["state_type"] == "FAILED"
    assert "\n" not in run["state"]["message"].strip()
    assert "ingest" in run["state"]["message"]
    stack.completed(stack.start())


def test_no_secret_is_anywhere(stack: Stack, built: dict[str, Any]) -> None:
    """The worker's environment holds a token, the notification's address another one."""
    for path in stack.store.rglob("*"):
        if path.is_file() and path.parent.name != "server" and "prefect.db" not in path.name:
            assert SECRET.encode() not in path.read_bytes(), path
    for kind in ("deployments", "flow_runs", "artifacts", "logs", "automations", "work_pools", "block_documents"):
        rows = call(stack.api, f"{kind}/filter", {"limit": 200})
        assert SECRET not in json.dumps(rows), kind
    for log in (stack.store / "server").glob("*.log"):
        assert SECRET not in log.read_text(errors="replace"), log
