"""Corpora and token shards open with Hugging Face datasets: the example of the documentation is run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from qalam_core.corpus.sources import resolve
from qalam_core.corpus.splits import read_split, read_texts
from qalam_core.pipeline.build import InPlace, ingested, tokenized
from qalam_core.pipeline.tokenize import TOKENS, TokenizeFacts
from qalam_core.store import Store
from qalam_core.tokens.shards import documents
from tests import ROOT
from tests.conftest import tiny_recipe

PAGE = ROOT / "docs" / "interop.md"


def test_the_documented_example(corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / ".qalam")
    recipe = tiny_recipe(corpus_file)
    executor = InPlace(store)
    corpus, _, shards, _ = tokenized(recipe, ingested(recipe, resolve(recipe.corpus.sources), executor), executor)
    run = store.root / "runs" / "my-model-0123456789ab"
    run.mkdir(parents=True)
    digests = {"prepare": [corpus.digest], "tokenize": [shard.digest for shard in shards]}
    (run / "run.json").write_text(json.dumps({"artifacts": digests}))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    example = re.search(r"```python\n(import json.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert example
    names: dict[str, Any] = {}
    exec(example[1], names)

    expected = [
        row for shard in read_split(corpus.path, "train") for batch in read_texts(shard)
        for row in batch.to_pylist()
    ]  # fmt: skip
    assert names["texts"].to_list() == expected
    assert names["texts"].features["text"].pa_type == pa.large_string()
    train = next(shard for shard in shards if shard.facts(TokenizeFacts).split == "train")
    ids = [document.tolist() for document in documents(train.path / TOKENS)]
    assert [row["tokens"] for row in names["tokens"]] == ids
    assert names["tokens"].features["tokens"].feature.pa_type == pa.uint16()

    streamed = datasets.load_dataset(
        "arrow", data_files=str(corpus.path / "train-*.arrow"), split="train", streaming=True
    )
    assert list(streamed) == expected
    complete = datasets.load_dataset("arrow", data_files=names["files"], split="train")
    assert complete["tokens"][:] == ids
