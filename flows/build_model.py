"""The flows `build_model`, from a corpus to a versioned package, `propose_model`, from an edited package to a run, and
`train_model`, training alone, for a work pool of its own. The order of the stages is in qalam_core.pipeline.build.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.states import Completed, Failed

from al_qalam.tasks import remote, stages
from al_qalam.tasks.events import deliver
from al_qalam.tasks.executor import AsTasks, made_by
from al_qalam.tasks.links import report_base
from al_qalam.tasks.outcome import RefusedError, supervised
from al_qalam.tasks.policy import REFUSED, confined, run_name
from al_qalam.tasks.runners import workers
from qalam_core.object_store import store_at
from qalam_core.pipeline.build import History, proposed, stages_in_order
from qalam_core.pipeline.lineage import WarmStart
from qalam_core.pipeline.propose import candidate, proposer
from qalam_core.pipeline.publish import Published
from qalam_core.pipeline.train import Train
from qalam_core.recipe import Recipe
from qalam_core.runs import Runs


@flow(name="build_model", flow_run_name=run_name("build {recipe.name}"), persist_result=False)
@supervised
def build_model(recipe: Recipe, store: str = ".qalam", training: str = "", verify: bool = False) -> Any:
    """Build a model from a recipe, reusing artifacts in the store; Failed when the gate refuses the model.

    Args:
        recipe: everything that determines the model
        store: folder of artifacts and runs on the machine that runs the flow, or s3://BUCKET/PREFIX
        training: deployment that trains (`train_model/train`), in a work pool whose machines see the same store;
            empty: train in this flow's process
        verify: read all sources and artifacts, also where their sizes and times are as they were
    """
    store = confined(store)
    report_base()  # a wrong address is an error now, and not after the training
    if verify:
        store_at(store).doubt()
    files = stages.resolve(recipe.corpus, store)
    with workers(recipe.runner) as pool:
        executor = AsTasks(store, pool, recipe, training)
        artifacts = stages_in_order(recipe, files, History(Runs(store_at(store))), executor)
    return _ended(stages.publish(store, recipe, artifacts), store)


@flow(name="propose_model", flow_run_name=run_name("propose {package}"), persist_result=False)
@supervised
def propose_model(
    package: str, why: str, who: str = "", recipe: Recipe | None = None, store: str = ".qalam", promote: bool = True
) -> Any:  # fmt: skip
    """Measure an edited, imported or merged package and publish it as a run; Failed when the gate refuses it.

    Args:
        package: folder of the sealed package, on the machine that runs the flow
        why: why it should become champion, for the run and the history
        who: who proposes it; empty: the user of the process
        recipe: its name selects the champion, its gate decides; empty: that of the run that exported the package
        store: folder of artifacts and runs on the machine that runs the flow, or s3://BUCKET/PREFIX
        promote: make it champion if it passes; false: only judge it
    """
    store = confined(store)
    report_base()
    home = store_at(store)
    found = replace(candidate(Runs(home), Path(package), why, proposer(who), recipe), only_judged=not promote)
    files = [] if found.corpus else stages.resolve(found.recipe.corpus, store)
    with workers(found.recipe.runner) as pool:
        executor = AsTasks(store, pool, found.recipe)
        artifacts = proposed(found, files, History(Runs(home)), executor)
    return _ended(stages.publish(store, found.recipe, artifacts, found), store)


def _ended(published: Published, store: str) -> Any:
    message = "; ".join(filter(None, [published.decision, deliver(store_at(store))]))
    if not published.verdict.passed:
        return Failed(name=REFUSED, message=message, data=RefusedError(published.decision, published))
    return Completed(message=message, data=published)


@flow(name="train_model", flow_run_name="train {recipe.name}", persist_result=False)
@supervised
def train_model(
    recipe: Recipe, corpus: str, tokenizer: str, store: str = ".qalam", parent: str = "", continues: bool = False
) -> Any:  # fmt: skip
    """Train from artifacts in the store; the message of the final state has the digest of the checkpoint.

    Args:
        recipe: everything that determines the model
        corpus: digest of the prepared corpus
        tokenizer: digest of the tokenizer
        store: folder of artifacts and runs on the machine that runs the flow, or s3://BUCKET/PREFIX
        parent: the run whose weights to begin with; empty: random ones
        continues: whether the training of `parent` goes on; else its weights alone are taken
    """
    store = confined(store)
    home = store_at(store)
    start = WarmStart.of(Runs(home), parent, recipe) if parent else None
    if start and not continues:
        start = replace(start, state=None)
    stage = remote.stage_of(home, recipe, corpus, tokenizer, start)
    (checkpoint,) = made_by(stages.task_of(Train)(store, [stage]))
    return Completed(message=remote.result(checkpoint), data=checkpoint)
