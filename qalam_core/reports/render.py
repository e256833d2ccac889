"""Renders the templates. Every text is made printable, and in HTML escaped; in Markdown, text of a corpus, a model or a
recipe goes through `cell` or `rtl`."""

from __future__ import annotations

import html
import math
import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from qalam_core.display import printable
from qalam_core.reports import tables
from qalam_core.reports.chain import drift_text


def render(template: str, **values: Any) -> str:
    """A template of reports/templates with these values."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("qalam_core.reports"), autoescape=select_autoescape(["html"], default=False),
        undefined=StrictUndefined, finalize=_printable,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(
        cell=cell, rtl=rtl, isolated=isolated, clipped=tables.clipped, number=_number, spec=format, change=_change
    )
    shared = (
        drift_text, tables.by_source, tables.copied_from, tables.copies_text, tables.corpus_rows, tables.decided,
        tables.group_rows, tables.headline, tables.kept_text, tables.origin_text, tables.provenance, tables.ratio,
        tables.read_rows, tables.shown_ancestors, tables.shown_failures, tables.slices, tables.tested,
    )  # fmt: skip
    environment.globals.update({function.__name__: function for function in shared})
    return environment


def _printable(value: Any) -> Any:
    return printable(value, lines=True) if type(value) is str else value  # Markup is ours


# What begins a structure of Markdown: inside a line, and only at its start. An underscore inside a word is only that.
_MARKS = re.compile(r"[\\`*~$|\[\]]|(?<!\w)_|_(?!\w)|^[#+=-]")


def cell(text: str) -> str:
    """Text that can neither leave its table cell or line, nor become HTML or Markdown."""
    line = printable(" ".join(text.split()))
    return html.escape(_MARKS.sub(lambda found: f"\\{found[0]}", line), quote=False)


def rtl(text: str) -> Markup:
    """Text as a right-to-left paragraph that nothing in it can leave; never as HTML or Markdown.

    The div is for GitHub; where it is removed, as in Prefect's page, the isolate characters keep the full stop at the
    left end.
    """
    line = printable(" ".join(text.split()))
    shown = line.translate({ord(mark): f"&#{ord(mark)};" for mark in "<>&\\`*_[]~$|#"})
    return Markup(f'<div dir="rtl">\n\n\u2067{shown}\u2069\n\n</div>')  # noqa: S704  # escaped above


_RIGHT = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc"
_RTL = re.compile(rf"[{_RIGHT}]+(?:[ '\"()._/-]+[{_RIGHT}]+)*")  # not over commas and digits, which divide lists


def isolated(text: str) -> Markup:
    """A sentence of ours in HTML, in which right-to-left names do not change the order of what is beside them."""
    safe = str(escape(printable(text, lines=True)))
    return Markup(_RTL.sub(r"<bdi>\g<0></bdi>", safe))  # noqa: S704  # escaped above


def _number(value: float | None) -> str:
    """Integers with separators, other figures to 6 significant digits, "-" for None."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _change(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:+.1%}".replace("-", "−")
