"""The page of a recipe name: its runs over time, and who was champion; one file without references to others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from markupsafe import Markup

from qalam_core.reports import plots
from qalam_core.reports.render import render
from qalam_core.runs import Promotion, State, Summary, outcome, states

_SHOWN = 50
"""Rows of a table; the command line lists all."""


def history_page(
    name: str, summaries: Mapping[str, Summary], promotions: Sequence[Promotion], link: Callable[[str], str]
) -> str:
    """The page of recipe `name`; `link` gives the address of a run's report, or "". `summaries` are oldest first."""
    found = states({run: summary.verdict for run, summary in summaries.items()}, promotions)
    promoted = {line.run for line in promotions}
    bits = {run: one.bits_per_byte.model for run, one in summaries.items() if math.isfinite(one.bits_per_byte.model)}
    points: dict[str, list[plots.Point]] = {kind: [] for kind in plots.KINDS}
    for run, figure in bits.items():
        points[_kind(found[run], run in promoted)].append((summaries[run].created, figure))
    times = [(_time(line.when), line.run) for line in promotions]
    champions = [(when, bits[run]) for when, run in times if when and run in bits]
    plot, above = plots.history(points, champions) if bits else ("", 0)
    champion = promotions[-1].run if promotions else ""
    rows = [(run, summary, outcome(summary.verdict, found[run])) for run, summary in summaries.items()]
    return render(
        "history.html", name=name, rows=rows[::-1], champion=champion, bits=bits.get(champion),
        lines=promotions[::-1], shown=_SHOWN, plot=Markup(plot), above=above,  # noqa: S704  # matplotlib escapes text
        infinite=len(summaries) - len(bits), gone=len(promoted - summaries.keys()), link=link,
    )  # fmt: skip


def _kind(states: Sequence[State], promoted: bool) -> str:
    """One of plots.KINDS."""
    if promoted:
        return "rolled back" if "rolled-back" in states else "champion"
    return next(state for state in ("passed", "waiting", "refused") if state in states)


def _time(text: str) -> datetime | None:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:  # a line that was written by hand
        return None
    return when if when.tzinfo else None
