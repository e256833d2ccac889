"""Training in another work pool, on the same store: a task that runs the deployment `train_model` and waits for it.
The run gets the digests of the corpus and the tokenizer, from which those of the token shards follow, and returns the
digest of the checkpoint, and its seconds.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from prefect import task
from prefect.client.schemas import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from al_qalam.tasks.policy import POLICY, tag_of
from al_qalam.tasks.progress import ended, shown
from qalam_core.errors import RecipeError, TrainingError
from qalam_core.files import json_object
from qalam_core.object_store import store_at
from qalam_core.pipeline.lineage import WarmStart
from qalam_core.pipeline.prepare import Prepare
from qalam_core.pipeline.tokenize import Tokenize
from qalam_core.pipeline.train import Train
from qalam_core.pipeline.vocab import Vocab
from qalam_core.progress import waiting
from qalam_core.recipe import Recipe
from qalam_core.store import Artifact, Store


@task(name="train", task_run_name="train in {deployment}", tags=["training"], **POLICY)
def train(deployment: str, store: str, recipe: Recipe, stage: Train) -> Any:
    """Run `deployment` to train, unless the store has the checkpoint. Raises RecipeError, TrainingError."""
    home = store_at(store)
    ready = home.reuse(stage.identity)
    if ready:
        return ended([shown(stage, ready)])
    given = parameters(store, recipe, stage)
    try:
        with waiting(f"the training run of {deployment}"):
            run = run_deployment(deployment, parameters=given, poll_interval=5, tags=[tag_of(recipe.name)])
    except ObjectNotFound:
        raise RecipeError(f"training: the server has no deployment {deployment}; `qalam deploy` creates it") from None
    except PrefectHTTPStatusError as error:
        if error.response.status_code not in (409, 422):
            raise
        raise RecipeError(f"training: {deployment} takes other parameters; `qalam deploy` updates it") from None
    assert isinstance(run, FlowRun)
    assert run.state  # it has ended
    if not run.state.is_completed():
        raise TrainingError(
            f"run {run.name} of {deployment} ended {run.state.name}: {run.state.message}; a new run resumes it"
        )
    return ended([shown(stage, _received(home, run.state.message or ""))])


def parameters(store: str, recipe: Recipe, stage: Train) -> dict[str, Any]:
    """Of `train_model`, for this training."""
    return {
        "recipe": recipe.canonical(), "store": store, "corpus": stage.corpus, "tokenizer": stage.tokenizer.digest,
        "parent": stage.warm_start.parent.run if stage.warm_start else "", "continues": bool(stage.texts),
    }  # fmt: skip


def result(checkpoint: Artifact) -> str:
    """The message of the training run's final state: the checkpoint's digest, and how long it took."""
    return json.dumps(
        {"checkpoint": checkpoint.digest, "seconds": round(checkpoint.seconds, 3), "waited": checkpoint.waited}
    )


def _received(home: Store, message: str) -> Artifact:
    found = json_object(message)
    artifact = home.manifests().artifact("train", found["checkpoint"])
    made = replace(artifact, cached=False, seconds=found["seconds"], waited=found["waited"])
    return made.with_manifest(artifact.manifest)


def stage_of(home: Store, recipe: Recipe, corpus: str, tokenizer: str, start: WarmStart | None) -> Train:
    """The training on a prepared corpus, which begins with `start`, from digests. Raises StoreError."""
    there = home.manifests()  # what the training reads of them is copied when it begins
    text = Artifact(Prepare.name, corpus, home.artifact_folder(Prepare.name, corpus))
    text = text.with_manifest(home.manifest(Prepare.name, corpus))  # unread: few trainings read the text
    vocabulary = there.artifact(Vocab.name, tokenizer)
    tokens = [there.artifact(made.name, made.identity.digest) for made in Tokenize.all_of(text, vocabulary)]
    stage = Train.of(recipe, vocabulary, tokens, start, text)
    if stage.texts or stage.copies:
        there.artifact(Prepare.name, corpus)
    return stage
