"""Renders the templates. HTML is escaped; in Markdown, text of a corpus or a model goes through `cell` or `rtl`."""

from __future__ import annotations

import html
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from qalam_core.reports.tables import by_source, corpus_rows, origin_text, shown_ancestors


def render(template: str, **values: Any) -> str:
    """A template of reports/templates with these values."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("qalam_core.reports"), autoescape=select_autoescape(["html"], default=False),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(cell=cell, rtl=rtl, number=_number, spec=format, change=_change)
    environment.globals.update(
        by_source=by_source, corpus_rows=corpus_rows, origin_text=origin_text, shown_ancestors=shown_ancestors
    )
    return environment


def cell(text: str) -> str:
    """Text that can neither leave its table cell nor become HTML."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def rtl(text: str) -> str:
    """Text as a right-to-left paragraph that nothing in it can leave; never as HTML or Markdown.

    The div is for GitHub; where it is removed, as in Prefect's page, the isolate characters keep the full stop at the
    left end.
    """
    shown = " ".join(text.split()).translate({ord(mark): f"&#{ord(mark)};" for mark in "<>&\\`*_[]~$|#"})
    return f'<div dir="rtl">\n\n\u2067{shown}\u2069\n\n</div>'


def _number(value: float | None) -> str:
    """Integers with separators, other figures to 6 significant digits, "-" for None."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _change(value: float) -> str:
    return f"{value:+.1%}".replace("-", "−")
