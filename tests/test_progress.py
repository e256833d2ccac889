"""Progress: rates and times left, and the actions at intervals."""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar
from typing import Any

import pytest

from qalam_core import progress
from qalam_core.errors import QalamError
from qalam_core.progress import Tracker, every, interval, waiting


class Clock:
    """A clock that a test sets, in seconds."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def tracked(unit: str, *moves: tuple[Any, ...]) -> str:
    """The text of a tracker after (seconds, done, total, note) of each move."""
    clock = Clock()
    tracker = Tracker("stage", unit, clock=clock)
    for seconds, *move in moves:
        clock.now += seconds
        if move:
            tracker(*move)
    return str(tracker)


@pytest.mark.parametrize(
    ("unit", "moves", "text"),
    [
        ("bytes", [(0, 0, 0), (5, 0, 40_000_000), (10, 10_000_000, 40_000_000)],
         "10.0 of 40.0 MB (25%), 1.0 MB/s, 0:00:30 left"),
        # the last note stays, in place of the rate of steps
        ("steps", [(0, 0, 1500), (10, 100, 1500, "loss 3.2"), (10, 200, 1500)],
         "200 of 1,500 steps (13%), loss 3.2, 0:02:10 left"),
        # an interrupted process had done 900 steps
        ("steps", [(0, 0, 0), (20, 900, 1000), (10, 910, 1000)], "910 of 1,000 steps (91%), 1.0 steps/s, 0:01:30 left"),
        ("steps", [(0, 0, 0), (20, 900, 1000)], "900 of 1,000 steps (90%), running for 0:00:20"),
        # compiling for three minutes, then two minutes of training
        ("steps", [(0, 0, 1000), (180, 1, 1000), (60, 61, 1000), (60, 121, 1000), (60, 181, 1000)],
         "181 of 1,000 steps (18%), 1.0 steps/s, 0:13:39 left"),
        # nothing has moved for a while
        ("tokens", [(0, 0, 100), (10, 50, 100), (40,)], "50 of 100 tokens (50%), 1.0 tokens/s, 0:00:50 left"),
        ("bytes", [(0, 0, 0), (90,)], "running for 0:01:30"),
        ("bytes", [(0, 0, 10**6), (10, 10**6, 10**6), (50,)], "1.0 of 1.0 MB (100%), running for 0:01:00"),
        # a second model is trained after the first
        ("steps", [(0, 0, 100), (10, 100, 100), (5, 0, 100), (10, 20, 100)],
         "20 of 100 steps (20%), 2.0 steps/s, 0:00:40 left"),
        ("steps", [(0, 999, 1000), (1, 999, 1000)], "999 of 1,000 steps (99%), running for 0:00:01"),
    ],
)  # fmt: skip
def test_a_trackers_text(unit: str, moves: list[tuple[Any, ...]], text: str) -> None:
    assert tracked(unit, *moves) == text


def test_an_action_repeats_in_the_context_of_its_block() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="outside")
    found: list[str] = []
    twice = threading.Event()

    def action() -> None:
        found.append(variable.get())
        if len(found) == 2:
            twice.set()

    variable.set("inside")
    with every(0.01, action):
        assert twice.wait(5)
    count = len(found)
    time.sleep(0.03)
    assert len(found) == count
    assert set(found) == {"inside"}


def test_only_a_long_wait_is_reported(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with waiting("nothing"):
        pass
    monkeypatch.setattr(progress, "NOTICE_SECONDS", 0.01)
    until = time.monotonic() + 5
    with waiting("the lock x"):
        while not caplog.records and time.monotonic() < until:
            time.sleep(0.01)
    assert [record.getMessage() for record in caplog.records] == ["waiting for the lock x (0:00:00)"]


@pytest.mark.parametrize("text", ["x", "0", "-1", "nan", "inf", "0.001"])
def test_a_wrong_interval_is_one_line(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("QALAM_PROGRESS_SECONDS", text)
    with pytest.raises(QalamError, match="QALAM_PROGRESS_SECONDS"):
        interval()
