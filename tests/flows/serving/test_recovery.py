"""A stack whose parts are killed in the middle: the next run goes on, and nothing is held for long."""

from __future__ import annotations

import re
import time

import psutil

from al_qalam.flows.serving.deploy import ZOMBIE_SECONDS
from al_qalam.tasks.policy import SLOT_SECONDS
from tests.flows.processes import call
from tests.flows.stack import LONG, Stack, last_step, steps, trainer_is_gone, until


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
    until(lambda: trainer_is_gone(folder), 20, "the trainer has ended")
    assert time.monotonic() - since < 20
    assert stack.ended(run, 30)["state_type"] == "CANCELLED"
    assert last_step(folder) >= before
    until(lambda: stack.slots() == 0, SLOT_SECONDS + 30, "the training slot is free again")


def test_a_trainer_that_is_killed_is_one_line(stack: Stack) -> None:
    """As the kernel does when memory runs out."""
    run = stack.start(**stack.long("memory"))
    spec = str(stack.training_checkpoint(run) / "spec.json")
    next(p for p in psutil.process_iter(["cmdline"]) if spec in " ".join(p.info["cmdline"] or [])).kill()
    ended = stack.ended(run, 30)
    assert ended["state_type"] == "FAILED"
    assert re.search(r"training was killed at step \d+, most likely for memory", ended["state"]["message"])
    assert "\n" not in ended["state"]["message"].strip()
