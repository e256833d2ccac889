"""Sources with weights, and documents that stand for others: what training reads of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qalam_core.pipeline.build import build
from qalam_core.pipeline.export import PACKAGE
from qalam_core.pipeline.plan import plan
from qalam_core.recipe import Recipe
from qalam_core.runs import TrainFacts
from qalam_core.store import Store
from tests.conftest import sentences, tiny_recipe

OPEN = {"tolerance": 5.0, "max_copied": 1.0, "max_repeated": 1.0, "max_empty": 1.0, "beat_unigram": 0.0}
LOOSE = {**OPEN, "slice_tolerance": 5.0}


def corpus(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(("stories", "letters")):
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in sentences(220, seed=number))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def recipe_of(folder: Path, stories: float = 1.0, letters: float = 1.0, **train: Any) -> Recipe:
    sources = [
        {"path": str(folder / f"{name}.jsonl"), "name": name, "weight": weight}
        for name, weight in (("stories", stories), ("letters", letters))
    ]
    return tiny_recipe(folder, corpus={"sources": sources}, train={"steps": 40, **train}, gate=LOOSE)


@pytest.mark.usefixtures("processes")
def test_a_source_is_read_as_often_as_it_weighs(tmp_path: Path) -> None:
    folder, store = corpus(tmp_path / "corpus"), Store(tmp_path / "store")
    even = build(recipe_of(folder), store)
    weighed = build(recipe_of(folder, stories=3.0, letters=0.5), store)
    facts = [next(made.facts(TrainFacts) for made in run.artifacts if made.stage == "train") for run in (even, weighed)]
    for fact in facts:
        assert sum(source.read for source in fact.sources.values()) == fact.tokens_seen == 40 * 8 * 32
    times = [{name: one.read / one.tokens for name, one in fact.sources.items()} for fact in facts]
    assert times[0]["stories"] == pytest.approx(times[0]["letters"], rel=0.2)
    assert times[1]["stories"] / times[1]["letters"] == pytest.approx(6, rel=0.25)
    reused = {made.stage for made in weighed.artifacts if made.cached}
    assert {"ingest", "filter", "prepare", "vocab", "tokenize"} <= reused
    text = (weighed.folder / "report.md").read_text(encoding="utf-8")
    row = facts[1].sources["stories"]
    assert f"| stories | {row.tokens:,} | {row.read:,} | {row.read / row.tokens:.2f} |" in text
    assert "read in training" in (weighed.folder / "report.html").read_text(encoding="utf-8")
    assert "read in training" in (weighed.folder / PACKAGE / "MODEL_CARD.md").read_text(encoding="utf-8")
    again = plan(recipe_of(folder, stories=2.0, letters=0.5), store)
    reasons = [row for row in again.rows if row.stage == "train"]
    assert "weights" in str(reasons)


@pytest.mark.usefixtures("processes")
def test_documents_that_stand_for_others_are_read_more_often(tmp_path: Path) -> None:
    folder, store = corpus(tmp_path / "corpus"), Store(tmp_path / "store")
    lines = (folder / "stories.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "stories.jsonl").write_text("\n".join(lines * 4) + "\n", encoding="utf-8")
    once, often = build(recipe_of(folder), store), build(recipe_of(folder, copies="log"), store)
    ratios = []
    for run in (once, often):
        sources = next(made.facts(TrainFacts) for made in run.artifacts if made.stage == "train").sources
        times = {name: one.read / one.tokens for name, one in sources.items()}
        ratios.append(times["stories"] / times["letters"])
    assert ratios[0] == pytest.approx(1, rel=0.2)
    assert ratios[1] == pytest.approx(3, rel=0.25)  # 1 + log2(4)
    assert "at most 4 for one" in (often.folder / "report.md").read_text(encoding="utf-8")
