"""What changed between two recipes."""

from __future__ import annotations

from typing import Any

import pytest

from qalam_core.recipe import Recipe
from qalam_core.review.recipe import RecipeChanges, recipe_changes


def recipe(**sections: Any) -> Recipe:
    data: dict[str, Any] = {"name": "demo", "corpus": {"sources": [{"path": "/home/amal/a.txt", "name": "a"}]}}
    return Recipe.parse(data | sections)


def changes(old: Recipe, new: Recipe) -> RecipeChanges:
    return recipe_changes(old, new, {}, {})


def test_equal_recipes_have_no_changes() -> None:
    assert recipe_changes(recipe(), recipe(), {"torch": "2.9"}, {"torch": "2.9"}) == RecipeChanges(
        values=(), versions=()
    )


def test_the_gate_comes_first_and_what_was_loosened_before_the_rest_of_it() -> None:
    old = recipe(gate={"max_unknown": 0.5, "tolerance": 0.03})
    new = recipe(seed=2, model={"dim": 64}, gate={"max_unknown": 0.4, "tolerance": 0.05})
    found = changes(old, new)
    assert [change.key for change in found.values] == ["gate.tolerance", "gate.max_unknown", "seed", "model.dim"]
    assert [(change.key, change.old, change.new) for change in found.looser] == [("gate.tolerance", "0.03", "0.05")]


@pytest.mark.parametrize(("key", "old", "new"), [("beat_ngram", True, False), ("confidence", 0.99, 0.9)])
def test_a_smaller_value_may_be_looser(key: str, old: object, new: object) -> None:
    assert changes(recipe(gate={key: old}), recipe(gate={key: new})).looser
    assert not changes(recipe(gate={key: new}), recipe(gate={key: old})).looser


def test_sources_are_compared_by_name() -> None:
    a, b = ({"path": f"/home/amal/{name}.txt", "name": name, "licence": "MIT"} for name in "ab")
    c = {"path": "hf:org/c", "revision": "0" * 40, "name": "c"}
    old, new = recipe(corpus={"sources": [a, b]}), recipe(corpus={"sources": [c, {**b, "unit": "file"}]})
    found = {change.key: (change.old, change.new) for change in changes(old, new).values}
    assert found["corpus.sources.b.unit"] == ("line", "file")
    assert found["corpus.sources.a"][1] == found["corpus.sources.c"][0] == "absent"
    assert "hf:org/c" in found["corpus.sources.c"][1] and "MIT" in found["corpus.sources.a"][0]


def test_two_sources_of_one_name_are_not_mixed_up() -> None:
    first, second = {"path": "x/1.txt", "name": "a"}, {"path": "x/2.txt", "name": "a"}
    old = recipe(corpus={"sources": [first, second]})
    new = recipe(corpus={"sources": [first, {**second, "encoding": "cp1256"}]})
    assert [change.key for change in changes(old, new).values] == ["corpus.sources.a (2).encoding"]


def test_places_on_a_machine_are_no_change() -> None:
    old = recipe(corpus={"sources": [{"path": "/home/amal/a.txt"}], "exclude": "/home/amal/no.txt"}, runner="threads")
    new = recipe(corpus={"sources": [{"path": "/srv/a.txt"}], "exclude": "/srv/no.txt"}, runner="processes")
    assert changes(old, new).values == ()
    other = recipe(corpus={"sources": [{"path": "/srv/b.txt", "name": "a"}], "exclude": "/srv/no.txt"})
    assert [change.new for change in changes(old, other).values] == ["b.txt"]


def test_versions() -> None:
    found = recipe_changes(recipe(), recipe(), {"torch": "2.9", "numpy": "2"}, {"torch": "2.10", "prefect": "3"})
    assert [(change.key, change.old, change.new) for change in found.versions] == [
        ("numpy", "2", "absent"), ("prefect", "absent", "3"), ("torch", "2.9", "2.10"),
    ]  # fmt: skip


def test_long_values_are_cut_and_stay_in_one_line() -> None:
    found = changes(recipe(), recipe(gate={"prompts": ["كلمة\nأخرى" * 500]})).values[0]
    assert len(found.new) <= 300 and "\n" not in found.new
