"""The HTML report of a run: one file without references to others; it omits what was garbage-collected, and says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from qalam_core.corpus.prepare import CorpusFacts
from qalam_core.evaluation.results import Report, Slice
from qalam_core.recipe import to_toml
from qalam_core.reports import plots
from qalam_core.reports.render import render
from qalam_core.runs import RunRecord

Metrics = Sequence[Mapping[str, Any]]


def page(run: str, record: RunRecord, report: Report, corpus: CorpusFacts | None, metrics: Metrics) -> str:
    """The page of `run`; `metrics` are the lines of metrics.jsonl."""
    slices = _slices(report, record)
    drawn = {**_training_plots(metrics), **_bits_plot(slices)}
    if corpus:
        rejected = {name.replace("_", " "): count for name, count in corpus.rejected.items()}
        drawn["funnel"] = plots.funnel({"read": corpus.read, **rejected, "kept": corpus.kept})
    return render(
        "report.html", run=run, record=record, stages=list(record.artifacts), recipe=record.recipe,
        recipe_toml=to_toml(record.recipe), report=report, verdict=record.verdict, slices=slices, facts=corpus,
        plots={name: Markup(svg) for name, svg in drawn.items()},  # noqa: S704  # matplotlib escapes text
    )  # fmt: skip


def _slices(report: Report, record: RunRecord) -> list[dict[str, Any]]:
    """One row for everything, and one for each slice where there is more than one."""
    comparison = record.verdict.comparison
    rows: list[tuple[str, Slice, Any]] = [("all", report.overall, comparison and comparison.overall)]
    if len(report.sources) > 1:
        rows += [(name, part, comparison and comparison.sources.get(name)) for name, part in report.sources.items()]
    return [{"name": name, "figures": part, "champion": compared} for name, part, compared in rows]


def _training_plots(metrics: Metrics) -> dict[str, str]:
    def line(key: str, label: str) -> plots.Line:
        chosen = [entry for entry in metrics if key in entry]
        return label, [entry["step"] for entry in chosen], [entry[key] for entry in chosen]

    drawn = {}
    shown = [found for found in (line("loss", "training"), line("validation_loss", "validation")) if found[1]]
    if shown:
        drawn["losses"] = plots.curves("losses", shown, "nats per token")
    for key, label in (("learning_rate", "learning rate"), ("gradient_norm", "gradient norm")):
        if (found := line(key, label))[1]:
            drawn[key] = plots.curves(key, [found], label)
    return drawn


def _bits_plot(slices: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Bits per byte of every slice; without those that are not finite."""
    rows, intervals = {}, {}
    for row in slices:
        part, champion = row["figures"], row["champion"]
        bits = part.bits_per_byte
        values = {"model": bits.model, "unigram": bits.unigram, "token 4-gram": bits.ngram}
        values |= {"character 10-gram": bits.characters, **({"champion": champion.champion} if champion else {})}
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        if "model" in values:
            rows[row["name"]] = values
            if part.intervals:
                intervals[row["name"]] = (part.intervals.model.low, part.intervals.model.high)
    return {"bits": plots.bits(rows, intervals)} if rows else {}
