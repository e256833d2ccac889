"""The command `qalam corpus`: counts of a prepared corpus, and its rejected documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from al_qalam.flows.cli.options import StoreOption
from al_qalam.flows.cli.terminal import out, print_json
from qalam_core.display import printable
from qalam_core.errors import CorpusError
from qalam_core.object_store import store_at
from qalam_core.runs import Runs
from qalam_core.store import DEFAULT_STORE, Artifact

_SHOWN = 300  # characters of a rejected document


def corpus(
    what: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN|STORE]...", help="Runs, or stores (their latest corpus).")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    rejects: Annotated[str, typer.Option(metavar="RULE", help="Show documents that this rule rejected.")] = "",
    count: Annotated[int, typer.Option(min=1, help="How many rejected documents to show.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one line for each RUN or STORE.")] = False,
) -> None:
    """Count the documents of a corpus: read, rejected by each rule, and kept, by source and split."""
    from qalam_core.corpus.filters import REASONS
    from qalam_core.pipeline.audit import corpus_of

    rule = rejects.replace(" ", "_")
    if rule and rule not in REASONS:
        raise CorpusError(f"--rejects {rejects}: unknown rule; choose one of {', '.join(REASONS)}")
    for name in what or [""]:
        is_store = (Path(name) / "artifacts").is_dir() and name != ""
        run = "" if is_store else name
        home = store_at(name if is_store else store)
        found = corpus_of(home, run)
        if rule:
            _show_rejects(found, rule, count, as_json)
        elif as_json:
            print_json({"corpus": found.digest, **found.manifest.facts})
        else:
            out.print(f"corpus {found.digest[:12]} in {home.place}", soft_wrap=True)
            _show_counts(found)
            if run:
                _show_overlap(Runs(home), run)


def _show_rejects(found: Artifact, rule: str, count: int, as_json: bool) -> None:
    from qalam_core.corpus.prepare import CorpusFacts, read_rejects

    rows = list(read_rejects(found.path, rule, count))
    if as_json:
        print_json([{"source": source, "text": text} for source, text in rows])
        return
    out.print(f"{rule}: {found.facts(CorpusFacts).rejected.get(rule, 0):,} documents")
    for source, text in rows:
        line = printable(" ".join(text[:_SHOWN].split())) + ("…" if len(text) > _SHOWN else "")
        # in an isolate, so that the source's name does not affect the direction of the Arabic text
        out.print(Text(f"{printable(source)}: \u2067{line}\u2069"), soft_wrap=True)


def _show_counts(found: Artifact) -> None:
    from qalam_core.corpus.prepare import CorpusFacts
    from qalam_core.reports.tables import corpus_rows

    facts = found.facts(CorpusFacts)
    _print_table(*corpus_rows(facts))
    splits = (
        (split, f"{part.documents:,}", f"{part.bytes / 1e6:.2f}", str(part.shards))
        for split, part in facts.splits.items()
    )
    _print_table(("split", "documents", "MB", "shards"), splits)


def _show_overlap(runs: Runs, run: str) -> None:
    """Print how much of the test documents occurs in the training text, from the run's evaluation."""
    overlap = runs.report(run).contamination
    if overlap:
        out.print(
            f"{overlap.words_13.covered:.1%} of the words of {overlap.documents:,} test documents are in n-grams of 13 "
            f"words that the model, or one before it, has read; in {overlap.words_13.copied:.1%} of the documents more "
            f"than half of the words are (n-grams of 8 words: {overlap.words_8.copied:.1%})",
            soft_wrap=True,
        )


def _print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of names, in the first column, and numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for index, column in enumerate(head):
        table.add_column(printable(column), justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(printable, row))
    out.print(table)
