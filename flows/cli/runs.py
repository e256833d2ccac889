"""The commands that work on runs: runs, report, lineage, history, promote, rollback, reproduce, gc."""

from __future__ import annotations

import getpass
import re
import tempfile
import webbrowser
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from al_qalam.flows.cli.options import StoreOption
from al_qalam.flows.cli.terminal import bars, out, print_json
from al_qalam.tasks.links import report_link
from qalam_core.display import printable
from qalam_core.errors import QalamError, StoreError
from qalam_core.files import replace_file
from qalam_core.object_store import store_at
from qalam_core.runs import Ancestor, Runs, State, Summary, outcome
from qalam_core.store import DEFAULT_STORE, Store

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run id; `qalam runs` lists them.")]
Why = Annotated[str, typer.Option(help="The reason, for the champion's history.")]
Who = Annotated[str, typer.Option(help="Your name, for the champion's history; default: the login name.")]


def runs(
    name: Annotated[str, typer.Option(help="Only the runs of the recipe with this name.")] = "",
    state: Annotated[State | None, typer.Option(help="Only runs of which this holds now.")] = None,
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M"], help="Only runs since this time, UTC.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the newest ones, this many.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """List the runs of a store, oldest first, and why those that did not pass were refused. Times are UTC."""
    home = Runs(store_at(store))
    found = home.summaries(name)
    states = home.states(found)
    chosen = [
        run for run, summary in found.items()
        if (not state or state in states[run]) and (not since or summary.created >= since.replace(tzinfo=UTC))
    ]  # fmt: skip
    chosen = chosen[-limit:] if limit else chosen
    if as_json:
        print_json([_as_json(run, found[run], states[run]) for run in chosen])
    elif chosen:
        _print_runs([(run, found[run], states[run]) for run in chosen])
    elif found:
        out.print(f"none of {len(found)} runs in {home.store.place} is such a run", soft_wrap=True)
    else:
        of = f" of a recipe {name!r}" if name else ""
        out.print(f"no runs{of} in {home.store.place} yet; `qalam build {name or 'demo'}` creates one", soft_wrap=True)


def _as_json(run: str, summary: Summary, states: Sequence[State]) -> dict[str, object]:
    return {
        "run": run, "recipe": summary.recipe.name, "created": summary.created.isoformat(),
        "states": states, "failed": summary.verdict.failed(), "reasons": summary.verdict.reasons(),
        "bits_per_byte": summary.bits_per_byte.canonical(), "parameters": summary.parameters,
        "package_mb": summary.package_mb,
        "proposal": summary.proposal.canonical() if summary.proposal else None,
    }  # fmt: skip


def _print_runs(chosen: Sequence[tuple[str, Summary, Sequence[State]]]) -> None:
    """Each in one line, which no terminal cuts: a table of rich would lose the ends of names."""
    from qalam_core.reports.tables import clipped

    rows = [("", "run", "created (UTC)", "params", "bits/byte", "MB", "result")]
    for run, one, states in chosen:
        mark, time = "*" if "champion" in states else "", f"{one.created.astimezone(UTC):%Y-%m-%d %H:%M}"
        figures = f"{one.parameters:,}", f"{one.bits_per_byte.model:.3f}", f"{one.package_mb:.1f}"
        result = outcome(one.verdict, states)
        if one.proposal:
            result += f"; proposed by {clipped(one.proposal.who, 40)}: {clipped(one.proposal.why, 120)}"
        rows.append((mark, printable(run), time, *figures, printable(result)))
    colours = {"refused": "red", "waiting": "yellow", "accepted": "yellow"}
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(row[3:-1], widths[3:], strict=False)]
        coloured = Text(row[-1], colours.get(re.split("[:;]", row[-1], maxsplit=1)[0], ""))
        out.print(Text.assemble(" ".join((*left, *right, "")), coloured), soft_wrap=True)
    if any(row[0] for row in rows):
        out.print("* champion of its recipe", style="dim")


def report(
    run: RunArgument,
    store: StoreOption = DEFAULT_STORE,
    show: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
    target: Annotated[Path | None, typer.Option("--out", help="Write the report to this file instead.")] = None,
) -> None:
    """Print the path of a run's HTML report; write the report first if it is missing."""
    home = Runs(store_at(store))
    file = target or home.folder(run) / "report.html"
    if target or not file.exists():
        from qalam_core.pipeline.publish import render_page

        replace_file(file, render_page(home, run).encode())
    out.print(str(file), soft_wrap=True)
    if show and not webbrowser.open(file.resolve().as_uri()):
        out.print("no browser was found; open the file in one")


def lineage(
    run: RunArgument,
    store: StoreOption = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the runs that a run began from, nearest first, and what they have read, documents by source."""
    from qalam_core.reports.chain import chain_of, drift_text
    from qalam_core.reports.tables import by_source, kept_text

    home = Runs(store_at(store))
    record = home.record(run)
    chain = chain_of(home, run, record)
    seen, package, corpus = record.seen, home.package(run).package, record.artifacts["prepare"][0]
    if as_json:
        ancestors = [{**ancestor.canonical(), "in_store": ancestor.run in home} for ancestor in record.lineage]
        found = {
            "run": run, "package": package, "corpus": corpus, "begun_from": record.parent or None,
            "read": seen.lineage, "own": seen.own, "gone": seen.gone, "ancestors": ancestors,
            "tokenizer": record.tokenizer.canonical() if record.tokenizer else None,
            "drift": drift_text(chain, record.recipe) if chain else None,
            "proposal": record.proposal.canonical() if record.proposal else None,
        }  # fmt: skip
        print_json(found)
        return
    out.print(f"{run}: {record.origin}", soft_wrap=True)
    if record.proposal:
        from qalam_core.reports.tables import proposed_text

        out.print(f"proposed {printable(proposed_text(record.proposal))}", soft_wrap=True)
    if record.proposal and record.proposal.unknown:
        out.print(f"what it has read is not known: {printable(record.proposal.unknown)}", soft_wrap=True)
    read = sum(seen.lineage.values())
    out.print(f"has read {read:,} distinct documents: {by_source(seen.lineage)}", soft_wrap=True)
    if seen.gone:
        gone = f"{sum(seen.gone.values()):,} of them are no longer in its corpus: {by_source(seen.gone)}"
        out.print(gone, soft_wrap=True)
    if record.tokenizer:
        out.print(f"its tokenizer was {kept_text(record.tokenizer)}", soft_wrap=True)
    if chain:
        out.print(printable(drift_text(chain, record.recipe)), soft_wrap=True)
    trained = "measured on the test split of that corpus" if record.proposal else f"trained on {by_source(seen.own)}"
    tree = Tree(_branch(run, package, corpus, trained))
    for ancestor in record.lineage:
        trained = f"trained on {by_source(ancestor.documents)}" if ancestor.documents else "not trained: an edit"
        label = _branch(ancestor.run, ancestor.package, ancestor.corpus, trained, ancestor)
        # all below the run, and not each below its child: a year of nights would leave the terminal at the right
        tree.add(label if ancestor.run in home else label.append("\ndeleted from the store", "red"))
    out.print(tree, soft_wrap=True)


def _branch(run: str, package: str, corpus: str, trained: str, ancestor: Ancestor | None = None) -> Text:
    lines = [run, f"package {package[:12]}, corpus {corpus[:12]}", trained]
    if ancestor:
        lines += ["its training was continued" if ancestor.state else "its weights alone were taken"]
        lines.append(f"changed afterwards: {'; '.join(ancestor.changes) or 'the texts alone'}")
        lines += [f"exception: {' '.join(line.split())}" for line in ancestor.accepted]
    return Text("\n".join(map(printable, lines)))


def history(
    name: Annotated[str, typer.Argument(help="A recipe's name.")],
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where --html writes; default: NAME-history.html.")
    ] = None,
    html: Annotated[
        bool, typer.Option("--html", help="Write a page with a plot of all runs of the recipe over time.")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """List every promotion and rollback of a recipe, oldest first: date, run, who, accepted exceptions and why."""
    home = Runs(store_at(store))
    if html:
        _write_history(home, name, file or Path(f"{name}-history.html"))
        return
    if file:
        raise QalamError(f"{file}: only with --html a file is written; add it, or leave the file out")
    lines = home.promotions(name)
    if not lines:
        raise StoreError(f"there is no champion of {name!r} in {store}; `qalam runs` lists the runs and their recipes")
    for line in lines:
        accepted = f", accepted {', '.join(line.accepted)}" if line.accepted else ""
        text = f"{line.run}  {line.action} by {line.who}{accepted}: {line.why}"
        out.print(f"{line.when}  {printable(text)}", soft_wrap=True)
    for run, champion in reversed(home.repeated(name).items()):
        out.print(f"{home.record(run).created}  {run}  the same model as {champion}", soft_wrap=True)


def _write_history(home: Runs, name: str, file: Path) -> None:
    from qalam_core.reports.history import history_page  # imports matplotlib

    if not (summaries := home.summaries(name)):
        raise StoreError(f"there is no run of {name!r} in {home.store.place}; `qalam runs` lists the runs")
    try:
        replace_file(file, history_page(name, summaries, home.promotions(name), report_link).encode())
    except OSError as error:
        raise QalamError(f"{file}: cannot be written ({error.strerror}); name another file") from None
    out.print(str(file), soft_wrap=True)


def promote(
    run: RunArgument,
    store: StoreOption = DEFAULT_STORE,
    why: Annotated[
        str | None, typer.Option(help="The reason, for the champion's history; needed with an exception.")
    ] = None,
    who: Who = "",
    new_yardstick: Annotated[
        bool, typer.Option("--accept-new-yardstick", help="Although it could not be compared with the champion.")
    ] = False,
    looser_gate: Annotated[
        bool, typer.Option("--accept-looser-gate", help="Although the gate was looser than for the champion.")
    ] = False,
    refused: Annotated[bool, typer.Option("--accept-refused", help="Although the gate refused it.")] = False,
    rolled_back: Annotated[
        bool, typer.Option("--accept-rolled-back", help="Although a person rolled this model back.")
    ] = False,
    unknown_lineage: Annotated[
        bool, typer.Option("--accept-unknown-lineage", help="Although it is not known what it has read.")
    ] = False,
) -> None:
    """Make an earlier run the champion of its recipe."""
    home = Runs(store_at(store))
    name = home.record(run).recipe.name
    if home.champion(name) != run:
        flags = {
            "new-yardstick": new_yardstick, "looser-gate": looser_gate, "refused": refused,
            "rolled-back": rolled_back, "unknown-lineage": unknown_lineage,
        }  # fmt: skip
        accepted = [flag for flag, given in flags.items() if given]
        needed = home.exceptions(run)
        if missing := [flag for flag in needed if flag not in accepted]:
            reasons = "; ".join(needed[flag] for flag in missing)
            raise StoreError(f"{run} needs an exception: {reasons}; add {_flags(missing)} and --why REASON")
        if idle := [flag for flag in accepted if flag not in needed]:
            raise StoreError(f"{run} does not need {_flags(idle)}; leave it out, so that the history stays true")
        if accepted and why is None:
            raise StoreError(
                f"{_flags(accepted)} needs a reason, for the history and its descendants; add --why REASON"
            )
        home.promote(
            name,
            run,
            when=_now(),
            why=_reason("promoted by hand" if why is None else why),
            who=_who(who),
            accepted=accepted,
        )
    out.print(f"{run} is the champion of {name}")


def _flags(exceptions: list[str]) -> str:
    return " ".join(f"--accept-{name}" for name in exceptions)


def rollback(
    name: Annotated[str, typer.Argument(help="A recipe's name, or its champion's run id.")],
    store: StoreOption = DEFAULT_STORE,
    why: Why = "rolled back by hand",
    who: Who = "",
) -> None:
    """Make the previous champion of a recipe the champion again."""
    home = Runs(store_at(store))
    if name in home:
        name = home.record(name).recipe.name
    run = home.rollback(name, _now(), _reason(why), _who(who))
    out.print(f"{run} is the champion of {name} again")


def _reason(why: str) -> str:
    """In one line. Raises StoreError when there is none."""
    if not (line := " ".join(why.split())):
        raise StoreError("--why is blank; say why, for the champion's history")
    return line


def _who(who: str) -> str:
    return " ".join(who.split()) or getpass.getuser()


def reproduce(
    run: RunArgument,
    store: StoreOption = DEFAULT_STORE,
    fresh: Annotated[
        Path | None, typer.Option("--in", help="Build in this empty folder and keep it; default: a temporary one.")
    ] = None,
    lineage: Annotated[
        bool, typer.Option("--lineage", help="Also build the runs that it began from, oldest first, from text alone.")
    ] = False,
) -> None:
    """Build a run again in an empty store, and compare each artifact (exit status 1: something differs)."""
    from qalam_core.pipeline.audit import reproduce as build_again

    with (
        tempfile.TemporaryDirectory(prefix="qalam-") as temporary,
        bars() as terminal,
        terminal.tracked(f"reproduce {run}", "steps") as progress,
    ):
        found = build_again(store_at(store), run, Store(fresh or Path(temporary)), progress, lineage)
    table = Table("artifact", "then", "now", "", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for row in found.rows:
        differing = f": {printable(', '.join(row.differing) or 'inputs')}"
        verdict = Text("same", "green") if row.matches else Text.assemble(("differs", "red"), differing)
        then, now = (name if row.stage == "run" else name[:12] for name in (row.then, row.now))
        if not row.decided and row.matches:
            verdict = Text("not compared (a run was deleted)")
        table.add_row(row.stage, then, now, verdict if row.compared else verdict.append(" (artifact deleted)"))
    out.print(table)
    out.print(found.basis, soft_wrap=True)
    for note in found.notes:
        out.print(f"note: {note}", soft_wrap=True)
    out.print(f"{found.count}{': ' + run + ' is reproduced' if found.matches else ''}")
    if not found.matches:
        raise typer.Exit(1)


def gc(
    keep: Annotated[int, typer.Option(min=1, help="How many of the latest runs of each recipe to keep.")] = 5,
    delete: Annotated[bool, typer.Option("--delete", help="Delete, instead of only listing.")] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """List, or with --delete delete, old runs that are not champions, and artifacts that no kept run needs."""
    from qalam_core.pipeline.collect import collect

    found = collect(store_at(store), keep)
    for line in found.lost:
        out.print(f"can no longer be built again: {line}", soft_wrap=True)
    if delete:
        found = collect(store_at(store), keep, delete)
    for name in (*found.runs, *found.artifacts, *found.abandoned):
        out.print(name, soft_wrap=True)
    if found.busy:
        out.print(f"a build is running ({found.busy[0][:24]}): artifacts are kept until it has finished")
    did = "deleted" if delete else "would be deleted (with --delete)"
    out.print(
        f"{len(found.runs)} runs, {len(found.artifacts)} artifacts and {len(found.abandoned)} temporary files, "
        f"{decimal(found.bytes)}: {did}; "
        f"{len(found.kept)} runs are kept", soft_wrap=True,
    )  # fmt: skip
    if found.lost:
        out.print("the sources are not in the store: a run is built again from text while they are unchanged")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
