"""The page of `qalam serve`, in a browser and by its keys, and what it asks the server."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from al_qalam.flows.serving import workbench
from al_qalam.flows.serving.changing import MOST_SESSIONS
from al_qalam.flows.serving.completions import Limits, application
from al_qalam.flows.serving.models import Models
from qalam_core import package as packages
from qalam_core.display import printable
from qalam_core.package import ModelConfig
from qalam_core.package.interop.browser_page import digest
from qalam_core.package.statistics import nearest_tokens
from qalam_core.pipeline.build import build
from tests.browsers import CHROMIUM, UNNAMED, Browser
from tests.conftest import Built
from tests.flows.serving.test_completions import start
from tests.package.conftest import trained_tokenizer
from tests.small_package import export

HOSTILE = ("<img/src=x/onerror=alert(1)>", "</script><script>alert(1)</script>", "__proto__", "‮قط", "7")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def asked(built: Built, calls: list[tuple[str, dict[str, Any]]], token: str = "") -> list[httpx.Response]:
    """The answers of a server of the tiny model, in turn."""

    async def run() -> list[httpx.Response]:
        models = Models(str(built.published.folder / "model"), "", 2, 2)
        transport = httpx.ASGITransport(application(models, Limits(), token, local=True))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return [await (http.post(path, json=body) if body else http.get(path)) for path, body in calls]

    return asyncio.run(run())


def test_the_page_may_do_nothing_but_ask_its_server(built: Built) -> None:
    (answer,) = asked(built, [("/", {})], token="secret")
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    (script,) = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    assert policy == {
        "default-src": "'none'", "script-src": f"'{digest(script)}'", "style-src": f"'{digest(style)}'",
        "img-src": "data:", "connect-src": "'self'", "base-uri": "'none'", "form-action": "'none'",
        "frame-ancestors": "'none'",
    }  # fmt: skip
    assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|Function)\b", script)
    markup = answer.text.replace(script, "").replace(style, "")
    assert re.findall(r" (src|href|action|style|on\w+)=\"(.*?)\"", markup) == [("href", "data:,")]
    assert built.published.run not in answer.text, "it is shown without the token"


def test_all_but_the_page_needs_the_token(built: Built) -> None:
    calls: list[tuple[str, dict[str, Any]]] = [
        ("/page/model", {}), ("/page/ids", {"text": "القط"}), ("/page/word", {"word": "القط"}),
        ("/page/lens", {"text": "القط"}), ("/page/attention", {"text": "القط"}),
    ]  # fmt: skip
    assert {answer.status_code for answer in asked(built, calls, token="secret")} == {401}
    assert {answer.status_code for answer in asked(built, calls[:2] + calls[3:])} == {200}


def test_ids_are_those_of_the_api(built: Built) -> None:
    completion = {"prompt": "القط في البيت", "max_tokens": 8, "temperature": 0, "logprobs": 3, "echo": True}
    (answer,) = asked(built, [("/v1/completions", completion)])
    choice = answer.json()["choices"][0]
    tokens = choice["logprobs"]["tokens"]
    answers = asked(built, [("/page/ids", {"tokens": tokens}), ("/page/ids", {"text": "القط", "tokens": tokens[-1:]})])
    ids = [answer.json()["ids"] for answer in answers]
    again = {"prompt": ids[0], "max_tokens": 0, "echo": True, "logprobs": 0}
    (echoed,) = asked(built, [("/v1/completions", again)])
    assert echoed.json()["choices"][0]["text"] == choice["text"]
    assert ids[1][-1] == ids[0][-1]


def test_a_word_is_what_show_prints(built: Built) -> None:
    package = packages.read(built.published.folder / "model")
    embedding = package.weights["embedding.weight"]
    words = package.vocabulary.words
    number = next(n for n, word in enumerate(words) if len(word.strip()) > 2 and not word.startswith("<"))
    (answer,) = asked(built, [("/page/word", {"word": words[number].strip(), "text": "القط"})])
    found = answer.json()
    assert (found["id"], found["word"]) == (number, words[number])
    assert found["row"] == embedding[number].tolist()
    (near,) = nearest_tokens(embedding, words, [number], [*package.vocabulary.specials.ids()])
    assert [tuple(one) for one in found["nearest"]] == near[1]
    assert len(found["probabilities"]) == len(found["tokens"])
    assert all(0 <= part <= 1 for part in found["probabilities"])


def test_the_last_layer_says_what_the_model_writes(built: Built) -> None:
    text = "القط في"
    completion = {"prompt": text, "max_tokens": 1, "temperature": 0, "logprobs": 1}
    lens, looked, said = asked(built, [
        ("/page/lens", {"text": text}), ("/page/attention", {"text": text, "layer": 1, "head": 1}),
        ("/v1/completions", completion),
    ])  # fmt: skip
    logprobs = said.json()["choices"][0]["logprobs"]
    token, probability = lens.json()["layers"][-1][-1]
    assert token == logprobs["tokens"][0]
    assert probability == pytest.approx(np.exp(logprobs["token_logprobs"][0]), abs=1e-4)
    assert len(lens.json()["layers"]) == 3
    weights = np.array(looked.json()["weights"])
    assert weights.shape == (len(lens.json()["tokens"]),) * 2


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("word", {"word": "قطقطقط"}, 400, "is not a token of this model"),
        ("word", {"word": "99999"}, 400, "99999 is no row"),
        ("word", {"word": "-1"}, 400, "is not a token"),
        ("word", {}, 400, "word"),
        ("word", {"word": "\x1b[31m\n"}, 400, "is not a token"),
        ("ids", {"tokens": ["☃"]}, 400, "no token of this model"),
        ("ids", {"tokens": [3]}, 400, "tokens"),
        ("lens", {"text": "قط " * 100}, 400, "at most 32"),
        ("lens", {"other": ""}, 400, "other"),
        ("attention", {"layer": 2}, 400, "layer: 2 is none"),
        ("attention", {"head": 2}, 400, "head: 2 is none"),
        ("attention", {"head": -1}, 400, "head"),
    ],
)
def test_a_mistake_is_one_line(built: Built, path: str, body: dict[str, Any], status: int, message: str) -> None:
    (answer,) = asked(built, [(f"/page/{path}", body or {"": 0})])
    text = answer.json()["error"]["message"]
    assert answer.status_code == status
    assert message in text
    assert text == printable(text)


def test_only_so_many_wait(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench, "MOST_WAITING", 2)

    async def run() -> list[int]:
        models = Models(str(built.published.folder / "model"), "", 2, 2)
        transport = httpx.ASGITransport(application(models, Limits(), "", local=True))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            answers = await asyncio.gather(*(http.post("/page/lens", json={"text": "القط"}) for _ in range(6)))
            return [answer.status_code for answer in answers]

    found = asyncio.run(run())
    assert set(found) == {200, 429}
    assert 2 <= found.count(200) < 6


def row(word: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"word": word, "kind": kind, **more}


def test_a_changed_copy_is_the_pages_alone_and_is_kept_as_edit_does(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    package = packages.read(built.published.folder / "model")
    first, second, third = [word for word in package.vocabulary.words if word.startswith(" ")][:3]
    values = [0.25] * package.config.dim
    changes = [row(first, "scale", factor=3.0), row(second, "copy", source=first), row(third, "set", values=values)]
    asked_ = {"prompt": "القط", "max_tokens": 10, "temperature": 0, "logprobs": 5}

    async def run() -> None:
        models = Models(str(built.published.folder / "model"), "", 2, 2)
        transport = httpx.ASGITransport(application(models, Limits(), "", local=True))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:

            async def post(path: str, body: dict[str, Any]) -> Any:
                answer = await http.post(path, json=body)
                assert answer.status_code == 200, answer.text
                return answer.json()

            before = await post("/v1/completions", asked_)
            name = (await post("/page/change", {"edits": changes}))["model"]
            changed = await post("/v1/completions", {**asked_, "model": name})
            assert (await post("/v1/completions", asked_))["choices"] == before["choices"], "others have the model"
            for word in (first, second):
                shown = await post("/page/word", {"model": name, "word": word})
                number = package.vocabulary.words.index(first)
                assert shown["row"] == (package.weights["embedding.weight"][number] * 3).tolist()
            kept = await post("/page/keep", {"model": name, "edits": changes, "folder": "mine"})
            assert kept == {"command": "qalam propose mine --why REASON"}
            again = await http.post("/page/keep", json={"model": name, "edits": changes, "folder": "mine"})
            assert "mine exists" in again.json()["error"]["message"]
            edited = packages.read(tmp_path / "mine")
            assert packages.changes(edited) == []
            fresh = Models(str(tmp_path / "mine"), "", 2, 2)
            served = httpx.ASGITransport(application(fresh, Limits(), "", local=True))
            async with httpx.AsyncClient(transport=served, base_url="http://localhost") as other:
                answer = (await other.post("/v1/completions", json=asked_)).json()
            assert answer["choices"] == changed["choices"]
            assert changed["choices"] != before["choices"]
            # a further change ends the copy, and so do others' copies
            newer = (await post("/page/change", {"model": name, "edits": changes[:1]}))["model"]
            gone = await http.post("/page/lens", json={"model": name})
            assert (gone.status_code, "change it again" in gone.text) == (404, True)
            for _ in range(MOST_SESSIONS):
                await post("/page/change", {"edits": changes[:1]})
            assert (await http.post("/v1/completions", json={**asked_, "model": newer})).status_code == 404

    asyncio.run(run())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    card = (tmp_path / "mine" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"1. on the page of qalam serve: {first} times 3; {second} as {first}; {third} set" in card


def test_a_changed_copy_outlives_its_model(built: Built) -> None:
    async def run() -> None:
        models = Models(str(built.published.folder / "model"), "", 2, 2)
        transport = httpx.ASGITransport(application(models, Limits(), "", local=True))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            changed = await http.post("/page/change", json={"edits": [row("5", "scale", factor=2.0)]})
            models._problem = "no champion any more"
            for model, status in (("", 503), (changed.json()["model"], 200)):
                for path in ("ids", "lens", "attention"):
                    answer = await http.post(f"/page/{path}", json={"model": model, "text": "القط"})
                    assert answer.status_code == status, answer.text
                    assert answer.json().get("served", "") == ("model" if status == 200 else "")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (row("قطقطقط", "scale", factor=2.0), "is not a token"),
        (row("99999", "scale", factor=2.0), "has no row 99999"),
        (row("5", "copy", source="☃"), "is not a token"),
        (row("5", "set", values=[1.0, 2.0]), "2 numbers for a row of 32"),
        (row("5", "set", values=[2e4] * 32), "at most 10,000"),
        (row("5", "scale", factor=1e300), "at most 10,000"),
        (row("5", "scale", factor=float("nan")), "at most 10,000"),
        (row("5", "grow"), "kind"),
        ({}, "edits"),
    ],
)
def test_a_change_that_cannot_be_is_one_line(built: Built, edit: dict[str, Any], message: str) -> None:
    async def run() -> httpx.Response:
        models = Models(str(built.published.folder / "model"), "", 2, 2)
        transport = httpx.ASGITransport(application(models, Limits(), "", local=True))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            content = json.dumps({"edits": [edit] if edit else []})
            return await http.post("/page/change", content=content, headers={"Content-Type": "application/json"})

    answer = asyncio.run(run())
    text = answer.json()["error"]["message"]
    assert (answer.status_code, message in text, "\n" in text) == (400, True, False), text


@pytest.mark.parametrize("folder", ["", ".", "..", "../x", "a/b", "/tmp/x", ".hidden", "a\n", "a\x00", "x" * 101, "-x"])
def test_only_a_name_is_a_folder(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.chdir(tmp_path)
    changes = [row("5", "scale", factor=2.0)]

    async def run() -> httpx.Response:
        models = Models(str(built.published.folder / "model"), "", 2, 2)
        transport = httpx.ASGITransport(application(models, Limits(), "", local=True))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            name = (await http.post("/page/change", json={"edits": changes})).json()["model"]
            return await http.post("/page/keep", json={"model": name, "edits": changes, "folder": folder})

    answer = asyncio.run(run())
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "folder")
    assert not list(tmp_path.iterdir())


# ---- in a browser

READY = "typeof tabs !== 'undefined' && !go.disabled"
TEXT = "first.text.textContent"
SIZE = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"


def opened(page: Browser, address: str) -> None:
    """Open the page of a server, and wait until it is ready."""
    page.open(f"{address}/")
    page.until(READY)


def heats(page: Browser, column: str) -> list[int]:
    """How thick the lines under the tokens of a column are."""
    found: list[int] = page.value(f"{column}.words.map((one) => Number(/heat-(.)/.exec(one.shown.className)[1]))")
    return found


def heats_of(logprobs: list[float]) -> list[int]:
    """How thick the lines of tokens with these probabilities are to be."""
    wanted: list[int] = np.searchsorted([0.01, 0.05, 0.2, 0.5], np.exp(logprobs), side="right").tolist()
    return wanted


@pytest.fixture(scope="module")
def address(built: Built) -> Iterator[str]:
    process, address = start(built.published.run, "--store", built.store.root, "--port", 0)
    yield address
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, ""), errors


@in_a_browser
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_a_text_is_written_and_branched_by_keys_alone(address: str, tmp_path: Path, width: int, dark: bool) -> None:
    with Browser(tmp_path, width, 844, dark) as page:
        opened(page, address)
        assert page.value("document.activeElement === prompt")
        assert page.value(UNNAMED) == []
        page.value("void ([temperature.value, length.value] = [0, 10])")
        page.type("القط في البيت")
        page.press("Enter")
        page.until("!first.writing && first.words.length > 5")
        first = page.value(TEXT)
        assert first.startswith("القط في البيت")
        whole = httpx.post(
            f"{address}/v1/completions",
            json={"prompt": "القط في البيت", "max_tokens": 10, "temperature": 0, "echo": True, "logprobs": 12},
        ).json()["choices"][0]
        assert first == printable(whole["text"], lines=True)
        logprobs = whole["logprobs"]
        assert heats(page, "first") == heats_of(logprobs["token_logprobs"])
        assert page.value("getComputedStyle(first.words[0].shown).borderBottomWidth") != "0px"

        at = page.value("first.words.findIndex((one) => !one.given) + 1")
        page.press("Tab")  # to the sliders
        page.value("first.text.querySelector('[tabindex=\"0\"]').focus()")
        page.press(*["ArrowLeft"] * at)
        assert page.value("Number(document.activeElement.dataset.n)") == at
        assert "٪" in page.value("mark.textContent")
        page.press("Enter")
        page.until("!others.hidden")
        assert page.value("others.children.length") in (12, 13)
        assert page.value("others.contains(document.activeElement)")
        page.press("Escape")
        assert page.value("others.hidden && Number(document.activeElement.dataset.n)") == at
        page.press("Enter", "ArrowDown", "ArrowDown")
        other = page.value("document.activeElement.getAttribute('aria-pressed')")
        assert other == "false"
        likely = sorted(logprobs["top_logprobs"][at].items(), key=lambda one: -one[1])[2][0]
        page.press("Enter")
        page.until(f"!first.writing && first.words.length > {at}")
        assert page.value(f"first.words[{at}].token") == likely
        kept = logprobs["tokens"][:at]
        assert page.value(f"first.words.slice(0, {at}).map((one) => one.token)") == kept
        assert page.value("document.activeElement.dataset.n") == str(at)
        ids = httpx.post(f"{address}/page/ids", json={"tokens": [*kept, likely]}).json()["ids"]
        most = min(10, 31 - len(ids))
        again = {"prompt": ids, "max_tokens": most, "temperature": 0, "echo": True}
        wanted_text = httpx.post(f"{address}/v1/completions", json=again).json()["choices"][0]["text"]
        assert page.value(TEXT) == printable(wanted_text, lines=True)

        assert page.value(SIZE) == [width, 844]
        assert page.value("getComputedStyle(document.body).backgroundColor") == (
            "rgb(23, 22, 20)" if dark else "rgb(253, 252, 249)"
        )
        assert {f"http://{urlsplit(one).netloc}" for one in page.requests if not one.startswith("data:")} == {address}
        assert page.problems == []


@in_a_browser
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_two_texts_are_written_and_branched_by_keys_alone(address: str, tmp_path: Path, width: int, dark: bool) -> None:
    with Browser(tmp_path, width, 844, dark) as page:
        opened(page, address)
        page.value("void ([temperature.value, length.value] = [1.5, 20])")
        page.type("القط في")
        page.press("Tab", "Tab", "Tab", "Space", "Enter")
        page.until("!busy() && first.words.length && second.words.length")
        texts = page.value("columns.map((one) => one.text.textContent)")
        assert all(text.startswith("القط في") for text in texts)
        assert texts[0] != texts[1], "each has its own draws"
        for column in ("first", "second"):
            assert heats(page, column) == heats_of(page.value(f"{column}.words.map((one) => one.logprob)"))
        one, other = page.value("columns.map(({ box }) => box.getBoundingClientRect().toJSON())")
        assert one["bottom"] < other["top"] if width == 390 else other["right"] < one["left"]

        at = page.value("second.words.findIndex((one) => !one.given)")
        page.value("void (temperature.value = 0)")
        page.value("first.text.querySelector('[tabindex=\"0\"]').focus()")
        page.press("Tab")
        assert page.value("second.text.contains(document.activeElement)")
        page.press(*["ArrowLeft"] * at, "Enter")
        page.until("!others.hidden && others.contains(document.activeElement)")
        assert page.value("second.box.contains(others) && second.chosen") == at
        tops = page.value(
            "[second.text, second.words[second.chosen].shown].map((one) => one.getBoundingClientRect().y)"
        )
        assert tops == sorted(tops), "it is still seen in the text, which has become lower"
        page.press("Escape")
        assert page.value("others.hidden && second.text.contains(document.activeElement)")
        assert page.value("Number(document.activeElement.dataset.n)") == at
        page.press("Enter", "ArrowDown", "ArrowDown")
        chosen = page.value(
            f"Object.entries({{ ...second.words[{at}].top, [second.words[{at}].token]: second.words[{at}].logprob }})"
            ".sort((a, b) => b[1] - a[1])[2][0]"
        )
        page.press("Enter")
        page.until(f"!busy() && second.words[{at}]?.token === {json.dumps(chosen)} && second.words.length > {at + 1}")
        assert page.value(TEXT) == texts[0], "the other text stays"
        ids = page.value(f"second.words.slice(0, {at + 1}).map((one) => one.token)")
        ids = httpx.post(f"{address}/page/ids", json={"tokens": ids}).json()["ids"]
        asked = {"prompt": ids, "max_tokens": min(20, 31 - len(ids)), "temperature": 0, "echo": True}
        wanted = httpx.post(f"{address}/v1/completions", json=asked).json()["choices"][0]["text"]
        assert page.value("second.text.textContent") == printable(wanted, lines=True)

        page.value("first.choose(1)")
        assert page.value("first.box.contains(others) && second.chosen === -1")
        assert page.value(SIZE) == [width, 844]
        page.value("two.focus()")
        page.press("Space")
        assert page.value("second.box.hidden && !others.hidden")
        page.press("Enter")
        page.until(f"!busy() && {TEXT} === {json.dumps(printable(greedy(address, 'القط في'), lines=True))}")
        assert page.value("second.text.textContent") == printable(wanted, lines=True), "it is not written again"
        assert page.problems == []


def greedy(address: str, prompt: str) -> str:
    body = {"prompt": prompt, "max_tokens": 20, "temperature": 0, "echo": True}
    return str(httpx.post(f"{address}/v1/completions", json=body).json()["choices"][0]["text"])


@in_a_browser
def test_a_model_is_read_by_keys_alone(address: str, tmp_path: Path) -> None:
    with Browser(tmp_path, 390, 844) as page:
        opened(page, address)
        page.type("القط في")
        page.value("tabs[0].focus()")
        page.press("ArrowLeft")
        assert page.value("at('read').hidden") is False
        page.press("Tab", "Enter")
        page.until("!at('attention').hidden")
        tokens = page.value("[...document.querySelectorAll('#weights tbody th')].map((one) => one.textContent)")
        assert tokens[0] == "<START>"
        cells = page.value("[...document.querySelectorAll('#lens tbody tr')].map((row) => row.children.length)")
        assert cells == [4] * len(tokens)
        before = page.value("at('weights').textContent")
        page.value("at('head').focus()")
        page.press("ArrowDown")
        page.until(f"at('weights').textContent !== {json.dumps(before)}")
        page.value("at('word').focus()")
        page.type(tokens[-1].removeprefix("␣"))
        page.press("Enter")
        page.until("!at('found').hidden")
        assert page.value("document.querySelectorAll('#found rect').length") == 32
        assert page.value("document.querySelectorAll('#found .words button').length") == 8
        page.value("at('word').select()")
        page.type("☃")
        page.press("Enter")
        assert "is not a token of this model" in page.until(
            "status.textContent.includes('token') && status.textContent"
        )
        assert page.value("document.documentElement.scrollWidth") == 390


@in_a_browser
def test_a_word_is_changed_undone_and_kept_by_keys_alone(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    process, address = start(built.published.run, "--store", built.store.root, "--port", 0)
    try:
        with Browser(tmp_path / "browser", 390, 844) as page:
            opened(page, address)
            page.value("void ([temperature.value, length.value] = [0, 10])")
            page.type("القط")
            page.value("tabs[0].focus()")
            page.press("ArrowLeft", "ArrowLeft", "Tab")
            likely = httpx.post(f"{address}/page/lens", json={"text": "القط"}).json()["layers"][-1][-1][0]
            page.type(likely)
            page.press("Tab", "Tab", "Enter")
            page.until("edits.length === 1 && at('after').textContent")
            before, scaled = page.value("[at('before').textContent, at('after').textContent]")
            assert before.startswith("القط")
            assert "معدّل" in page.value("at('name').textContent")
            page.value("void (at('kind').value = 'set', at('amount').value = Array(32).fill('٠٫٥').join(' '))")
            page.value("at('edit').querySelector('button').focus()")
            page.press("Enter")
            page.until(f"edits.length === 2 && at('after').textContent !== {json.dumps(scaled)}")
            page.press("Tab", "Enter")
            page.until(f"edits.length === 1 && at('after').textContent === {json.dumps(scaled)}")
            page.value("at('amount').value = 'x'")
            page.value("at('amount').focus()")
            page.press("Enter")
            page.until("status.textContent.includes('not a number')")
            page.value("at('folder').focus()")
            page.type("mine")
            page.press("Enter")
            page.until("!at('kept').hidden")
            assert "qalam propose mine --why REASON" in page.value("at('kept').textContent")
            assert page.value("document.documentElement.scrollWidth") == 390
            page.value("at('undo').focus()")
            page.press("Enter")
            page.until("!edits.length && at('after').textContent === at('before').textContent")
            assert page.value("at('name').textContent") == built.published.run
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert packages.changes(packages.read(tmp_path / "mine")) == []


@in_a_browser
def test_a_word_is_added_undone_and_kept_by_keys_alone(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = packages.read(built.published.folder / "model").vocabulary.words
    new, alike = " القب", [word.strip() for word in words[4:] if word.strip().isalpha()][:2]
    assert new not in words
    process, address = start(built.published.run, "--store", built.store.root, "--port", 0)
    try:
        with Browser(tmp_path / "browser", 390, 844) as page:
            opened(page, address)
            page.value("void ([temperature.value, length.value] = [0, 10])")
            page.type(f"في{new}")
            page.value("tabs[0].focus()")
            page.press("ArrowLeft", "ArrowLeft", "Tab")
            page.type(new)
            page.press("Tab", "ArrowDown", "ArrowDown", "ArrowDown", "Tab")
            assert page.value("at('kind').value === 'add' && document.activeElement.id === 'amount'")
            assert page.value("!at('hint').hidden && at('amount').value === ''")
            page.type("، ".join(alike))
            page.press("Enter")
            page.until("edits.length === 1 && at('after').textContent")
            assert page.value("edits[0]") == {"kind": "add", "word": new, "like": alike}
            assert page.value("at('edits').textContent") == f"␣{new.strip()} كلمة جديدة: {' + '.join(alike)}"
            before, after = page.value("[at('before').textContent, at('after').textContent]")
            assert before != after
            page.value("tabs[2].focus()")
            page.press("ArrowLeft")
            page.value("prompt.focus()")
            page.press("Enter")
            page.until("!busy() && first.words.length > 2")
            given = page.value("first.words.filter((one) => one.given).map((one) => one.token)")
            assert given[-1:] == [new]
            assert page.value(TEXT) == after
            page.value("tabs[2].click()")
            page.value("at('undo').focus()")
            page.press("Enter")
            page.until("!edits.length && at('after').textContent === at('before').textContent")
            page.value(f"first.branch({len(given)}, first.words.at(-1).token)")  # of the copy that is no more
            page.until("first.said.textContent.includes('write again')")
            assert page.value(TEXT) == after, "the text stays"
            page.value("first.choose(0)")
            page.value("at('edit').requestSubmit()")
            page.until(f"edits.length === 1 && at('after').textContent === {json.dumps(after)}")
            page.value("at('folder').focus()")
            page.type("mine")
            page.press("Enter")
            page.until("!at('kept').hidden")
            page.value("at('edit').requestSubmit()")
            assert "is already a token" in page.until("status.textContent.includes('token') && status.textContent")
            assert page.value("edits.length === 1 && document.documentElement.scrollWidth") == 390
            refused = ["400 (Bad Request)" in one for one in page.problems]
            assert refused == [True, True], page.problems
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    package = packages.read(tmp_path / "mine", strict=True)
    assert package.vocabulary.words == (*words, new)
    assert packages.verify(tmp_path / "mine") == packages.changes(package) == []
    assert packages.generate(package, f"في{new}", 10, temperature=0) == after


@in_a_browser
def test_a_text_is_shown_as_it_comes_and_stopped(processes: None, tmp_path: Path) -> None:
    tokenizer = trained_tokenizer("bpe")
    config = ModelConfig(vocab_size=len(tokenizer), dim=128, num_heads=4, num_layers=12, max_seq_len=512)
    package = export(tmp_path / "slow", config=config, vocabulary=tokenizer.vocabulary, provenance={}, dtype="i8")
    process, address = start(package, "--port", 0)
    try:
        with Browser(tmp_path) as page:
            opened(page, address)
            page.value("void ([temperature.value, length.value] = [0, 400])")
            page.type("القط")
            page.press("Enter")
            seen = page.until("first.writing && first.words.length > 9 && first.text.textContent.length")
            assert page.until(f"first.writing && first.text.textContent.length > {seen}")
            page.press("Escape")
            page.until("!first.writing && go.textContent === 'أكمل'")
            stopped = page.value("first.words.length")
            assert 9 < stopped < 400
            time.sleep(0.3)
            assert page.value("first.words.length") == stopped
            figures = httpx.get(f"{address}/metrics").text
            assert "qalam_active_texts 0.0" in figures
            page.value("void (length.value = 10, prompt.value = '')")
            page.press("Enter")
            page.until("!first.writing && first.words.length === 10")
            page.value("void (length.value = 400, two.click())")
            page.press("Enter")
            page.until("first.writing && second.writing && first.words.length > 5 && second.words.length > 5")
            page.press("Escape")
            page.until("!busy() && go.textContent === 'أكمل' && !first.said.textContent && !second.said.textContent")
            time.sleep(0.3)
            assert "qalam_active_texts 0.0" in httpx.get(f"{address}/metrics").text
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


@in_a_browser
def test_nothing_of_a_model_is_markup(processes: None, tmp_path: Path) -> None:
    """Of a model whose words are markup, and whose name is; each is what it writes."""
    words = ("<PAD>", "<UNK>", "<START>", "<END>", *HOSTILE, "قط", "في", "x")
    vocabulary = packages.Vocabulary("word", words, (), ())
    config = ModelConfig(vocab_size=12, dim=8, num_heads=2, num_layers=2, max_seq_len=40)
    package = export(tmp_path / "<b>model", config=config, vocabulary=vocabulary, provenance={})
    process, address = start(package, "--port", 0)
    try:
        with Browser(tmp_path) as page:
            opened(page, address)
            assert page.value("at('name').textContent") == "<b>model"
            page.value("void (globalThis.alert = () => document.title = 'HACKED', temperature.value = 1.5)")
            seen: set[str] = set()
            for _ in range(12):
                page.press("Enter")
                page.until("!first.writing && first.words.length > 0 || first.said.textContent.includes('انتهى')")
                if page.value("first.words.length"):
                    seen |= set(page.value("first.words.flatMap((one) => Object.keys(one.top))"))
                    assert page.value("first.text.querySelectorAll(':not(.token)').length") == 0
                    assert page.value(TEXT) == printable(page.value(TEXT), lines=True)
                    page.value("first.choose(0)")
                    tags = page.value("[...new Set([...others.querySelectorAll('*')].map((one) => one.tagName))]")
                    assert set(tags) == {"BUTTON", "BDI", "SPAN", "I"}
                    assert page.value("others.children.length") == 12
                    page.press("Escape")
                    page.value("prompt.focus()")
                if seen >= set(HOSTILE):
                    break
            assert seen >= set(HOSTILE)
            for word in HOSTILE:
                page.value(f"first.branch(0, {json.dumps(word)})")
                page.until(f"!first.writing && first.words[0]?.token === {json.dumps(word)}")
                assert page.value(TEXT).startswith(printable(word))
                assert not {*"\u202e"} & {*page.value("document.body.innerText")}
            for word in HOSTILE[:4]:
                page.value(f"tried(() => find({json.dumps(word)}))")
                page.until("!at('found').hidden")
                assert page.value("at('found').querySelector('b').textContent") == printable(word)
            page.value("tried(look)")
            page.until("!at('attention').hidden")
            assert page.value("document.querySelectorAll('img, main script').length") == 0
            assert page.value("document.title") == "<b>model"
            assert page.problems == []
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


@in_a_browser
def test_changes_that_are_asked_for_at_once_are_all_made(address: str, tmp_path: Path) -> None:
    with Browser(tmp_path) as page:
        opened(page, address)
        page.value("tabs[2].click()")
        page.value("for (const row of [5, 6, 7, 8]) { at('row').value = row; at('edit').requestSubmit(); }")
        page.until("edits.length === 4 && at('edits').children.length === 4")
        page.value("for (const _ of [1, 2, 3]) at('undo').click()")
        page.until("edits.length === 1 && at('edits').children.length === 1 && !at('undo').disabled")
        page.value("void (at('amount').value = 'x', at('edit').requestSubmit())")
        page.until("status.textContent.includes('not a number')")
        assert page.value("edits.map((one) => one.word)") == ["5"]
        page.value("at('undo').click()")
        page.until("!edits.length && !copy && at('undo').disabled")
        assert page.problems == []


@in_a_browser
def test_the_page_says_that_another_model_has_been_promoted(processes: None, mine: Built, tmp_path: Path) -> None:
    second, first = mine.published.run, build(mine.recipe.model_copy(update={"seed": 8}), mine.store).run
    mine.runs.promote("tiny", first, when="2026-01-01T00:00:00Z", why="x", who="x")
    process, address = start("tiny", "--store", mine.store.root, "--port", 0)
    replaced = f"status.textContent.startsWith('{second} حلّ محلّ {first}')"
    try:
        with Browser(tmp_path) as page:
            opened(page, address)
            page.type("القط")
            page.press("Enter")
            page.until("!busy() && first.words.length > 2")
            assert page.value(f"at('name').textContent === '{first}'")
            mine.runs.promote("tiny", second, when="2026-01-02T00:00:00Z", why="x", who="x")
            end = time.monotonic() + 20
            while httpx.get(f"{address}/healthz").json()["model"] != second:
                assert time.monotonic() < end
                time.sleep(0.05)
            page.press("Enter")
            page.until(
                f"!busy() && {replaced} && at('name').textContent === document.title && model.run === '{second}'"
            )
            mine.runs.promote("tiny", first, when="2026-01-03T00:00:00Z", why="x", who="x")
            page.until(f"fetch('healthz').then((answer) => answer.json()).then((found) => found.model === '{first}')")
            page.value("tabs[1].click()")
            page.value("at('reading').requestSubmit()")
            page.until(f"!at('attention').hidden && status.textContent.startsWith('{first} حلّ محلّ {second}')")
            assert page.problems == []
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


@in_a_browser
def test_the_token_is_asked_for(built: Built, tmp_path: Path) -> None:
    process, address = start(built.published.run, "--store", built.store.root, "--port", 0, QALAM_SERVE_TOKEN="s3cret")
    try:
        with Browser(tmp_path) as page:
            page.open(f"{address}/")
            page.until("typeof tabs !== 'undefined' && !at('key').hidden")
            assert page.value("go.disabled && document.activeElement.id === 'token'")
            page.type("wrong")
            page.press("Enter")
            page.until("status.textContent.includes('wrong one') && at('token').value === ''")
            page.type("s3cret")
            page.press("Enter")
            page.until(READY)
            assert page.value("at('key').hidden && document.activeElement === prompt")
            page.type("القط")
            page.press("Enter")
            page.until("!first.writing && first.words.length > 2")
            assert not [one for one in page.requests if "s3cret" in one]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


@in_a_browser
@pytest.mark.usefixtures("processes")
def test_the_pages_escapes_are_those_of_display(address: str, tmp_path: Path) -> None:
    codes = [*range(0x3000), *range(0xD7F0, 0xE010), *range(0xFE00, 0x10010), *range(0xDFFF0, 0xE0100), 0x10FFFF]
    with Browser(tmp_path) as page:
        opened(page, address)
        shown = page.value(f"{codes}.map((code) => String.fromCodePoint(code)).map((one) => printable(one) !== one)")
        escapes = page.value("printable('\\x1b\\u202e\\u{e0041}')")
    assert [code for code, one in zip(codes, shown, strict=True) if one] == [
        code for code in codes if printable(chr(code), lines=True) != chr(code)
    ]
    assert escapes == printable("\x1b‮\U000e0041")
