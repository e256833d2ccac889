"""The HTML report of a run: one file without references to others; it omits what was garbage-collected, and says so."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from markupsafe import Markup

from qalam_core.corpus.prepare import CorpusFacts
from qalam_core.evaluation.results import Piece, Report, Sample
from qalam_core.recipe import to_toml
from qalam_core.reports import plots
from qalam_core.reports.chain import Chain
from qalam_core.reports.render import render
from qalam_core.reports.tables import NO_CHAMPION, Row, corpus_rows, slices
from qalam_core.review.summary import Review
from qalam_core.runs import RunRecord, SourceRead

Metrics = Sequence[Mapping[str, Any]]

_DRAWN = 12  # rows of the plot of slices
_UNLIKELY = 5  # words of a sample whose probability is written out
_LEVELS = (0.01, 0.05, 0.2, 0.5)  # probabilities from which a word's line is thicker


def page(
    run: str, record: RunRecord, report: Report, corpus: CorpusFacts | None, metrics: Metrics, chain: Chain | None,
    review: Review | str = NO_CHAMPION, read: Mapping[str, SourceRead] = MappingProxyType({}),
) -> str:  # fmt: skip
    """The page of `run`; `metrics` are the lines of metrics.jsonl, `review` is a sentence where there is none.

    `read` is what training read of each source.
    """
    rows = slices(report, record.verdict.comparison)
    curves, once = _training_plots(metrics)
    drawn = {**curves, **_bits_plot(rows), **_chain_plot(chain)}
    head, body = corpus_rows(corpus) if corpus else ((), [])
    counts: list[Sequence[str]] = [head, *body]
    if len(head) > len(counts):  # many sources: on the longer side
        counts = list(zip(*counts, strict=True))
    if corpus:
        rejected = {name.replace("_", " "): count for name, count in corpus.rejected.items()}
        drawn["funnel"] = plots.funnel({"read": corpus.read, **rejected, "kept": corpus.kept})
    return render(
        "report.html", run=run, record=record, stages=list(record.artifacts), recipe=record.recipe,
        recipe_toml=to_toml(record.recipe), report=report, verdict=record.verdict, slices=rows, drawn=_DRAWN,
        facts=corpus, counts=counts, trained=bool(metrics), once=once, chain=chain,
        review=review, read=read, heat=_heat, percent=_percent, unlikely=_unlikely,
        plots={name: Markup(svg) for name, svg in drawn.items()},  # noqa: S704  # matplotlib escapes text
    )  # fmt: skip


def _training_plots(metrics: Metrics) -> tuple[dict[str, str], list[str]]:
    """Curves of what is finite, and sentences about what was recorded once."""

    def line(key: str, label: str) -> plots.Line:
        chosen = [entry for entry in metrics if key in entry and math.isfinite(entry[key])]
        return label, [entry["step"] for entry in chosen], [entry[key] for entry in chosen]

    figures = {
        "losses": ("nats per token", [line("loss", "training loss"), line("validation_loss", "validation loss")]),
        "learning_rate": ("learning rate", [line("learning_rate", "learning rate")]),
        "gradient_norm": ("gradient norm", [line("gradient_norm", "gradient norm")]),
    }
    drawn, once = {}, []
    for name, (unit, lines) in figures.items():
        shown = [found for found in lines if found[1]]
        if any(len(x) > 1 for _, x, _ in shown):
            drawn[name] = plots.curves(name, shown, unit)
        else:
            once += [f"{label} at step {x[0]:,}, and only there: {y[0]:.4g}" for label, x, y in shown]
    return drawn, [f"{text[0].upper()}{text[1:]}." for text in once]


def _bits_plot(rows: Sequence[Row]) -> dict[str, str]:
    """Bits per byte of everything and the largest slices; without those that are not finite."""
    finite = [row for row in rows[1:] if math.isfinite(row.figures.bits_per_byte.model)]
    largest = sorted(finite, key=lambda row: -row.figures.bytes)[: _DRAWN - 1]
    shown: list[plots.Marks] = []
    for row in (rows[0], *(row for row in finite if row in largest)):
        bits, found = row.figures.bits_per_byte, row.figures.intervals
        values = {"model": bits.model, "unigram": bits.unigram, "token 4-gram": bits.ngram}
        values["character 10-gram"] = bits.characters
        values["champion"] = row.champion.champion if row.champion else math.nan
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        if "model" in values:
            shown.append((row.name, values, (found.model.low, found.model.high) if found else None))
    return {"bits": plots.bits(shown)} if shown else {}


def _chain_plot(chain: Chain | None) -> dict[str, str]:
    """Cost, bits per byte and drift of a chain's nights; those of runs from scratch half a night after the champion."""
    if not chain:
        return {}
    placed = [(night.number + (0.5 if night.cold else 0), night) for night in chain.nights]
    costs = [(place, cost) for place, night in placed if (cost := night.cost)]
    new = [(place, night.cold, night.new.bits) for place, night in placed if night.new]
    return {"chain": plots.chain(
        [place for place, _ in costs],
        {label: [cost[part] for _, cost in costs] for part, label in enumerate(("data", "training", "rest"))},
        {
            "its own new text": [(place, bits) for place, cold, bits in new if not cold],
            "the next night’s text": [(place, night.next_day) for place, night in placed if night.next_day],
            "from scratch": [(place, bits) for place, cold, bits in new if cold],
        },
        [(place, *night.cold.drift) for place, night in placed if night.cold and night.cold.drift],
        [place for place, night in placed if not night.record],
        chain.runs[0],
    )}  # fmt: skip


def _heat(piece: Piece) -> int:
    return sum(level <= piece.probability for level in _LEVELS)


def _percent(piece: Piece) -> str:
    return "below 0.01%" if piece.probability < 0.0001 else f"{piece.probability:.2%}"


def _unlikely(sample: Sample) -> list[tuple[str, Piece, str]]:
    """The least likely pieces of a sample, if they are unlikely, each with the rest of its word before and after it."""
    found, at = [], len(sample.prompt)
    text = sample.prompt + "".join(piece.text for piece in sample.pieces)
    for piece in sample.pieces:
        begin, end = at + len(piece.text) - len(piece.text.lstrip()), at + len(piece.text.rstrip())
        at += len(piece.text)
        if piece.text.strip() and piece.probability < _LEVELS[1]:
            found.append((re.findall(r"\S*$", text[:begin])[0], piece, re.findall(r"^\S*", text[end:])[0]))
    return sorted(found, key=lambda one: one[1].probability)[:_UNLIKELY]
