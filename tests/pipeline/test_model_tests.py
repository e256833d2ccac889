"""Model tests in a build: what they change, where mistakes are found, and what the gate makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qalam_core.errors import CorpusError, RecipeError
from qalam_core.evaluation.results import Report
from qalam_core.pipeline.audit import _check_sources
from qalam_core.pipeline.build import build
from qalam_core.pipeline.plan import plan
from qalam_core.pipeline.publish import Published
from qalam_core.recipe import Recipe
from tests.conftest import SUBJECTS, VERBS, Built, sentences

RIGHT = {"kind": "pair", "id": "order", "right": f"{VERBS[0]} {SUBJECTS[0]}", "wrong": f"{SUBJECTS[0]} {VERBS[0]} "}
WRONG = {"kind": "pair", "id": "reversed", "right": "ظظظ غغغ ذذذ ظظظ", "wrong": sentences(1)[0]}


def with_tests(built: Built, folder: Path, *cases: dict[str, Any], share: float = 0.0) -> Recipe:
    folder.mkdir(exist_ok=True)
    (folder / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")
    tests = [{"path": str(folder / "cases.jsonl"), "share": share}]
    return Recipe.parse({**built.recipe.canonical(), "tests": tests})


def outcomes(published: Published) -> dict[str, bool]:
    report = Report.model_validate_json((published.folder / "report.json").read_bytes())
    return {case.case: case.passed for found in report.tests for case in found.cases}


def test_tests_are_run_after_training_and_depend_on_their_content_alone(mine: Built, tmp_path: Path) -> None:
    recipe = with_tests(mine, tmp_path / "one", RIGHT, WRONG)
    assert [row.stage for row in plan(recipe, mine.store).rows if row.action == "build"] == ["evaluate", "gate"]
    first = build(recipe, mine.store)
    assert outcomes(first) == {"order": True, "reversed": False}
    assert "cases: 1 of 2 cases passed" in (first.folder / "report.md").read_text(encoding="utf-8")
    assert "cases: 1 of 2 cases passed" in (first.folder / "model" / "MODEL_CARD.md").read_text(encoding="utf-8")
    page = (first.folder / "report.html").read_text(encoding="utf-8")
    assert "Model tests" in page
    assert f'<bdi dir="rtl" lang="ar">{WRONG["right"]}</bdi>' in page
    assert build(with_tests(mine, tmp_path / "moved", RIGHT, WRONG), mine.store).cached
    assert not build(with_tests(mine, tmp_path / "one", RIGHT), mine.store).cached


def test_the_gate_decides_by_the_share_and_by_the_champion(mine: Built, tmp_path: Path) -> None:
    must = {**RIGHT, "mark": "must"}
    first = build(with_tests(mine, tmp_path / "tests", must, WRONG, share=0.5), mine.store)
    assert first.champion
    more = {**RIGHT, "id": "more", "right": f"{VERBS[1]} {SUBJECTS[1]}"}
    lower = build(with_tests(mine, tmp_path / "tests", must, WRONG, more, share=0.4), mine.store)
    assert lower.verdict.failed() == ["gate settings"]
    message = next(check.message for check in lower.verdict.checks if check.name == "tests against the champion")
    assert "cases: of 2 common cases, 0 passed before and fail now" in message
    assert "cases: 1 not compared, as the champion was not measured on them" in message
    higher = build(with_tests(mine, tmp_path / "tests", must, WRONG, share=0.6), mine.store)
    assert higher.verdict.failed() == ["tests"]
    required = build(with_tests(mine, tmp_path / "tests", must, {**WRONG, "mark": "must"}, share=0.5), mine.store)
    assert required.verdict.failed() == ["tests"]


def test_a_mistake_is_found_before_anything_is_built(built: Built, tmp_path: Path) -> None:
    recipe = with_tests(built, tmp_path / "tests", {**RIGHT, "wrong": ""})
    for call in (plan, build):
        with pytest.raises(RecipeError, match=r"cases\.jsonl:1: wrong: "):
            call(recipe, built.store)


def test_a_run_whose_tests_changed_is_not_reproduced(mine: Built, tmp_path: Path) -> None:
    published = build(with_tests(mine, tmp_path / "tests", RIGHT), mine.store)
    record = mine.runs.record(published.run)
    _check_sources(mine.store, record, published.run)
    with_tests(mine, tmp_path / "tests", WRONG)
    with pytest.raises(CorpusError, match=r"cases\.jsonl has changed since"):
        _check_sources(mine.store, record, published.run)
    (tmp_path / "tests" / "cases.jsonl").unlink()
    with pytest.raises(CorpusError, match="there is no file"):
        _check_sources(mine.store, record, published.run)


def test_no_path_is_hashed(mine: Built, tmp_path: Path) -> None:
    build(with_tests(mine, tmp_path / "tests", RIGHT), mine.store)
    for manifest in mine.store.root.rglob("manifest.json"):
        assert str(tmp_path / "tests") not in manifest.read_text(encoding="utf-8")
