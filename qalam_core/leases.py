"""Leases on object storage: one machine works, others wait for its result, or take over when it has stopped.

A lease has no time in it, as clocks differ: it is void when it has not changed while somebody watched it.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from qalam_core.errors import StoreError
from qalam_core.files import json_object
from qalam_core.objects import Objects
from qalam_core.progress import every, waiting


@contextmanager
def lease(objects: Objects, work: str, seconds: float, done: Callable[[], bool]) -> Iterator[None]:
    """Context manager: be the only machine that does `work`, or wait until another one has done it.

    It is renewed three times in `seconds`, after which it is void.
    """
    name, mine = f"leases/{work}", secrets.token_hex(8)

    def content() -> bytes:
        return json.dumps({"by": mine, "renewed": secrets.token_hex(4)}).encode()

    if not objects.create(name, content()):
        with waiting(f"another machine, which works on {work[:24]}"):
            _wait(objects, name, seconds, content, done)

    def renew() -> None:
        with suppress(StoreError):  # the next attempt may succeed; if none does, two machines do the same work
            objects.write(name, content())

    try:
        with every(seconds / 3, renew):
            yield
    finally:
        with suppress(StoreError, FileNotFoundError):
            if json_object(objects.read(name)[0]).get("by") == mine:
                objects.delete(name)


def _wait(objects: Objects, name: str, seconds: float, content: Callable[[], bytes], done: Callable[[], bool]) -> None:
    """Until the work is done, or the lease is ours."""
    seen, since = "", time.monotonic()
    while not done():
        try:
            version = objects.meta(name).version
        except FileNotFoundError:
            if objects.create(name, content()):
                return
            continue
        if version != seen:
            seen, since = version, time.monotonic()
        elif time.monotonic() - since > seconds and objects.replace(name, content(), version):
            return
        time.sleep(min(2.0, seconds / 10))
