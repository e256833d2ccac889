"""The block of Llama through every stage: trained, exported, judged, continued; its package read and edited."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qalam_core.errors import TrainingError
from qalam_core.package import generate, read, verify
from qalam_core.package.editing.rows import add_token, set_row
from qalam_core.package.editing.seal import seal
from qalam_core.pipeline.build import build
from qalam_core.pipeline.export import PACKAGE
from qalam_core.recipe import Recipe
from qalam_core.store import Store
from tests.conftest import tiny_recipe, write_corpus

GATE = {"tolerance": 5.0, "max_copied": 1.0, "max_repeated": 1.0, "max_empty": 1.0, "beat_unigram": 0.0}


def recipe_of(corpus: Path, start: str = "scratch", **model: object) -> Recipe:
    model = {"block": "llama", "num_kv_heads": 1, **model}
    return tiny_recipe(corpus, model=model, train={"start": start, "steps": 30}, gate=GATE)


@pytest.mark.usefixtures("processes")
def test_a_model_with_the_block_of_llama_is_built_continued_and_edited(tmp_path: Path) -> None:
    corpus, store = tmp_path / "stories.jsonl", Store(tmp_path / "store")
    write_corpus(corpus, 300)
    first = build(recipe_of(corpus), store)
    assert first.champion, first.decision
    package = read(first.folder / PACKAGE)
    assert (package.config.block, package.config.kv_heads, package.config.qk_norm) == ("llama", 1, True)
    assert verify(first.folder / PACKAGE) == []
    write_corpus(corpus, 400)
    second = build(recipe_of(corpus, "continue"), store)
    assert second.record.lineage[0].state, "its training continued"
    assert second.record.bits_per_byte.model < first.record.bits_per_byte.model + 0.2
    review = (second.folder / "review.html").read_text(encoding="utf-8")
    assert "blocks.0.gate.weight" in review
    with pytest.raises(TrainingError, match="has BLOCK llama and not original; only the vocabulary may differ"):
        build(tiny_recipe(corpus, train={"start": second.run}), store)
    edited = tmp_path / "edited"
    edited.mkdir()
    for file in (second.folder / PACKAGE).iterdir():
        (edited / file.name).write_bytes(file.read_bytes())
    row = np.linspace(-0.5, 0.5, package.config.head_size).astype(np.float32)
    add_token(edited, "جد", like=[10])
    set_row(edited, "blocks.0.q.weight", 3, [*np.tile(row, 2).tolist()])
    seal(edited, "a word of its own")
    assert verify(edited) == []
    changed = read(edited)
    assert (
        changed.config.vocab_size
        == len(changed.vocabulary.words)
        == read(second.folder / PACKAGE).config.vocab_size + 1
    )
    assert np.array_equal(changed.weights["blocks.0.q.weight"][3], np.tile(row, 2))
    assert generate(changed, "في", 5, 0) != ""
