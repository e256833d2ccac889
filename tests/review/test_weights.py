"""Structure that was changed in weights is named; movement alone raises no alarm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalam_core.package.read import Package
from qalam_core.review.weights import weight_changes
from tests.conftest import examples
from tests.review.small_models import CONFIG, VOCABULARY, WORDS, package

OLD = package()


def edited(name: str, values: np.ndarray) -> Package:
    return package(tensors={name: values})


def with_heads(order: list[int], kinds: slice = slice(0, 3), out: bool = True, layer: int = 1) -> Package:
    """The heads of a layer in another order, of some of query, key and value, and of the output."""
    C, H = CONFIG.dim, CONFIG.num_heads
    qkv = OLD.weights[f"blocks.{layer}.qkv.weight"].reshape(3, H, C // H, C).copy()
    qkv[kinds] = qkv[kinds][:, order]
    columns = OLD.weights[f"blocks.{layer}.out.weight"].reshape(C, H, C // H)
    mixed = (columns[:, order] if out else columns).reshape(C, C)
    return package(tensors={f"blocks.{layer}.qkv.weight": qkv.reshape(3 * C, C), f"blocks.{layer}.out.weight": mixed})


def noisy(share: float, seed: int = 1, base: Package = OLD) -> Package:
    """A training that went on: every value moved by a share of its tensor's deviation."""
    random = np.random.default_rng(seed)
    weights = {
        name: (values + random.normal(0, share * values.std(), values.shape)).astype(np.float32)
        for name, values in base.weights.items()
    }
    return replace(base, weights=weights)


def messages(new: Package) -> list[str]:
    return [alarm.message for alarm in weight_changes(OLD, new).alarms]


def test_the_same_weights_show_nothing() -> None:
    found = weight_changes(OLD, package())
    assert (found.tensors, found.layers, found.rows, found.heads, found.neighbours) == ((), (), (), (), ())
    assert (found.shift, found.alarms, found.unavailable) == (0, (), ())
    assert found.unchanged == len(OLD.weights)


@settings(max_examples=examples(4))
@given(seed=st.integers(1, 10_000), share=st.floats(0.0, 0.8))
def test_movement_raises_no_alarm(seed: int, share: float) -> None:
    assert messages(package(seed)) == []
    assert messages(noisy(share, seed)) == []


def test_swapped_heads_are_named_and_harmless() -> None:
    found = weight_changes(OLD, with_heads([0, 2, 1, 3]))
    assert [(head.head, head.was, head.parts) for head in found.heads] == [
        (1, 2, ("query", "key", "value", "output")), (2, 1, ("query", "key", "value", "output")),
    ]  # fmt: skip
    (alarm,) = found.alarms
    assert (alarm.message, alarm.severity) == ("Heads 1 and 2 of layer 1 are swapped.", "low")


def test_heads_swapped_in_the_queries_alone_are_not_harmless() -> None:
    (alarm,) = weight_changes(OLD, with_heads([3, 1, 2, 0], slice(0, 1), out=False)).alarms
    assert (alarm.message, alarm.severity) == ("Heads 0 and 3 of layer 1 are swapped in query alone.", "high")


LLAMA = replace(
    CONFIG, block="llama", activation=None, num_kv_heads=2, head_dim=8, hidden_dim=48, rope_base=10_000.0,
    norm_epsilon=1e-6, qk_norm=True,
)  # fmt: skip


def with_llama_heads(old: Package, order: list[int], kv_order: list[int], layer: int = 1) -> Package:
    """The heads of a layer with grouped queries in another order."""
    C, D, weights = LLAMA.dim, LLAMA.head_size, {}
    for part, heads in (("q", order), ("k", kv_order), ("v", kv_order)):
        name = f"blocks.{layer}.{part}.weight"
        weights[name] = old.weights[name].reshape(-1, D, C)[heads].reshape(-1, C)
    name = f"blocks.{layer}.out.weight"
    weights[name] = old.weights[name].reshape(C, -1, D)[:, order].reshape(C, -1)
    return replace(old, weights={**old.weights, **weights})


def test_heads_of_grouped_queries_are_named_and_positions_are_not_rows() -> None:
    old = package(config=LLAMA)
    assert weight_changes(old, package(config=LLAMA)).alarms == ()
    for seed in (1, 2):
        assert weight_changes(old, package(seed, config=LLAMA)).alarms == ()
        assert weight_changes(old, noisy(0.5, seed, old)).alarms == ()
    (alarm,) = weight_changes(old, with_llama_heads(old, [1, 0, 2, 3], [0, 1])).alarms
    assert alarm.message == "Heads 0 and 1 of layer 1 are swapped in query and output alone."
    swapped = weight_changes(old, with_llama_heads(old, [2, 3, 0, 1], [1, 0]))
    assert {(head.head, head.was) for head in swapped.heads} >= {(0, 2), (2, 0)}
    assert swapped.shift == 0
    other = weight_changes(OLD, old)
    assert (other.heads, other.shift) == ((), 0)


def test_heads_that_turned_round_or_were_copied_are_named() -> None:
    assert messages(with_heads([1, 2, 0, 3])) == [
        "Head 0 of layer 1 is the old head 1.", "Head 1 of layer 1 is the old head 2.",
        "Head 2 of layer 1 is the old head 0.",
    ]  # fmt: skip
    assert messages(with_heads([0, 0, 2, 3])) == ["Head 1 of layer 1 is the old head 0."]


def test_swapped_heads_are_found_after_more_training() -> None:
    assert "Heads 1 and 2 of layer 1 are swapped." in messages(noisy(0.4, base=with_heads([0, 2, 1, 3])))


@pytest.mark.parametrize("shift", [-3, -1, 1, 2])
def test_shifted_positions_are_named(shift: int) -> None:
    rolled = np.roll(OLD.weights["pos_embedding"], -shift, axis=0)
    found = weight_changes(OLD, edited("pos_embedding", rolled))
    assert found.shift == shift
    assert found.alarms[0].message == (
        f"Positions are shifted: position p has the row of the old position p {'+' if shift > 0 else '-'} {abs(shift)}."
    )


def test_a_row_that_moved_alone_is_named_by_its_word() -> None:
    table = OLD.weights["embedding.weight"].copy()
    table[77] *= 3
    found = weight_changes(OLD, noisy(0.05, base=edited("embedding.weight", table)))
    assert (found.rows[0].word, found.rows[0].row) == (WORDS[77], 77)
    (alarm,) = found.alarms
    assert alarm.message.startswith(f'Row "{WORDS[77]}" (embedding.weight) moved ')
    matrix = OLD.weights["blocks.0.fc1.weight"].copy()
    matrix[5] = 0
    assert messages(edited("blocks.0.fc1.weight", matrix))[0].startswith("Row 5 of blocks.0.fc1.weight moved ")


@pytest.mark.parametrize("factor", [0.97, 1.05])
def test_the_only_row_that_moved_is_named_however_little(factor: float) -> None:
    """In a training all rows move; one alone is an edit."""
    table = OLD.weights["embedding.weight"].copy()
    table[77] *= factor
    (message,) = messages(edited("embedding.weight", table))
    assert message.startswith(f'Row "{WORDS[77]}" (embedding.weight) moved ')
    assert messages(noisy(0.05, base=edited("embedding.weight", table))) == []


@pytest.mark.parametrize("changed", [{"num_heads": 2}, {"rope_base": 400.0}, {"norm_epsilon": 0.1}, {"max_seq_len": 8}])
def test_another_configuration_of_the_same_weights_is_named(changed: dict[str, Any]) -> None:
    llama: dict[str, Any] = {
        "block": "llama", "num_kv_heads": 2, "head_dim": 8, "hidden_dim": 48, "rope_base": 500.0, "norm_epsilon": 1e-5,
        "activation": None, "qk_norm": False,
    }  # fmt: skip
    config = CONFIG if "num_heads" in changed else replace(CONFIG, **llama)
    old, new = package(config=config), package(config=replace(config, **changed))
    found = weight_changes(old, new)
    assert found.tensors == ()
    ((name, value),) = changed.items()
    assert [alarm.message for alarm in found.alarms] == [
        f"{name.upper()} of the configuration is {value}, and was {getattr(config, name)}."
    ]


def test_other_shapes_and_words_are_compared_as_far_as_possible() -> None:
    deeper = package(1, config=replace(CONFIG, num_layers=3, num_heads=2, max_seq_len=20, tied=False))
    found = weight_changes(OLD, deeper)
    assert len(found.unavailable) == 3
    assert found.alarms == ()
    renamed = package(1, VOCABULARY._replace(words=(*WORDS[:4], *(word + "ب" for word in WORDS[4:]))))
    assert weight_changes(OLD, renamed).neighbours == ()


def test_values_that_are_not_finite_are_named() -> None:
    for broken in (np.nan, np.inf):
        table = OLD.weights["embedding.weight"].copy()
        table[30, 2] = broken
        found = weight_changes(OLD, edited("embedding.weight", table))
        assert found.alarms[0].message == "embedding.weight of the new model has values that are not finite."
        assert found.unavailable
