"""The HTML report of a run: one file, complete in itself.
Takes the run's record and what was measured, gives the page; what was garbage-collected is left out, and said.
It measures and decides nothing; templates/report.html says how it looks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qalam_core.corpus.prepare import CorpusFacts
from qalam_core.evaluation.results import Piece, Report, Slice, Verdict
from qalam_core.recipe import to_toml
from qalam_core.reports import plots
from qalam_core.runs import RunRecord, TrainFacts

__all__ = ["page"]

Metrics = Sequence[Mapping[str, Any]]


def page(
    run: str,
    record: RunRecord,
    report: Report,
    corpus: CorpusFacts | None,
    training: TrainFacts | None,
    metrics: Metrics,
) -> str:
    """The page of `run`; `metrics` are the lines of metrics.jsonl."""
    environment = Environment(
        loader=PackageLoader("qalam_core.reports"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(number=_number, share=_share, change=_change, heat=_heat)
    return environment.get_template("report.html").render(
        run=run, record=record, stages=list(record.artifacts), recipe=record.recipe, recipe_toml=to_toml(record.recipe),
        report=report, verdict=record.verdict, slices=_slices(report, record.verdict), facts=corpus, training=training,
        plots=_plots(report, record.verdict, corpus, metrics),
    )  # fmt: skip


def _slices(report: Report, verdict: Verdict) -> list[dict[str, Any]]:
    """One row for everything, and one for each slice where there is more than one."""
    comparison = verdict.comparison
    rows: list[tuple[str, Slice, Any]] = [("all", report.overall, comparison and comparison.overall)]
    if len(report.sources) > 1:
        rows += [(name, part, comparison and comparison.sources.get(name)) for name, part in report.sources.items()]
    return [{"name": name, "figures": part, "champion": compared} for name, part, compared in rows]


def _plots(report: Report, verdict: Verdict, corpus: CorpusFacts | None, metrics: Metrics) -> dict[str, Markup]:
    drawn: dict[str, str] = {}

    def of(key: str, label: str) -> tuple[str, list[float], list[float]]:
        chosen = [line for line in metrics if key in line]
        return label, [line["step"] for line in chosen], [line[key] for line in chosen]

    shown = [line for line in (of("loss", "training"), of("validation_loss", "validation")) if line[1]]
    if shown:
        drawn["losses"] = plots.losses(shown)
    for key, label in (("learning_rate", "learning rate"), ("gradient_norm", "gradient norm")):
        if of(key, label)[1]:
            drawn[key] = plots.curve(key, of(key, label), label)
    rows, intervals = {}, {}
    for row in _slices(report, verdict):
        part, compared = row["figures"], row["champion"]
        values = part.bits_per_byte.model_dump()
        if compared:
            values["champion"] = compared.champion
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        if "model" in values:
            rows[row["name"]] = values
            if part.intervals:
                intervals[row["name"]] = (part.intervals.model.low, part.intervals.model.high)
    if rows:
        drawn["bits"] = plots.bits(rows, intervals)
    if corpus:
        rejected = {name.replace("_", " "): count for name, count in corpus.rejected.items()}
        drawn["funnel"] = plots.funnel({"read": corpus.read, **rejected, "kept": corpus.kept})
    return {name: Markup(svg) for name, svg in drawn.items()}  # noqa: S704  # our own drawing, escaped by matplotlib


def _number(value: float | None, digits: int = 4) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def _share(value: float) -> str:
    return f"{value:.1%}"


def _change(value: float) -> str:
    return f"{value:+.1%}".replace("-", "−")


def _heat(piece: Piece) -> int:
    """0 to 4: how likely the piece was, for its colour."""
    bounds: Sequence[float] = (0.01, 0.05, 0.2, 0.5)
    return sum(piece.probability >= bound for bound in bounds)
