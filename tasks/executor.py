"""The executor (qalam_core.pipeline.build) that runs each stage as a Prefect task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefect.client.schemas import State

from al_qalam.tasks import remote
from al_qalam.tasks.runners import Workers
from al_qalam.tasks.stages import task_of
from qalam_core.pipeline.stage import Stage
from qalam_core.pipeline.train import Train
from qalam_core.recipe import Recipe
from qalam_core.store import Artifact


@dataclass(frozen=True)
class AsTasks:
    """Runs stages as tasks of the current flow."""

    store: str
    workers: Workers
    recipe: Recipe
    training: str = ""  # the deployment that trains, in a work pool of its own; "": train in this process

    def run(self, stage: Stage) -> Artifact:
        """Run one stage in the flow's process."""
        if self.training and isinstance(stage, Train):
            returned = remote.train(self.training, self.store, self.recipe, stage)
        else:
            returned = task_of(type(stage))(self.store, [stage])
        made = made_by(returned)
        self.workers.returned.append(made)
        return made[0]

    def map(self, stages: Sequence[Stage]) -> list[Artifact]:
        """Run stages on the workers."""
        if not stages:
            return []
        return self.workers.map(task_of(type(stages[0])), self.store, stages)


def made_by(returned: Any) -> Sequence[Artifact]:
    """The artifacts that a task call returned; reused ones are in the data of a state named Cached."""
    made: Sequence[Artifact] = returned.result() if isinstance(returned, State) else returned
    return made
