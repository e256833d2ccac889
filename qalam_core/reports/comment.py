"""A proposal as the comment on its pull request, in GitHub's Markdown."""

from __future__ import annotations

from qalam_core.reports.render import render
from qalam_core.runs import RunRecord


def comment(run: str, record: RunRecord, decision: str) -> str:
    """The verdict on the proposal `run`, its failed checks and what was edited; `decision` is what became of it."""
    return render("comment.md", run=run, record=record, verdict=record.verdict, decision=decision)
