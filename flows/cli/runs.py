"""The commands that work on runs: runs, report, history, promote, rollback, reproduce, gc."""

from __future__ import annotations

import getpass
import tempfile
import webbrowser
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.table import Table

from al_qalam.flows.cli.options import StoreOption
from al_qalam.flows.cli.terminal import bars, out
from qalam_core.files import replace_file
from qalam_core.runs import Promotion, Runs
from qalam_core.store import DEFAULT_STORE, Store

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run id; `qalam runs` lists them.")]
Why = Annotated[str, typer.Option(help="The reason, for the champion's history.")]
Who = Annotated[str, typer.Option(help="Your name, for the champion's history; default: the login name.")]


def runs(store: StoreOption = DEFAULT_STORE) -> None:
    """List the runs of a store, oldest first."""
    home = Runs(Store(store))
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("", "run", "date", "params", "bits/byte", "unigram", "trigram", "MB", "gate"):
        table.add_column(column, no_wrap=True, justify="left" if column in ("", "run", "gate") else "right")
    for run, record in home.records().items():
        bits, champion = record.bits_per_byte, home.champion(record.recipe.name) == run
        table.add_row(
            "[yellow]*[/]" if champion else "", run, record.created[:10], f"{record.parameters:,}",
            *(f"{value:.3f}" for value in (bits.model, bits.unigram, bits.trigram)), f"{record.package_mb:.1f}",
            "passed" if record.verdict.passed else "[red]refused[/]",
        )  # fmt: skip
    if table.row_count:
        out.print(table)
        out.print("* champion of its recipe", style="dim")
    else:
        out.print(f"no runs in {home.store.root} yet; `qalam build demo` creates one", soft_wrap=True)


def report(
    run: RunArgument,
    store: StoreOption = DEFAULT_STORE,
    show: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
    target: Annotated[Path | None, typer.Option("--out", help="Write the report to this file instead.")] = None,
) -> None:
    """Print the path of a run's HTML report; write the report first if it is missing."""
    home = Runs(Store(store))
    file = target or home.folder(run) / "report.html"
    if target or not file.exists():
        from qalam_core.pipeline.publish import render_page

        replace_file(file, render_page(home, run).encode())
    out.print(str(file), soft_wrap=True, markup=False)
    if show and not webbrowser.open(file.resolve().as_uri()):
        out.print("no browser was found; open the file in one")


def history(name: Annotated[str, typer.Argument(help="A recipe's name.")], store: StoreOption = DEFAULT_STORE) -> None:
    """List every promotion and rollback of a recipe, oldest first: date, run, who and why."""
    for line in Runs(Store(store)).promotions(name):
        text = f"{line.when}  {line.run}  {line.action} by {line.who}: {line.why}"
        out.print(text, soft_wrap=True, markup=False)


def promote(run: RunArgument, store: StoreOption = DEFAULT_STORE, why: Why = "promoted by hand", who: Who = "") -> None:
    """Make an earlier run the champion of its recipe."""
    home = Runs(Store(store))
    name = home.record(run).recipe.name
    home.promote(name, Promotion(run=run, when=_now(), why=why, who=who or getpass.getuser()))
    out.print(f"{run} is the champion of {name}")


def rollback(
    name: Annotated[str, typer.Argument(help="A recipe's name, or its champion's run id.")],
    store: StoreOption = DEFAULT_STORE,
    why: Why = "rolled back by hand",
    who: Who = "",
) -> None:
    """Make the previous champion of a recipe the champion again."""
    home = Runs(Store(store))
    if name in home:
        name = home.record(name).recipe.name
    run = home.rollback(name, _now(), why, who or getpass.getuser())
    out.print(f"{run} is the champion of {name} again")


def reproduce(
    run: RunArgument,
    store: StoreOption = DEFAULT_STORE,
    fresh: Annotated[
        Path | None, typer.Option("--in", help="Build in this empty folder and keep it; default: a temporary one.")
    ] = None,
) -> None:
    """Build a run again in an empty store, and compare each artifact (exit status 1: something differs)."""
    from qalam_core.pipeline.audit import reproduce as build_again

    with tempfile.TemporaryDirectory(prefix="qalam-") as temporary, bars() as terminal:
        found = build_again(
            Store(store), run, Store(fresh or Path(temporary)),
            lambda done, total: terminal.moved("train", "train", "steps", done, total),
        )  # fmt: skip
    table = Table("artifact", "then", "now", "", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for row in found.rows:
        verdict = "[green]same[/]" if row.matches else "[red]differs[/]: " + (", ".join(row.differing) or "inputs")
        then, now = (name if row.stage == "run" else name[:12] for name in (row.then, row.now))
        table.add_row(row.stage, then, now, verdict if row.compared else f"{verdict} (artifact deleted)")
    out.print(table)
    for note in found.notes:
        out.print(f"note: {note}", soft_wrap=True, markup=False)
    same = sum(row.matches for row in found.rows)
    out.print(f"{same} of {len(found.rows)} match{': ' + run + ' is reproduced' if found.matches else ''}")
    if not found.matches:
        raise typer.Exit(1)


def gc(
    keep: Annotated[int, typer.Option(min=1, help="How many of the latest runs of each recipe to keep.")] = 5,
    delete: Annotated[bool, typer.Option("--delete", help="Delete, instead of only listing.")] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """List, or with --delete delete, old runs that are not champions, and artifacts that no kept run needs."""
    from qalam_core.pipeline.collect import collect

    found = collect(Store(store), keep, delete)
    for name in (*found.runs, *found.artifacts):
        out.print(name, soft_wrap=True, markup=False)
    if found.busy:
        out.print(f"a build is running ({found.busy[0][:24]}): artifacts are kept until it has finished")
    did = "deleted" if delete else "would be deleted (with --delete)"
    out.print(
        f"{len(found.runs)} runs and {len(found.artifacts)} artifacts, {decimal(found.bytes)}: {did}; "
        f"{len(found.kept)} runs are kept", soft_wrap=True,
    )  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
