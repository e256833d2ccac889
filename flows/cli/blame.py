"""The command `qalam blame`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from al_qalam.flows.cli.options import ModelArgument, StoreOption
from al_qalam.flows.cli.terminal import out, print_json
from qalam_core.display import printable
from qalam_core.errors import PackageError
from qalam_core.object_store import store_at
from qalam_core.runs import Runs
from qalam_core.store import DEFAULT_STORE

if TYPE_CHECKING:
    from qalam_core.pipeline.blame import Blame, Step, Version


def blame(
    model: ModelArgument,
    tensor: Annotated[str, typer.Argument(help="A tensor; all of them if none is named.")] = "",
    row: Annotated[str, typer.Option(help="A row of it: a number, or a token.")] = "",
    commits: Annotated[int, typer.Option(min=1, help="How many commits to read of a package kept in git alone.")] = 20,
    store: StoreOption = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say since which run a row or a tensor stands as it does, and how much it changed on the way."""
    from qalam_core.pipeline.blame import blame as compare
    from qalam_core.pipeline.blame import tensors_since, versions

    if row and not tensor:
        raise PackageError("--row needs a tensor: qalam blame MODEL embedding.weight --row WORD")
    with TemporaryDirectory(prefix="qalam-blame-") as place:
        chain = versions(Runs(store_at(store)), model, Path(place), commits)
        if not tensor:
            _print_tensors(tensors_since(chain), as_json)
            return
        found = compare(chain, tensor, row)
    if as_json:
        print_json(_as_json(found))
        return
    if found.steps:
        table = Table("version", "date", "why", "moved", "of", "typical", "factor", box=None, pad_edge=False)
        for step in found.steps:
            table.add_row(*map(Text, _cells(step)))
            for deleted in step.deleted:
                table.add_row(*map(Text, (deleted.name, deleted.when[:10], "deleted, so unknown", "?", "", "", "")))
        out.print(table)
        out.print()
    for line in _sentences(found):
        out.print(line, soft_wrap=True)


def _cells(step: Step) -> tuple[str, ...]:
    newer = step.newer
    typical = "" if step.typical is None else f"{step.typical:.4g}"
    factor = "" if step.factor is None else f"{step.factor:.2f}"
    return (
        printable(newer.name), newer.when[:10], printable(newer.why), f"{step.moved:.4g}", f"{step.length:.4g}",
        typical, factor,
    )  # fmt: skip


def _sentences(found: Blame) -> list[str]:
    what, since, outlier = printable(found.what), found.since, found.outlier
    if since is None:
        lines = [f"{what} stands as it does at least since {_named(found.last)}"]
    else:
        lines = [f"{what} stands as it does since {_named(since.newer)}, which moved it by {since.moved:.4g}"]
        if since.deleted:
            names = ", ".join(version.name for version in since.deleted)
            lines[0] += f", or since a run that was deleted: {names}"
    if outlier is not None and len(found.steps) > 1:
        factor = f"{outlier.factor:.2f} times as much as the typical row"
        lines.append(f"its largest change, compared with other rows, was in {_named(outlier.newer)}: {factor}")
    return [*lines, printable(f"further back: {found.end}")]


def _named(version: Version) -> str:
    details = ", ".join(part for part in (version.when[:10], printable(version.why)) if part)
    return printable(version.name) + (f" ({details})" if details else "")


def _print_tensors(found: dict[str, tuple[Version, tuple[Version, ...]]], as_json: bool) -> None:
    if as_json:
        print_json({
            name: {**_version(since), "or_deleted": [version.name for version in deleted]}
            for name, (since, deleted) in found.items()
        })  # fmt: skip
        return
    table = Table("tensor", "since", "date", Column("why", overflow="fold"), box=None, pad_edge=False)
    for name, (since, deleted) in found.items():
        unknown = f"; or one that was deleted: {', '.join(version.name for version in deleted)}" if deleted else ""
        table.add_row(*map(Text, (name, printable(since.name), since.when[:10], printable(since.why) + unknown)))
    out.print(table)


def _version(version: Version) -> dict[str, object]:
    return {"version": version.name, "when": version.when, "why": version.why}


def _as_json(found: Blame) -> dict[str, object]:
    steps = [
        {
            **_version(step.newer), "from": step.older.name, "deleted": [version.name for version in step.deleted],
            "moved": step.moved, "length": step.length, "typical": step.typical, "factor": step.factor,
        }
        for step in found.steps
    ]  # fmt: skip
    since, outlier = found.since, found.outlier
    return {
        "what": found.what, "since": since.newer.name if since else None, "steps": steps, "end": found.end,
        "outlier": outlier.newer.name if outlier else None,
    }  # fmt: skip
