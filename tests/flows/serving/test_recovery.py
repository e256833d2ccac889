"""A stack whose processes are killed during a run, and its limits: the next run resumes, and slots are freed in
bounded time."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from al_qalam.flows.serving.automations import ZOMBIE_SECONDS
from al_qalam.tasks.policy import SLOT_SECONDS
from tests.flows.processes import call, free_port, qalam
from tests.flows.stack import BUILD, ENDED, LONG, ON_NEW_CORPUS, Stack, last_step, slowed, steps, trainers, until

pytestmark = pytest.mark.timeout(900)  # minutes on a busy machine


def test_killed_processes_crash_their_runs_and_the_next_runs_resume(stack: Stack) -> None:
    """Kill a flow's process, then everything. They share one test because Prefect's minima, 60 s for
    a slot's lease and 30 s for a heartbeat, then elapse at the same time."""
    stack.allow_trainings(2)
    of_flow, of_worker = stack.long("flowkill"), stack.long("workerkill")

    # the flow's process alone: its worker reports the crash
    first = stack.start(**of_flow)
    folder = stack.training_checkpoint(first)
    with slowed(folder):
        stack.flow_process(first).kill()
    crashed = stack.ended(first, 30)
    assert crashed["state_type"] == "CRASHED"

    # worker, flow, trainer and server: only missing heartbeats show it, which are counted across the restart
    other = stack.start(ON_NEW_CORPUS, **of_worker)
    other_folder = stack.training_checkpoint(other)
    with slowed(other_folder):
        until(lambda: stack.heartbeats(other), 60, "a heartbeat")
        stack.kill("worker", "server")
    all_killed = time.monotonic()
    stack.up()
    assert "(restarted)" in stack.output
    assert "updated" not in stack.output

    until(lambda: stack.slots() == 0, SLOT_SECONDS + 30, "both training slots are free again")
    stopped = last_step(folder)
    second = stack.start(**of_flow)  # the deployment's own slot is free, too
    crashed = stack.ended(other, ZOMBIE_SECONDS + 60)
    assert crashed["state_type"] == "CRASHED"
    assert "no heartbeat" in crashed["state"]["message"]
    until(lambda: stack.receiver.got("no heartbeat"), 30, "the notification of the run that missed heartbeats")
    assert time.monotonic() - all_killed < ZOMBIE_SECONDS + SLOT_SECONDS + 30
    assert last_step(other_folder) > 0
    other_second = stack.start(ON_NEW_CORPUS, **of_worker)
    for run in (second, other_second):
        stack.completed(run)
    assert steps(stack.logs(second))[0] > stopped >= 100, "it resumed; it did not start again"
    assert steps(stack.logs(other_second))[0] > 100
    until(lambda: stack.receiver.got("crashed"), 30, "the notification of a crash")


def test_a_killed_server_does_not_affect_a_run(stack: Stack) -> None:
    first = stack.start(**stack.long("serverkill"))
    with slowed(stack.training_checkpoint(first)):
        worker = stack.process("worker")
        stack.kill("server")
        time.sleep(3)
        stack.up()
        until(lambda: "train" in stack.artifacts(first), 30, "a progress artifact")
    assert stack.process("worker") == worker
    assert stack.output.count("(restarted)") == 1
    run = stack.completed(first)
    assert run["run_count"] == 1
    assert stack.artifacts(first)["train"] == 100


def test_up_starts_only_what_does_not_run(stack: Stack) -> None:
    server, worker = stack.process("server"), stack.process("worker")
    worker.kill()
    worker.wait(10)
    stack.up()
    assert stack.process("server") == server
    assert stack.process("worker") != worker
    assert stack.output.count("(running)") == stack.output.count("(restarted)") == 1
    other = qalam("up", stack.recipe_file, "--port", free_port(), **stack.environment)
    assert other.returncode == 2
    assert f"use {stack.api}" in other.stderr
    assert stack.process("server") == server


def test_cancelling_stops_the_training_with_a_checkpoint(stack: Stack) -> None:
    run = stack.start(**stack.long("cancelled", steps=4 * LONG))
    folder = stack.training_checkpoint(run)
    with slowed(folder):
        first = until(lambda: stack.artifacts(run).get("train"), 20, "a progress artifact")
        until(lambda: stack.artifacts(run)["train"] > first, 20, "progress in the artifact")
    line = r"train: [\d,]+ of 2,000 steps \(\d+%\), loss [\d.]+, [\d,]+ tokens/s, \d+:\d\d:\d\d left"
    assert any(re.fullmatch(line, message) for message in stack.logs(run))
    before = last_step(folder)
    call(stack.api, f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    since = time.monotonic()
    until(lambda: not trainers(folder), 20, "the trainer has exited")
    assert time.monotonic() - since < 20
    assert stack.ended(run, 30)["state_type"] == "CANCELLED"
    assert last_step(folder) >= before
    until(lambda: stack.slots() == 0, SLOT_SECONDS + 30, "the training slot is free again")


def test_a_cancelled_run_stops_itself_when_its_worker_does_not(stack: Stack) -> None:
    """As after its server was away for half a minute; here the worker is gone, which is quicker."""
    run = stack.start(**stack.long("alone", steps=4 * LONG))
    folder = stack.training_checkpoint(run)
    flow, worker = stack.flow_process(run), stack.process("worker")
    for process in [worker, *worker.children(recursive=True)]:
        if process not in (flow, *flow.children(recursive=True)):
            process.kill()
    call(stack.api, f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    with slowed(folder):
        ended = stack.ended(run, 90)
    assert ended["state_type"] == "CANCELLED"
    assert ended["state"]["message"] == "cancelled; what is finished is kept, and a new run resumes it"
    until(lambda: not trainers(folder), 20, "the trainer has exited")
    logs = until(lambda: "\n".join(stack.logs(run)).partition("which was cancelled; it stops itself"), 20, "its log")
    assert "Traceback" not in logs[2]
    stack.up()


def test_a_killed_trainer_is_one_line(stack: Stack) -> None:
    """As the kernel does when memory runs out."""
    run = stack.start(**stack.long("memory"))
    for trainer in trainers(stack.training_checkpoint(run)):
        trainer.kill()
    ended = stack.ended(run, 30)
    assert ended["state_type"] == "FAILED"
    assert re.search(r"training was killed at step \d+, most likely for memory", ended["state"]["message"])
    assert "\n" not in ended["state"]["message"].strip()


def test_trainings_run_one_at_a_time(stack: Stack) -> None:
    """The single training slot applies to builds of two deployments."""
    stack.allow_trainings(1)
    deployments = {"one": BUILD, "two": ON_NEW_CORPUS}
    both = [stack.start(each, **stack.long(name, steps=LONG // 2)) for name, each in deployments.items()]
    seen = set()

    def training() -> list[Path]:
        running = [folder for folder in stack.store.glob("artifacts/train/*.partial") if trainers(folder)]
        seen.add(len(running))
        return running

    def waits() -> bool:
        training()
        return any("waiting for a training slot" in message for run in both for message in stack.logs(run))

    def all_ended() -> bool:
        training()
        return all(stack.run(run)["state_type"] in ENDED for run in both)

    with slowed(until(training, 120, "a training")[0]):
        until(waits, 60, "the other one waits for a slot")
        time.sleep(4)
    until(all_ended, 400, "both builds have ended")
    assert {stack.run(run)["state_type"] for run in both} == {"COMPLETED"}
    assert max(seen) == 1
    waited = [row["waited"] for run in both for row in stack.table(run, "stages") if row["stage"] == "train"]
    seconds = [int(found[1]) if (found := re.fullmatch(r"(\d+) s for a training slot", text)) else 0 for text in waited]
    assert max(seconds) > 3, waited  # asking for a free one may take three
