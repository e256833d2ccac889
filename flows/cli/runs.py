"""The verbs of `qalam` that work on runs: runs, report, history, promote, rollback, reproduce, gc.
Takes run ids and names, gives text; champions move, and things are deleted, only where a verb says so.
It does not know Prefect; what it does is qalam_core.pipeline.audit's.
"""

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

from al_qalam.flows.cli.packages import StoreOption
from al_qalam.flows.cli.terminal import bars, out
from qalam_core.store import DEFAULT_STORE, Store, replace_file

__all__ = ["register"]

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run id; `qalam runs` lists them.")]
Why = Annotated[str, typer.Option(help="Kept in the champion's history.")]
Who = Annotated[str, typer.Option(help="Kept in the champion's history; you, when not given.")]


def runs(store: StoreOption = DEFAULT_STORE) -> None:
    """List the runs of a store, oldest first."""
    home = Store(store)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("", "run", "date", "params", "bits/byte", "unigram", "trigram", "MB", "gate"):
        table.add_column(column, no_wrap=True, justify="left" if column in ("", "run", "gate") else "right")
    for run in home.runs():
        record = home.run_record(run)
        bits = record["bits_per_byte"]
        champion = home.champion(record["recipe"]["name"]) == run
        table.add_row(
            "[yellow]*[/]" if champion else "", run, record["created"][:10], f"{record['parameters']:,}",
            *(f"{float(bits[name]):.3f}" for name in ("model", "unigram", "trigram")), f"{record['package_mb']:.1f}",
            "passed" if record["verdict"]["passed"] else "[red]refused[/]",
        )  # fmt: skip
    if table.row_count:
        out.print(table)
        out.print("* champion of its recipe", style="dim")
    else:
        out.print(f"no runs in {home.root} yet; `qalam build demo` makes one", soft_wrap=True)


def report(
    run: RunArgument,
    store: StoreOption = DEFAULT_STORE,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    target: Annotated[Path | None, typer.Option("--out", help="Write it here, not into the run's folder.")] = None,
) -> None:
    """Print where the HTML report of a run is; one that is missing is written first."""
    home = Store(store)
    folder = home.run_folder(run)
    file = target or folder / "report.html"
    if target or not file.exists():
        from qalam_core.reports.page import page

        replace_file(file, page(home, run, folder, home.run_record(run)).encode())
    out.print(str(file), soft_wrap=True, markup=False)
    if show and not webbrowser.open(file.resolve().as_uri()):
        out.print("no browser was found; open that file in one")


def history(name: Annotated[str, typer.Argument(help="A recipe's name.")], store: StoreOption = DEFAULT_STORE) -> None:
    """Show every champion of a recipe, oldest first: when, which run, who and why."""
    for line in Store(store).promotions(name):
        action = line.get("action", "promote")
        text = f"{line['when']}  {line['run']}  {action} by {line.get('who', 'unknown')}: {line['why']}"
        out.print(text, soft_wrap=True, markup=False)


def promote(run: RunArgument, store: StoreOption = DEFAULT_STORE, why: Why = "promoted by hand", who: Who = "") -> None:
    """Make an earlier run the champion of its recipe."""
    home = Store(store)
    name = home.run_record(run)["recipe"]["name"]
    home.promote(name, run, _now(), why, who or getpass.getuser())
    out.print(f"{run} is the champion of {name}")


def rollback(
    name: Annotated[str, typer.Argument(help="A recipe's name, or its champion's run id.")],
    store: StoreOption = DEFAULT_STORE,
    why: Why = "rolled back by hand",
    who: Who = "",
) -> None:
    """Undo the last promotion of a recipe: the champion before it is champion again."""
    from qalam_core.pipeline import audit as registry

    home = Store(store)
    if home.has_run(name):
        name = home.run_record(name)["recipe"]["name"]
    run = registry.rollback(home, name, _now(), why, who or getpass.getuser())
    out.print(f"{run} is the champion of {name} again")


def reproduce(
    run: RunArgument,
    store: StoreOption = DEFAULT_STORE,
    fresh: Annotated[
        Path | None, typer.Option("--in", help="An empty folder to build in and keep; else a passing one.")
    ] = None,
) -> None:
    """Build a run again in a fresh store, and compare artifact by artifact (status 1: something differs)."""
    from qalam_core.pipeline import audit as registry

    with tempfile.TemporaryDirectory(prefix="qalam-") as passing, bars() as terminal:
        found = registry.reproduce(
            Store(store), run, Store(fresh or Path(passing)),
            lambda done, total: terminal.moved("train", "train", "steps", done, total),
        )  # fmt: skip
    table = Table("artifact", "then", "now", "", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for row in found.rows:
        verdict = "[green]same[/]" if row.matches else "[red]differs[/]: " + (", ".join(row.differing) or "its inputs")
        then, now = (name if row.stage == "run" else name[:12] for name in (row.then, row.now))
        table.add_row(row.stage, then, now, verdict if row.compared else f"{verdict} (collected)")
    out.print(table)
    for note in found.notes:
        out.print(f"note: {note}", soft_wrap=True, markup=False)
    same = sum(row.matches for row in found.rows)
    out.print(f"{same} of {len(found.rows)} match{': ' + run + ' is reproduced' if found.matches else ''}")
    if not found.matches:
        raise typer.Exit(1)


def gc(
    keep: Annotated[int, typer.Option(min=1, help="How many of the last runs of each recipe stay.")] = 5,
    delete: Annotated[bool, typer.Option("--delete", help="Delete; without it, only say what would go.")] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Make room: delete runs but the champions and the last ones, and artifacts that no run needs."""
    from qalam_core.pipeline import audit as registry

    found = registry.collect(Store(store), keep, delete)
    for name in (*found.runs, *found.artifacts):
        out.print(name, soft_wrap=True, markup=False)
    if found.busy:
        out.print(f"a build is at work ({found.busy[0][:24]}): artifacts stay until it has ended")
    did = "deleted" if delete else "would be deleted; --delete does it"
    out.print(
        f"{len(found.runs)} runs and {len(found.artifacts)} artifacts, {decimal(found.bytes)}: {did}; "
        f"{len(found.kept)} runs stay", soft_wrap=True,
    )  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for command in (runs, report, history, promote, rollback, reproduce, gc):
        app.command()(command)
