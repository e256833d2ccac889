"""The Markdown report of a run."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from qalam_core.corpus.prepare import CorpusFacts
from qalam_core.evaluation.results import Budgets, Report
from qalam_core.recipe import to_toml
from qalam_core.reports.chain import Chain
from qalam_core.reports.render import render
from qalam_core.reports.tables import NO_CHAMPION
from qalam_core.runs import RunRecord, SourceRead

if TYPE_CHECKING:
    from qalam_core.review.summary import Review


def markdown(
    run: str, record: RunRecord, report: Report, budgets: Budgets, corpus: CorpusFacts, chain: Chain | None,
    review: Review | str = NO_CHAMPION, read: Mapping[str, SourceRead] = MappingProxyType({}),
) -> str:  # fmt: skip
    """The report of `run` in GitHub's Markdown, with its review or why there is none, and what training read."""
    return render(
        "report.md", run=run, record=record, recipe_toml=to_toml(record.recipe), report=report, budgets=budgets,
        verdict=record.verdict, corpus=corpus, chain=chain, review=review, read=read,
    )  # fmt: skip
