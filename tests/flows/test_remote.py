"""Training in a work pool of its own: what its run is given, however large the corpus is, and what it makes of that."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from al_qalam.flows.build_model import train_model
from al_qalam.tasks import remote
from al_qalam.tasks.remote import parameters, stage_of
from al_qalam.tasks.stages import rows
from qalam_core.errors import DamagedError, RecipeError, StoreError
from qalam_core.pipeline.train import Train
from qalam_core.recipe import Recipe
from qalam_core.store import Artifact, Manifest
from tests.conftest import Built
from tests.flows.processes import call

NONE = "0" * 64


def training(built: Built, recipe: Recipe) -> Train:
    """As the order of the stages makes it."""
    kinds = {kind: [made for made in built.published.artifacts if made.stage == kind] for kind in ("tokenize", "vocab")}
    (corpus,) = (made for made in built.published.artifacts if made.stage == "prepare")
    return Train.of(recipe, kinds["vocab"][0], kinds["tokenize"], None, corpus)


@pytest.mark.parametrize("copies", ["once", "log"])
def test_a_run_finds_all_that_the_training_reads(built: Built, copies: str) -> None:
    recipe = built.recipe.model_copy(update={"train": built.recipe.train.model_copy(update={"copies": copies})})
    stage = training(built, recipe)
    given = parameters(str(built.store.root), recipe, stage)
    assert given.keys() <= inspect.signature(train_model.fn).parameters.keys()
    found = stage_of(built.store, Recipe.parse(given["recipe"]), given["corpus"], given["tokenizer"], None)
    assert found == stage
    assert found.identity == stage.identity
    assert (found.copies is None) == (copies == "once")
    assert (built.store.find(found.identity) is None) == (copies == "log")


def test_parameters_do_not_grow_with_the_corpus(built: Built) -> None:
    """Prefect takes 512 kB of them."""
    stage = training(built, built.recipe)
    many = tuple(Artifact("tokenize", f"{number:064x}", Path("x")) for number in range(10_000))
    given = parameters("s3://bucket/models", built.recipe, replace(stage, tokens=many))
    assert len(json.dumps(given)) < 10_000


def test_what_is_not_in_the_store_is_one_line(built: Built) -> None:
    stage = training(built, built.recipe)
    for corpus, tokenizer in ((NONE, stage.tokenizer.digest), (stage.corpus, NONE)):
        with pytest.raises(DamagedError, match=r"(prepare|vocab).0{12}.*missing or damaged.*; build its"):
            stage_of(built.store, built.recipe, corpus, tokenizer, None)
    with pytest.raises(StoreError, match="is not an artifact"):
        stage_of(built.store, built.recipe, "../" * 8, stage.tokenizer.digest, None)


def test_a_corpus_is_looked_at_where_training_reads_it(mine: Built) -> None:
    recipe = mine.recipe.model_copy(update={"train": mine.recipe.train.model_copy(update={"copies": "log"})})
    stage = training(mine, recipe)
    assert stage.copies
    stage.copies.path.write_bytes(b"damaged")
    with pytest.raises(DamagedError, match=f"prepare {stage.corpus[:12]} is missing or damaged"):
        stage_of(mine.store, recipe, stage.corpus, stage.tokenizer.digest, None)
    assert stage_of(mine.store, mine.recipe, stage.corpus, stage.tokenizer.digest, None).copies is None


def test_a_deployment_of_an_earlier_version_is_one_line(built: Built, api: str) -> None:
    flow = call(api, "flows/", {"name": "train_model"})["id"]
    schema = {"type": "object", "properties": {"tokens": {"type": "array"}}, "required": ["tokens"]}
    call(api, "deployments/", {"name": "earlier", "flow_id": flow, "enforce_parameter_schema": True,
                               "parameter_openapi_schema": schema})  # fmt: skip
    stage = training(built, built.recipe.model_copy(update={"seed": 99}))
    with (
        temporary_settings({PREFECT_API_URL: api}),
        pytest.raises(RecipeError, match="`qalam deploy` updates it") as no,
    ):
        remote.train.fn("train_model/earlier", str(built.store.root), built.recipe, stage)
    assert "\n" not in str(no.value)


def test_the_table_of_stages_does_not_grow_with_the_corpus() -> None:
    def made(stage: str, *cached: bool) -> list[Artifact]:
        nothing = Manifest(stage=stage, version=1, settings={}, inputs={}, facts={}, files={})
        return [Artifact(stage, NONE, Path("x"), each, 0.5).with_manifest(nothing) for each in cached]

    some = made("train", False, True)
    assert [(row["stage"], row["result"]) for row in rows(some)] == [("train", "built"), ("train", "cached")]
    first, *others = rows([*made("ingest", *[True] * 9_999, False), *some])
    assert (first["stage"], first["result"], first["seconds"]) == ("ingest", "9,999 cached, 1 built", 5000.0)
    assert others == rows(some)
    assert {*first} == {*others[0]}
