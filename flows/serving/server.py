"""The process of `qalam serve`."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from al_qalam.flows.serving.changing import clean
from al_qalam.flows.serving.completions import Limits, application
from al_qalam.flows.serving.guard import is_local
from al_qalam.flows.serving.models import Backend, Models
from qalam_core.errors import QalamError

ARRIVAL_SECONDS = 30.0
"""For a request to arrive, and for the rest of an answer to be read, beyond the time for the answer itself."""

_ENDING_SECONDS = 5
"""For answers to end when the server does; their clients are cut off a second earlier, as if they had gone."""


class _Connection(H11Protocol):
    """A connection that no client holds for ever, by half a request or by an answer that it does not read."""

    def __init__(self, answer_seconds: float, **given: Any) -> None:
        super().__init__(**given)
        self._application, self.app, self._answer_seconds = self.app, self._answer, answer_seconds
        self._ends: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._end_after(ARRIVAL_SECONDS)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._end_after(ARRIVAL_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP. Where a request has begun, its answer may have as well: nothing else can be sent."""
        if self.conn.our_state is h11.IDLE:
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def shutdown(self) -> None:
        super().shutdown()
        self.loop.call_later(_ENDING_SECONDS - 1, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._end_after(None)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        async def received() -> Any:
            message = await receive()
            if message["type"] == "http.request" and not message["more_body"]:
                self._end_after(self._answer_seconds + ARRIVAL_SECONDS)
            return message

        await self._application(scope, received, send)

    def _end_after(self, seconds: float | None) -> None:
        """End in so many seconds from now, in place of what was said before."""
        if self._ends:
            self._ends.cancel()
        # abort: close would first wait until the client has read
        self._ends = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)


def run(
    model: str, store: str, backend: Backend, host: str, port: int, token: str, places: int, waiting: int,
    limits: Limits, say: Callable[[str], None],
) -> None:  # fmt: skip
    """Serve until SIGINT or SIGTERM. Raises QalamError."""
    local = is_local(host)
    if not local and not token:
        raise QalamError(
            f"--host {host}: other machines could use the model; set QALAM_SERVE_TOKEN to a secret, or listen on "
            "127.0.0.1"
        )
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise QalamError("the token has characters that a header cannot hold; use letters, digits and punctuation")
    listening = _listen(host, port)
    clean()
    with listening:
        models = Models(model, store, places, waiting, backend)
        config = uvicorn.Config(
            application(models, limits, token, local), log_level="warning", access_log=False, lifespan="off",
            http=partial(_Connection, limits.seconds),  # type: ignore[arg-type]  # it is called alone
            timeout_graceful_shutdown=_ENDING_SECONDS, server_header=False,
        )  # fmt: skip
        address = f"[{host}]" if ":" in host else host
        say(f"{models.name} at http://{address}:{listening.getsockname()[1]}/v1; Ctrl-C ends it")
        logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of clients that went away
        for ends in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises the signal again when it has ended
            signal.signal(ends, lambda *_: None)
        with models.followed():
            uvicorn.Server(config).run([listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sends at once on a socket whose protocol says TCP; else each answer would wait 40 ms for an ACK
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()  # clients may connect as soon as the address is printed
    except OSError as error:
        raise QalamError(f"{host}:{port}: {error.strerror}; choose another --host or --port") from None
    listening.set_inheritable(True)
    return listening
