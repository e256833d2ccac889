"""How a run ends in Prefect when its code is sound: refused, by a user's mistake, or cancelled. It is said in one line,
without a traceback.
"""

from __future__ import annotations

import inspect
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial, wraps
from typing import ParamSpec, TypeVar

from httpx import HTTPError
from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import ObjectNotFound, TerminationSignal
from prefect.states import Cancelled

from qalam_core.errors import QalamError

log = logging.getLogger("qalam_core.cancellation")

CANCEL_SECONDS = 15.0
"""How often a run asks whether it is to be cancelled; its worker has as long to stop it."""

P = ParamSpec("P")
R = TypeVar("R")


class RefusedError(QalamError):
    """The data of a Failed state, which Prefect requires to be an exception: its text is the decision, and `result` is
    what the flow found."""

    def __init__(self, decision: str, result: object) -> None:
        super().__init__(decision)
        self.result = result


def without_tracebacks() -> None:
    """Let Prefect's loggers in this process record a QalamError as its message alone."""
    for name in ("flow_runs", "task_runs", "engine"):
        logging.getLogger(f"prefect.{name}").addFilter(_as_message)


def _as_message(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, QalamError):
        return True
    record.exc_info = record.exc_text = None
    # the end of a run's process is reported once more, as an "unexpected exception"
    return repr(error) in record.getMessage() or str(error) in record.getMessage()


def supervised(flow: Callable[P, R]) -> Callable[P, R | State[R]]:
    """A flow's function that logs a QalamError without a traceback, and ends Cancelled when its run is cancelled.

    Prefect's worker stops a cancelled run, but no longer does after its server was away for more than half a minute
    (3.8). So a run of a deployment also asks for itself.
    """

    @wraps(flow)
    def function(*args: P.args, **kwargs: P.kwargs) -> R | State[R]:
        without_tracebacks()
        _outlive_output()
        with _cancelling() as cancelled:
            try:
                return flow(*args, **kwargs)
            except TerminationSignal:
                if not cancelled.is_set():
                    raise
        message = "cancelled; what is finished is kept, and a new run resumes it"
        return Cancelled(message=message, data=QalamError(message))

    # with types in place of their names, which Prefect would look for in this module
    function.__signature__ = inspect.signature(flow, eval_str=True)  # type: ignore[attr-defined]
    return function


def _outlive_output() -> None:
    """Let Prefect's console handlers fall silent when nobody reads their output any more, as the worker was killed.

    Rich would exit the process, and the run would be Crashed, whatever else it was told.
    """
    for name in ("prefect", "prefect.flow_runs", "prefect.task_runs", ""):
        for handler in logging.getLogger(name).handlers:
            console = getattr(handler, "console", None)
            if console is not None:
                console.on_broken_pipe = partial(setattr, console, "quiet", True)


@contextmanager
def _cancelling() -> Iterator[threading.Event]:
    """Context manager in which this process gets SIGTERM, and the event is set, when its run is to be cancelled."""
    cancelled, ended = threading.Event(), threading.Event()
    if not runtime.deployment.id:
        yield cancelled
        return
    run = runtime.flow_run.id

    def ask() -> None:
        before = False
        while not ended.wait(CANCEL_SECONDS):
            try:
                with get_client(sync_client=True) as client:
                    state = client.read_flow_run(run).state
            except (HTTPError, ObjectNotFound):  # the server is away, or the run was deleted
                continue
            now = state is not None and state.type == StateType.CANCELLING
            if now and before:
                log.warning("the worker has not stopped this run, which was cancelled; it stops itself")
                cancelled.set()
                os.kill(os.getpid(), signal.SIGTERM)
                return
            before = now

    in_run = copy_context()  # or its line would not be in the run's log
    threading.Thread(target=in_run.run, args=(ask,), daemon=True, name="cancellation").start()
    try:
        yield cancelled
    finally:
        ended.set()
