"""A build on the terminal: progress bars, a line for each finished stage, a summary. Does not import Prefect."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import rich.progress
import typer
from rich import console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column, Table
from rich.text import Text

from qalam_core.display import printable
from qalam_core.errors import QalamError
from qalam_core.progress import Tracker, every, interval
from qalam_core.store import Artifact

if TYPE_CHECKING:
    from qalam_core.pipeline.plan import Plan, Reasons
    from qalam_core.pipeline.publish import Published
    from qalam_core.pipeline.stage import Stage
    from qalam_core.recipe import Recipe
    from qalam_core.store import Store

_ALARMS = 5  # lines


class Console(console.Console):
    """A console on which text is only text: no markup, and nothing in it that the terminal would obey.

    That holds for every `str`, also in a table. What is styled is a `Text`, made of text that is `printable`.
    """

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich, which calls this for every `str`."""
        return super().render_str(printable(text, lines=True), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich; work goes on without a standard error that cannot be written. Raises QalamError for an output."""
        with self.writing():
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """As rich, which exits, unless this is standard error."""
        if not self.stderr:
            super().on_broken_pipe()
        self._give_up()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Context manager of a write to this console's file, which may be on a full disk."""
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            self._give_up()
            if not self.stderr:
                raise QalamError(f"standard output cannot be written: {error.strerror}") from None

    def _give_up(self) -> None:
        self.quiet = True
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), self.file.fileno())  # or the interpreter's exit would try to write what is left


out = Console()
err = Console(stderr=True)


def print_json(value: object) -> None:
    """Print a value as one line of JSON, in which the escapes of `printable` mean the same value."""
    with out.writing():
        typer.echo(printable(json.dumps(value, ensure_ascii=False)))


class _Figures(ProgressColumn):
    """400 of 1,500 steps (27%), loss 3.21, 12,345 tokens/s, 0:01:23 left."""

    def render(self, task: Task) -> Text:
        return Text(str(task.fields["tracker"]), style="dim")


class Bars:
    """A tasks.progress.Watcher: a progress bar for each running stage, a line for each finished one.

    Where no bars can be drawn, `print_lines` is to be called at intervals.
    """

    def __init__(self, progress: rich.progress.Progress, reasons: Reasons | None = None) -> None:
        self._progress, self._reasons = progress, reasons
        self._bars: dict[Tracker, TaskID] = {}
        self._lock = Lock()  # stages run in threads

    def moved(self, tracker: Tracker) -> None:
        """Draw the bar of `tracker`."""
        with self._lock:
            if tracker not in self._bars:
                self._bars[tracker] = self._progress.add_task(printable(tracker.label), tracker=tracker)
            self._progress.update(self._bars[tracker], completed=tracker.done, total=tracker.total or None)

    def stopped(self, tracker: Tracker) -> None:
        """Remove the bar of `tracker`."""
        with self._lock:
            if tracker in self._bars:
                self._progress.remove_task(self._bars.pop(tracker))

    @contextmanager
    def tracked(self, label: str, unit: str) -> Iterator[Tracker]:
        """Context manager of the callback of work that begins now."""
        tracker = Tracker(label, unit, self.moved)
        tracker(0, 0)
        try:
            yield tracker
        finally:
            self.stopped(tracker)

    def print_lines(self) -> None:
        """Print a line for each running stage."""
        with self._lock:
            running = [*self._bars]
        for tracker in running:
            line = Text.assemble(("  running", "blue"), f" {printable(tracker.label):<28}  {tracker}")
            self._progress.console.print(line, soft_wrap=True)

    def finished(self, stage: Stage, artifact: Artifact) -> None:
        """Print a line for `stage`, with the reason why it was built."""
        line = _line(stage.label, artifact)
        if self._reasons and not artifact.cached:
            line.append(f"  {printable('; '.join(self._reasons.why(stage)))}", "dim")
        self._progress.console.print(line, soft_wrap=True)


def reused(label: str, artifact: Artifact) -> None:
    """Print the line of a reused stage, without a progress bar."""
    err.print(_line(label, artifact), soft_wrap=True)


def _line(label: str, artifact: Artifact) -> Text:
    # a build has it loaded; `qalam --help` starts faster without
    from qalam_core.pipeline.stage import throughput, waits

    how = ("  cached", "cyan") if artifact.cached else ("  built ", "green")
    figures = f"{artifact.seconds:8.1f} s  {throughput([artifact]):>11}   {artifact.digest[:12]}"
    line = Text.assemble(how, f"  {printable(label):<28}{figures}")
    return line.append(f"  {waited}", "yellow") if (waited := waits(artifact)) else line


class _Notes(logging.Handler):
    """Prints the library's warnings (a damaged artifact, a wait for another build) above the progress bars."""

    def __init__(self, target: console.Console) -> None:
        super().__init__(logging.WARNING)
        self._target = target

    def emit(self, record: logging.LogRecord) -> None:
        self._target.print(
            Text.assemble("  ", ("note", "yellow"), f"   {printable(record.getMessage())}"), soft_wrap=True
        )


@contextmanager
def bars(store: Store | None = None, recipe: Recipe | None = None) -> Iterator[Bars]:
    """Context manager that shows progress on standard error: bars on a terminal, elsewhere lines at intervals.

    With a store and a recipe, each line has the reason why a stage was built: what changed since the recipe's last run.
    """
    reasons = None
    if store and recipe:
        from qalam_core.pipeline.plan import Reasons
        from qalam_core.runs import Runs

        reasons = Reasons(Runs(store.manifests()), recipe.name)
    drawn = err.is_terminal and not err.is_dumb_terminal
    columns = [
        TextColumn("  {task.description}", markup=False),
        *([BarColumn(24)] if err.width >= 110 else []),  # the figures need about 70 characters
        _Figures(table_column=Column()),
    ]
    with rich.progress.Progress(*columns, console=err, transient=True, disable=not drawn) as progress:
        notes, shown = _Notes(progress.console), Bars(progress, reasons)
        logging.getLogger("qalam_core").addHandler(notes)
        try:
            with nullcontext() if drawn else every(interval(), shown.print_lines):
                yield shown
        finally:
            logging.getLogger("qalam_core").removeHandler(notes)


def plan_table(plan: Plan) -> None:
    """Print a plan: for each stage whether it is reused or built, and why."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("stage", "action", "digest", "why"):
        table.add_column(column, no_wrap=column != "why")
    for row in plan.rows:
        action = Text(row.action, "cyan" if row.action == "reuse" else "green")
        table.add_row(printable(row.label), action, row.digest[:12], printable("; ".join(row.reasons)))
    out.print(table)
    built = sum(row.action == "build" for row in plan.rows)
    against = f", compared with {plan.against}" if plan.against else ""
    out.print(f"{built} to build, {len(plan.rows) - built} to reuse{against}", soft_wrap=True)
    if built:
        out.print(_work(plan), soft_wrap=True)


def _work(plan: Plan) -> str:
    """ "about 12.3 MB to ingest, 1,000 steps to train: 4 minutes at the rates of the last runs"."""
    from qalam_core.pipeline.estimate import UNITS

    amounts = [
        f"{part.amount / 1e6:,.2f} MB to {part.stage}" if UNITS[part.stage] == "bytes"
        else f"{part.amount:,} steps to {part.stage}"
        for part in plan.work if part.stage in UNITS
    ]  # fmt: skip
    if plan.seconds is None:
        took = "no earlier run says how long that takes"
    else:
        took = f"{plan.seconds / 60:,.1f} minutes of one worker at the rates of the last runs"
    return f"about {', '.join(amounts)}: {took}" if amounts else f"about {took}" if plan.seconds is not None else took


def summary(published: Published) -> None:
    """Print the result: bits per byte against the baselines, samples, time per stage, run, package, gate."""
    from qalam_core.evaluation.results import Report

    report = Report.model_validate_json((published.folder / "report.json").read_bytes())
    slices = [("all", report.bits_per_byte), *((name, part.bits_per_byte) for name, part in report.sources.items())]
    out.print()
    table = Table(title="bits per byte on the held-out split (lower is better)", title_justify="left")
    table.add_column("")
    for column in ("model", "unigram", "token 4-gram", "character 10-gram", "model against unigram"):
        table.add_column(column, justify="right")
    for name, bits in slices if len(slices) > 2 else slices[:1]:
        change = bits.model / bits.unigram - 1
        figures = (bits.model, bits.unigram, bits.ngram, bits.characters)
        table.add_row(printable(name), *(f"{value:.3f}" for value in figures), f"{change:+.1%}")
    out.print(table)
    out.print("\nsamples (generated by a statistical model; not statements of fact)")
    for sample in report.samples[:3]:
        out.print("  " + " ".join(sample.text.split()), soft_wrap=True)
    out.print("\ntime: " + _timings(published))
    if published.cached:
        out.print("every stage was cached: nothing had to be built")
    out.print("\nrun      ", Text(published.run, "bold"), "  (champion)" if published.champion else "", sep="")
    out.print(f"package  {published.folder / 'model'}", soft_wrap=True)
    out.print(f"report   {published.folder / 'report.html'}", soft_wrap=True)
    if not isinstance(review := published.review, str):
        out.print(f"review   {published.folder / 'review.html'}", soft_wrap=True)
        out.print(printable(f"changes  {review.verdict}"), soft_wrap=True)
        for alarm in review.alarms[:_ALARMS]:
            out.print(printable(f"alarm    {alarm.message}"), soft_wrap=True)
        if more := len(review.alarms[_ALARMS:]):
            out.print(f"         and {more} more, in the review", soft_wrap=True)
    style = "yellow" if published.held or published.waits else "green" if published.verdict.passed else "red"
    out.print("result   ", Text(printable(published.decision), style), sep="", soft_wrap=True)


def _timings(published: Published) -> str:
    from qalam_core.pipeline.stage import throughput

    stages: dict[str, list[Artifact]] = {}
    for artifact in published.artifacts:
        stages.setdefault(artifact.stage, []).append(artifact)
    return ", ".join(
        f"{stage} {sum(artifact.seconds for artifact in artifacts):.1f} s" + (f" ({speed})" if speed else "")
        for stage, artifacts in stages.items() for speed in [throughput(artifacts)]
    )  # fmt: skip
