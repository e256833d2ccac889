"""The process of `qalam serve`."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable

import uvicorn

from al_qalam.flows.serving.completions import Limits, application
from al_qalam.flows.serving.guard import is_local
from al_qalam.flows.serving.models import Backend, Models
from qalam_core.errors import QalamError


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
    with listening:
        models = Models(model, store, places, waiting, backend)
        config = uvicorn.Config(
            application(models, limits, token, local), log_level="warning", access_log=False, lifespan="off",
            timeout_graceful_shutdown=5, server_header=False,
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
