"""Deployments on a local stack: what `qalam up` and `qalam deploy` create, runs, schedules, events, failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from al_qalam.flows.serving.prefect_env import CALLER
from al_qalam.tasks.policy import TRAINING_SLOTS
from tests import ROOT
from tests.conftest import sentences, tiny_recipe
from tests.flows.processes import RefusedError, call, clean_environment, qalam, said_once, write_recipe
from tests.flows.stack import (
    BUILD,
    ENDED,
    EVALUATE,
    ON_NEW_CORPUS,
    PROPOSE,
    REPORTS,
    REPRODUCE,
    SECRET,
    Stack,
    steps,
    until,
)

pytestmark = pytest.mark.timeout(900)  # minutes on a busy machine

# -- deployments ------------------------------------------------------------------------------------


def test_the_deployments_on_the_server(stack: Stack) -> None:
    for name in (BUILD, ON_NEW_CORPUS, EVALUATE, REPRODUCE, PROPOSE, "train_model/train"):
        deployment = stack.deployment(name)
        assert "qalam" in deployment["tags"]
        assert deployment["version"]
        assert deployment["description"]
        assert deployment["parameters"]["store"] == str(stack.store)
        assert deployment["work_pool_name"] == ("qalam-gpu" if name == "train_model/train" else "qalam-cpu")
        assert deployment["entrypoint"].count(":") == 0, "the path of a module, not of a file"
    nightly = stack.deployment(BUILD)
    recipe = json.loads(json.dumps(stack.recipe.canonical()))
    kept = {"train": {**recipe["train"], "start": "continue", "cold_every": 30}}
    kept["tokenizer"] = {**recipe["tokenizer"], "keep": "champion"}
    assert nightly["parameters"]["recipe"] == {**recipe, **kept}
    assert stack.deployment(ON_NEW_CORPUS)["parameters"]["recipe"] == recipe
    assert [row["schedule"]["cron"] for row in nightly["schedules"]] == ["0 2 * * *"]
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert call(stack.api, f"v2/concurrency_limits/{TRAINING_SLOTS}")["limit"] == 1
    assert "http://127.0.0.1" in stack.output


def of_server(stack: Stack, recipe: str = "") -> dict[str, Any]:
    """What was deployed, with all ids; of one recipe, or of all."""

    def rows(kind: str) -> list[dict[str, Any]]:
        volatile = ("updated", "last_polled", "status", "work_pool", "work_queue_id")
        found = call(stack.api, f"{kind}/filter", {})
        kept = [{key: value for key, value in row.items() if key not in volatile} for row in found]
        return sorted((row for row in kept if recipe in json.dumps(row)), key=lambda row: str(row["id"]))

    return {kind: rows(kind) for kind in ("automations", "deployments", "work_pools", "block_documents")}


def test_deploying_again_changes_nothing(stack: Stack) -> None:
    """No id of a trigger either: with a new one it would forget which runs it watches."""
    deploying = {"PREFECT_API_URL": stack.api, **stack.environment}
    assert qalam("deploy", stack.recipe_file, cwd=stack.folder, **deploying).returncode == 0
    before = of_server(stack)
    assert sum("daily" in row["name"] for row in before["automations"]) == 7
    done = qalam("deploy", stack.recipe_file, cwd=stack.folder, **deploying)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if not line.endswith("unchanged)")] == []
    assert done.stdout.count("\ndeployment ") == 6
    assert of_server(stack) == before


def test_a_paused_pool_is_said(stack: Stack) -> None:
    """In which runs wait, and no worker says why."""
    deploying = {"PREFECT_API_URL": stack.api, **stack.environment}
    call(stack.api, "work_pools/qalam-gpu", {"is_paused": True}, method="PATCH")
    try:
        done = qalam("deploy", stack.recipe_file, cwd=stack.folder, **deploying)
    finally:
        call(stack.api, "work_pools/qalam-gpu", {"is_paused": False}, method="PATCH")
    assert "qalam-gpu (unchanged, but paused: no run starts until `prefect work-pool resume qalam-gpu`)" in done.stdout
    assert "qalam-cpu (unchanged)" in done.stdout


def test_recipes_share_a_server(stack: Stack) -> None:
    """A second recipe leaves the first as it is; what an earlier version deployed under fixed names is replaced."""
    first, train = of_server(stack, "daily"), stack.deployment("train_model/train")["id"]
    flow = stack.deployment(BUILD)["flow_id"]
    for name, recipe in (("nightly-build", "second"), ("on-new-corpus", "third")):
        call(stack.api, "deployments/", {"name": name, "flow_id": flow, "parameters": {"recipe": {"name": recipe}}})
    automation = {"trigger": {"type": "event", "expect": ["x"], "posture": "Reactive", "threshold": 1, "within": 0}}
    old_notice = {"name": "qalam: notify when a run crashes", "actions": [{"type": "do-nothing"}], **automation}
    call(stack.api, "automations/", old_notice)
    second = write_recipe(stack.folder / "second.toml", stack.texts)
    other = {**stack.environment, "QALAM_NOTIFY": "http://127.0.0.1:9/another", "PREFECT_API_URL": stack.api}
    done = qalam("deploy", second, "--slots", 2, cwd=stack.folder, **other)
    assert done.returncode == 0, done.stderr
    assert "build_model/nightly-build (removed; it is build_model/nightly-build-second now)" in done.stdout
    assert "train_model/train (unchanged)" in done.stdout, done.stdout
    assert of_server(stack, "daily") == first
    assert stack.deployment("train_model/train")["id"] == train
    assert stack.deployment("build_model/nightly-build-second")["tags"] == ["qalam", "recipe:second"]
    names = {row["name"] for row in call(stack.api, "automations/filter", {})}
    assert "qalam: notify when a run of second crashes" in names
    assert old_notice["name"] not in names
    left = {row["name"] for row in call(stack.api, "deployments/filter", {})}
    assert "nightly-build" not in left
    assert "on-new-corpus" in left, "another recipe's"
    call(stack.api, f"deployments/{stack.deployment('build_model/on-new-corpus')['id']}", method="DELETE")
    # one thing that a person has deleted; and the number of slots is the server's, not the recipe's
    trigger = "qalam: build second when its corpus has new text"
    (row,) = (row for row in call(stack.api, "automations/filter", {}) if row["name"] == trigger)
    call(stack.api, f"automations/{row['id']}", method="DELETE")
    mended = qalam("deploy", second, **other).stdout
    changed = [line for line in mended.splitlines() if not line.endswith("unchanged)")]
    assert changed == [f"deployment   build_model/on-new-corpus-second (updated: trigger {trigger})"]
    assert trigger in {row["name"] for row in call(stack.api, "automations/filter", {})}
    assert f"limit        {TRAINING_SLOTS} (2 at once, unchanged)" in mended
    stack.allow_trainings(1)

    elsewhere = stack.folder / "elsewhere"
    elsewhere.mkdir()
    refused = qalam("deploy", second, "--store", elsewhere, **other)
    assert refused.returncode == 2
    assert f"has the store {stack.store}: deploy with --store {stack.store}" in refused.stderr
    assert refused.stderr.count("\n") == 1
    text = second.read_text(encoding="utf-8")
    second.write_text(text.replace(f"steps = {stack.recipe.train.steps}", "steps = 7"), encoding="utf-8")
    assert (
        f"(updated: parameters.recipe.train.steps: {stack.recipe.train.steps} -> 7)"
        in qalam("deploy", second, **other).stdout
    )


def test_only_the_owner_reads_what_the_server_writes(stack: Stack) -> None:
    home = stack.store / "server"
    assert home.stat().st_mode & 0o777 == 0o700
    files = [*home.glob("prefect.db*"), *home.glob("*.log")]
    assert len(files) >= 4
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {path.name: "0o600" for path in files}


def test_prefects_own_command_deploys_the_file(stack: Stack, tmp_path: Path) -> None:
    file = ROOT / "deployments" / "prefect.yaml"
    environment = clean_environment(
        PREFECT_API_URL=stack.api, QALAM_RECIPE=str(stack.recipe_file), **CALLER,
        **{**stack.environment, "PREFECT_HOME": str(tmp_path), "QALAM_STORE": str(stack.store)},
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)],
        env=environment, capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("successfully created") == 6


def test_an_invalid_recipe_is_not_deployed(stack: Stack, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(stack.recipe_file.read_text(encoding="utf-8").replace("steps = ", "stps = "), encoding="utf-8")
    done = qalam("deploy", wrong, PREFECT_API_URL=stack.api, **stack.environment)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert 'did you mean "steps"' in done.stderr


def test_the_server_rejects_parameters_that_are_not_a_valid_recipe(stack: Stack) -> None:
    recipe = stack.recipe.canonical()
    recipe["tokenizer"] |= {"vocab_size": 3}
    with pytest.raises(RefusedError) as refused:
        stack.start(recipe=recipe)
    assert refused.value.code in (409, 422)
    assert "vocab_size" in refused.value.answer or "260" in refused.value.answer


@pytest.mark.parametrize("what", [{"store": "/somewhere/else"}, {"corpus": "../" * 8, "tokenizer": "../" * 8}])
def test_a_run_cannot_leave_the_store(stack: Stack, what: dict[str, Any]) -> None:
    """A client that may start runs over the API cannot choose which folders of the worker's machine they use."""
    if "store" in what:
        run = stack.ended(stack.start(**what))
        assert "serves" in run["state"]["message"]
    else:
        from al_qalam.flows.build_model import train_model

        with pytest.raises(Exception, match="is not an artifact"):
            train_model.fn(stack.recipe, store=str(stack.store), **what)
        return
    assert run["state_type"] == "FAILED"
    assert "\n" not in run["state"]["message"].strip()
    assert not Path("/somewhere").exists()


# -- runs -------------------------------------------------------------------------------------------


def test_a_triggered_run_builds(stack: Stack, daily: dict[str, Any]) -> None:
    assert daily["name"] == "build daily (nightly-build-daily)"
    assert daily["parameters"]["store"] == str(stack.store)
    artifacts = stack.artifacts(daily["id"])
    assert "bits per byte" in artifacts["report"]
    table = stack.table(daily["id"], "stages")
    assert [row["stage"] for row in table if row["stage"] != "ingest"] == [
        "filter", "match", "prepare", "vocab", "tokenize", "tokenize", "train", "fingerprint", "seen", "export",
        "evaluate", "gate",
    ]  # fmt: skip
    assert {row["result"] for row in table if row["stage"] == "train"} == {"built"}
    assert len(steps(stack.logs(daily["id"]))) == 6, "the trainer's log lines are in the run's log"
    assert list((stack.store / "runs").glob("daily-*/model/weights.py"))


def test_a_scheduled_run_completes(stack: Stack, daily: dict[str, Any]) -> None:
    deployment = stack.deployment(BUILD)
    soon = (datetime.now(UTC) + timedelta(seconds=10)).isoformat()
    (schedule,) = call(stack.api, f"deployments/{deployment['id']}/schedules", [
        {"active": True, "schedule": {"interval": 60, "anchor_date": soon}}])  # fmt: skip
    try:

        def scheduled() -> list[dict[str, Any]]:
            wanted = {"deployment_id": {"any_": [deployment["id"]]}, "state": {"type": {"any_": ["COMPLETED"]}}}
            found: list[dict[str, Any]] = call(stack.api, "flow_runs/filter", {"flow_runs": wanted})
            return [run for run in found if run["auto_scheduled"]]

        (run, *_) = until(scheduled, 180, "a scheduled run has completed")
    finally:
        call(stack.api, f"deployments/{deployment['id']}/schedules/{schedule['id']}", method="DELETE")
    assert {row["stage"] for row in stack.table(run["id"], "stages")} >= {"ingest", "train", "gate"}


def test_new_text_starts_a_build(stack: Stack, daily: dict[str, Any]) -> None:
    watching = {"PREFECT_API_URL": stack.api, "PREFECT_HOME": str(stack.folder / "watcher"), **stack.environment}
    deployment = stack.deployment(ON_NEW_CORPUS)

    def runs() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = call(stack.api, "flow_runs/filter", {
            "flow_runs": {"deployment_id": {"any_": [deployment["id"]]}}})  # fmt: skip
        return found

    before = {run["id"] for run in runs()}  # runs of other tests
    watch = ("watch", stack.texts, "--recipe", stack.recipe_file, "--every", "0.2", "--once")
    first = qalam(*watch, **watching)  # the files that are there at the first start
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
        assert {run["state_type"] for run in until(built_since, 400, "two builds, one for each event")} == {"COMPLETED"}
    finally:
        (stack.texts / "more.jsonl").unlink()


def test_refusals_and_champions_are_notified(stack: Stack, daily: dict[str, Any]) -> None:
    post = until(lambda: stack.receiver.got("is champion"), 30, "the notification of a champion")
    assert "daily-" in post["subject"]
    run = post["subject"].removeprefix("daily: ").removesuffix(" is champion")
    assert f"Report: {REPORTS}/{run}/report.html" in post["text"]
    assert f"({REPORTS}/{run}/report.html)" in stack.artifacts(daily["id"])["report-page"]
    recipe = stack.recipe.canonical()
    recipe["gate"] |= {"beat_unigram": 0.99}
    run = stack.ended(stack.start(recipe=recipe))
    assert run["state_type"] == "FAILED"
    assert run["state"]["message"].startswith("the gate refused")
    assert said_once(stack.api, run["id"], "the gate refused")
    post = until(lambda: stack.receiver.got("the gate refused"), 30, "the notification of a refusal")
    assert "99" in post["text"] or "required" in post["text"]
    assert "report" in post["text"]


def test_a_run_that_fails_by_itself_is_notified_and_a_refusal_once(stack: Stack, daily: dict[str, Any]) -> None:
    """A full disk or a lost corpus fails every night; nobody looks at a page for that."""
    recipe = stack.recipe.canonical()
    recipe["corpus"]["sources"][0]["path"] = str(stack.folder / "gone" / "*.txt")
    run = stack.ended(stack.start(recipe=recipe))
    assert run["state_type"] == "FAILED"
    post = until(lambda: stack.receiver.got(run["id"]), 30, "the notification of a failure")
    assert post["subject"] == f"build_model: {run['name']} failed"
    assert str(stack.folder / "gone") in post["text"]
    recipe = stack.recipe.canonical()
    recipe["gate"] |= {"beat_unigram": 0.99}
    refused = stack.ended(stack.start(recipe=recipe))
    assert refused["state"]["message"].startswith("the gate refused")
    until(lambda: stack.receiver.got("the gate refused"), 30, "the notification of a refusal")
    time.sleep(3)
    assert stack.receiver.got(refused["id"]) is None


def test_the_champion_is_measured_and_reproduced(stack: Stack, corpus_file: Path) -> None:
    # a seed of its own: `daily` is to train, whichever comes first
    recipe = tiny_recipe(corpus_file).model_copy(update={"name": "kept", "seed": 9}).canonical()
    nothing = stack.completed(stack.start(EVALUATE, recipe=recipe))
    assert nothing["state"]["message"] == "kept has no champion yet"
    stack.completed(stack.start(recipe=recipe))
    reproducing = stack.start(REPRODUCE, name="kept")  # beside the evaluations
    measured = stack.completed(stack.start(EVALUATE, recipe=recipe))
    assert "still good" in measured["state"]["message"]
    recipe["gate"] |= {"beat_unigram": 0.99}
    refused = stack.ended(stack.start(EVALUATE, recipe=recipe))
    again = stack.completed(reproducing)
    assert "is reproduced" in again["state"]["message"]
    assert all(row["same"] for row in stack.table(again["id"], "reproduction"))
    assert refused["state_type"] == "FAILED"
    assert said_once(stack.api, refused["id"], "would not pass today")
    assert not list(stack.store.glob(".measuring-*")) + list(stack.store.glob(".reproducing-*"))


def test_another_pool_trains(stack: Stack, daily: dict[str, Any]) -> None:
    """Data stages run in qalam-cpu, training in qalam-gpu; a second build needs no training run."""
    worker = stack.process("worker")
    command = [arg if arg != "qalam-cpu" else "qalam-gpu" for arg in worker.cmdline()]
    command[command.index("--name") + 1] = "gpu"
    stack.start_again(command, worker.environ())
    gpu = stack.started.pop()
    try:
        recipe = stack.recipe.model_copy(update={"name": "apart", "seed": 8}).canonical()
        run = stack.completed(stack.start(recipe=recipe, training="train_model/train"))
        trained = stack.deployment("train_model/train")["id"]
        (child,) = call(stack.api, "flow_runs/filter", {"flow_runs": {"deployment_id": {"any_": [trained]}}})
        assert child["state_type"] == "COMPLETED"
        assert child["work_pool_name"] == "qalam-gpu"
        assert "recipe:apart" in child["tags"]
        assert steps(stack.logs(child["id"])), "the trainer's log lines are in the run that trained"
        assert json.loads(child["state"]["message"])["checkpoint"] in {
            path.name for path in (stack.store / "artifacts" / "train").iterdir() if path.name[-8:] != ".partial"
        }
        assert run["state_type"] == "COMPLETED"
        (train,) = (row for row in stack.table(run["id"], "stages") if row["stage"] == "train")
        assert train["seconds"] > 1, "the time of the training, and not of finding its checkpoint"
    finally:
        os.killpg(gpu.pid, signal.SIGTERM)
        gpu.wait(30)
    again = stack.completed(stack.start(recipe=recipe, training="train_model/train"))
    assert {row["result"] for row in stack.table(again["id"], "stages")} == {"cached"}


# -- failures ---------------------------------------------------------------------------------------


def test_a_lost_store_is_one_line(stack: Stack, daily: dict[str, Any]) -> None:
    """As when a mount is lost: the run fails with one line."""
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


def test_secrets_are_not_recorded(stack: Stack, daily: dict[str, Any]) -> None:
    """The worker's environment contains a token, and the webhook's URL another one."""
    for path in stack.store.rglob("*"):
        if path.is_file() and path.parent.name != "server" and "prefect.db" not in path.name:
            assert SECRET.encode() not in path.read_bytes(), path
    for kind in ("deployments", "flow_runs", "artifacts", "logs", "automations", "work_pools", "block_documents"):
        rows = call(stack.api, f"{kind}/filter", {"limit": 200})
        assert SECRET not in json.dumps(rows), kind
    for log in (stack.store / "server").glob("*.log"):
        assert SECRET not in log.read_text(errors="replace"), log
