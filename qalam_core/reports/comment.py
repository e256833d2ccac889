"""A proposal as the comment on its pull request, in GitHub's Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from qalam_core.reports.render import render
from qalam_core.runs import RunRecord, exceptions


def comment(run: str, record: RunRecord, champion: bool, held: str, sentences: Sequence[str] = ()) -> str:
    """The verdict on the proposal `run`, what failed, what was edited, and the `sentences` of a review.

    `champion`: whether it is the champion now; `held`: why it waits for a person although it passed.
    """
    needed = exceptions(record.verdict)
    return render(
        "comment.md", run=run, record=record, verdict=record.verdict, champion=champion, held=held,
        waits=bool(needed) and "refused" not in needed, sentences=sentences,
        flags=" ".join(f"--accept-{name}" for name in needed),
    )  # fmt: skip
