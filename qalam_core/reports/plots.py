"""Plots of a run as `<svg>` elements with the colours and fonts of the page around them; deterministic."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import matplotlib as mpl
from matplotlib import dates as mdates
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qalam_core.display import printable
from qalam_core.reports.tables import clipped

# Placeholders that `_svg` replaces by the page's CSS variables, so that one plot serves light and dark.
INK, FAINT, COLOURS = "#010101", "#020202", ("#030303", "#040404", "#050505", "#060606", "#070707")
_VARIABLES = {
    INK: "var(--ink)", FAINT: "var(--line)",
    **{colour: f"var(--plot-{number})" for number, colour in enumerate(COLOURS, 1)},
}  # fmt: skip
_STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "al-qalam", "font.size": 10, "axes.edgecolor": FAINT,
    "axes.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False, "text.color": INK,
    "xtick.color": INK, "ytick.color": INK, "xtick.labelcolor": INK, "grid.color": FAINT, "legend.frameon": False,
    "font.family": "sans-serif", "text.parse_math": False,
    "figure.facecolor": "none", "axes.facecolor": "none", "axes.unicode_minus": False,
}  # fmt: skip
_WIDTH = 5.2  # inches: on a phone the text keeps about its size

Line = tuple[str, Sequence[float], Sequence[float]]  # label, x, y
Marks = tuple[str, Mapping[str, float], tuple[float, float] | None]  # a slice's name, value by model, an interval


def curves(name: str, lines: Sequence[Line], unit: str) -> str:
    """Values by training step, one line each."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 2.7), layout="constrained")
        axes = figure.subplots()
        for number, (label, x, y) in enumerate(lines):
            marker, style = "os"[number] if len(x) < 12 else "", ("-", "--")[number]
            axes.plot(x, y, style, color=COLOURS[number], linewidth=1.6, label=label, marker=marker, markersize=4)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_ylabel(unit)
        axes.grid(axis="y", linewidth=0.6)
        if len(lines) > 1:
            axes.legend()
        return _svg(figure, name, f"{unit} by step")


def bits(rows: Sequence[Marks]) -> str:
    """Bits per byte: a row for each slice, in it a lane with a mark for each model, and the interval of "model"."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 1.5 + 0.6 * len(rows)), layout="constrained")
        axes = figure.subplots()
        models = list(dict.fromkeys(model for _, values, _ in rows for model in values))
        lanes = {model: 0.16 * (number - (len(models) - 1) / 2) for number, model in enumerate(models)}
        for place, (_, _, interval) in enumerate(rows):
            if place:
                axes.axhline(place - 0.5, color=FAINT, linewidth=0.6)
            if interval:
                low, high = interval
                axes.barh(place + lanes["model"], high - low, left=low, color=COLOURS[0], height=0.16, alpha=0.35)
        for number, (model, lane) in enumerate(lanes.items()):
            points = [(values[model], place + lane) for place, (_, values, _) in enumerate(rows) if model in values]
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, color=COLOURS[number], marker="osD^v"[number], s=26, label=model, zorder=3)
        axes.set_yticks(range(len(rows)), [clipped(printable(name), 20) for name, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("bits per byte (lower is better)")
        axes.grid(axis="x", linewidth=0.6)
        figure.legend(loc="outside upper left", ncols=3, handletextpad=0.1, columnspacing=1.0)
        return _svg(figure, "bits", "bits per byte by slice and model; the table below has the figures")


def funnel(counts: Mapping[str, int]) -> str:
    """Documents: read, dropped by each rule, kept."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.6 + 0.36 * len(counts)), layout="constrained")
        axes = figure.subplots()
        colours = [COLOURS[0] if name in ("read", "kept") else COLOURS[1] for name in counts]
        bars = axes.barh(range(len(counts)), list(counts.values()), color=colours, height=0.66)
        axes.bar_label(bars, labels=[f"{count:,}" for count in counts.values()], padding=4)
        axes.set_yticks(range(len(counts)), list(counts))
        axes.set_ylim(len(counts) - 0.5, -0.5)
        axes.set_xlim(0, max(1, *counts.values()) * 1.18)
        axes.set_xticks([])
        axes.spines[["bottom"]].set_visible(False)
        return _svg(figure, "funnel", "documents read, dropped by each rule, and kept; the table below has the figures")


Point = tuple[datetime, float]  # a run's time and bits per byte

KINDS = {
    "champion": ("o", COLOURS[0], True), "passed": ("o", COLOURS[0], False), "waiting": ("D", COLOURS[3], False),
    "refused": ("x", COLOURS[1], True), "rolled back": ("v", COLOURS[3], True),
}  # fmt: skip
"""What became of a run -> its marker, its colour, and whether it is filled."""


def history(points: Mapping[str, Sequence[Point]], champions: Sequence[Point]) -> tuple[str, int]:
    """Bits per byte by time, a mark for each run of a kind, and a line of the champions; -> (plot, marks at its top).

    Runs far worse than the champions, as a broken one, are at the top, so that the others can be told apart.
    """
    everything = [point for kind in points.values() for point in kind]
    times = [when for when, _ in (*everything, *champions)]
    first, last = min(times), max(times)
    good = [bits for _, bits in champions or everything]
    ceiling = max(good) + max((max(good) - min(good)) / 2, 0.05 * max(good))
    above = sum(bits > ceiling for _, bits in everything)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        if champions:
            x, y = zip(*champions, (last, champions[-1][1]), strict=True)
            axes.plot(x, y, color=COLOURS[2], linewidth=1, drawstyle="steps-post", zorder=1)
        for kind, (marker, colour, filled) in KINDS.items():
            if found := points[kind]:
                x, y = zip(*((when, min(bits, ceiling)) for when, bits in found), strict=True)
                axes.plot(
                    x, y, marker, color=colour, markerfacecolor=colour if filled else "none", linewidth=0,
                    markersize=5 if len(everything) < 300 else 3, label=f"{kind} ({len(found):,})",
                    zorder=3 if kind == "champion" else 2,
                )  # fmt: skip
        edge = max((last - first) * 0.03, timedelta(hours=12))
        axes.set_xlim(first - edge, last + edge)  # type: ignore[arg-type]
        locator = mdates.AutoDateLocator(maxticks=6)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        axes.set_ylabel("bits per byte (lower is better)")
        axes.grid(axis="y", linewidth=0.6)
        figure.legend(loc="outside upper left", ncols=3, handletextpad=0.1, columnspacing=1.0)
        return _svg(figure, "history", "bits per byte of the runs by time; the tables below have the figures"), above


Bars = Mapping[str, Sequence[float]]  # label -> one value for each place
Span = tuple[float, float, float, float]  # place, value, and the ends of its interval


def chain(
    places: Sequence[float], costs: Bars, bits: Mapping[str, Sequence[tuple[float, float]]], drift: Sequence[Span],
    missing: Sequence[float], first: str,
) -> str:  # fmt: skip
    """The nights of a chain since its run `first`: seconds by kind of work, bits per byte, and drift in percent.

    `places` are where `costs` stand; `missing` are those of nights of which nothing is known.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 6.6 if drift else 4.8), layout="constrained")
        panels = figure.subplots(3 if drift else 2, sharex=True)
        base = [0.0] * len(places)
        for number, (label, values) in enumerate(costs.items()):
            panels[0].bar(places, values, bottom=base, width=0.42, color=COLOURS[number], label=label)
            base = [below + value for below, value in zip(base, values, strict=True)]
        panels[0].set_ylabel("seconds")
        for number, (label, points) in enumerate(bits.items()):
            if points:
                x, y = zip(*points, strict=True)
                panels[1].plot(
                    x, y, "osD"[number], linestyle="-" if number == 0 else "", linewidth=1, markersize=4.5, label=label,
                    color=(COLOURS[0], COLOURS[1], COLOURS[3])[number],
                )  # fmt: skip
        panels[1].set_ylabel("bits per byte")
        if drift:
            for place, value, low, high in drift:
                panels[2].errorbar(
                    place, 100 * value, yerr=[[100 * (value - low)], [100 * (high - value)]], fmt="D",
                    color=COLOURS[3], markersize=5, capsize=3,
                )  # fmt: skip
            panels[2].axhline(0, color=COLOURS[2], linewidth=1, linestyle="--")
            panels[2].set_ylabel("drift in %")
        for panel in panels:
            panel.grid(axis="y", linewidth=0.6)
            panel.set_axisbelow(True)
            for place in missing:
                panel.axvline(place, color=FAINT, linewidth=1.2, linestyle=":")
            if panel.get_legend_handles_labels()[0]:
                panel.legend(
                    loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2, columnspacing=1.0, fontsize=9
                )
        panels[-1].set_xlabel(f"nights since run {clipped(printable(first), 40)}")
        panels[-1].xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
        return _svg(figure, "chain", "cost, bits per byte and drift of the nights; the table below has the figures")


def _svg(figure: Figure, name: str, label: str = "") -> str:
    """The figure as an element of an HTML page: ids are prefixed by `name`, so that plots do not share them."""
    out = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the page's fonts draw the text
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    shown = rf'\1class="plot" role="img" aria-label="{label or name}"'
    text = re.sub(r'(<svg [^>]*?)\bwidth="[^"]*"', shown, text, count=1)
    text = re.sub(r'(<svg [^>]*?)\bheight="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text.strip()
