"""What stands before the API of `qalam serve`: the token, names of this machine, and the type and size of bodies."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any

from al_qalam.flows.serving.errors import ApiError

Message = dict[str, Any]  # of ASGI, and a scope
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Guarded:
    """Refuses what must not reach the API: requests without the token, under a foreign host name, or too large."""

    def __init__(self, app: Any, most: int, token: str, local: bool) -> None:
        self._app, self._most, self._token, self._local = app, most, token.encode(), local

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Pass the request on, with its whole body, or answer with the error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        problem = self._problem(scope["method"], scope["path"], headers)
        if problem is None:
            content, problem = await self._body(receive)
        if problem is not None:
            answer: Any = problem.response()
            await answer(scope, receive, send)
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": content, "more_body": False}

        await self._app(scope, again, send)

    def _problem(self, method: str, path: str, headers: dict[bytes, bytes]) -> ApiError | None:
        host = headers.get(b"host", b"").decode("latin-1")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if self._local and not is_local(name.removeprefix("[").removesuffix("]")):
            return ApiError(403, "only requests to localhost are answered: no page reaches this by another name")
        given = headers.get(b"authorization", b"")
        if self._token and path not in ("/healthz", "/") and not hmac.compare_digest(given, b"Bearer " + self._token):
            return ApiError(
                401, "no token, or a wrong one; send it as Authorization: Bearer TOKEN", code="invalid_api_key"
            )
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if method == "POST" and kind != b"application/json":  # a page of another site may send other types unasked
            return ApiError(415, "send JSON, with the header Content-Type: application/json")
        if (size := headers.get(b"content-length", b"0")).isdigit() and int(size) > self._most:
            return self._too_large()
        return None

    def _too_large(self) -> ApiError:
        return ApiError(413, f"a body may have {self._most:,} bytes")

    async def _body(self, receive: Receive) -> tuple[bytes, ApiError | None]:
        parts, size = list[bytes](), 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b"", ApiError(499, "the client has gone")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._most:
                return b"", self._too_large()
            if not message.get("more_body"):
                return b"".join(parts), None


def is_local(name: str) -> bool:
    """Whether a host's name or address is this machine's own, whatever a name server says."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"
