"""`qalam serve`, with the openai client and with clients that misbehave."""

from __future__ import annotations

import asyncio
import json
import math
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx
import numpy as np
import openai
import pytest
from openai.types import completion_create_params
from openai.types.chat import ChatCompletionStreamOptionsParam

from al_qalam.flows.serving import models as models_module
from al_qalam.flows.serving.completions import SHORT, Completion, Limits, StreamOptions, _Answer, _Measured, application
from al_qalam.flows.serving.engine import BusyError, Choice, Engine
from al_qalam.flows.serving.models import Backend, Models
from qalam_core import package as packages
from qalam_core.errors import QalamError
from qalam_core.package import ModelConfig
from qalam_core.package.batching import Batch, Sampling, Token
from qalam_core.package.read import Package
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.package.runtime.tokenizer import Tokenizer
from tests.conftest import SUBJECTS, Built
from tests.flows.processes import clean_environment, own_signals, qalam
from tests.package.conftest import trained_tokenizer
from tests.small_package import CONFIG, export, weights


class Service(NamedTuple):
    """A running server, and the package that it serves."""

    process: subprocess.Popen[str]
    address: str
    package: Package
    run: str

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0)

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.package.vocabulary)


def start(*arguments: object, before: str = "", **environment: str) -> tuple[subprocess.Popen[str], str]:
    """A server's process, which first executes `before`, and its address."""
    code = f"{before}\nfrom al_qalam.flows.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", *map(str, arguments)],
        env=clean_environment(**environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=own_signals,
    )  # fmt: skip
    assert process.stdout
    line = process.stdout.readline()
    assert "; Ctrl-C ends it" in line, process.communicate()[1]
    address = line.partition(" at ")[2].partition("/v1;")[0]
    socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))).close()  # at once
    return process, address


@pytest.fixture(scope="module")
def service(built: Built) -> Iterator[Service]:
    run = built.published.run
    process, address = start(run, "--store", built.store.root, "--port", 0, "--places", 4, "--waiting", 2)
    yield Service(process, address, packages.read(built.published.folder / "model"), run)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, ""), errors


def expected(service: Service, prompt: str, tokens: int, temperature: float, top_k: int, seed: int) -> str:
    """What `qalam generate` prints, without the prompt."""
    whole = packages.generate(service.package, prompt, tokens, temperature, top_k, seed)
    return whole.removeprefix(service.tokenizer.decode(service.tokenizer.encode(prompt)))


@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, 0), (0.8, 50), (1.0, 0)])
def test_an_answer_is_what_generate_prints(service: Service, temperature: float, top_k: int) -> None:
    for number, prompt in enumerate(SUBJECTS[:4]):
        asked: dict[str, Any] = {"model": service.run, "prompt": prompt, "max_tokens": 20, "temperature": temperature}
        answer = service.client.completions.create(**asked, seed=number, extra_body={"top_k": top_k})
        assert answer.choices[0].text == expected(service, prompt, 20, temperature, top_k, number)
        parts = service.client.completions.create(
            **asked, seed=number, extra_body={"top_k": top_k}, stream=True, stream_options={"include_usage": True}
        )
        events = list(parts)
        pieces = [event.choices[0].text for event in events if event.choices]
        assert "".join(pieces) == answer.choices[0].text
        assert sum(piece.count("\ufffd") for piece in pieces) == answer.choices[0].text.count("\ufffd")
        reasons = [event.choices[0].finish_reason for event in events if event.choices]
        assert set(reasons[:-1]) <= {None}
        assert reasons[-1] == answer.choices[0].finish_reason in ("length", "stop")
        assert events[-1].usage == answer.usage


def test_texts_of_one_request_differ_and_are_the_same_again(service: Service) -> None:
    def texts() -> list[str]:
        answer = service.client.completions.create(model="", prompt=["القط", "ال"], n=2, max_tokens=12, seed=3)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        return [choice.text for choice in answer.choices]

    assert texts() == texts()
    assert len(set(texts())) == 4


def test_in_company_a_text_is_what_it_is_alone(service: Service) -> None:
    found: dict[str, str] = {}

    def ask(prompt: str, tokens: int) -> None:
        answer = service.client.completions.create(model="", prompt=prompt, max_tokens=tokens, temperature=0)
        found[prompt] = answer.choices[0].text

    threads = [threading.Thread(target=ask, args=(prompt, 8 + 3 * n)) for n, prompt in enumerate(SUBJECTS[:5])]
    for thread in threads:
        thread.start()
        time.sleep(0.005)
    for thread in threads:
        thread.join()
    for number, prompt in enumerate(SUBJECTS[:5]):
        assert found[prompt] == expected(service, prompt, 8 + 3 * number, 0.0, 0, 0)


def test_logprobs_are_the_models(service: Service) -> None:
    prompt = "القط في البيت"
    answer = service.client.completions.create(
        model="", prompt=prompt, max_tokens=6, temperature=0, logprobs=3, echo=True
    )
    tokenizer = service.tokenizer
    ids = tokenizer.encode(prompt)
    model = NumpyTransformer(service.package.config, service.package.weights, tokenizer.specials)
    generated = model.generate([[tokenizer.specials.start, *ids]], 6, 0.0)[0]
    logits = model(generated[None])[0][0].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    choice = answer.choices[0]
    shown = choice.logprobs
    assert shown and shown.token_logprobs and shown.tokens and shown.top_logprobs and shown.text_offset
    assert choice.text == tokenizer.decode(generated)
    wanted = [logprobs[place, generated[place + 1]] for place in range(len(shown.tokens))]
    assert shown.token_logprobs == pytest.approx(wanted, abs=1e-4)
    for place, top in enumerate(shown.top_logprobs):
        assert max(top.values()) == pytest.approx(logprobs[place].max(), abs=1e-4)
        assert len(top) <= 3
    for token, offset in zip(shown.tokens, shown.text_offset, strict=True):
        assert token.startswith("bytes:") or choice.text[offset:].startswith(token)
    scored = service.client.completions.create(model="", prompt=prompt, max_tokens=0, logprobs=1, echo=True)
    assert scored.choices[0].logprobs
    assert scored.choices[0].logprobs.token_logprobs == pytest.approx(wanted[: len(ids)], abs=1e-4)


@pytest.mark.parametrize("stream", [False, True])
def test_stop_sequences(service: Service, stream: bool) -> None:
    whole = expected(service, "القط", 20, 0.0, 0, 0)
    for stop in {whole[2:4], whole[5:8], whole[0], whole[-1]}:
        asked: dict[str, Any] = {"model": "", "prompt": "القط", "max_tokens": 20, "temperature": 0}
        if stream:
            events = list(service.client.completions.create(**asked, stop=[stop, "☃☃"], stream=True))
            text, reason = "".join(event.choices[0].text for event in events), events[-1].choices[0].finish_reason
        else:
            choice = service.client.completions.create(**asked, stop=stop).choices[0]
            text, reason = choice.text, choice.finish_reason
        assert text == whole[: whole.index(stop)]
        assert reason == "stop"


def test_ids_are_prompts_too(service: Service) -> None:
    ids = service.tokenizer.encode("القط")
    by_ids = service.client.completions.create(model="", prompt=ids, max_tokens=5, temperature=0)
    assert by_ids.choices[0].text == expected(service, "القط", 5, 0.0, 0, 0)


def test_models_health_and_figures(service: Service) -> None:
    (model,) = service.client.models.list().data
    assert model.id == service.run
    with httpx.Client(base_url=service.address) as http:
        assert http.get("/healthz").json() == {"status": "ok", "model": service.run}
        figures = http.get("/metrics").text
        assert http.get("/nothing").json()["error"]["type"] == "not_found_error"
        assert http.get("/v1/completions").status_code == 405
        form = http.post("/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"})
        assert form.status_code == 415, "what a page of another site may send without asking"
    (generated,) = (line for line in figures.splitlines() if line.startswith("qalam_generated_tokens_total "))
    assert float(generated.split()[1]) >= 0
    assert "qalam_active_texts 0.0" in figures


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"max_tokens": 32}, 400, "the model's context is 32"),
        ({"max_tokens": -1}, 400, "max_tokens"),
        ({"max_tokens": 0}, 400, "needs echo"),
        ({"max_tokens": "5"}, 400, "max_tokens"),
        ({"temperature": float("nan")}, 400, "temperature"),
        ({"temperature": 3}, 400, "temperature"),
        ({"seed": 2**64}, 400, "seed"),
        ({"top_p": 0}, 400, "top_p"),
        ({"prompt": [9999]}, 400, "9999 is no token"),
        ({"prompt": [-1]}, 400, "-1 is no token"),
        ({"prompt": [["a"]]}, 400, "prompt"),
        ({"prompt": ["a"] * 5}, 400, "at most 4"),
        ({"n": 5}, 400, "at most 4"),
        ({"stop": ""}, 400, "stop"),
        ({"stop": ["a"] * 5}, 400, "stop: List should have at most 4 items"),
        ({"prompt": ["a", 1]}, 400, "prompt: is of none of the types"),
        ({"stream_options": {"include_usge": True}}, 400, "stream_options.include_usge"),
        ({"logprobs": 21}, 400, "logprobs"),
        ({"best_of": 2}, 400, "best_of: all texts are returned"),
        ({"best_of": 1, "n": 2}, 400, "best_of: all texts are returned"),
        ({"suffix": "x"}, 400, "suffix: not supported"),
        ({"logit_bias": {"1": 5}}, 400, "logit_bias: not supported"),
        ({"frequency_penalty": 1.0}, 400, "frequency_penalty: not supported"),
        ({"presence_penalty": -0.1}, 400, "presence_penalty: not supported"),
        ({"stream_options": {"include_obfuscation": True}}, 400, "stream_options.include_obfuscation: not supported"),
        ({"messages": []}, 400, "messages: not a parameter"),
        ({"model": "gpt-4\x1b[31m"}, 404, "this server has"),
    ],
)
def test_a_mistake_is_one_line(service: Service, body: dict[str, Any], status: int, message: str) -> None:
    content, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    answer = httpx.post(f"{service.address}/v1/completions", content=content, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, set(error)) == (status, {"message", "type", "param", "code"})
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert "\x1b" not in error["message"]


def test_requests_to_every_address_of_this_machine_alone_are_answered(built: Built) -> None:
    async def run() -> None:
        async with served(built) as http:
            names = ("localhost:8000", "LocalHost", "127.0.0.1", "127.0.0.2:80", "[::1]:8000", "[::1]")
            for name in names:
                assert (await http.get("/healthz", headers={"Host": name})).status_code == 200, name
            for name in ("example.org", "127.0.0.1.example.org", "10.0.0.1", "[::2]:80", "localhost.example.org", ""):
                assert (await http.get("/healthz", headers={"Host": name})).status_code == 403, name

    asyncio.run(run())


def test_a_text_that_fails_while_another_is_sent_is_an_error(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        models = Models(str(built.published.folder / "model"), "", 4, 4)
        monkeypatch.setattr(models.current().engine, "submit", lambda _: None)
        asked = Completion(prompt="ال", n=2, stream=True)
        answer = _Answer(models.current(), asked, [[2, 5]], Limits(), _Measured(models))
        answer.begin()
        one, other = answer._choices
        one.text, one.reason = "ب", "length"
        events = answer.events()
        assert "ب" in await anext(events)
        other.fail("broken")
        rest = [event async for event in events]
        assert len(rest) == 1
        assert '"message": "broken"' in rest[0]
        models.current().engine.close()

    asyncio.run(run())


def test_null_is_the_default(service: Service) -> None:
    base: dict[str, Any] = {"prompt": "القط", "max_tokens": 5, "temperature": 0}
    with httpx.Client(base_url=f"{service.address}/v1") as http:
        wanted = http.post("/completions", json=base).json()["choices"]
        for name in set(Completion.model_fields) - set(base):
            assert http.post("/completions", json={**base, name: None}).json()["choices"] == wanted, name
        for name in base:
            answers = [http.post("/completions", json={"seed": 1, **some}) for some in (
                {**base, name: None}, {key: value for key, value in base.items() if key != name}
            )]  # fmt: skip
            assert answers[0].json()["choices"] == answers[1].json()["choices"], name
        for options in ({"include_usage": None}, {"include_obfuscation": False}):
            answer = http.post("/completions", json={**base, "stream": True, "stream_options": options})
            assert "usage" not in answer.text
            assert answer.text.endswith("data: [DONE]\n\n")


def test_every_parameter_of_openais_client_is_one_here() -> None:
    asked = completion_create_params.CompletionCreateParamsBase.__annotations__
    assert set(asked) | {"stream", "top_k"} == set(Completion.model_fields)
    assert set(ChatCompletionStreamOptionsParam.__annotations__) == set(StreamOptions.model_fields)


def test_a_long_prompt_does_not_hold_up_others(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is encoded elsewhere; and too many of them are not encoded at all."""
    go, encode, long = threading.Event(), Tokenizer.encode, "ب" * SHORT

    def slow(self: Tokenizer, text: str) -> list[int]:
        assert text != "never"
        return encode(self, text) if text != long or not go.wait(20) else []

    monkeypatch.setattr(Tokenizer, "encode", slow)

    async def run() -> None:
        async with served(built) as http:
            first = asyncio.ensure_future(http.post("/v1/completions", json={"prompt": long, "max_tokens": 2}))
            await asyncio.sleep(0)
            other = await http.post("/v1/completions", json={"prompt": "ال", "max_tokens": 2})
            assert (other.status_code, first.done()) == (200, False)
            many = await http.post("/v1/completions", json={"prompt": ["never"] * 33})
            assert "33 texts are asked for" in many.json()["error"]["message"]
            go.set()
            assert (await first).status_code == 200

    asyncio.run(run())


def test_a_text_that_ends_while_its_piece_is_sent_ends_once(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    def settled(_: _Answer, choice: Choice) -> int:
        choice.reason = "length"  # as the engine's thread may at any time
        choice.notify()
        return 0

    async def run() -> list[Any]:
        models = Models(str(built.published.folder / "model"), "", 4, 4)
        monkeypatch.setattr(models.current().engine, "submit", lambda _: None)
        monkeypatch.setattr(_Answer, "_settled", settled)
        answer = _Answer(models.current(), Completion(stream=True), [[2, 5]], Limits(), _Measured(models))
        answer.begin()
        answer._choices[0].text = "ب"
        found = [json.loads(event[6:])["choices"][0] async for event in answer.events() if "choices" in event]
        models.current().engine.close()
        return [(one["text"], one["finish_reason"]) for one in found]

    assert asyncio.run(run()) == [("ب", None), ("", "length")]


@pytest.mark.parametrize("algorithm", ["word", "bpe"])
def test_a_text_is_what_decoding_gives(tmp_path: Path, algorithm: Literal["word", "bpe"]) -> None:
    """Also of words, which have spaces between them, of special tokens in a text, and of characters in pieces."""
    vocabulary = trained_tokenizer(algorithm).vocabulary
    config = replace(CONFIG, vocab_size=len(vocabulary.words), max_seq_len=40)
    folder = export(tmp_path / "model", config=config, vocabulary=vocabulary)
    tokenizer, package = Tokenizer(vocabulary), packages.read(folder)
    model = NumpyTransformer(package.config, package.weights, tokenizer.specials)

    async def run() -> None:
        transport = httpx.ASGITransport(application(Models(str(folder), "", 4, 4), Limits(), "", True))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            for prompt in ("", "القط في", "قَطٌّ 😀 صلى\u200cالله", "ABC ١٢"):
                ids = [tokenizer.specials.start, *tokenizer.encode(prompt)]
                for seed in range(5):
                    generated = model.generate([ids], 12, 1.5, 0, seed)[0].tolist()
                    body = {"prompt": prompt, "max_tokens": 12, "temperature": 1.5, "seed": seed, "logprobs": 0}
                    (plain,) = (await http.post("/v1/completions", json=body)).json()["choices"]
                    (echoed,) = (await http.post("/v1/completions", json={**body, "echo": True})).json()["choices"]
                    lines = (await http.post("/v1/completions", json={**body, "echo": True, "stream": True})).text
                    events = [json.loads(line[6:])["choices"][0] for line in lines.split("\n") if "choices" in line]
                    whole = tokenizer.decode(generated)
                    assert echoed["text"] == "".join(event["text"] for event in events) == whole
                    assert plain["text"] == whole[len(tokenizer.decode(ids)) :]
                    shown = echoed["logprobs"]
                    assert shown["text_offset"] == [n for one in events for n in one["logprobs"]["text_offset"]]
                    for token, offset in zip(shown["tokens"], shown["text_offset"], strict=True):
                        piece = whole[offset:].removeprefix(" " if algorithm == "word" else "")
                        if token not in vocabulary.words[:4] and not token.startswith("bytes:"):
                            assert piece.lstrip("\ufffd").startswith(token)

    asyncio.run(run())


def test_figures_add_up(built: Built) -> None:
    """After answers that were whole, streamed, refused, late, stopped, and left before their first event."""

    async def run() -> dict[str, float]:
        models = Models(str(built.published.folder / "model"), "", 2, 0)
        app = application(models, Limits(tokens=60), "", True)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        generated = 0
        body = {"prompt": "القط", "max_tokens": 10}
        content = json.dumps(body | {"stream": True}).encode()
        scope = {
            "type": "http", "asgi": {"spec_version": "2.3"}, "method": "POST", "path": "/v1/completions",
            "query_string": b"", "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        }  # fmt: skip
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            for more in ({}, {"n": 2}, {"stop": "ا"}, {"stream": True, "stream_options": {"include_usage": True}}):
                answer = await http.post("/v1/completions", json={**body, **more})
                events = [line.removeprefix("data: ") for line in answer.text.split("\n") if "usage" in line]
                generated += json.loads(events[-1])["usage"]["completion_tokens"]
            assert (await http.post("/v1/completions", json={**body, "n": 9})).status_code == 400
            models.current().engine._most = -9
            assert (await http.post("/v1/completions", json=body)).status_code == 429
            models.current().engine._most = 0
            messages = iter([{"type": "http.request", "body": content, "more_body": False}])

            async def receive() -> Any:
                return next(messages, {"type": "http.disconnect"})

            async def send(_: Any) -> None:
                pass

            await app(scope, receive, send)
            end = time.monotonic() + 5
            while models.active() and time.monotonic() < end:
                await asyncio.sleep(0.01)
            lines = (await http.get("/metrics")).text.splitlines()
        figures = {name: float(value) for name, _, value in (line.partition(" ") for line in lines if line[0] != "#")}
        assert generated <= figures["qalam_generated_tokens_total"] <= generated + 10
        models.current().engine.close()
        return figures

    found = asyncio.run(run())
    assert found["qalam_requests_total"] == 6
    assert found["qalam_busy_requests_total"] == 1
    assert found["qalam_request_seconds_count"] == 5
    assert found["qalam_active_texts"] == found["qalam_waiting_texts"] == 0
    tokenizer = Tokenizer(packages.read(built.published.folder / "model").vocabulary)
    assert found["qalam_prompt_tokens_total"] == 5 * len(tokenizer.encode("القط"))


def test_garbage_never_breaks_it(service: Service) -> None:
    drawn = random.Random(5)
    values: list[Any] = [None, "", "ا\ud800", "\u0000", -1, 1e308, True, [], [[]], [""], {}, 10**30, "x" * 5000]
    keys = ["prompt", "max_tokens", "stop", "seed", "n", "logprobs", "echo", "stream", "temperature", "user", "بب"]
    with httpx.Client(base_url=service.address) as http:
        for _ in range(60):
            body = {key: drawn.choice(values) for key in drawn.sample(keys, drawn.randint(1, 4))}
            content = json.dumps(body).encode()
            if drawn.random() < 0.3:
                content = content[: drawn.randint(0, len(content))]
            answer = http.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code in (200, 400), (body, answer.text)
        assert http.get("/healthz").status_code == 200


def test_a_client_that_goes_away_frees_its_place(built: Built) -> None:
    async def run() -> None:
        models = Models(str(built.published.folder / "model"), "", 1, 0)
        engine = models.current().engine
        asked = asyncio.Event()
        choice = Choice([2], Sampling(30, 1.0), np.random.default_rng(0), (), True, asked.set)
        engine.submit([choice])
        engine.cancel([choice])
        until = time.monotonic() + 5
        while engine.active and time.monotonic() < until:
            await asyncio.sleep(0.01)
        assert not engine.active
        engine.close()
        with pytest.raises(BusyError):  # a request that began just before
            engine.submit([choice])

    asyncio.run(run())


def test_places_are_free_after_clients_went_away(service: Service) -> None:
    body = json.dumps({"prompt": "ال", "max_tokens": 30, "stream": True, "n": 4}).encode()
    host, port = service.address.removeprefix("http://").split(":")
    for _ in range(5):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
            )
            connection.recv(100)
    until = time.monotonic() + 10
    while "qalam_active_texts 0.0" not in httpx.get(f"{service.address}/metrics").text:
        assert time.monotonic() < until
        time.sleep(0.05)


def half_a_request(
    address: str, body: dict[str, Any], sent: int | None, buffer: int = 0, more: bytes = b""
) -> socket.socket:
    """A connection on which so many bytes of a request were sent, all of them, if None, and `more`."""
    content = json.dumps(body).encode()
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.connect(("127.0.0.1", int(address.rpartition(":")[2])))
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    whole = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
    connection.sendall(whole[:sent] + more)
    return connection


def long_answers(folder: Path) -> Path:
    """A package whose answers never end by themselves, and are slow."""
    vocabulary = trained_tokenizer("bpe").vocabulary
    config = ModelConfig(vocab_size=len(vocabulary.words), dim=64, num_heads=2, num_layers=8, max_seq_len=4096)
    bodies = weights(config)
    bodies["lm_head.weight"] = bodies["embedding.weight"].copy()
    bodies["lm_head.weight"][vocabulary.specials.end] = 0
    bodies["lm_head.weight"][5] = bodies["ln_out.weight"]  # the likeliest in any case
    return export(folder, config=replace(config, tied=False), vocabulary=vocabulary, weights=bodies)


IMPATIENT = """
import socket
from al_qalam.flows.serving import server
server.ARRIVAL_SECONDS, listen = 1, server._listen
def small(*place):
    found = listen(*place)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return found
server._listen = small
"""
"""With a second for half requests, and buffers that a short answer does not fit into."""


def test_no_client_holds_a_connection_for_ever(processes: None, tmp_path: Path) -> None:
    """One that sends half of its headers or its body, or nothing, or a byte from time to time; and one that does not
    read its answer."""
    process, address = start(long_answers(tmp_path / "model"), "--port", 0, "--seconds", 2, before=IMPATIENT)
    body = {"prompt": "ال", "max_tokens": 4000, "logprobs": 20, "stream": True}
    try:
        begun = time.monotonic()
        late = [half_a_request(address, body, sent) for sent in (0, 1, 60, -1)]
        refused = half_a_request(address, {**body, "prompt": "x" * 2_000_000}, 1000)
        unread = half_a_request(address, body, None, buffer=4096)
        slowly = half_a_request(address, body, 1)
        for sent, more in ((0, b"\x16\x03\x01"), (60, b"\0\r\n\r\n"), (None, b"GET\0")):
            half_a_request(address, body, sent, more=more).close()
        for secret in (b"", b"x"):  # the body's parts: after an answer that did not wait for it, and before one
            head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json" + secret
            chunks = b"\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"
            garbage = half_a_request(address, body, 0, more=head + chunks)
            time.sleep(0.1)
            garbage.sendall(b"ZZ\r\n")
            late.append(garbage)
        for sent in b"OST /":
            assert httpx.get(f"{address}/healthz").status_code == 200
            time.sleep(0.1)
            slowly.sendall(bytes([sent]))
        for connection in (*late, slowly, refused):
            connection.settimeout(10)
            with connection, suppress(ConnectionResetError):
                while connection.recv(1 << 16):
                    pass
        assert time.monotonic() - begun < 15
        time.sleep(max(0.0, begun + 5 - time.monotonic()))
        unread.settimeout(10)
        read = b""
        with unread:
            while part := unread.recv(1 << 16):
                read += part
        assert b"data: {" in read
        assert b"[DONE]" not in read, "it was cut off before it was read"
        assert b"not finished within" not in read
        assert "qalam_active_texts 0.0" in httpx.get(f"{address}/metrics").text
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert {line.strip() for line in errors.splitlines()} == {"WARNING:  Invalid HTTP request received."}


def test_a_server_ends_in_the_middle_of_answers(processes: None, tmp_path: Path) -> None:
    process, address = start(long_answers(tmp_path / "model"), "--port", 0)
    body = {"prompt": "ال", "max_tokens": 4000}
    open_ = [half_a_request(address, body | more, sent) for more, sent in (({}, None), ({}, 50), ({}, -1))]
    stream = half_a_request(address, body | {"stream": True}, None)
    assert stream.recv(100)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    for connection in (*open_, stream):
        connection.close()
    assert (process.returncode, errors) == (0, "")


def served(built: Built, limits: Limits = Limits(), token: str = "", local: bool = True, **more: Any) -> Any:  # noqa: B008
    folder, backend = str(built.published.folder / "model"), more.get("backend", Backend.NUMPY)
    models = Models(folder, "", more.get("places", 4), more.get("waiting", 4), backend)
    transport = httpx.ASGITransport(application(models, limits, token, local), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


def test_torch_gives_the_texts_of_numpy(built: Built) -> None:
    async def run(backend: Backend) -> list[str]:
        bodies = [{"prompt": prompt, "max_tokens": 20, "seed": 5, "n": 2} for prompt in ("ال", "قال رسول", "")]
        async with served(built, backend=backend, places=6) as http:
            answers = await asyncio.gather(*(http.post("/v1/completions", json=body) for body in bodies))
            return [choice["text"] for answer in answers for choice in answer.json()["choices"]]

    assert asyncio.run(run(Backend.TORCH)) == asyncio.run(run(Backend.NUMPY))


def test_limits(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    late_ended, join = threading.Event(), Engine._join

    def joined(self: Engine, choice: Choice) -> None:
        late_ended.wait(20)
        join(self, choice)

    monkeypatch.setattr(Engine, "_join", joined)

    async def run() -> None:
        async with served(built, Limits(body=200, tokens=20, seconds=1e-9), token="secret") as http:
            assert (await http.get("/v1/models")).status_code == 401
            assert (await http.get("/healthz")).status_code == 200
            http.headers["Authorization"] = "Bearer secret"
            assert (await http.get("/v1/models")).status_code == 200
            http.headers["Content-Type"] = "application/json"
            large = await http.post("/v1/completions", content=b" " * 201)
            assert large.json()["error"]["message"] == "a body may have 200 bytes"

            async def chunks() -> Any:
                for _ in range(201):
                    yield b" "

            assert (await http.post("/v1/completions", content=chunks())).status_code == 413
            many = await http.post("/v1/completions", json={"max_tokens": 21})
            assert "at most 20" in many.json()["error"]["message"]
            late = await http.post("/v1/completions", json={"max_tokens": 5})
            assert late.status_code == 504
            late_ended.set()
            foreign = await http.get("/healthz", headers={"Host": "evil.example:8000"})
            assert foreign.status_code == 403
            for host in ("127.0.0.1:8000", "[::1]:9", "localhost"):
                assert (await http.get("/healthz", headers={"Host": host})).status_code == 200

    asyncio.run(run())


def test_logits_that_are_not_finite_end_their_text_alone(built: Built) -> None:
    async def run() -> None:
        models = Models(str(built.published.folder / "model"), "", 4, 4)
        engine = models.current().engine
        bad = engine.model.vocab_size - 1
        engine.model._embedding_VC = engine.model._embedding_VC.copy()  # what is read, and not what is written
        engine.model._embedding_VC[bad] = np.nan
        transport = httpx.ASGITransport(application(models, Limits(), "", True), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            good = {"prompt": [4, 5, 6], "max_tokens": 20, "temperature": 0}
            broken: list[dict[str, Any]] = [
                {"prompt": [4, bad]},
                {"prompt": [[4, 5], [bad]], "echo": True, "logprobs": 2},
                {"prompt": [bad, 4], "echo": True, "logprobs": 2, "max_tokens": 0},
            ]
            for extra in ({}, {"stream": True}):
                asked = [good, *(each | extra for each in broken), good]
                answers = await asyncio.gather(*(http.post("/v1/completions", json=each) for each in asked))
                assert len(answers[0].json()["choices"][0]["text"]) > 0
                assert answers[0].json()["choices"] == answers[-1].json()["choices"]
                for answer in answers[1:-1]:
                    assert answer.status_code == (200 if extra else 500)
                    (line,) = [line for line in answer.text.splitlines() if "error" in line]
                    error = json.loads(line.removeprefix("data: "))["error"]
                    assert error["type"] == "server_error"
                    assert "not finite" in error["message"]

    asyncio.run(run())


@pytest.mark.parametrize("where", ["join", "step"])
def test_a_defect_fails_the_request_and_not_the_server(
    built: Built, monkeypatch: pytest.MonkeyPatch, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with served(built) as http:
            body = {"prompt": "ال", "max_tokens": 5, "n": 3}
            with monkeypatch.context() as patch:
                patch.setattr(Batch, where, broken)
                answer = await http.post("/v1/completions", json=body)
                assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
                assert "the server's log says why" in answer.json()["error"]["message"]
            assert (await http.post("/v1/completions", json=body)).status_code == 200

    asyncio.run(run())
    assert "MemoryError" in caplog.text


def test_who_has_gone_does_not_wait(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    step = Batch.step
    monkeypatch.setattr(Batch, "step", lambda self: go.wait(20) and step(self))

    async def run() -> None:
        engine = Models(str(built.published.folder / "model"), "", 1, 1).current().engine
        choices = [
            Choice([2], Sampling(9, 1.0), np.random.default_rng(0), (), False, lambda: None) for _ in range(3)
        ]  # fmt: skip
        engine.submit(choices[:1])
        until = time.monotonic() + 5
        while not engine.active and time.monotonic() < until:
            await asyncio.sleep(0.01)
        engine.submit(choices[1:2])
        with pytest.raises(BusyError):
            engine.submit(choices[2:])
        engine.cancel(choices[1:2])
        engine.submit(choices[2:])
        go.set()
        engine.close()

    asyncio.run(run())


def test_more_than_may_wait_is_refused(built: Built) -> None:
    async def run() -> list[int]:
        async with served(built, places=1, waiting=1) as http:
            body = {"prompt": "ال", "max_tokens": 30}
            answers = await asyncio.gather(*(http.post("/v1/completions", json=body) for _ in range(6)))
            return sorted(answer.status_code for answer in answers)

    found = asyncio.run(run())
    assert set(found) == {200, 429}
    assert found[0] == 200


def test_a_promotion_is_picked_up_between_requests(mine: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """And requests do not wait while the new model is read; one that cannot be read is said until another one can."""
    monkeypatch.setattr(models_module, "LOOK_SECONDS", 0.02)
    from qalam_core.pipeline.build import build

    def until(true: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not true():
            assert time.monotonic() < end
            time.sleep(0.01)

    def problem() -> str:
        try:
            models.current()
        except QalamError as error:
            return str(error)
        return ""

    models = Models("tiny", str(mine.store.root), 2, 2)
    first = models.current()
    assert first.run == mine.published.run
    second = build(mine.recipe.model_copy(update={"seed": 8}), mine.store)
    reading, go_on, read = threading.Event(), threading.Event(), packages.read

    def slow(folder: Path) -> Package:
        reading.set()
        go_on.wait(20)
        return read(folder)

    monkeypatch.setattr(packages, "read", slow)
    with models.followed():
        mine.runs.promote("tiny", second.run, when="2026-01-01T00:00:00Z", why="x", who="x")
        assert reading.wait(20)
        assert models.current() is first
        go_on.set()
        until(lambda: models.current() is not first)
        assert models.current().run == second.run
        first.engine._thread.join(5)
        assert not first.engine._thread.is_alive()
        monkeypatch.setattr(packages, "read", broken)
        mine.runs.promote("tiny", mine.published.run, when="2026-01-02T00:00:00Z", why="x", who="x")
        until(lambda: "the server's log says why" in problem())
        config = mine.published.folder / "model" / "config.py"
        monkeypatch.setattr(packages, "read", read)
        before = config.read_bytes()
        config.write_bytes(b"?")
        until(lambda: "config.py" in problem())
        config.write_bytes(before)
        until(lambda: not problem())
        assert models.current().run == mine.published.run
        models.current().engine.close()


def test_a_request_that_began_before_a_promotion_is_answered(mine: Built) -> None:
    from qalam_core.pipeline.build import build

    models = Models("tiny", str(mine.store.root), 2, 2)
    first = models.current()
    second = build(mine.recipe.model_copy(update={"seed": 8}), mine.store)
    mine.runs.promote("tiny", second.run, when="2026-01-01T00:00:00Z", why="x", who="x")
    models.look()
    assert models.current().run == second.run
    ended = threading.Event()
    first.engine.submit([Choice([2], Sampling(5), np.random.default_rng(0), (), False, ended.set)])
    assert ended.wait(20)
    models.look()
    first.engine._thread.join(5)
    assert not first.engine._thread.is_alive()
    models.current().engine.close()


def broken(*_: object) -> None:
    raise MemoryError("no memory")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "neither a package folder, nor a run or a name with a champion"),
        (["{run}", "--host", "0.0.0.0"], "set QALAM_SERVE_TOKEN"),
        (["{run}", "--host", "no-such-host.invalid", "--token", "x"], "choose another --host"),
        (["{run}", "--port", "{taken}"], "choose another --host or --port"),
        (["{run}", "--token", "a b"], "the token has characters"),
    ],
)
def test_what_cannot_be_served_is_one_line(built: Built, arguments: list[str], message: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = {"run": built.published.run, "taken": str(taken.getsockname()[1])}
        done = qalam("serve", *(each.format(**given) for each in arguments), "--store", built.store.root)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_pieces_of_letters_and_stops() -> None:
    """Of every way in which bytes are divided among tokens, and whatever the stop sequence."""
    text = "قط 😀\ufffd، é!"
    for stop in ("", "😀", " 😀", "ط ", "، é!", "!x", "é!"):
        choice = Choice([2], Sampling(100), np.random.default_rng(0), [stop] if stop else [], True, lambda: None)
        shown = ""
        for byte in text.encode():
            choice.add(Token(4 + byte), bytes([byte]))
            assert choice.text.startswith(shown)
            shown = choice.text
            if choice.reason:
                break
        if not choice.reason:
            choice.add(Token(3), None)
        assert choice.text == (text[: text.index(stop)] if stop and stop in text else text)
        assert choice.reason == "stop"
        assert len(choice.tokens) == len(choice.text.encode())
        assert not math.isnan(choice.offsets[-1])
