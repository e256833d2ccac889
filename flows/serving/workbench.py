"""The page of `qalam serve`, and what it asks for beyond the API: ids, a word's row, what happens in the model, and
changed copies of it.

The page writes with the API's own completions, whose prompts are ids: so a text is continued as it was tokenized.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.resources import files
from string import Template
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from al_qalam.flows.serving.changing import Edit, Sessions, keep
from al_qalam.flows.serving.engine import Engine
from al_qalam.flows.serving.errors import ApiError
from al_qalam.flows.serving.models import Models, Served
from qalam_core.errors import PackageError
from qalam_core.package.editing.rows import find_row
from qalam_core.package.inside import look_inside, probabilities
from qalam_core.package.interop.browser_page import digest, source
from qalam_core.package.statistics import nearest_tokens

MOST_TOKENS = 64
"""Of a text that is looked at from inside: its tables have a row for each, and attention a column as well."""

MOST_WAITING = 16
"""Requests that look inside the model; others are refused."""

Found = TypeVar("Found")


class Ids(BaseModel):
    """The body of /page/ids: a text, and the tokens after it as the API spells them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = ""
    text: str = ""
    tokens: list[str] = []


class Word(BaseModel):
    """The body of /page/word."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = ""
    word: str
    text: str = ""


class Lens(BaseModel):
    """The body of /page/lens."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = ""
    text: str = ""


class Attention(Lens):
    """The body of /page/attention; layers and heads are counted from 0."""

    layer: Annotated[int, Field(ge=0)] = 0
    head: Annotated[int, Field(ge=0)] = 0


class Changed(BaseModel):
    """The body of /page/change: all changes, and the page's copy so far, which ends."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = ""
    edits: Annotated[list[Edit], Field(min_length=1, max_length=100)]


class Kept(BaseModel):
    """The body of /page/keep: the page's copy, its changes, and a name for the new folder."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    edits: Annotated[list[Edit], Field(min_length=1, max_length=100)]
    folder: str


def routes(models: Models, sessions: Sessions) -> APIRouter:
    """The page at /, and the paths below /page/ that it asks."""
    router, one, waiting = APIRouter(), asyncio.Lock(), 0

    async def named(model: str) -> Served:
        """The model, or a page's copy of it."""
        found = sessions.find(model) if model else models.current()
        if found is None:
            raise ApiError(404, "this changed model is no longer kept; change it again", "model", "model_not_found")
        return found

    def told(found: dict[str, Any]) -> dict[str, Any]:
        """The same with the model that is served now, which may have changed since the page was opened."""
        return {**found, "served": models.run}

    async def computed(model: str, find: Callable[[Served], Found]) -> Found:
        """What `find` gives, in a thread, and one at a time: it may take seconds, and the memory of all logits."""
        nonlocal waiting
        served = await named(model)
        if waiting >= MOST_WAITING:
            raise ApiError(429, f"{waiting} requests wait already; try again")
        waiting += 1
        try:
            async with one:
                return await asyncio.to_thread(find, served)
        except FloatingPointError as error:
            raise ApiError(500, str(error)) from None
        finally:
            waiting -= 1

    content, headers = page()

    @router.get("/")
    async def shown() -> HTMLResponse:
        return HTMLResponse(content, headers=headers)

    @router.get("/page/model")
    async def model() -> dict[str, Any]:
        served = models.current()
        config, end = served.engine.model.config, served.engine.model.end_id
        return {
            "run": served.run, "context": config.max_seq_len, "layers": config.num_layers, "heads": config.num_heads,
            "words": config.vocab_size, "parameters": config.parameters,
            "end": served.engine.spelled(end) if end >= 0 else "",
        }  # fmt: skip

    @router.post("/page/ids")
    async def ids(asked: Ids) -> dict[str, Any]:
        served = await named(asked.model)
        return told({"ids": await asyncio.to_thread(_ids, served.engine, asked), "run": served.run})

    @router.post("/page/word")
    async def word(asked: Word) -> dict[str, Any]:
        return told(await computed(asked.model, lambda served: _word(served.engine, asked)))

    @router.post("/page/lens")
    async def lens(asked: Lens) -> dict[str, Any]:
        return told(await computed(asked.model, lambda served: _lens(served.engine, asked.text)))

    @router.post("/page/attention")
    async def attention(asked: Attention) -> dict[str, Any]:
        return told(await computed(asked.model, lambda served: _attention(served.engine, asked)))

    @router.post("/page/change")
    async def change(asked: Changed) -> dict[str, Any]:
        changed = await computed("", lambda served: sessions.change(served, asked.edits, asked.model))
        return told({"model": changed})

    @router.post("/page/keep")
    async def kept(asked: Kept) -> dict[str, Any]:
        return {"command": await computed(asked.model, lambda served: keep(served, asked.edits, asked.folder))}

    return router


def page() -> tuple[str, dict[str, str]]:
    """The page, and the headers that allow it its own script and style, this server, and nothing else."""
    style, script = source("base.css") + _source("page.css"), _source("page.js")
    policy = (
        f"default-src 'none'; script-src '{digest(script)}'; style-src '{digest(style)}'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    content = Template(_source("page.html")).substitute(style=style, script=script)
    return content, {
        "Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }  # fmt: skip


def _source(name: str) -> str:
    return (files(__package__) / "page" / name).read_text(encoding="utf-8")


def _ids(engine: Engine, asked: Ids) -> list[int]:
    """Of a text's tokens, and of those after it."""
    try:
        return [*engine.tokenizer.encode(asked.text), *(engine.id_of(token) for token in asked.tokens)]
    except KeyError:
        raise ApiError(400, "tokens: one is no token of this model, which may have changed; write again") from None


def _read(engine: Engine, text: str) -> list[int]:
    """The ids of a text that is short enough to be looked at, after that of the start."""
    ids = [engine.model.specials.start, *engine.tokenizer.encode(text)]
    most = min(MOST_TOKENS, engine.model.max_seq_len)
    if len(ids) > most:
        raise ApiError(400, f"the text has {len(ids)} tokens with its start; at most {most} are shown", "text")
    return ids


def _word(engine: Engine, asked: Word) -> dict[str, Any]:
    """A word's row, the nearest words, and its probability at each position of a text."""
    vocabulary, model, ids = engine.vocabulary, engine.model, _read(engine, asked.text)
    try:
        row = find_row(vocabulary, "embedding.weight", asked.word)
    except PackageError as error:
        raise ApiError(400, str(error), "word") from None
    if row >= model.vocab_size:
        raise ApiError(400, f"word: {row} is no row; the last one is {model.vocab_size - 1}", "word")
    embedding_VC = model.weights["embedding.weight"]
    (_, nearest) = next(nearest_tokens(embedding_VC, vocabulary.words, [row], [*vocabulary.specials.ids()]))
    said_T = probabilities(model, look_inside(model, ids).features[-1])[:, row]
    return {
        "id": row, "word": vocabulary.words[row], "row": embedding_VC[row].tolist(),
        "norm": float(np.linalg.norm(embedding_VC[row])), "nearest": nearest,
        "tokens": [engine.spelled(id_) for id_ in ids], "probabilities": said_T.tolist(),
    }  # fmt: skip


def _lens(engine: Engine, text: str) -> dict[str, Any]:
    """What the model would say after each token, if it ended after each layer: the likeliest token of each."""
    ids = _read(engine, text)
    layers = []
    for features_TC in look_inside(engine.model, ids).features:
        said_TV = probabilities(engine.model, features_TC)
        best_T = said_TV.argmax(-1)
        said_T = said_TV[np.arange(len(ids)), best_T]
        layers.append([[engine.spelled(id_), said] for id_, said in zip(best_T.tolist(), said_T.tolist(), strict=True)])
    return {"tokens": [engine.spelled(id_) for id_ in ids], "layers": layers}


def _attention(engine: Engine, asked: Attention) -> dict[str, Any]:
    """How much of a head's attention each token gives to each."""
    model = engine.model
    for name, number, count in (("layer", asked.layer, model.num_layers), ("head", asked.head, model.num_heads)):
        if number >= count:
            raise ApiError(400, f"{name}: {number} is none; the last one is {count - 1}", name)
    ids = _read(engine, asked.text)
    weights_TT = look_inside(model, ids).attention[asked.layer][asked.head]
    return {"tokens": [engine.spelled(id_) for id_ in ids], "weights": weights_TT.tolist()}
