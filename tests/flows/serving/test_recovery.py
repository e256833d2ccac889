"""A stack whose processes are killed during a run, and its limits: the next run resumes, and slots are freed in
bounded time."""

from __future__ import annotations

import re
import time

import psutil
import pytest

from al_qalam.flows.serving.deploy import ZOMBIE_SECONDS
from al_qalam.tasks.policy import SLOT_SECONDS
from tests.flows.processes import call
from tests.flows.stack import BUILD, ENDED, LONG, ON_NEW_CORPUS, Stack, last_step, steps, trainer_is_gone, until

pytestmark = pytest.mark.timeout(900)  # minutes on a busy machine


def test_killed_processes_crash_their_runs_and_the_next_runs_resume(stack: Stack) -> None:
    """Kill a flow's process, then the worker with another flow. They share one test because Prefect's minima, 60 s for
    a slot's lease and 30 s for a heartbeat, then elapse at the same time."""
    stack.allow_trainings(2)
    of_flow, of_worker = stack.long("flowkill"), stack.long("workerkill")

    # the flow's process alone: its worker reports the crash
    first = stack.start(**of_flow)
    folder = stack.training_checkpoint(first)
    stack.flow_process(first).kill()
    crashed = stack.ended(first, 30)
    assert crashed["state_type"] == "CRASHED"
    flow_killed = time.monotonic()

    # the worker and its flow: only missing heartbeats show it
    other = stack.start(ON_NEW_CORPUS, **of_worker)
    other_folder = stack.training_checkpoint(other)
    worker = stack.process("worker")
    command, environment = worker.cmdline(), worker.environ()
    flow = stack.flow_process(other)
    for process in (worker, flow):
        process.kill()
    worker_killed = time.monotonic()
    stack.start_again(command, environment)

    # at most the slot of `other`, which still had it after `flow_killed`
    left = flow_killed + SLOT_SECONDS + 30 - time.monotonic()
    until(lambda: stack.slots() <= 1, left, "the first training slot is free again")
    until(lambda: stack.slots() == 0, SLOT_SECONDS + 30, "both training slots are free again")
    stopped = last_step(folder)
    second = stack.start(**of_flow)  # the deployment's own slot is free, too
    crashed = stack.ended(other, ZOMBIE_SECONDS + 60)
    assert crashed["state_type"] == "CRASHED"
    assert "no heartbeat" in crashed["state"]["message"]
    assert time.monotonic() - worker_killed < ZOMBIE_SECONDS + SLOT_SECONDS + 30
    assert last_step(other_folder) > 0
    other_second = stack.start(ON_NEW_CORPUS, **of_worker)
    for run in (second, other_second):
        stack.completed(run)
    assert steps(stack.logs(second))[0] > stopped >= 200, "it resumed; it did not start again"
    assert steps(stack.logs(other_second))[0] > 200
    until(lambda: stack.receiver.got("crashed"), 30, "the notification of a crash")


def test_a_killed_server_does_not_affect_a_run(stack: Stack) -> None:
    first = stack.start(**stack.long("serverkill"))
    stack.training_checkpoint(first)
    server = stack.process("server")
    command, environment = server.cmdline(), server.environ()
    for process in [*server.children(recursive=True), server]:
        process.kill()
    time.sleep(3)
    stack.start_again(command, environment)
    run = stack.completed(first)
    assert run["run_count"] == 1


def test_cancelling_stops_the_training_with_a_checkpoint(stack: Stack) -> None:
    run = stack.start(**stack.long("cancelled", steps=10 * LONG))
    folder = stack.training_checkpoint(run)
    first = until(lambda: stack.artifacts(run).get("train"), 20, "a progress artifact")
    until(lambda: stack.artifacts(run)["train"] > first, 20, "progress in the artifact")
    before = last_step(folder)
    call(stack.api, f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    since = time.monotonic()
    until(lambda: trainer_is_gone(folder), 20, "the trainer has exited")
    assert time.monotonic() - since < 20
    assert stack.ended(run, 30)["state_type"] == "CANCELLED"
    assert last_step(folder) >= before
    until(lambda: stack.slots() == 0, SLOT_SECONDS + 30, "the training slot is free again")


def test_a_killed_trainer_is_one_line(stack: Stack) -> None:
    """As the kernel does when memory runs out."""
    run = stack.start(**stack.long("memory"))
    spec = str(stack.training_checkpoint(run) / "spec.json")
    next(p for p in psutil.process_iter(["cmdline"]) if spec in " ".join(p.info["cmdline"] or [])).kill()
    ended = stack.ended(run, 30)
    assert ended["state_type"] == "FAILED"
    assert re.search(r"training was killed at step \d+, most likely for memory", ended["state"]["message"])
    assert "\n" not in ended["state"]["message"].strip()


def test_trainings_run_one_at_a_time(stack: Stack) -> None:
    """The single training slot applies to builds of two deployments."""
    stack.allow_trainings(1)
    deployments = {"one": BUILD, "two": ON_NEW_CORPUS}
    both = [stack.start(each, **stack.long(name, steps=LONG // 4)) for name, each in deployments.items()]
    seen = set()

    def all_ended() -> bool:
        seen.add(sum(not trainer_is_gone(folder) for folder in stack.store.glob("artifacts/train/*.partial")))
        return all(stack.run(run)["state_type"] in ENDED for run in both)

    until(all_ended, 400, "both builds have ended")
    assert {stack.run(run)["state_type"] for run in both} == {"COMPLETED"}
    assert max(seen) == 1
