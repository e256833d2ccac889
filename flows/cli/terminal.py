"""What a build looks like on a terminal: bars while stages run, a line when one is done, a summary.
Takes progress calls and a published run; gives text on standard error and standard output.
It does not know Prefect, and decides nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from qalam_core.store import Artifact

if TYPE_CHECKING:
    from qalam_core.pipeline.build import Published

__all__ = ["Bars", "bars", "out", "summary"]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


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
    """Watches stages (tasks.progress.Watcher): a bar for each that runs, a line for each that ended."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, int] = {}

    def moved(self, stage: str, label: str, unit: str, done: int, total: int) -> None:
        """Draw `label` at `done` of `total`."""
        if label not in self._bars:
            self._bars[label] = self._progress.add_task(label, total=total or None, unit=unit)
        self._progress.update(self._bars[label], completed=done, total=total or None)  # type: ignore[arg-type]

    def finished(self, label: str, artifact: Artifact) -> None:
        """Replace the bar of `label` by one line."""
        from qalam_core.pipeline.publish import speed  # whoever builds has it loaded, and `qalam --help` does without

        if label in self._bars:
            self._progress.remove_task(self._bars.pop(label))  # type: ignore[arg-type]
        how = "[cyan]cached[/]" if artifact.cached else "[green]built [/]"
        line = f"  {how}  {label:<28}{artifact.seconds:8.1f} s  {speed([artifact]):>11}   {artifact.digest[:12]}"
        self._progress.console.print(line)


class _Notes(logging.Handler):
    """The library's warnings (a damaged artifact, another build at work) as lines above the bars."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(f"  [yellow]note[/]   {escape(record.getMessage())}", soft_wrap=True)


@contextmanager
def bars() -> Iterator[Bars]:
    """Bars on standard error for as long as the block runs; only lines when it is no terminal."""
    columns = (
        TextColumn("  {task.description:<20}"),
        BarColumn(24),
        _Amount(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        notes = _Notes(progress.console)
        logging.getLogger("qalam_core").addHandler(notes)
        try:
            yield Bars(progress)
        finally:
            logging.getLogger("qalam_core").removeHandler(notes)


def summary(published: Published) -> None:
    """Print what came out: run, package, bits per byte against the baselines, samples, time per stage."""
    record = json.loads((published.folder / "run.json").read_text(encoding="utf-8"))
    report = json.loads((published.folder / "report.json").read_text(encoding="utf-8"))
    bits = record["bits_per_byte"]

    out.print()
    table = Table(title="bits per byte on the held-out split (lower is better)", title_justify="left")
    table.add_column("")
    for column in ("model", "unigram", "trigram", "model against unigram"):
        table.add_column(column, justify="right")
    slices = [("all", bits), *((name, part["bits_per_byte"]) for name, part in report["sources"].items())]
    for name, row in slices if len(slices) > 2 else slices[:1]:
        saved = row["model"] / row["unigram"] - 1
        table.add_row(name, f"{row['model']:.3f}", f"{row['unigram']:.3f}", f"{row['trigram']:.3f}", f"{saved:+.1%}")
    out.print(table)
    out.print("\nsamples (a statistical model's text, not statements)")
    for sample in report["samples"][:3]:
        out.print("  " + " ".join(sample["text"].split()), soft_wrap=True, markup=False)
    out.print("\ntime: " + _timings(published))
    if published.cached:
        out.print("every stage was cached: nothing had to be built")
    out.print(f"\nrun      [bold]{published.run}[/]{'  (champion)' if published.champion else ''}")
    out.print(f"package  {published.folder / 'model'}", soft_wrap=True)
    out.print(f"report   {published.folder / 'report.html'}", soft_wrap=True)
    if published.verdict.passed:
        out.print("gate     [green]passed[/]")
    else:
        out.print("gate     [red]refused[/]: " + " ".join(published.verdict.reasons()), soft_wrap=True)


def _timings(published: Published) -> str:
    from qalam_core.pipeline.publish import speed

    stages: dict[str, list[Artifact]] = {}
    for artifact in published.artifacts:
        stages.setdefault(artifact.stage, []).append(artifact)
    return ", ".join(
        f"{stage} {sum(artifact.seconds for artifact in artifacts):.1f} s" + (f" ({fast})" if fast else "")
        for stage, artifacts in stages.items() for fast in [speed(artifacts)]
    )  # fmt: skip
