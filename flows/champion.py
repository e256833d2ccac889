"""The flows that audit a champion: `evaluate_champion` measures it again, `reproduce_champion` builds it again.
They do not change the champion: whether to roll back is a person's decision.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.states import Completed, Failed

from al_qalam.tasks import champion as tasks
from al_qalam.tasks import stages
from al_qalam.tasks.executor import AsTasks
from al_qalam.tasks.outcome import RefusedError, supervised
from al_qalam.tasks.policy import confined, run_name
from al_qalam.tasks.runners import workers
from qalam_core.object_store import store_at
from qalam_core.pipeline.build import ingested, tokenized
from qalam_core.pipeline.lineage import WarmStart
from qalam_core.recipe import Recipe
from qalam_core.runs import Runs


@flow(name="evaluate_champion", flow_run_name=run_name("evaluate champion of {recipe.name}"), persist_result=False)
@supervised
def evaluate_champion(recipe: Recipe, store: str = ".qalam") -> Any:
    """Measure the champion again on the current corpus; Failed when the gate would refuse it today.

    Args:
        recipe: its name selects the champion; its corpus and gate settings are applied
        store: folder of artifacts and runs on the machine that runs the flow, or s3://BUCKET/PREFIX
    """
    store = confined(store)
    runs = Runs(store_at(store))
    run = runs.champion(recipe.name)
    if run is None:
        return Completed(message=f"{recipe.name} has no champion yet")
    files = stages.resolve(recipe.corpus, store)
    proposal = runs.record(run).proposal
    seen = None if proposal and proposal.unknown else WarmStart.of(runs, run, recipe).seen
    with workers(recipe.runner) as pool:
        executor = AsTasks(store, pool, recipe)
        text = tokenized(recipe, ingested(recipe, files, executor), executor, seen, tasks.tokenizer(store, run))
    verdict = tasks.remeasure(store, recipe, run, text.corpus, text.tokens)
    if not verdict.passed:
        decision = f"{run} would not pass today: {' '.join(verdict.reasons())}"
        return Failed(message=decision, data=RefusedError(decision, verdict))
    compared = "" if verdict.comparison else (
        "; it was not compared with its own report, of whose documents too few are in the corpus now"
    )  # fmt: skip
    return Completed(message=f"{run} is still good{compared}", data=verdict)


@flow(name="reproduce_champion", flow_run_name=run_name("reproduce champion of {name}"), persist_result=False)
@supervised
def reproduce_champion(name: str, store: str = ".qalam", lineage: bool = False) -> Any:
    """Build the champion again in an empty store; Failed when an artifact differs from the original in any bit.

    Args:
        name: the name of the recipe whose champion is built
        store: folder of artifacts and runs on the machine that runs the flow, or s3://BUCKET/PREFIX
        lineage: also build the runs that it began from, oldest first, instead of taking its parent's weights
    """
    store = confined(store)
    run = Runs(store_at(store)).champion(name)
    if run is None:
        return Completed(message=f"{name} has no champion yet")
    found = tasks.reproduce(store, run, lineage)
    if not found.matches:
        differing = ", ".join(row.stage for row in found.rows if not row.matches)
        decision = f"{run} is not reproduced: {differing} differ"
        return Failed(message=decision, data=RefusedError(decision, found))
    message = "; ".join([f"{run} is reproduced: {found.count}", found.basis, *found.notes])
    return Completed(message=message, data=found)
