"""Markdown building blocks: tables, cells, right-to-left paragraphs, and numbers as text.
Takes values, gives strings in which no foreign text can become markup.
It does not know what is reported.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from qalam_core.corpus.prepare import CorpusFacts, SliceCounts
from qalam_core.evaluation.results import Generation

__all__ = [
    "cell", "corpus_rows", "corpus_tables", "number", "percent", "rtl", "table", "unprompted", "yes",
]  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Sequence[str]], raw: bool = False) -> str:
    """A Markdown table; `raw` cells are HTML already."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(text if raw else cell(text) for text in row) + " |" for row in rows]
    return "\n".join(lines)


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


def number(value: float | None) -> str:
    """A figure as text, "-" for None."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def percent(value: float) -> str:
    """A share as a percentage."""
    return f"{value:.1%}"


def yes(value: bool) -> str:
    """Yes, or a bold no."""
    return "yes" if value else "**no**"


def corpus_tables(facts: CorpusFacts) -> list[str]:
    """What became of the documents: a table by reason and source, and one of the splits."""
    splits = ((name, f"{part.documents:,}", f"{part.bytes / 1e6:.2f}") for name, part in facts.splits.items())
    by_split = table(("split", "documents", "MB"), splits)
    return [table(*corpus_rows(facts)), by_split] if facts.rejected else [by_split]


def corpus_rows(facts: CorpusFacts) -> tuple[Sequence[str], list[Sequence[str]]]:
    """(head, rows) of what became of the documents: read, rejected by reason, kept; one column a source."""
    parts: dict[str, SliceCounts] = {"all": facts, **(facts.sources if len(facts.sources) > 1 else {})}
    rows = [("read", [part.read for part in parts.values()])]
    if facts.repaired:
        rows.append(("repaired", [part.repaired for part in parts.values()]))
    rows += [
        (reason.replace("_", " "), [part.rejected.get(reason, 0) for part in parts.values()])
        for reason in facts.rejected
    ]
    rows.append(("kept", [part.kept for part in parts.values()]))
    return ("documents", *parts), [(name, *(f"{count:,}" for count in counts)) for name, counts in rows]


def unprompted(generation: Generation) -> str:
    """A sentence on samples without a prompt."""
    return (
        f"{generation.samples} samples without a prompt, at most {generation.length} tokens each: "
        f"{percent(generation.repeated_4grams)} of their 4-grams repeat, "
        f"{percent(generation.distinct_2grams)} of their 2-grams are distinct, "
        f"{percent(generation.end_rate)} end by themselves; the longest copy from the training text is "
        f"{generation.longest_copy} tokens."
    )
