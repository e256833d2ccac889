"""Plots of a run as `<svg>` elements with the colours and fonts of the page around them; deterministic."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from qalam_core.display import printable

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


def curves(name: str, lines: Sequence[Line], unit: str) -> str:
    """Values by training step, one line each."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 2.7), layout="constrained")
        axes = figure.subplots()
        for number, (label, x, y) in enumerate(lines):
            marker = "o" if len(x) < 12 else ""
            axes.plot(x, y, color=COLOURS[number], linewidth=1.6, label=label, marker=marker, markersize=4)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.grid(axis="y", linewidth=0.6)
        if len(lines) > 1:
            axes.legend()
        return _svg(figure, name)


def bits(rows: Mapping[str, Mapping[str, float]], intervals: Mapping[str, tuple[float, float]]) -> str:
    """Bits per byte: a row for each slice, a mark for each model, the interval of the first one."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 1.5 + 0.42 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, name in enumerate(rows):
            if name in intervals:
                low, high = intervals[name]
                axes.barh(place, high - low, left=low, color=COLOURS[0], height=0.3, alpha=0.35)
        for number, model in enumerate(next(iter(rows.values()))):
            points = [(values[model], place) for place, values in enumerate(rows.values()) if model in values]
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, color=COLOURS[number], marker="osD^v"[number], s=34, label=model, zorder=3)
        axes.set_yticks(range(len(rows)), [_short(printable(name)) for name in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("bits per byte (lower is better)")
        axes.grid(axis="x", linewidth=0.6)
        figure.legend(loc="outside upper left", ncols=3, handletextpad=0.1, columnspacing=1.0)
        return _svg(figure, "bits")


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"


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
        return _svg(figure, "funnel")


def _svg(figure: Figure, name: str) -> str:
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
    text = re.sub(r'(<svg [^>]*?)\bwidth="[^"]*"', rf'\1class="plot" role="img" aria-label="{name}"', text, count=1)
    text = re.sub(r'(<svg [^>]*?)\bheight="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text.strip()
