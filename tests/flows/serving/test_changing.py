"""A word that is added on the page of `qalam serve`: its copy of the model is the package that is kept."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import pytest

from al_qalam.flows.serving.completions import Limits, application
from al_qalam.flows.serving.models import Models
from qalam_core import package as packages
from qalam_core.display import printable
from qalam_core.package import ModelConfig
from qalam_core.package.editing.rows import scale_row
from tests.flows.serving.test_completions import start
from tests.package.conftest import trained_tokenizer
from tests.small_package import CONFIG, LLAMA, export

NEW = {"word": ("مكتبات", "مكتبات"), "bpe": (" القب", "القب")}
"""By algorithm: a word that the vocabulary lacks, as it is added and as it is named then."""

Post = Callable[[str, dict[str, Any]], Awaitable[httpx.Response]]


def exported(folder: Path, algorithm: Literal["word", "bpe"], config: ModelConfig = CONFIG, dtype: str = "f32") -> Path:
    trained = trained_tokenizer(algorithm)
    config = replace(config, vocab_size=len(trained), max_seq_len=40)
    return export(folder, config=config, vocabulary=trained.vocabulary, dtype=dtype)


def served(folder: Path, ask: Callable[[Post], Awaitable[None]]) -> None:
    """Ask a server of a package."""

    async def run() -> None:
        transport = httpx.ASGITransport(application(Models(str(folder), "", 2, 2), Limits(), "", local=True))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            await ask(lambda path, body: http.post(path, json=body))

    asyncio.run(run())


@pytest.mark.parametrize("dtype", ["f32", "q8"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("block", [CONFIG, LLAMA], ids=["original", "llama"])
@pytest.mark.parametrize("algorithm", ["word", "bpe"])
def test_an_added_word_is_kept_as_it_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: Literal["word", "bpe"], block: ModelConfig, tied: bool,
    dtype: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    folder = exported(tmp_path / "model", algorithm, replace(block, tied=tied), dtype)
    before = packages.read(folder)
    size, (added, named) = before.config.vocab_size, NEW[algorithm]
    alike = [word for word in before.vocabulary.words[4:] if word.strip().isalpha()][:2]
    numbers = [before.vocabulary.words.index(word) for word in alike]
    begun = {
        name: before.weights[name][numbers].mean(0, dtype=np.float64).astype(np.float32)
        for name in (("embedding.weight",) if tied else ("embedding.weight", "lm_head.weight"))
    }
    edits: list[dict[str, Any]] = [
        {"kind": "add", "word": added, "like": alike},
        {"kind": "scale", "word": named, "factor": 3.0},
        {"kind": "copy", "word": alike[0], "source": named},
    ]
    rounding = 0.01 if dtype == "q8" else 0.0
    prompt = f"القط {named} في {named}"
    asked = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "logprobs": 5, "echo": True}
    tried: list[dict[str, Any]] = []

    async def page(post: Post) -> None:
        names = [(await post("/page/change", {"edits": some})).json()["model"] for some in (edits, edits[:1])]
        tried.extend([(await post("/v1/completions", {**asked, "model": name})).json() for name in ("", *names)])
        ids = [(await post("/page/ids", {"model": name, "text": prompt})).json()["ids"] for name in ("", names[0])]
        assert [one.count(size) for one in ids] == [0, 2]
        word = (await post("/page/word", {"model": names[1], "word": named})).json()
        assert (word["id"], word["row"]) == (size, begun["embedding.weight"].tolist())
        for name, some, kept in ((names[0], edits, "mine"), (names[1], edits[:1], "first")):
            answer = await post("/page/keep", {"model": name, "edits": some, "folder": kept})
            assert answer.json() == {"command": f"qalam propose {kept} --why REASON"}

    served(folder, page)
    for kept, wanted in (("mine", tried[1]), ("first", tried[2])):
        after = packages.read(tmp_path / kept, strict=True)
        assert packages.verify(tmp_path / kept) == packages.changes(after) == []
        assert after.vocabulary.words == (*before.vocabulary.words, added)
        for name in begun if kept == "first" else ():
            np.testing.assert_allclose(after.weights[name][size], begun[name], rtol=0, atol=rounding)

        async def same(post: Post, wanted: dict[str, Any] = wanted) -> None:
            choice, other = (await post("/v1/completions", asked)).json()["choices"][0], wanted["choices"][0]
            assert choice["text"] == other["text"]
            assert choice == other or rounding
            mine, its = (np.array(one["logprobs"]["token_logprobs"]) for one in (choice, other))
            np.testing.assert_allclose(mine, its, atol=0.05)

        served(tmp_path / kept, same)
    assert len({str(one["choices"]) for one in tried}) == 3, "each change changes what is said"
    note = (tmp_path / "mine" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"{added} added, like {', '.join(alike)}; {named} times 3; {alike[0]} as {named}" in note


def test_what_is_kept_is_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a package that was edited or deleted since it was read, and not other changes."""
    monkeypatch.chdir(tmp_path)
    folder = exported(tmp_path / "model", "word")
    changes: list[dict[str, Any]] = [{"kind": "scale", "word": "5", "factor": 3.0}]

    async def page(post: Post) -> None:
        name = (await post("/page/change", {"edits": changes})).json()["model"]

        async def refused(edits: list[dict[str, Any]] = changes) -> str:
            answer = await post("/page/keep", {"model": name, "edits": edits, "folder": "mine"})
            assert answer.status_code == 400
            text: str = answer.json()["error"]["message"]
            return text

        assert "no longer what was read here" in await refused(changes * 2)
        shutil.copytree(folder, tmp_path / "before")
        scale_row(folder, "blocks.0.fc1.weight", 3, 2.0)
        assert "no longer what was read here" in await refused()
        shutil.rmtree(folder)
        assert "was deleted since it was read" in await refused()
        (tmp_path / "before").rename(folder)
        (folder / ".git").mkdir()
        assert (await post("/page/keep", {"model": name, "edits": changes, "folder": "mine"})).status_code == 200

    served(folder, page)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "model"]
    assert not (tmp_path / "mine" / ".git").exists()


@pytest.mark.usefixtures("processes")
def test_what_a_killed_server_left_is_deleted_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not what one that runs is writing, nor a folder of the user's."""
    monkeypatch.chdir(tmp_path)
    exported(tmp_path / "model", "word")
    sleeping = "from al_qalam.flows.serving import changing; import time; changing.seal = lambda *_: time.sleep(60)"
    changes = [{"kind": "scale", "word": "5", "factor": 3.0}]
    killed, address = start("model", "--port", 0, before=sleeping)
    running, other = start("model", "--port", 0, before=sleeping)
    (tmp_path / ".qalam-mine").mkdir()

    def keep(address: str, folder: str) -> None:
        name = httpx.post(f"{address}/page/change", json={"edits": changes}).json()["model"]
        body = {"model": name, "edits": changes, "folder": folder}
        with suppress(httpx.TransportError):
            httpx.post(f"{address}/page/keep", json=body, timeout=60)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(keep, address, "one")
        pool.submit(keep, other, "two")
        end = time.monotonic() + 20
        while len(left := sorted(tmp_path.glob(".qalam-keep-*/package/manifest.json"))) < 2:
            assert time.monotonic() < end
            time.sleep(0.02)
        killed.kill()
        killed.communicate()
        following, _ = start("model", "--port", 0)
        there = [path for path in left if path.exists()]
        running.kill()
        running.communicate()
        last, _ = start("model", "--port", 0)
    for process in (following, last):
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert len(there) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".qalam-mine", "model"]


@pytest.mark.parametrize(
    ("algorithm", "edit", "message"),
    [
        ("word", {"word": "القط"}, "is already a token"),
        ("word", {"word": "قطة جديدة"}, "would never occur"),
        ("word", {"word": " "}, "printable"),
        ("word", {"word": "ق\u202eط"}, "printable"),
        ("word", {"word": "مكتبات", "like": ["كراسي"]}, '"كراسي" is not a token'),
        ("word", {"word": "مكتبات", "like": ["99999"]}, "has no row 99999"),
        ("word", {"word": "مكتبات", "like": ["5"] * 101}, "like"),
        ("bpe", {"word": "zebra"}, "is 5 tokens"),
        ("bpe", {"word": "x"}, "is already a token"),
    ],
)
def test_a_word_that_cannot_be_added_is_one_line(
    tmp_path: Path, algorithm: Literal["word", "bpe"], edit: dict[str, Any], message: str
) -> None:
    async def refused(post: Post) -> None:
        answer = await post("/page/change", {"edits": [{"kind": "add", **edit}]})
        text = answer.json()["error"]["message"]
        assert (answer.status_code, message in text, text) == (400, True, printable(text))

    served(exported(tmp_path / "model", algorithm), refused)
