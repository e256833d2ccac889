from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qalam_core.package import generate, read
from qalam_core.package.editing.diff import diff, render
from qalam_core.package.editing.rows import scale_row, set_value
from tests.conftest import examples
from tests.small_package import CONFIG, LLAMA, WORDS, export, vocabulary, weights

EMBEDDING = "embedding.weight"


def test_a_package_does_not_differ_from_itself(package: Path) -> None:
    difference = diff(read(package), read(package))
    assert not difference
    assert render(difference) == "no difference in settings, words or values"


def test_rows_are_named_by_their_words_largest_first(package: Path, tmp_path: Path) -> None:
    other = export(tmp_path / "other")
    scale_row(other, EMBEDDING, "القط", 3)
    scale_row(other, EMBEDDING, "يأكل", 1.5)
    set_value(other, "ln_out.bias", 2, 0, -3)
    before = read(package).weights
    difference = diff(read(package), read(other))
    assert difference
    changes = {change.name: change for change in difference.tensors}
    assert set(changes) == {EMBEDDING, "ln_out.bias"}
    embedding = changes[EMBEDDING]
    assert (embedding.changed, embedding.rows) == (2, 12)
    cat, eats = embedding.largest
    assert (cat.row, cat.word, eats.row, eats.word) == (4, "القط", 5, "يأكل")
    assert cat.moved == pytest.approx(2 * float(np.linalg.norm(before[EMBEDDING][4])), rel=1e-6)
    assert cat.before == pytest.approx(float(np.linalg.norm(before[EMBEDDING][4])), rel=1e-6)
    assert embedding.moved == pytest.approx(float(np.hypot(cat.moved, eats.moved)))
    text = render(difference).split("\n")
    assert text[0].startswith("ln_out.bias: 1 of 8 rows, moved ")  # moved most for its size
    assert text[3].startswith('    4 "القط": moved ')


def test_a_zero_of_the_other_sign_is_a_difference_as_for_verify(package: Path, tmp_path: Path) -> None:
    other = export(tmp_path / "other")
    for folder, zero in ((package, 0.0), (other, -0.0)):
        set_value(folder, "ln_out.bias", 2, 0, zero)
    difference = diff(read(package), read(other))
    assert [(change.name, change.changed) for change in difference.tensors] == [("ln_out.bias", 1)]
    assert render(difference).endswith("    2: moved 0 of 0")


@settings(max_examples=examples(15), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(4, 12)), st.sets(st.integers(4, 11), max_size=4), st.integers(0, 2))
def test_words_are_compared_regardless_of_their_ids(
    package: Path, tmp_path_factory: pytest.TempPathFactory, order: list[int], edited: set[int], new: int
) -> None:
    """Words with new ids are not changes; edited rows are found by their words."""
    kept = order[: len(order) - new]
    values = weights()
    embedding = values[EMBEDDING].copy()
    embedding[[*edited]] *= 2
    values[EMBEDDING] = np.concatenate([embedding[:4], np.ones((new, 8), np.float32), embedding[kept]])
    added = tuple(f"جديد{index}" for index in range(new))
    names = (*WORDS[:4], *added, *(WORDS[index] for index in kept))
    other = export(tmp_path_factory.mktemp("other") / "model", weights=values, vocabulary=vocabulary(words=names))
    difference = diff(read(package), read(other), shown=100)
    assert difference.added == added
    assert set(difference.removed) == {WORDS[index] for index in order[len(order) - new :]}
    assert difference.renumbered == sum(place != index for place, index in enumerate(kept, 4 + new))
    found = {row.word for change in difference.tensors for row in change.largest}
    assert found == {WORDS[index] for index in edited & set(kept)}
    assert all(names[row.row] == row.word for change in difference.tensors for row in change.largest)
    assert [change.name for change in difference.tensors] == ([EMBEDDING] if found else [])


def test_differences_of_settings_tensors_and_words(package: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, num_layers=1, max_seq_len=6, tied=False, vocab_size=13)
    words = vocabulary(words=(*WORDS, "كلب"), rules=(("ـ", ""),))
    other = export(tmp_path / "other", config=config, vocabulary=words, weights=weights(config), dtype="f16")
    difference = diff(read(package), read(other))
    assert difference.config["NUM_LAYERS"] == (2, 1)
    assert difference.reshaped == {"pos_embedding": ((10, 8), (6, 8))}
    assert "blocks.1.fc1.weight" in difference.only_first
    assert difference.only_second == ("lm_head.weight",)
    assert difference.tokenizer == ("rules",)
    text = render(difference)
    for line in (
        "TIED: True -> False",
        "stored as: f32 -> f16",
        "tokenizer: other rules",
        'words +1: "كلب"',
        "blocks.1.ln1.bias: only in the first",
        "lm_head.weight: only in the second",
        "pos_embedding: (10, 8) -> (6, 8)",
    ):
        assert line in text.split("\n"), line
    assert 'words -1: "كلب"' in render(diff(read(other), read(package)))


def test_a_prompt_is_continued_by_both_models(package: Path, tmp_path: Path) -> None:
    other = export(tmp_path / "other", weights=weights(seed=9))
    first, second = read(package), read(other)
    difference = diff(first, second, "القط يأكل", tokens=6)
    output = generate(first, "القط يأكل", 6, temperature=0), generate(second, "القط يأكل", 6, temperature=0)
    assert difference.continuations == output
    assert output[0] != output[1]
    assert render(difference).endswith(f"first:  {output[0]}\nsecond: {output[1]}")
    assert render(diff(first, first, "القط يأكل", tokens=6)).endswith(f"both: {output[0]}")


def test_long_lists_are_truncated_with_a_count(package: Path, tmp_path: Path) -> None:
    other = export(tmp_path / "other", weights={name: tensor + 1 for name, tensor in weights().items()})
    text = render(diff(read(package), read(other), shown=3))
    assert "    and 9 more" in text.split("\n")


def test_models_of_two_blocks_share_what_both_have(tmp_path: Path) -> None:
    text = render(diff(read(export(tmp_path / "a")), read(export(tmp_path / "b", config=LLAMA))))
    assert 'BLOCK: "original" -> "llama"' in text
    assert 'ACTIVATION: "gelu" -> absent' in text
    assert "ROPE_BASE: absent -> 500.0" in text
    assert "pos_embedding: only in the first" in text
    assert "blocks.1.gate.weight: only in the second" in text
