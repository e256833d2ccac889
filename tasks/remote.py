"""Training in another work pool, on the same store: a task that runs the deployment `train_model` and waits for it.
The run gets the digests of its input artifacts, and returns the digest of the checkpoint, and its seconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prefect import task
from prefect.client.schemas import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from al_qalam.tasks.policy import POLICY, tag_of
from al_qalam.tasks.progress import shown
from qalam_core.errors import RecipeError, TrainingError
from qalam_core.files import json_object
from qalam_core.object_store import store_at
from qalam_core.pipeline.train import Train
from qalam_core.progress import waiting
from qalam_core.recipe import Recipe
from qalam_core.store import Artifact, Store


@task(name="train", task_run_name="train in {deployment}", tags=["training"], **POLICY)
def train(deployment: str, store: str, recipe: Recipe, stage: Train) -> Any:
    """Run `deployment` to train, unless the store has the checkpoint. Raises RecipeError, TrainingError."""
    home = store_at(store)
    ready = home.reuse(stage.identity)
    if ready:
        return shown(stage, ready)
    parameters = {
        "recipe": recipe.canonical(), "store": store, "tokenizer": stage.tokenizer.digest,
        "tokens": [artifact.digest for artifact in stage.tokens],
        "parent": stage.warm_start.parent.run if stage.warm_start else "",
        "corpus": next((file.artifact.digest for file in (*stage.texts, stage.copies) if file), ""),
        "continues": bool(stage.texts),
    }  # fmt: skip
    try:
        with waiting(f"the training run of {deployment}"):
            run = run_deployment(deployment, parameters=parameters, poll_interval=5, tags=[tag_of(recipe.name)])
    except ObjectNotFound:
        raise RecipeError(f"training: the server has no deployment {deployment}; `qalam deploy` creates it") from None
    assert isinstance(run, FlowRun)
    assert run.state  # it has ended
    if not run.state.is_completed():
        raise TrainingError(
            f"run {run.name} of {deployment} ended {run.state.name}: {run.state.message}; a new run resumes it"
        )
    return shown(stage, _received(home, run.state.message or ""))


def result(checkpoint: Artifact) -> str:
    """The message of the training run's final state: the checkpoint's digest, and how long it took."""
    return json.dumps(
        {"checkpoint": checkpoint.digest, "seconds": round(checkpoint.seconds, 3), "waited": checkpoint.waited}
    )


def _received(home: Store, message: str) -> Artifact:
    found = json_object(message)
    artifact = home.artifact("train", found["checkpoint"])
    made = replace(artifact, cached=False, seconds=found["seconds"], waited=found["waited"])
    return made.with_manifest(artifact.manifest)


def found(store: str, tokenizer: str, tokens: Sequence[str]) -> tuple[Artifact, list[Artifact]]:
    """The tokenizer and the token shards with these digests. Raises StoreError."""
    home = store_at(store)
    return home.artifact("vocab", tokenizer), [home.artifact("tokenize", digest) for digest in tokens]
