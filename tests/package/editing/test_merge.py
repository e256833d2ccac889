"""Merging by tensor, row and word."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qalam_core.errors import PackageError
from qalam_core.package import ModelConfig, Package, read, verify
from qalam_core.package.editing.merge import Choices, Merged, Side, merge, unchanged_side, write_merged
from qalam_core.package.editing.rows import add_token, scale_row, set_row, set_value
from qalam_core.package.editing.seal import seal
from qalam_core.package.runtime.rows import MATRIX_TYPES
from qalam_core.package.runtime.tokenizer import Vocabulary
from tests.conftest import examples
from tests.small_package import CONFIG, WORDS, contents, export, vocabulary, weights

EMBEDDING = "embedding.weight"
BASE = weights()


def in_memory(words: Sequence[str], values: dict[str, np.ndarray], config: ModelConfig = CONFIG) -> Package:
    """A package that is nowhere on the disk."""
    config = ModelConfig(**{**{name: getattr(config, name) for name in config.names()}, "vocab_size": len(words)})
    return Package(
        Path(), config, vocabulary(words=tuple(words)), "", values, {"dtype": "f32", "provenance": {}}, ()
    )  # fmt: skip


def edited(edits: dict[tuple[str, int], float], order: Sequence[int] | None = None) -> Package:
    """The base with rows moved by a number, and its words in another order."""
    values = {name: tensor.copy() for name, tensor in BASE.items()}
    for (name, row), by in edits.items():
        values[name][row] += np.float32(by)
    order = range(len(WORDS)) if order is None else order
    values[EMBEDDING] = values[EMBEDDING][list(order)]
    return in_memory([WORDS[index] for index in order], values)


def by_word(merged: Merged | Package) -> dict[str | tuple[str, str], bytes]:
    """What a model says of each word, and its other tensors."""
    rows = zip(merged.vocabulary.words, merged.weights[EMBEDDING], strict=True)
    found: dict[str | tuple[str, str], bytes] = {(EMBEDDING, word): row.tobytes() for word, row in rows}
    return found | {name: tensor.tobytes() for name, tensor in merged.weights.items() if name != EMBEDDING}


places = st.one_of(
    st.tuples(st.just(EMBEDDING), st.integers(0, 11)), st.tuples(st.just("ln_out.bias"), st.integers(0, 7)),
    st.tuples(st.just("blocks.0.qkv.weight"), st.integers(0, 23)),
)  # fmt: skip
changes = st.dictionaries(places, st.sampled_from([0.5, -1.0, 2.0]), max_size=6)
orders = st.permutations(range(4, 12)).map(lambda rest: [0, 1, 2, 3, *rest])


@given(changes, orders)
def test_a_side_without_changes_gives_the_other(edits: dict[tuple[str, int], float], order: list[int]) -> None:
    base, side = edited({}), edited(edits, order)
    for three in ((base, side, base), (base, base, side), (base, side, side)):
        merged = merge(*three)
        assert not merged.conflicts
        assert merged.vocabulary == side.vocabulary
        assert by_word(merged) == by_word(side)


@given(changes, changes, st.tuples(orders, orders, orders))
def test_changes_are_united_by_word_in_any_order(
    some: dict[tuple[str, int], float], others: dict[tuple[str, int], float], order: tuple[list[int], ...]
) -> None:
    """Rows that both changed differently are conflicts, each named, and no others; the rest commutes."""
    base, ours, theirs = edited({}, order[0]), edited(some, order[1]), edited(others, order[2])
    merged, reverse = merge(base, ours, theirs), merge(base, theirs, ours)
    both = {place for place in some.keys() & others.keys() if some[place] != others[place]}
    named = {(name, WORDS[row] if name == EMBEDDING else row) for name, row in both}
    assert {(conflict.tensor, conflict.row) for conflict in merged.conflicts} == named
    assert {(conflict.tensor, conflict.row) for conflict in reverse.conflicts} == named
    if not named:
        assert by_word(merged) == by_word(reverse) == by_word(edited(some | others))


@pytest.mark.parametrize("side", Side)
def test_a_choice_decides_every_conflict(side: Side) -> None:
    base, ours, theirs = edited({}), edited({(EMBEDDING, 5): 1, ("ln_out.bias", 2): 1}), edited({(EMBEDDING, 5): 3})
    merged = merge(base, ours, theirs, Choices(side))
    by = {Side.ours: 1, Side.theirs: 3, Side.mean: 2}[side]
    np.testing.assert_allclose(merged.weights[EMBEDDING][5], BASE[EMBEDDING][5] + by, rtol=1e-6)
    assert merged.weights["ln_out.bias"].tobytes() == ours.weights["ln_out.bias"].tobytes()
    assert merged.resolved == (f'embedding.weight "يأكل": both sides changed it: {side}',)


def test_one_row_is_decided_and_the_others_stay_open() -> None:
    base, ours, theirs = (
        edited({}),
        edited({(EMBEDDING, 5): 1, (EMBEDDING, 6): 1}),
        edited({(EMBEDDING, 5): 2, (EMBEDDING, 6): 2}),
    )
    merged = merge(base, ours, theirs, Choices(None, {(EMBEDDING, "يأكل"): Side.theirs}))
    assert [str(conflict) for conflict in merged.conflicts] == ['embedding.weight "السمك": both sides changed it']
    assert merged.weights[EMBEDDING][5].tobytes() == theirs.weights[EMBEDDING][5].tobytes()
    with pytest.raises(PackageError, match="not in conflict"):
        merge(base, ours, theirs, Choices(None, {(EMBEDDING, "في"): Side.ours}))


def with_words(package: Package, added: dict[str, float] = {}, removed: Sequence[str] = ()) -> Package:  # noqa: B006
    kept = [row for row, word in enumerate(package.vocabulary.words) if word not in removed]
    rows = [package.weights[EMBEDDING][kept], *(np.full((1, 8), value, np.float32) for value in added.values())]
    words = [*(package.vocabulary.words[row] for row in kept), *added]
    return in_memory(words, {**package.weights, EMBEDDING: np.concatenate(rows)})


def test_words_that_either_side_added_or_removed() -> None:
    base = edited({})
    ours, theirs = with_words(base, {"قلم": 1}, ["في"]), with_words(edited({(EMBEDDING, 4): 1}), {"كتاب": 2}, ["😀"])
    merged = merge(base, ours, theirs)
    assert not merged.conflicts
    assert merged.vocabulary.words == (*WORDS[:10], "قلم", "كتاب")
    assert merged.weights[EMBEDDING][-2:, 0].tolist() == [1, 2]
    assert (merged.added, merged.removed) == (("كتاب",), ("😀",))


def test_a_word_that_both_added_is_in_conflict_if_its_rows_differ() -> None:
    base = edited({})
    same = merge(base, with_words(base, {"قلم": 1}), with_words(base, {"كتاب": 2, "قلم": 1}))
    assert not same.conflicts
    assert same.vocabulary.words[-2:] == ("قلم", "كتاب")
    other = merge(base, with_words(base, {"قلم": 1}), with_words(base, {"قلم": 2}))
    assert [str(found) for found in other.conflicts] == [
        'embedding.weight "قلم": both sides added it, with other values'
    ]


@pytest.mark.parametrize("remover", ["ours", "theirs"])
def test_a_word_that_one_side_removed_and_the_other_changed(remover: str) -> None:
    """As after a renaming. A mean with nothing does not exist."""
    base, changed = edited({}), edited({(EMBEDDING, 5): 1})
    gone = with_words(base, removed=["يأكل"])
    three = (base, gone, changed) if remover == "ours" else (base, changed, gone)
    for choices in (Choices(), Choices(Side.mean)):
        (conflict,) = merge(*three, choices).conflicts
        assert str(conflict) == f'embedding.weight "يأكل": {remover} removed the word, the other side changed its row'
    for side in (Side.ours, Side.theirs):
        merged = merge(*three, Choices(side))
        assert not merged.conflicts
        assert by_word(merged) == by_word(gone if side == remover else changed)


@pytest.mark.parametrize("remover", ["ours", "theirs"])
def test_a_removed_byte_pair_token_that_stays_is_still_what_texts_become(remover: str) -> None:
    tokens = ("ا", "ل", "م", "ال")
    whole = vocabulary(algorithm="bpe", words=(*WORDS[:4], *tokens, "الم"), merges=(("ا", "ل"), ("ال", "م")))
    without = vocabulary(algorithm="bpe", words=(*WORDS[:4], *tokens), merges=(("ا", "ل"),))

    def package(words: Vocabulary, last: float) -> Package:
        rows = np.full((len(words.words), 8), last, np.float32)
        rows[:8] = 1
        return replace(in_memory(words.words, {**BASE, EMBEDDING: rows}), vocabulary=words)

    gone, changed = package(without, 1), package(whole, 3)
    three = (package(whole, 2), gone, changed) if remover == "ours" else (package(whole, 2), changed, gone)
    for side in (Side.ours, Side.theirs):
        merged = merge(*three, Choices(side))
        assert merged.vocabulary == (without if side == remover else whole)


def test_other_architectures_and_normalisations(tmp_path: Path) -> None:
    base = edited({})
    other = in_memory(WORDS, BASE, ModelConfig(12, 8, 1, 2, 10))
    with pytest.raises(PackageError, match="NUM_HEADS is 1"):
        merge(base, base, other)
    rules = [vocabulary(rules=((letter, "ا"),)) for letter in "أإآ"]
    old, one, two = (Package(Path(), CONFIG, words, "", BASE, base.manifest, ()) for words in rules)
    assert [str(found) for found in merge(old, one, two).conflicts] == ['vocab.py "NORMALISE": both sides changed it']
    assert merge(old, one, two, Choices(Side.theirs)).vocabulary.rules == rules[2].rules


def copies(folder: Path, dtype: str) -> tuple[Path, Path, Path]:
    base = export(folder / "base", dtype=dtype)
    return base, *(Path(shutil.copytree(base, folder / name)) for name in ("ours", "theirs"))  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [*MATRIX_TYPES])
def test_a_written_merge_keeps_every_row_to_the_bit_and_verifies(tmp_path: Path, dtype: str) -> None:
    """Also edited rows, whose values the storage type cannot hold, and that no sealing noted."""
    folders = _, ours, theirs = copies(tmp_path, dtype)
    set_value(ours, EMBEDDING, "القط", 3, 0.1)
    add_token(ours, "قلم")
    seal(ours, "of ours")
    scale_row(theirs, EMBEDDING, "يأكل", 1 / 3)
    set_value(theirs, "ln_out.bias", 2, 0, 0.7)
    set_row(theirs, "blocks.1.fc1.weight", 3, [1e6, *[1e-7] * 7])
    add_token(theirs, "كتاب", ["القط", "في"])
    packages = read(folders[0]), read(folders[1]), read(folders[2])
    merged = merge(*packages)
    write_merged(tmp_path / "merged", merged, *packages)
    assert verify(tmp_path / "merged") == []
    found = read(tmp_path / "merged")
    assert all(found.weights[name].tobytes() == merged.weights[name].tobytes() for name in merged.weights)
    rows = by_word(found)
    for package, words in ((packages[0], WORDS[6:]), (packages[1], ("القط", "قلم")), (packages[2], ("يأكل", "كتاب"))):
        assert all(rows[EMBEDDING, word] == by_word(package)[EMBEDDING, word] for word in words)
    card = (tmp_path / "merged" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert '- words added to ours: "كتاب"' in card
    assert "of ours" in card
    assert "- theirs, not sealed: ln_out.bias: 1 of 8 rows changed" in card
    assert found.manifest["dtype"] == dtype
    assert {"merged base", "merged ours", "merged theirs"} <= found.manifest["provenance"].keys()
    write_merged(tmp_path / "again", merge(*packages), *packages)
    assert contents(tmp_path / "again") == contents(tmp_path / "merged")


def test_means_are_rounded_to_the_storage_type(tmp_path: Path) -> None:
    folders = copies(tmp_path, "q8")
    scale_row(folders[1], EMBEDDING, "القط", 2)
    scale_row(folders[2], EMBEDDING, "القط", 3)
    packages = read(folders[0]), read(folders[1]), read(folders[2])
    with pytest.raises(PackageError, match="choose a side"):
        write_merged(tmp_path / "merged", merge(*packages), *packages)
    assert not (tmp_path / "merged").exists()
    write_merged(tmp_path / "merged", merge(*packages, Choices(Side.mean)), *packages)
    assert verify(tmp_path / "merged") == []
    assert b"[" not in (tmp_path / "merged" / "weights.py").read_bytes()
    row = read(tmp_path / "merged").weights[EMBEDDING][4]
    np.testing.assert_allclose(row, packages[0].weights[EMBEDDING][4] * 2.5, atol=0.01)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(3))
@given(st.sampled_from(["ours", "theirs", "both"]))
def test_a_package_that_one_side_changed_is_taken_whole(tmp_path_factory: pytest.TempPathFactory, who: str) -> None:
    _, ours, theirs = folders = copies(tmp_path_factory.mktemp("merge"), "f32")
    for folder in folders[1:]:
        if who in (folder.name, "both"):
            scale_row(folder, EMBEDDING, "القط", 2)
    packages = read(folders[0]), read(folders[1]), read(folders[2])
    whole = unchanged_side(*packages)
    assert whole is not None
    assert contents(whole.path) == contents(theirs if who == "theirs" else ours)
    scale_row(ours, EMBEDDING, "في", 2)
    scale_row(theirs, EMBEDDING, "😀", 2)
    assert unchanged_side(*packages) is None
