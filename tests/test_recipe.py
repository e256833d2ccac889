from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from al_qalam.flows.cli.build import SIZES
from qalam_core.errors import RecipeError
from qalam_core.files import digest
from qalam_core.package.runtime.rows import MATRIX_TYPES
from qalam_core.recipe import ModelTests, Recipe, to_toml
from tests import ROOT
from tests.conftest import tiny_recipe

RECIPES = ROOT / "deployments" / "recipes"
MINIMAL: dict[str, Any] = {"name": "a", "corpus": {"sources": [{"path": "x.txt"}]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": {}}, 'r: modle: unknown key; did you mean "model"?'),
        ({"model": {"dmi": 1}}, 'r: model.dmi: unknown key; did you mean "dim"?'),
        ({"corpus": {"sources": [{"path": "x", "txt": "a"}]}},
         'r: corpus.sources.0.txt: unknown key; did you mean "text"?'),
        ({"train": {"zzz": 1}}, "r: train.zzz: unknown key; known here: accumulate, "),
        ({"train": {"steps": "many"}}, "r: train.steps: input should be a valid integer"),
        ({"train": {"steps": 0}}, "r: train.steps: input should be greater than or equal to 1 (it is 0)"),
        ({"model": {"dim": 130, "num_heads": 4}}, "r: model: num_heads 4 does not divide dim 130; 5 does"),
        ({"model": {"num_kv_heads": 2}}, 'r: model: num_kv_heads is a setting of block = "llama"; the original block'),
        ({"model": {"block": "llama", "num_kv_heads": 3}}, "r: model: num_kv_heads 3 does not divide num_heads 4"),
        ({"model": {"block": "llama", "dim": 12}}, "r: model: the width of a head is 3, which is odd"),
        ({"model": {"block": "gpt"}}, "r: model.block: input should be 'original' or 'llama'"),
        ({"tokenizer": {"algorithm": "unigram"}}, "r: tokenizer.algorithm: input should be 'bpe' or 'word'"),
        ({"train": {"batch_size": 10, "accumulate": 4}}, "r: train: accumulate 4 does not divide batch_size 10"),
        ({"train": {"distributed": "fsdp"}}, "r: train: muon needs full matrices, and fsdp shards them"),
        ({"corpus": {"sources": []}}, "r: corpus.sources: "),
        ({"corpus": {"sources": [{"path": "hf:some/set"}]}}, "r: corpus.sources.0: hf:some/set needs a revision"),
        ({"corpus": {"sources": [{"path": "x"}], "test": 0}}, "r: corpus: test must be above 0"),
        ({"name": "Not A Name"}, "r: name: "),
        ({"tests": [{"path": "a.jsonl", "shar": 1}]}, 'r: tests.0.shar: unknown key; did you mean "share"?'),
        ({"tests": [{"path": "a.jsonl", "share": 2}]}, "r: tests.0.share: "),
        ({"tests": [{"path": "a.jsonl", "name": "x|y"}]}, "r: tests.0.name: must be 1 to 40 letters and digits"),
        ({"tests": [{"path": "-"}]}, "r: tests.0.name: must be 1 to 40 letters and digits"),
        ({"tests": [{"path": "b/a.jsonl"}, {"path": "a.jsonl"}]}, 'r: tests: two files of tests have the name "a"'),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse({**MINIMAL, **change}, "r")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def _single_values(data: dict[str, Any], place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _single_values(value, (*place, key))
        elif isinstance(value, bool | int | float | str):
            yield (*place, key), value


def test_a_value_of_another_type_is_refused_wherever_it_stands() -> None:
    whole = Recipe.parse({**MINIMAL, "tests": [{"path": "a.jsonl"}]}).canonical()
    assert Recipe.parse(whole).canonical() == whole
    found = [*_single_values(whole), *_single_values(whole["corpus"]["sources"][0], ("corpus", "sources", "0"))]
    assert len(found) > 80
    for place, value in found:
        others = {bool: (0, 1, "true"), int: (True, "1", 1.5), float: (True, "0.5"), str: (1, True)}[type(value)]
        for other in others:
            if place == ("tokenizer", "vocab_size") and other == "auto":
                continue
            changed = json.loads(json.dumps(whole))
            part = changed
            for step in place[:-1]:
                part = part[int(step)] if step.isdigit() else part[step]
            part[place[-1]] = other
            with pytest.raises(RecipeError, match=rf"^r: {re.escape('.'.join(place))}: "):
                Recipe.parse(changed, "r")


def test_a_missing_section_is_named() -> None:
    with pytest.raises(RecipeError, match="r: corpus: missing"):
        Recipe.parse({"name": "a"}, "r")


def test_load_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        Recipe.load(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="is a folder"):
        Recipe.load(tmp_path)
    path = tmp_path / "r.toml"
    path.write_text("name = [", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"r\.toml: not TOML"):
        Recipe.load(path)
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(RecipeError, match="byte 8 is not UTF-8"):
        Recipe.load(path)
    for value in ("9" * 5000, "[" * 5000 + "]" * 5000):  # for which tomllib has errors of its own
        path.write_text(f"name = {value}", encoding="utf-8")
        with pytest.raises(RecipeError, match=r"r\.toml: not TOML: "):
            Recipe.load(path)


def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("\ufeff" + to_toml(Recipe.parse(MINIMAL)).replace("\n", "\r\n"), encoding="utf-8", newline="")
    assert Recipe.load(path).name == Recipe.load(str(path)).name == MINIMAL["name"]


def test_overrides_take_toml_values_and_bare_text(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(to_toml(Recipe.parse(MINIMAL)), encoding="utf-8")
    recipe = Recipe.load(path, ["train.steps=7", "tokenizer.algorithm=word", "model.tied=false", "name = b"])
    assert (recipe.train.steps, recipe.tokenizer.algorithm, recipe.model.tied) == (7, "word", False)
    with pytest.raises(RecipeError, match="write it as"):
        Recipe.load(path, ["train.steps"])
    with pytest.raises(RecipeError, match='did you mean "steps"'):
        Recipe.load(path, ["train.step=7"])
    with pytest.raises(RecipeError, match="not a section"):
        Recipe.load(path, ["name.first=7"])
    with pytest.raises(RecipeError, match="several lines"):
        Recipe.load(path, ["train.steps=7\nseed=3"])
    for value in ("9" * 5000, "[" * 5000 + "]" * 5000):
        with pytest.raises(RecipeError, match=r"train\.steps: "):
            Recipe.load(path, [f"train.steps={value}"])


def test_relative_sources_are_relative_to_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    tests = [{"path": "cases.jsonl"}, {"path": "suite:arabic", "share": 0.5}]
    path.write_text(to_toml(Recipe.parse({**MINIMAL, "tests": tests})), encoding="utf-8")
    loaded = Recipe.load(path)
    assert loaded.corpus.sources[0].path == str(tmp_path / "x.txt")
    assert [each.path for each in loaded.tests] == [str(tmp_path / "cases.jsonl"), "suite:arabic"]
    assert loaded.shares == {"cases": 1.0, "arabic": 0.5}


@given(steps=st.integers(1, 10**9), rate=st.floats(1e-9, 1e3), prompt=st.text(max_size=20), tied=st.booleans())
def test_to_toml_and_back(steps: int, rate: float, prompt: str, tied: bool) -> None:
    recipe = tiny_recipe(
        Path("/x.txt"),
        train={"steps": steps, "learning_rate": rate},
        gate={"prompts": [prompt]},
        model={"tied": tied},
    ).model_copy(update={"tests": (ModelTests.of("اختبار 1.jsonl", 0.25),)})
    assert Recipe.parse(tomllib.loads(to_toml(recipe))) == recipe


@pytest.mark.parametrize("name", ["demo", *SIZES])
def test_included_recipes_load_and_their_comments_are_the_descriptions(name: str) -> None:
    path = RECIPES / f"{name}.toml"
    text = path.read_text(encoding="utf-8")
    assert Recipe.load(path).name == name
    assert text.endswith(to_toml(Recipe.parse(tomllib.loads(text))))


def test_a_recipe_takes_the_storage_types_of_the_format_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MATRIX_TYPES, "f33", MATRIX_TYPES["f32"])
    for name in MATRIX_TYPES:
        assert Recipe.parse({**MINIMAL, "package": {"dtype": name}}).package.dtype == name
    with pytest.raises(RecipeError, match=r"package\.dtype: known are f32, .*, f33 \(it is 'f34'\)"):
        Recipe.parse({**MINIMAL, "package": {"dtype": "f34"}})


def test_a_digest_depends_on_values_and_not_on_order() -> None:
    assert digest({"a": 1, "b": "ب"}) == digest({"b": "ب", "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
