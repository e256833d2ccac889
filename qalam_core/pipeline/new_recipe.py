"""A recipe for a text that was not seen before: its sources as detected, and settings that fit the text's size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qalam_core.corpus.detect import Detected, detect
from qalam_core.corpus.splits import SPLITS
from qalam_core.errors import CorpusError
from qalam_core.pipeline.vocab import LARGEST
from qalam_core.recipe import Recipe, Source

BYTES_PER_TOKEN = 4.5  # about, of Arabic as UTF-8 with a vocabulary that fits it
EPOCHS = 12  # a small text is read about as often before validation stops improving
SMALL_TEXT = 300_000  # bytes; the demo's text has ten times as many
MIN_STEPS, BATCHES = 100, ((SMALL_TEXT, 8), (2_000_000, 16))  # (text below so many bytes, sequences per step)
COMPARED = 30  # test documents that a later model needs, to be compared with this one


class NewRecipe(NamedTuple):
    """A recipe, and what was chosen for it and why, one line each."""

    recipe: Recipe
    notes: list[str]


def new_recipe(base: Recipe, name: str, sources: Sequence[Source], folder: Path, size: str = "") -> NewRecipe:
    """A recipe in `folder` for `sources`, of which only the path is given; the rest is as in `base`.

    `size` is what a person chose `base` by; "" fits the model's shape to the text too. Data sets on the Hub are not
    looked at. Raises CorpusError where there is no text, and RecipeError.
    """
    found = [None if source.path.startswith("hf:") else detect(source) for source in sources]
    seen = [each for each in found if each]
    notes = [f"{each.source.path}: {each.what}" for each in seen]
    written = [each.source if each else source for source, each in zip(sources, found, strict=True)]
    data = base.canonical()
    data["name"] = name
    data["corpus"]["sources"] = [{**source.canonical(), "path": _from(folder, source.path)} for source in written]
    if data["tokenizer"]["vocab_size"] <= LARGEST:
        data["tokenizer"]["vocab_size"] = "auto"  # the larger sizes have larger vocabularies than it chooses
    data["train"]["threads"] = min(_processors(), 8)  # a small model does not gain from more
    if seen:
        data["corpus"]["min_chars"] = next(
            least for least in (20, 10, 5, 1) if least == 1 or min(each.shortest for each in seen) >= least
        )
        if data["corpus"]["min_chars"] < 20:
            notes.append(f"many documents are short: corpus.min_chars is {data['corpus']['min_chars']}")
    if any(each.repair for each in seen):
        data["corpus"]["repair"] = True
        notes.append("some Arabic was decoded with a wrong encoding: corpus.repair is set")
    if len(seen) == len(found):
        notes += _fit(data, seen, size)
    return NewRecipe(Recipe.parse(data), notes)


def _fit(data: dict[str, Any], found: Sequence[Detected], size: str) -> list[str]:
    """Set what depends on how much text there is; -> why."""
    text, documents = sum(each.bytes for each in found), sum(each.documents for each in found)
    model, train, corpus = data["model"], data["train"], data["corpus"]
    if documents < len(SPLITS):
        raise CorpusError(
            f"the text is {documents} document{'s' * (documents > 1)}, and {len(SPLITS)} are needed: for training, "
            "validation and test; add text, or put each document on a line of its own"
        )
    if not size and text < SMALL_TEXT:
        model |= {"dim": 64, "num_heads": 2, "num_layers": 2, "dropout": 0.1}
        train["threads"] = 1  # its matrices are too small for more; two that wait for each other may take far longer
    if text < SMALL_TEXT / 10:
        model["max_seq_len"] = 32
    few = documents < 20 * COMPARED
    corpus["validation"] = 0.1 if few else 0.05
    corpus["test"] = next((share for share in (0.05, 0.1, 0.2) if share * documents >= COMPARED), 0.1)
    train["batch_size"] = next((batch for below, batch in BATCHES if text < below), train["batch_size"])
    tokens = text * (1 - corpus["validation"] - corpus["test"]) / BYTES_PER_TOKEN
    per_step = train["batch_size"] * model["max_seq_len"]
    train["steps"] = min(max(round(EPOCHS * tokens / per_step), MIN_STEPS), train["steps"])
    train["validate_every"] = max(1, train["steps"] // 10)
    train["log_every"] = min(train["log_every"], max(1, train["steps"] // 10))
    windows = text * corpus["validation"] / BYTES_PER_TOKEN / model["max_seq_len"]
    if text < 10 * SMALL_TEXT and windows >= 4:
        train["patience"] = 3
    stop = ", stopped early when validation no longer improves" if train["patience"] else ""
    amount = f"{text / 1e6:.1f} MB" if text >= 100_000 else f"{max(1, text // 1000):,} kB"
    return [
        f"about {amount} of text in {documents:,} document{'s' * (documents > 1)}: {train['steps']} steps of "
        f"{train['batch_size']} sequences{stop}; a model {model['dim']} wide with {model['num_layers']} blocks",
        f"held out: {corpus['validation']:.0%} for validation, {corpus['test']:.0%} for the gate; "
        f"training uses {train['threads']} thread{'s' * (train['threads'] > 1)}",
    ]


def _from(folder: Path, path: str) -> str:
    """A path of a source, relative to the recipe's folder."""
    return path if path.startswith(("package:", "hf:")) else os.path.relpath(path, folder)


def _processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
