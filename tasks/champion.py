"""The tasks that audit a champion; each shows its result as a table artifact."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from prefect import task
from prefect.artifacts import create_table_artifact

from al_qalam.tasks.policy import POLICY, training_slot
from al_qalam.tasks.progress import watch
from qalam_core.evaluation.results import Verdict
from qalam_core.object_store import store_at
from qalam_core.pipeline import audit
from qalam_core.pipeline.audit import Reproduction
from qalam_core.recipe import Recipe
from qalam_core.runs import Runs
from qalam_core.store import Artifact, Store


@task(name="tokenizer", task_run_name="tokenizer of {run}", **POLICY)
def tokenizer(store: str, run: str) -> Artifact:
    """The artifact with the tokenizer of a run: a proposal may have one of its own."""
    home = store_at(store)
    artifacts = Runs(home).record(run).artifacts
    stage = "vocab" if "vocab" in artifacts else "propose"
    return home.artifact(stage, artifacts[stage][0])


@task(name="remeasure", task_run_name="measure {run} again", **POLICY)
def remeasure(store: str, recipe: Recipe, run: str, corpus: Artifact, tokens: Sequence[Artifact]) -> Verdict:
    """Evaluate a run's package on a corpus, and apply the gate."""
    with watch("evaluate", f"evaluate {run}", "tokens") as progress:
        verdict = audit.remeasure(store_at(store), recipe, run, corpus, tokens, progress)
    rows = [{"check": check.name, "result": check.state, "what": check.message} for check in verdict.checks]
    create_table_artifact(rows, key="champion", description=f"{run} at the current gate")
    return verdict


@task(name="reproduce", task_run_name="build {run} again", tags=["training"], **POLICY)
def reproduce(store: str, run: str, lineage: bool) -> Reproduction:
    """Build a run again in an empty temporary store on the same disk, and compare."""
    home = store_at(store)
    with (
        tempfile.TemporaryDirectory(prefix=".reproducing-", dir=home.root) as folder, training_slot(),
        watch("train", f"reproduce {run}", "steps") as progress,
    ):  # fmt: skip
        progress(0, 0)  # the stages before training do not call it
        found = audit.reproduce(home, run, Store(Path(folder)), progress, lineage)
    rows = [
        {"artifact": row.stage, "then": row.then[-12:], "now": row.now[-12:], "same": row.matches and row.decided,
         "differing": ", ".join(row.differing)}
        for row in found.rows
    ]  # fmt: skip
    create_table_artifact(rows, key="reproduction", description="; ".join([f"{run}: {found.basis}", *found.notes]))
    return found
