"""The commands that ask what a model has read: trace and find."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from al_qalam.flows.cli.options import StoreOption
from al_qalam.flows.cli.terminal import bars, out, print_json
from qalam_core.display import printable
from qalam_core.errors import CorpusError, StoreError
from qalam_core.object_store import store_at
from qalam_core.runs import Runs
from qalam_core.store import DEFAULT_STORE

if TYPE_CHECKING:
    from qalam_core.pipeline.find import Findings, Meeting, Trace, Traced

_CONTEXT = 40  # characters before and after a span in the table

TextArgument = Annotated[str, typer.Argument(metavar="TEXT", help="A text, @FILE, or - for standard input.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def trace(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run id; `qalam runs` lists them.")],
    text: TextArgument,
    words: Annotated[int, typer.Option(min=1, help="Words of the shortest span.")] = 5,
    count: Annotated[int, typer.Option(min=1, help="How many documents to name for each span.")] = 3,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Mark the longest spans of a text that the model has read word for word, and name the training documents."""
    from qalam_core.pipeline.find import trace as find_spans

    with bars() as terminal, terminal.tracked("trace", "bytes") as progress:
        found = find_spans(Runs(store_at(store)), run, _given(text), words, count, progress)
    if as_json:
        print_json(_as_json(found))
        return
    if found.spans:
        for line in _marked(found):
            out.print(line, soft_wrap=True)
        out.print()
        out.print(_documents(found))
    whose = f"{run} and its ancestors" if len(found.searched) > 1 else run
    share = f"{found.covered:,} of {len(found.words):,} words ({found.covered / len(found.words):.1%})"
    out.print(
        f"{share} are in spans of at least {words} words that are in the training text of {whose}",
        soft_wrap=True,
    )  # fmt: skip
    if found.missing:
        out.print(
            f"not searched, as their training text was deleted or is damaged: {', '.join(found.missing)}",
            soft_wrap=True,
        )  # fmt: skip


def find(
    text: TextArgument,
    count: Annotated[int, typer.Option(min=1, help="How many source documents to name.")] = 5,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Name every run that has read a text, itself or through an ancestor, and the source documents that hold it."""
    from qalam_core.pipeline.find import find as find_runs

    runs = Runs(store_at(store))
    if not runs.ids():
        raise StoreError(f"{runs.store.place}: has no runs; name the store whose models are meant with --store")
    with bars() as terminal, terminal.tracked("find", "files") as progress:
        found = find_runs(runs, _given(text), count, progress)
    if as_json:
        print_json(asdict(found))
        return
    columns = ("whole document", "near-duplicate", "in 8-grams", "in 13-grams")
    if found.readers:
        table = Table("run", *columns, box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for run, meeting in found.readers.items():
            table.add_row(run, *_cells(meeting))
        out.print(table)
        out.print()
    if found.places:
        file = Column("file", overflow="fold")
        table = Table("source", file, "document", *columns, box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for place in found.places:
            row = printable(place.source), printable(place.file), f"{place.document:,}"
            table.add_row(*map(Text, row), *_cells(place.meeting))
        out.print(table)
        out.print(f"{found.count:,} source documents meet the text\n")
    for line in _summary(found):
        out.print(line, soft_wrap=True)


def _cells(meeting: Meeting) -> list[str]:
    shares = ("" if share is None else f"{share:.1%}" for share in (meeting.words_8, meeting.words_13))
    return ["yes" if meeting.exactly else "", "yes" if meeting.nearly else "", *shares]


def _summary(found: Findings) -> Iterator[str]:
    total = len(found.readers) + len(found.clear) + len(found.unknown)
    yield f"{len(found.readers)} of {total} run{'s' * (total != 1)} met the text, themselves or through an ancestor"
    if found.unknown:
        yield f"of these runs no record is left that tells: {', '.join(found.unknown)}"
    if found.too_short:
        yield f"a text of {found.words} words is compared with documents and lines; from 8 words on, with parts too"
    if found.deleted:
        yield f"the documents of {found.deleted} source files were deleted, and not searched"


def _given(text: str) -> str:
    """The text of an argument. Raises CorpusError."""
    if text != "-" and not text.startswith("@"):
        return text
    place = "standard input" if text == "-" else text[1:]
    try:
        content = sys.stdin.buffer.read() if text == "-" else Path(place).read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise CorpusError(f"{place}: cannot be read ({error.strerror}); name a text file after @") from None
    except UnicodeDecodeError:
        raise CorpusError(f"{place}: not UTF-8; convert it") from None


def _as_json(found: Trace) -> dict[str, object]:
    return {
        "run": found.run, "words": len(found.words), "covered": found.covered, "min_words": found.min_words,
        "searched": found.searched, "not_searched": found.missing,
        "spans": [
            {
                "start_word": span.start_word, "end_word": span.end_word, "text": _of(found, span), "count": span.count,
                "documents": [
                    {
                        "run": one.run, "source": one.hit.source, "id": one.hit.id, "shard": one.hit.shard.name,
                        "before": one.hit.before, "after": one.hit.after,
                    }
                    for one in span.documents
                ],
            }
            for span in found.spans
        ],
    }  # fmt: skip


def _of(found: Trace, span: Traced) -> str:
    return found.text[found.words[span.start_word][0] : found.words[span.end_word - 1][1]]


def _marked(found: Trace) -> list[Text]:
    """The lines of the text; a span of number n is bold and underlined, between [n and n]."""
    opened, closed = defaultdict[int, str](str), defaultdict[int, str](str)
    covered = set[int]()
    for number, span in enumerate(found.spans, 1):
        opened[span.start_word] += f"[{number} "
        closed[span.end_word - 1] = f" {number}]" + closed[span.end_word - 1]
        covered.update(range(span.start_word, span.end_word))
    lines, line, end = [], Text(), 0
    for word, (start, stop) in enumerate(found.words):
        between = found.text[end:start]
        if word and (len(between.splitlines()) > 1 or between.endswith(("\n", "\r"))):
            lines.append(line)
            line, between = Text(), ""
        style = "bold underline" if word in covered else ""
        line.append(_spaced(between), style if word - 1 in covered and word not in opened else "")
        line.append(opened.get(word, ""), "cyan")
        line.append(printable(found.text[start:stop]), style)
        line.append(closed.get(word, ""), "cyan")
        end = stop
    # in an isolate, whose direction is that of its first letter, so that each line is readable by itself
    return [Text("\u2068").append_text(one).append("\u2069") for one in (*lines, line)]


def _documents(found: Trace) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("span", "words", "documents", "source", "document", "shard", "context"):
        table.add_column(
            column, no_wrap=column not in ("context", "shard"), justify="right" if column == "documents" else "left",
            min_width=16 if column == "document" else None, overflow="fold",  # an id that is cut is of no use
        )  # fmt: skip
    with_runs = len(found.searched) > 1
    for number, span in enumerate(found.spans, 1):
        head = [str(number), f"{span.start_word + 1}-{span.end_word}", f"{span.count:,}"]
        for one in span.documents:
            before, after = _spaced(one.hit.before)[-_CONTEXT:], _spaced(one.hit.after)[:_CONTEXT]
            context = f"\u2068{before} [{number}] {after}\u2069"
            shard = f"{one.run}/{one.hit.shard.name}" if with_runs else one.hit.shard.name
            table.add_row(*map(Text, (*head, printable(one.hit.source), printable(one.hit.id), shard, context)))
            head = ["", "", ""]
    return table


def _spaced(text: str) -> str:
    """In one line: its line ends and tabs are spaces."""
    return printable(re.sub(r"[\t\n\r]", " ", text))
