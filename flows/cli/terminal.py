"""A build on the terminal: progress bars, a line for each finished stage, a summary. Does not import Prefect."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich import console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from qalam_core.display import printable
from qalam_core.store import Artifact

if TYPE_CHECKING:
    from qalam_core.pipeline.plan import Plan, Reasons
    from qalam_core.pipeline.publish import Published
    from qalam_core.pipeline.stage import Stage
    from qalam_core.recipe import Recipe
    from qalam_core.store import Store


class Console(console.Console):
    """A console on which text is only text: no markup, and nothing in it that the terminal would obey.

    That holds for every `str`, also in a table. What is styled is a `Text`, made of text that is `printable`.
    """

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich, which calls this for every `str`."""
        return super().render_str(printable(text, lines=True), **options)


out = Console()
err = Console(stderr=True)


def print_json(value: object) -> None:
    """Print a value as one line of JSON, in which the escapes of `printable` mean the same value."""
    typer.echo(printable(json.dumps(value, ensure_ascii=False)))


class _Amount(ProgressColumn):
    """12.5/29.1 MB, 4.1 MB/s -- or 120/400 steps, 3.6 steps/s."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        total = int(task.total or 0)
        if unit == "bytes":
            amount, speed = (
                f"{decimal(int(task.completed))}/{decimal(total)}",
                f"{decimal(int(task.speed or 0))}/s",
            )
        else:
            amount, speed = f"{int(task.completed):,}/{total:,} {unit}", f"{task.speed or 0:,.1f}/s"
        return Text(f"{amount}  {speed if task.speed else ''}", style="dim")


class Bars:
    """A tasks.progress.Watcher: a progress bar for each running stage, a line for each finished one."""

    def __init__(self, progress: Progress, reasons: Reasons | None = None) -> None:
        self._progress, self._reasons = progress, reasons
        self._bars: dict[str, int] = {}

    def moved(self, stage: str, label: str, unit: str, done: int, total: int) -> None:
        """Draw `label` at `done` of `total`."""
        if label not in self._bars:
            self._bars[label] = self._progress.add_task(printable(label), total=total or None, unit=unit)
        self._progress.update(self._bars[label], completed=done, total=total or None)  # type: ignore[arg-type]

    def finished(self, stage: Stage, artifact: Artifact) -> None:
        """Replace the bar of `stage` by a line with the reason why it was built."""
        if stage.label in self._bars:
            self._progress.remove_task(self._bars.pop(stage.label))  # type: ignore[arg-type]
        line = _line(stage.label, artifact)
        if self._reasons and not artifact.cached:
            line.append(f"  {printable('; '.join(self._reasons.why(stage)))}", "dim")
        self._progress.console.print(line, soft_wrap=True)


def reused(label: str, artifact: Artifact) -> None:
    """Print the line of a reused stage, without a progress bar."""
    err.print(_line(label, artifact), soft_wrap=True)


def _line(label: str, artifact: Artifact) -> Text:
    from qalam_core.pipeline.stage import throughput  # a build has it loaded; `qalam --help` starts faster without

    how = ("  cached", "cyan") if artifact.cached else ("  built ", "green")
    figures = f"{artifact.seconds:8.1f} s  {throughput([artifact]):>11}   {artifact.digest[:12]}"
    return Text.assemble(how, f"  {printable(label):<28}{figures}")


class _Notes(logging.Handler):
    """Prints the library's warnings (a damaged artifact, another running build) above the progress bars."""

    def __init__(self, target: console.Console) -> None:
        super().__init__(logging.WARNING)
        self._target = target

    def emit(self, record: logging.LogRecord) -> None:
        self._target.print(
            Text.assemble("  ", ("note", "yellow"), f"   {printable(record.getMessage())}"), soft_wrap=True
        )


@contextmanager
def bars(store: Store | None = None, recipe: Recipe | None = None) -> Iterator[Bars]:
    """Context manager that shows progress on standard error; only lines when it is not a terminal.

    With a store and a recipe, each line has the reason why a stage was built: what changed since the recipe's last run.
    """
    reasons = None
    if store and recipe:
        from qalam_core.pipeline.plan import Reasons
        from qalam_core.runs import Runs

        reasons = Reasons(Runs(store), recipe.name)
    columns = (
        TextColumn("  {task.description:<20}", markup=False),
        BarColumn(24),
        _Amount(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        notes = _Notes(progress.console)
        logging.getLogger("qalam_core").addHandler(notes)
        try:
            yield Bars(progress, reasons)
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
