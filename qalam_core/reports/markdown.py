"""The Markdown report of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qalam_core.corpus.prepare import CorpusFacts
from qalam_core.evaluation.results import Budgets, Report, Verdict
from qalam_core.recipe import Recipe, to_toml
from qalam_core.reports.render import render
from qalam_core.runs import Ancestor, SeenFacts


def markdown(
    recipe: Recipe, report: Report, budgets: Budgets, verdict: Verdict, corpus: CorpusFacts,
    timings: Mapping[str, float], lineage: Sequence[Ancestor], seen: SeenFacts,
) -> str:  # fmt: skip
    """The report in GitHub's Markdown; `timings` are seconds by stage."""
    return render(
        "report.md", recipe=recipe, recipe_toml=to_toml(recipe), report=report, budgets=budgets, verdict=verdict,
        corpus=corpus, timings=timings, lineage=lineage, seen=seen,
    )  # fmt: skip
