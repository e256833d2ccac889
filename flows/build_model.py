"""The flow `build_model`: a corpus in, a versioned model package out.
Takes a recipe and a store, gives the published run; ends Failed when the gate refuses the model.
It does not know what any task does.
"""

from __future__ import annotations

import os
from typing import Any

from prefect import flow, unmapped
from prefect.client.schemas import State
from prefect.futures import PrefectFutureList
from prefect.states import Failed
from prefect.task_runners import ThreadPoolTaskRunner

from qalam_core.recipe import Recipe
from qalam_core.stages import shards
from qalam_core.store import Artifact
from tasks import stages


@flow(
    name="build_model", flow_run_name="build {recipe.name}", persist_result=False,
    # the mapped stages run in native code that frees the interpreter
    task_runner=ThreadPoolTaskRunner(max_workers=os.cpu_count() or 1),  # type: ignore[arg-type]
)  # fmt: skip
def build_model(recipe: Recipe, store: str = ".qalam") -> Any:
    """Build a model from a recipe; what the store already holds is not built again.

    Args:
        recipe: everything that determines the model
        store: folder of artifacts and runs, on the machine that runs the flow
    """
    files = stages.resolve(recipe.corpus)
    documents = _all(stages.ingest.map(unmapped(store), files))
    corpus = _one(stages.prepare(store, recipe, documents))
    tokenizer = _one(stages.vocab(store, recipe, corpus))
    names = shards(corpus)
    tokens = _all(stages.tokenize.map(unmapped(store), unmapped(corpus), names, unmapped(tokenizer)))
    checkpoint = _one(stages.train(store, recipe, tokenizer, tokens))
    package = _one(stages.export(store, recipe, corpus, tokenizer, checkpoint))
    evaluation = _one(stages.evaluate(store, recipe, package, checkpoint, corpus, tokens))
    verdict = _one(stages.gate(store, recipe, evaluation))
    done = [*documents, corpus, tokenizer, *tokens, checkpoint, package, evaluation, verdict]
    published = stages.publish(store, recipe, done)
    if not published.verdict.passed:
        return Failed(message="the gate refused: " + " ".join(published.verdict.reasons()), data=published)
    return published


def _one(returned: Any) -> Artifact:
    """What a task called in place returned; a reused artifact comes inside its Cached state."""
    artifact: Artifact = returned.result() if isinstance(returned, State) else returned
    return artifact


def _all(futures: PrefectFutureList[Any]) -> list[Artifact]:
    """Wait for mapped tasks; the first error is raised as it was."""
    results: list[Artifact] = futures.result()
    return results
