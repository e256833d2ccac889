"""The noise of a recipe's seed: the same recipe trained with several seeds, measured on the same test split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from qalam_core.corpus.sources import resolve
from qalam_core.errors import TrainingError
from qalam_core.pipeline.build import History, InPlace, evaluated
from qalam_core.pipeline.evaluate import measured
from qalam_core.progress import Progress
from qalam_core.recipe import Recipe
from qalam_core.runs import Runs
from qalam_core.store import Store


class Trained(NamedTuple):
    """A seed, and the bits per byte of the model that was trained with it."""

    seed: int
    bits_per_byte: float


def trained(recipe: Recipe, store: Store, count: int, progress: Callable[[int], Progress]) -> Iterator[Trained]:
    """Train and measure the recipe with its own seed and those after it; artifacts of earlier builds are reused.

    From scratch where the recipe continues: there is no new text for the seeds to differ on.
    `progress` gives the callback that counts the training steps of a seed. Raises QalamError.
    """
    test = None
    for seed in range(recipe.seed, recipe.seed + count):
        one = recipe.model_copy(update={"seed": seed % 2**32})
        if one.train.start == "continue":
            one = one.model_copy(update={"train": one.train.model_copy(update={"start": "scratch"})})
        files = resolve(one.corpus.sources, store.digests)
        stages = evaluated(one, files, History(Runs(store)), InPlace(store, progress(one.seed)))
        report, _ = measured(stages[-1])
        test = test or report.test_digest
        bits = report.bits_per_byte.model
        if not (report.test_digest == test and math.isfinite(bits) and bits > 0):
            raise TrainingError(f"seed {one.seed}: its model has no figure that can be compared; look at its training")
        yield Trained(one.seed, bits)


def seed_sd(bits: list[float]) -> float:
    """The standard deviation over seeds, as a share of the mean."""
    return float(np.std(bits, ddof=1) / np.mean(bits))
