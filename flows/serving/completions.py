"""The HTTP API of `qalam serve`: OpenAI's completions, /healthz, and /metrics; the page is in workbench.py.

Source: the OpenAI API reference, "Completions" (the object, its stream and its errors).
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException

from al_qalam.flows.serving import workbench
from al_qalam.flows.serving.changing import Sessions
from al_qalam.flows.serving.engine import BusyError, Choice, Engine, notifier
from al_qalam.flows.serving.errors import ApiError
from al_qalam.flows.serving.guard import Guarded
from al_qalam.flows.serving.models import Models, Served
from qalam_core.display import printable
from qalam_core.errors import QalamError
from qalam_core.package.batching import Sampling, Token


@dataclass(frozen=True)
class Limits:
    """What one client may take."""

    body: int = 1 << 20  # bytes
    tokens: int = 4096  # of an answer, all its texts together
    texts: int = 32  # of one request
    seconds: float = 300.0  # for one request


SHORT = 1000
"""Characters of a prompt that are encoded between two tokens of other requests."""


def _unasked(value: Any) -> Any:
    if value:
        raise PydanticCustomError("unsupported", "not supported here; leave it out")
    return value


Unasked = Annotated[Any, AfterValidator(_unasked)]
"""Of a parameter that would change the answer: accepted with the values that ask for nothing."""


class StreamOptions(BaseModel):
    """In the body of /v1/completions."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    include_obfuscation: Unasked = None


class Completion(BaseModel):
    """The body of /v1/completions."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = ""
    prompt: str | list[str] | list[int] | list[list[int]] = ""
    max_tokens: Annotated[int, Field(ge=0)] = 16
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0  # not OpenAI's; 0: all
    n: Annotated[int, Field(ge=1)] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    user: str | None = None
    best_of: int | None = None  # n, as none is left out
    suffix: Unasked = None
    logit_bias: Unasked = None
    frequency_penalty: Unasked = None
    presence_penalty: Unasked = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        """null asks for what is the default, as in OpenAI's API."""
        return {name: value for name, value in given.items() if value is not None} if type(given) is dict else given


def application(models: Models, limits: Limits, token: str, local: bool) -> Any:
    """The ASGI application; with a `token` each request needs it, and with `local` one of this machine's host names."""
    app = FastAPI(title="Al-Qalam", docs_url=None, redoc_url=None, openapi_url=None)
    measured, sessions = _Measured(models), Sessions()

    @app.exception_handler(ApiError)
    async def _api_error(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> Response:
        found = error.errors()  # of a value that may have several types, one for each
        first = next((each for each in found if not each["type"].endswith("_type")), found[0])
        # of several types the rest of the place names one, and so does the message of a value that is of none
        several = sum(each["loc"][:2] == first["loc"][:2] for each in found) > 1
        if several and first["type"].endswith("_type"):
            first = first | {"msg": "is of none of the types that it may have"}
        place = ".".join(part for part in first["loc"][1 : 2 if several else None] if isinstance(part, str)) or None
        if first["type"] == "extra_forbidden":
            return ApiError(400, f"{printable(place or '')}: not a parameter of completions here", place).response()
        return ApiError(400, f"{printable(place or 'body')}: {printable(first['msg'])}", place).response()

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> Response:
        return ApiError(error.status_code, str(error.detail)).response()

    @app.exception_handler(QalamError)
    async def _model(_: Request, error: QalamError) -> Response:
        return ApiError(503, str(error)).response()

    @app.get("/healthz")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok", "model": models.current().run})

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(measured.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def listed() -> Response:
        served = models.current()
        entry = {"id": models.name, "object": "model", "created": served.created, "owned_by": "al-qalam"}
        return JSONResponse({"object": "list", "data": [{**entry, "root": served.run}]})

    @app.post("/v1/completions")
    async def completions(asked: Completion, request: Request) -> Response:
        served = sessions.find(asked.model) or models.current()
        if asked.model not in ("", models.name, served.run):
            raise ApiError(404, f"{printable(asked.model)}: this server has {models.name}", "model", "model_not_found")
        find = partial(_prompts, served.engine, asked, limits)
        # a thread costs 0.1 ms, and a long text may take seconds
        short = isinstance(asked.prompt, str) and len(asked.prompt) < SHORT
        prompts = find() if short else await asyncio.to_thread(find)
        answer = _Answer(served, asked, prompts, limits, measured)
        answer.begin()
        return _Events(answer) if asked.stream else JSONResponse(await answer.whole(request))

    app.include_router(workbench.routes(models, sessions))
    return Guarded(app, limits.body, token, local)


class _Answer:
    """The texts that one request asks for."""

    def __init__(
        self, served: Served, asked: Completion, prompts: Sequence[list[int]], limits: Limits, measured: _Measured
    ) -> None:
        self._served, self._asked, self._limits, self._measured = served, asked, limits, measured
        self._engine: Engine = served.engine
        self._id, self._created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self._changed, self._timed = asyncio.Event(), False
        stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        if any(not each for each in stop):
            raise ApiError(400, "stop: a sequence is empty", "stop")
        if asked.best_of not in (None, asked.n):
            raise ApiError(400, "best_of: all texts are returned; leave it out, or give n", "best_of")
        if (total := len(prompts) * asked.n * asked.max_tokens) > limits.tokens:
            raise ApiError(400, f"{total} tokens are asked for; at most {limits.tokens} in one request", "max_tokens")
        if not asked.max_tokens and not asked.echo:
            raise ApiError(400, "max_tokens: 0 needs echo", "max_tokens")
        context = self._engine.model.max_seq_len
        if (longest := max(map(len, prompts)) + asked.max_tokens) > context:
            raise ApiError(
                400,
                f"prompt and answer have {longest} tokens, the start of the text included; the model's context is "
                f"{context}",
                "max_tokens",
                "context_length_exceeded",
            )
        self.prompt_tokens = sum(len(prompt) - 1 for prompt in prompts)
        # a greedy text needs no draws; others differ from one another, and are the same for the same seed
        sampling = Sampling(
            asked.max_tokens, asked.temperature, asked.top_k, asked.top_p, asked.logprobs, asked.echo
        )  # fmt: skip
        notify = notifier(asyncio.get_running_loop(), self._changed)
        self._choices = [
            Choice(prompt, sampling, _generator(asked.seed, number), stop, asked.stream, notify)
            for prompt in prompts
            for number in range(asked.n)
        ]

    def begin(self) -> None:
        """Generate, as soon as there are places. Raises ApiError when as many wait as may."""
        self._measured.requests.inc()
        try:
            self._engine.submit(self._choices)
        except BusyError:
            self._measured.busy_requests.inc()
            raise ApiError(429, "all places are taken, and as many requests wait as may; try again") from None
        self._measured.prompt_tokens.inc(self.prompt_tokens)
        self._began = time.monotonic()

    async def whole(self, request: Request) -> dict[str, Any]:
        """The answer, when all texts are finished. Raises ApiError."""
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            while not all(choice.reason for choice in self._choices):
                await self._next(gone)
        finally:
            gone.cancel()
            self.end()
        self._raise_errors()
        choices = [self._choice(number, choice) for number, choice in enumerate(self._choices)]
        return self._object(choices) | {"usage": self._usage()}

    async def events(self) -> AsyncIterator[str]:
        """The answer as server-sent events; `end` is to be called after them."""
        shown = [(0, 0)] * len(self._choices)  # characters, tokens
        ended = [False] * len(self._choices)
        try:
            while not all(ended):
                for number, choice in enumerate(self._choices):
                    if ended[number]:
                        continue
                    ended[number] = bool(choice.reason)
                    self._raise_errors()  # here, as a text may fail while the piece of another one is sent
                    begin = shown[number]
                    shown[number] = (len(choice.text), self._settled(choice))
                    if begin != shown[number] or ended[number]:
                        self._answered()
                        yield _event(self._object([self._choice(number, choice, begin, shown[number], ended[number])]))
                if not all(ended):
                    await self._next(None)
            if self._asked.stream_options.include_usage:
                yield _event(self._object([]) | {"usage": self._usage()})
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield _event(error.content())

    def end(self) -> None:
        """Free the places, however the answer ended."""
        self._engine.cancel(self._choices)
        self._answered()
        self._measured.generated_tokens.inc(sum(len(choice.tokens) for choice in self._choices))

    def _answered(self) -> None:
        if not self._timed:
            self._measured.seconds.observe(time.monotonic() - self._began)
        self._timed = True

    def _raise_errors(self) -> None:
        if errors := [choice.error for choice in self._choices if choice.error]:
            raise ApiError(500, errors[0])

    def _settled(self, choice: Choice) -> int:
        """How many tokens are within the text that is shown."""
        if choice.reason:
            return len(choice.tokens)
        return sum(offset < len(choice.text) for offset in choice.offsets)

    async def _next(self, gone: asyncio.Future[Any] | None) -> None:
        """Wait until a text has changed. Raises ApiError after the time limit, and when the client has gone."""
        changed: asyncio.Future[Any] = asyncio.ensure_future(self._changed.wait())
        awaited = {changed, gone} if gone else {changed}
        left = max(0.0, self._began + self._limits.seconds - time.monotonic())
        try:
            done, _ = await asyncio.wait(awaited, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()  # also when the client of a stream has gone
        if gone in done:
            raise ApiError(499, "the client has gone")
        if not done:
            raise ApiError(504, f"not finished within {self._limits.seconds:g} s; ask for fewer tokens")
        self._changed.clear()

    def _object(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id, "object": "text_completion", "created": self._created, "model": self._served.run,
            "choices": choices,
        }  # fmt: skip

    def _choice(
        self, number: int, choice: Choice, begin: tuple[int, int] = (0, 0), end: tuple[int, int] | None = None,
        ended: bool = True,
    ) -> dict[str, Any]:  # fmt: skip
        """One text, or what is new of it: from so many characters and tokens to so many, when it may have `ended`."""
        shown, counted = end or (len(choice.text), len(choice.tokens))
        text, prompt, before = choice.text[begin[0] : shown], list[Token](), 0
        if self._asked.echo:
            echoed = self._engine.tokenizer.decode(choice.ids[1:])
            before = len(echoed)
            if begin == (0, 0):
                text, prompt = echoed + text, list(choice.prompt)
        tokens = choice.tokens[begin[1] : counted]
        offsets = [before + offset for offset in choice.offsets[begin[1] : counted]]
        return {
            "index": number, "text": text, "logprobs": self._logprobs(prompt, tokens, offsets),
            "finish_reason": choice.reason if ended else None,
        }  # fmt: skip

    def _logprobs(self, prompt: Sequence[Token], tokens: Sequence[Token], offsets: Sequence[int]) -> Any:
        if self._asked.logprobs is None:
            return None
        spelled, places = self._engine.spelled, self._engine.offsets([token.id for token in prompt])
        every = [*prompt, *tokens]
        return {
            "tokens": [spelled(token.id) for token in every],
            "token_logprobs": [token.logprob for token in every],
            "top_logprobs": [{spelled(id_): value for id_, value in token.top} for token in every],
            "text_offset": [*places, *offsets],
        }

    def _usage(self) -> dict[str, int]:
        generated = sum(len(choice.tokens) for choice in self._choices)
        return {
            "prompt_tokens": self.prompt_tokens, "completion_tokens": generated,
            "total_tokens": self.prompt_tokens + generated,
        }  # fmt: skip


class _Events(StreamingResponse):
    """The events of an answer, which end when the client goes away, perhaps before the first of them."""

    def __init__(self, answer: _Answer) -> None:
        super().__init__(answer.events(), media_type="text/event-stream")
        self._answer = answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.end()


def _prompts(engine: Engine, asked: Completion, limits: Limits) -> list[list[int]]:
    """The ids of each prompt, after that of the start of a text. Raises ApiError."""
    prompt, most = asked.prompt, engine.model.vocab_size
    one = isinstance(prompt, str) or not prompt or isinstance(prompt[0], int)
    several: Sequence[Any] = [prompt] if one else prompt
    if (texts := len(several) * asked.n) > limits.texts:
        raise ApiError(400, f"{texts} texts are asked for; at most {limits.texts} in one request", "n")
    found = []
    for each in several:
        ids = engine.tokenizer.encode(each) if isinstance(each, str) else list(each)
        if bad := [id_ for id_ in ids if not 0 <= id_ < most]:
            raise ApiError(400, f"prompt: {bad[0]} is no token; ids are below {most}", "prompt")
        found.append([engine.model.specials.start, *ids])
    return found


def _generator(seed: int | None, number: int) -> np.random.Generator:
    """Of the `number`-th text for one prompt; of the first it is that of `NumpyTransformer.generate`."""
    if seed is None:
        return np.random.default_rng()
    return np.random.default_rng([seed, number] if number else seed)


async def _disconnected(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


class _Measured:
    """Figures for Prometheus."""

    def __init__(self, models: Models) -> None:
        self._registry = registry = CollectorRegistry()
        count = partial(Counter, registry=registry)
        self.requests = count("qalam_requests", "Completions that were asked for, but for those with a mistake.")
        self.busy_requests = count("qalam_busy_requests", "Those of them that were refused, as no more may wait.")
        self.prompt_tokens = count("qalam_prompt_tokens", "Tokens of prompts.")
        self.generated_tokens = count("qalam_generated_tokens", "Tokens of answers that ended.")
        self.seconds = Histogram(
            "qalam_request_seconds", "Until an answer, its first event, or its end.", registry=registry
        )
        for name, text, value in (
            ("qalam_active_texts", "Texts that the served model generates now.", models.active),
            ("qalam_waiting_texts", "Texts that wait for a place of it.", models.waiting),
        ):
            Gauge(name, text, registry=registry).set_function(value)

    def text(self) -> str:
        return generate_latest(self._registry).decode()
