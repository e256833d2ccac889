"""How often a build reads the package that it exports, whose weights may be gigabytes."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from qalam_core.corpus.sources import resolve
from qalam_core.pipeline.build import History, InPlace, stages_in_order
from qalam_core.pipeline.publish import publish
from qalam_core.pipeline.stage import Stage
from qalam_core.runs import Runs
from qalam_core.store import Artifact, Store
from tests.conftest import tiny_recipe

READS = {
    "export": 1,  # the store records its digest
    "evaluate": 2,  # parsed without execution; its digest against the package's manifest. A child process imports it.
    "publish": 1,  # copied into the run's folder
}
AGAIN: dict[str, int] = {}  # its size and times are as they were when the store read it

_stage = ""
_opened: Counter[str] = Counter()


def _count(event: str, arguments: tuple[object, ...]) -> None:
    # a mode of None is os.open, which the store uses to flush files
    if _stage and event == "open" and str(arguments[0]).endswith("/weights.py") and str(arguments[1]).startswith("r"):
        _opened[_stage] += 1


sys.addaudithook(_count)


@dataclass(frozen=True)
class Counted(InPlace):
    """Names the stage that reads files are counted for."""

    def run(self, stage: Stage) -> Artifact:
        global _stage
        _stage = stage.name
        return super().run(stage)


def reads(store: Store, corpus: Path) -> dict[str, int]:
    """Stage -> how often it opens weights.py for reading in this process, in one build."""
    global _stage
    recipe, runs = tiny_recipe(corpus, train={"steps": 2}), Runs(store)
    _opened.clear()
    try:
        artifacts = stages_in_order(recipe, resolve(recipe.corpus.sources), History(runs), Counted(store))
        _stage = "publish"
        publish(runs, recipe, artifacts)
    finally:
        _stage = ""
    return dict(_opened)


@pytest.mark.usefixtures("processes")
def test_a_build_reads_the_package_once_per_purpose(store: Store, corpus_file: Path) -> None:
    assert reads(store, corpus_file) == READS
    assert reads(store, corpus_file) == AGAIN
