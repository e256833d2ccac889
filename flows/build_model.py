"""The flows that make a model: `build_model`, a corpus in, a versioned package out, and `train_model`, its
training alone, for another work pool.
They take a recipe and a store, give the published run; a build ends Failed when the gate refuses the model.
They do not know what any task does.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, unmapped
from prefect.client.schemas import State
from prefect.states import Completed, Failed

from al_qalam.tasks import remote, stages
from al_qalam.tasks.policy import confined
from al_qalam.tasks.runners import workers
from qalam_core.pipeline.build import shards
from qalam_core.recipe import Recipe
from qalam_core.store import Artifact

__all__ = ["build_model", "one_of", "train_model"]


@flow(name="build_model", flow_run_name="build {recipe.name}", persist_result=False)
def build_model(recipe: Recipe, store: str = ".qalam", training: str = "") -> Any:
    """Build a model from a recipe; what the store already holds is not built again.

    Args:
        recipe: everything that determines the model
        store: folder of artifacts and runs, on the machine that runs the flow
        training: deployment that trains, `train_model/train`, in a work pool of its own which sees the
            same store; empty: train where this flow runs
    """
    store = confined(store)
    with workers(recipe.runner) as pool:
        files = stages.resolve(recipe.corpus)
        documents = pool.map(stages.ingest, store=unmapped(store), file=files)
        corpus = one_of(stages.prepare(store, recipe, documents))
        tokenizer = one_of(stages.vocab(store, recipe, corpus))
        names, words = shards(corpus), unmapped(tokenizer)
        tokens = pool.map(stages.tokenize, store=unmapped(store), corpus=unmapped(corpus), shard=names, tokenizer=words)
    if training:
        checkpoint = one_of(remote.train(training, store, recipe, tokenizer, tokens))
    else:
        checkpoint = one_of(stages.train(store, recipe, tokenizer, tokens))
    package = one_of(stages.export(store, recipe, corpus, tokenizer, checkpoint))
    evaluation = one_of(stages.evaluate(store, recipe, package, checkpoint, corpus, tokens))
    verdict = one_of(stages.gate(store, recipe, evaluation))
    done = [*documents, corpus, tokenizer, *tokens, checkpoint, package, evaluation, verdict]
    published = stages.publish(store, recipe, done)
    if not published.verdict.passed:
        return Failed(message="the gate refused: " + " ".join(published.verdict.reasons()), data=published)
    return published


@flow(name="train_model", flow_run_name="train {recipe.name}", persist_result=False)
def train_model(recipe: Recipe, tokenizer: str, tokens: list[str], store: str = ".qalam") -> Any:
    """Train from artifacts that the store holds; the state's message is the digest of what came out.

    Args:
        recipe: everything that determines the model
        tokenizer: digest of the tokenizer
        tokens: digests of the token shards, in order
        store: folder of artifacts and runs, as this machine sees it
    """
    store = confined(store)
    words, shards_of_tokens = remote.found(store, tokenizer, tokens)
    checkpoint = one_of(stages.train(store, recipe, words, shards_of_tokens))
    return Completed(message=checkpoint.digest, data=checkpoint)


def one_of(returned: Any) -> Artifact:
    """What a task called in place returned; a reused artifact comes inside its Cached state."""
    artifact: Artifact = returned.result() if isinstance(returned, State) else returned
    return artifact
