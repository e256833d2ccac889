"""The command review: what changed between two models, as a page and in the terminal."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from al_qalam.flows.cli.options import StoreOption
from al_qalam.flows.cli.terminal import bars, out, print_json
from qalam_core.display import printable
from qalam_core.errors import QalamError
from qalam_core.files import replace_file
from qalam_core.object_store import store_at
from qalam_core.runs import Runs
from qalam_core.store import DEFAULT_STORE

if TYPE_CHECKING:
    from qalam_core.review.summary import Review

_ALARMS = 10  # lines


def review(
    old: Annotated[str, typer.Argument(metavar="OLD", help="The model before: a run id, or a package folder.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The model to review: a run id, or a package folder.")],
    file: Annotated[
        Path | None, typer.Option("--html", help="Where to write the page.", show_default="review.html")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; a page is written with --html only.")] = False,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Compare two models: recipe, data, tokenizer, behaviour and weights, and which changes a person should look at."""
    from qalam_core.pipeline.review import Side
    from qalam_core.pipeline.review import review as compare

    runs = Runs(store_at(store))
    before, after = Side.of(runs, old), Side.of(runs, new)
    with bars() as terminal, terminal.tracked("review", "tokens") as progress:
        found = compare(before, after, progress)
    target = file or (None if as_json and not show else Path("review.html"))
    if target:
        _write(target, found)
    if as_json:
        print_json(found.canonical())
    else:
        _print(found)
        out.print(f"\npage     {target}", soft_wrap=True)
    if show and target and not webbrowser.open(target.resolve().as_uri()):
        out.print("no browser was found; open the file in one")


def _write(file: Path, review: Review) -> None:
    from qalam_core.reports.review import review_page

    try:
        replace_file(file, review_page(review).encode())
    except OSError as error:
        raise QalamError(f"{file}: cannot be written ({error.strerror}); name another file") from None


def _print(review: Review) -> None:
    """The verdict, a sentence for each section, and the alarms."""
    style = "green" if review.clean else "red" if review.gate == "refused" else "yellow"
    out.print(Text(printable(review.verdict), style), soft_wrap=True)
    for reason in review.reasons:
        out.print(printable(f"  {reason}"), soft_wrap=True)
    out.print()
    for number, (section, sentence) in enumerate(review.sentences.items(), 1):
        out.print(printable(f"{number}. {section}: {sentence}"), soft_wrap=True)
    if review.alarms:
        out.print("\nalarms")
    for alarm in review.alarms[:_ALARMS]:
        colour = "red" if alarm.severity == "high" else "yellow"
        out.print(
            Text.assemble(("  " + alarm.severity.ljust(5), colour), printable(f"{alarm.section}: {alarm.message}")),
            soft_wrap=True,
        )
    if len(review.alarms) > _ALARMS:
        out.print(f"  and {len(review.alarms) - _ALARMS} more, in the page")
    for why in review.unseen():
        out.print(printable(f"not looked at: {why}"), soft_wrap=True)
