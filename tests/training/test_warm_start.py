"""Starting from an earlier package: rows of known and new tokens, and builds that start from the champion."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from qalam_core.errors import StoreError, TrainingError
from qalam_core.files import sha256_file
from qalam_core.package import ModelConfig, Package, read
from qalam_core.package.runtime.tokenizer import Tokenizer
from qalam_core.pipeline.build import build
from qalam_core.pipeline.publish import Published
from qalam_core.recipe import Recipe
from qalam_core.runs import Parent, Runs, TrainFacts
from qalam_core.store import Artifact, Store
from qalam_core.tokens.tokenizer import ArabicTokenizer
from qalam_core.training.warm_start import adapted
from tests.conftest import sentences, tiny_recipe, write_corpus
from tests.small_package import golden_package


def config_of(words: Sequence[str], **changes: Any) -> ModelConfig:
    """The package's configuration with another vocabulary."""
    shape = {"dim": 16, "num_heads": 2, "num_layers": 1, "max_seq_len": 16}
    return ModelConfig(vocab_size=len(words), **{**shape, **changes})


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return read(golden_package(tmp_path / "golden"))


def test_known_tokens_keep_their_rows_and_new_ones_start_at_the_mean_of_their_pieces(package: Package) -> None:
    grown = ArabicTokenizer(400, "bpe")
    grown.build_vocab([*sentences(200), *["مكتبة جامعية"] * 30])
    weights = adapted(package, grown.vocabulary, config_of(grown.words))
    old = package.weights["embedding.weight"]
    new = weights["embedding.weight"]
    assert new.shape == (len(grown.words), 16)
    fresh = [index for index, word in enumerate(grown.words) if word not in package.vocabulary.words]
    assert fresh
    for index, word in enumerate(grown.words):
        if word in package.vocabulary.words:
            assert np.array_equal(new[index], old[package.vocabulary.words.index(word)])
    word = "مك"
    assert word in [grown.words[index] for index in fresh]
    pieces = Tokenizer(package.vocabulary).encode(word)
    assert len(pieces) > 1
    assert np.allclose(new[grown.words.index(word)], old[pieces].mean(0))
    state = {"optimizer.exp_avg.embedding.weight": old, "optimizer.step.embedding.weight": np.array(7, np.float32)}
    moved = adapted(package, grown.vocabulary, config_of(grown.words), state)
    assert np.array_equal(moved["optimizer.exp_avg.embedding.weight"], new)
    assert moved["optimizer.step.embedding.weight"] == 7
    others = set(weights) - {"embedding.weight"}
    assert all(np.array_equal(weights[name], package.weights[name]) for name in others)


def test_a_new_whole_word_starts_at_the_row_of_unknown_words(package: Package) -> None:
    words = ("<PAD>", "<UNK>", "<START>", "<END>", "قلم", "باب")
    table = np.arange(96, dtype=np.float32).reshape(6, 16)
    old = replace(
        package,
        vocabulary=package.vocabulary._replace(algorithm="word", words=words, merges=()),
        weights={**package.weights, "embedding.weight": table},
    )
    new = old.vocabulary._replace(words=(*words[:4], "باب", "جديد"))
    weights = adapted(old, new, config_of(new.words))
    assert np.array_equal(weights["embedding.weight"], table[[0, 1, 2, 3, 5, 1]])


@pytest.mark.parametrize(
    ("algorithm", "change", "message"),
    [
        ("bpe", {"dim": 32}, "DIM 16 and not 32"),
        ("bpe", {"num_layers": 2, "tied": False}, "NUM_LAYERS 1 and not 2, TIED True and not False"),
        ("word", {}, "a bpe vocabulary and not word"),
    ],
)
def test_another_shape_is_a_one_line_error(
    package: Package, algorithm: str, change: dict[str, Any], message: str
) -> None:
    vocabulary = package.vocabulary._replace(algorithm=algorithm)
    with pytest.raises(TrainingError, match=message) as caught:
        adapted(package, vocabulary, config_of(vocabulary.words, **change))
    assert "\n" not in str(caught.value)


# -- builds -----------------------------------------------------------------------------------------


def recipe_of(corpus: Path, start: str = "champion") -> Recipe:
    train = {"steps": 40, "start": start, "batch_size": 8, "threads": 1}
    return tiny_recipe(corpus, train=train, gate={"tolerance": 1.0})


def trained(published: Published) -> Artifact:
    return next(artifact for artifact in published.artifacts if artifact.stage == "train")


@pytest.mark.usefixtures("processes")
def test_a_grown_corpus_starts_from_the_champion_and_a_rebuild_is_cached(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    corpus = tmp_path / "stories.jsonl"
    recipe = recipe_of(write_corpus(corpus, 400))
    first = build(recipe, store)
    assert "no champion under tiny yet: the weights start at random" in caplog.text
    assert first.champion
    assert trained(first).facts(TrainFacts).warm_start is None
    assert build(recipe, store).cached  # though it is the champion now

    write_corpus(corpus, 460)
    second = build(recipe, store)
    manifest = sha256_file(first.folder / "model" / "manifest.json")
    assert second.champion
    assert trained(second).facts(TrainFacts).warm_start == Parent(run=first.run, package=manifest)
    assert trained(second).manifest.inputs["warm_start"] == manifest
    assert f"training begins with the weights of run {first.run}" in caplog.text
    assert build(recipe, store).cached
    assert not list(trained(second).path.glob("initial*"))

    Runs(store).promote(recipe.name, first.run, when="2026-01-01T00:00:00+00:00", why="by hand", who="test")
    assert build(recipe, store).run == second.run  # from the first one, as before
    by_name = build(recipe_of(corpus, first.run), store)
    weights = (load_file(trained(p).path / "model.safetensors") for p in (second, by_name))
    assert all(np.array_equal(one, two) for one, two in zip(*(w.values() for w in weights), strict=True))


def test_a_missing_run_is_a_one_line_error(store: Store, corpus_file: Path) -> None:
    with pytest.raises(StoreError, match="run 'tiny-123' is not in"):
        build(recipe_of(corpus_file, "tiny-123"), store)
