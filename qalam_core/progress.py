"""Progress of long work: the callback, how far and how fast as a line of text, and actions at intervals meanwhile."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from datetime import timedelta
from threading import Event, Lock, Thread
from typing import Protocol

from qalam_core.errors import QalamError

log = logging.getLogger(__name__)

NOTICE_SECONDS = 2.0  # a wait is reported after this time, and then at each interval
_WINDOW = 120.0  # seconds over which a rate is taken: a slow start does not count for ever
_RESOLUTION = 1.0  # seconds between two remembered positions


class Progress(Protocol):
    """A callback of long work."""

    def __call__(self, done: int, total: int, note: str = "", /) -> None:
        """`done` of `total` are done, in a unit of the caller's; a total of 0 is not known yet. `note` has figures of
        the work itself, such as a loss."""


def no_progress(done: int, total: int, note: str = "", /) -> None:
    """Ignore progress."""


def interval() -> float:
    """Seconds between two lines of progress where no bar is shown: $QALAM_PROGRESS_SECONDS, by default 30.

    Raises QalamError.
    """
    text = os.environ.get("QALAM_PROGRESS_SECONDS") or "30"
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.1 <= seconds <= 86_400:
        raise QalamError(f"QALAM_PROGRESS_SECONDS={text!r}: must be a number of seconds, from 0.1 to 86400")
    return seconds


class Tracker:
    """A `Progress` that knows how far a piece of work is, its rate, and the time left.

    Both are of the last two minutes in this process: what an interrupted process had done is not part of them. Each
    call is passed on to `listeners`.
    """

    def __init__(
        self, label: str, unit: str, *listeners: Callable[[Tracker], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.label, self.unit = label, unit
        self.done, self.total = 0, 0
        self._note, self._listeners, self._clock, self._lock = "", listeners, clock, Lock()
        self.begun: float | None = None  # when it was called first
        self._positions: deque[tuple[float, int]] = deque()  # (time, done), the oldest is where the rate is taken from

    def __call__(self, done: int, total: int, note: str = "", /) -> None:
        """See `Progress`; the last note stays until there is another one."""
        now = self._clock()
        with self._lock:
            if total != self.total or done < self.done:  # the total is new, or this is another round
                self._positions.clear()
            self.begun = now if self.begun is None else self.begun
            self.done, self.total, self._note = done, total, note or self._note
            if not self._positions or now - self._positions[-1][0] >= _RESOLUTION:
                self._positions.append((now, done))
            while len(self._positions) > 1 and self._positions[1][0] <= now - _WINDOW:
                self._positions.popleft()
        for listener in self._listeners:
            listener(self)

    @property
    def percent(self) -> float:
        """0 to 100; 0 while the total is not known."""
        return 100.0 * self.done / self.total if self.total else 0.0

    def __str__(self) -> str:
        """As "400 of 1,500 steps (27%), loss 3.21, 12,345 tokens/s, 0:01:23 left"."""
        now = self._clock()
        with self._lock:
            done, total, note = self.done, self.total, self._note
            since, first = self._positions[0] if self._positions else (now, done)
        rate = (done - first) / (now - since) if now > since else 0.0
        running = f"running for {_duration(now - (self.begun or now))}"
        if not total:
            return running
        amount = f"{self._amount(done).split()[0]} of {self._amount(total)} ({math.floor(self.percent)}%)"
        if rate and done < total:
            figures = (amount, note or self._amount(rate, "/s"), f"{_duration((total - done) / rate)} left")
        else:
            figures = (amount, note, running)
        return ", ".join(filter(None, figures))

    def _amount(self, value: float, per: str = "") -> str:
        if self.unit == "bytes":
            return f"{value / 1e6:,.1f} MB{per}"
        return f"{value:,.{1 if per else 0}f} {self.unit}{per}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=min(round(seconds), 10**8)))


@contextmanager
def every(seconds: float, action: Callable[[], None], first: float | None = None) -> Iterator[None]:
    """Context manager that calls `action` each `seconds` of its block, and before that after `first` seconds.

    It is called in a thread, with the context variables of the block; the block's end waits for a call that has begun.
    """
    ended, context = Event(), copy_context()

    def repeat() -> None:
        pause = seconds if first is None else first
        while not ended.wait(pause):
            context.run(action)
            pause = seconds

    thread = Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Context manager around a wait: if it takes some seconds, it warns that this process waits for `what`."""
    begun = time.monotonic()

    def warn() -> None:
        log.warning("waiting for %s (%s)", what, _duration(time.monotonic() - begun))

    with every(interval(), warn, first=min(NOTICE_SECONDS, interval())):
        yield
