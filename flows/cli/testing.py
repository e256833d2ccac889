"""The command that runs model tests: test."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from al_qalam.flows.cli.options import ModelArgument, StoreOption, package_folder
from al_qalam.flows.cli.terminal import bars, out, print_json
from qalam_core.display import printable
from qalam_core.errors import RecipeError
from qalam_core.files import replace_file
from qalam_core.object_store import store_at
from qalam_core.recipe import SHIPPED, ModelTests, Recipe
from qalam_core.runs import Runs
from qalam_core.store import DEFAULT_STORE

if TYPE_CHECKING:
    from qalam_core.evaluation.model_tests.outcomes import Outcome, Outcomes

_WIDTH = 60  # cases on a line of dots
_SIGNS = {"passed": ".", "failed": "F", "known failure": "x", "unexpectedly passed": "X"}
_COLOURS = {"failed": "red", "unexpectedly passed": "yellow"}


def run_tests(
    model: ModelArgument,
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILES]", help="Files of cases, or suite:arabic. Default: the tests of the run's "
                       "recipe, and suite:arabic for a package.", show_default=False),
    ] = None,
    share: Annotated[float | None, typer.Option(min=0, max=1, help="Share of each file's cases that must pass; "
                     "default: the recipe's, and 1 for files that are named here.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Seed of samples; default: the recipe's, and "
                    "1 for a package.", show_default=False)] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write the results to this file, as JUnit's XML.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:  # fmt: skip
    """Run tests of a model: what it must find likelier, must know and may not say (exit status 1 on failure)."""
    from qalam_core.evaluation.model_tests.cases import suites
    from qalam_core.evaluation.model_tests.running import Subject, run  # imports torch
    from qalam_core.package.read import read

    folder = package_folder(model, store)
    recipe = None if Path(model).is_dir() else Runs(store_at(store)).record(model).recipe
    chosen = [ModelTests.of(path, 1.0) for path in files] if files else _tests_of(recipe, model)
    names = [each.name for each in chosen]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RecipeError(f'two files of tests have the name "{min(twice)}"; rename one')
    if share is not None:
        chosen = [each.model_copy(update={"share": share}) for each in chosen]
    package = read(folder)
    found = suites(chosen, package.vocabulary.rules)
    subject = Subject.of(package, seed=seed if seed is not None else recipe.seed if recipe else 1)
    results = []
    for suite in found:
        with nullcontext() if json else bars() as terminal:
            if terminal is None:
                results.append(run(suite, subject))
            else:
                with terminal.tracked(f"test {suite.name}", "tokens") as tracker:
                    results.append(run(suite, subject, tracker))
        if not json:
            _print_signs(results[-1])
    shares = {each.name: each.share for each in chosen}
    if junit:
        from qalam_core.reports.junit import junit_xml

        replace_file(junit, junit_xml(results, shares))
    if json:
        print_json([{**one.canonical(), "share": shares[one.name], "passed": one.meets(shares[one.name])}
                    for one in results])  # fmt: skip
    else:
        _print_failures(results)
        _print_summary(results, shares)
    if not all(one.meets(shares[one.name]) for one in results):
        raise typer.Exit(1)


def _tests_of(recipe: Recipe | None, run: str) -> Sequence[ModelTests]:
    """The tests of a run's recipe; the shipped suite for a package."""
    if recipe is None:
        return [ModelTests.of(f"{SHIPPED}arabic", 1.0)]
    if not recipe.tests:
        raise RecipeError(f"the recipe of run {run} has no tests; name files of cases, or {SHIPPED}arabic")
    return recipe.tests


def _print_signs(found: Outcomes) -> None:
    done = 0
    for begin in range(0, len(found.cases), _WIDTH):
        line = Text()
        for case in found.cases[begin : begin + _WIDTH]:
            line.append(_SIGNS[case.state], _COLOURS.get(case.state, ""))
            done += 1
        line.append(f"{'':{_WIDTH - len(line) + 1}}[{done / len(found.cases):4.0%}]", "dim")
        out.print(Text(printable(found.name)), line, soft_wrap=True)


def _print_failures(results: Sequence[Outcomes]) -> None:
    for one in results:
        for case in one.cases:
            if case.state in _COLOURS:
                _print_case(one.name, case)


def _print_case(suite: str, case: Outcome) -> None:
    """A case in full. Each text is a line of its own, so that its direction changes nothing beside it."""
    mark = " (must)" if case.mark == "must" else ""
    out.print()
    name = printable(f" {suite} {case.case}{mark}" + (f", {case.group}" if case.group else ""))
    out.print(Text.assemble((case.state, _COLOURS[case.state]), name), soft_wrap=True)
    for label, text in case.shown.items():
        out.print(f"  {label}:", soft_wrap=True)
        for line in text.split("\n"):
            out.print(f"    {line}", soft_wrap=True)
    out.print("  " + ", ".join(f"{name} {value:.6g}" for name, value in case.figures.items()), soft_wrap=True)


def _print_summary(results: Sequence[Outcomes], shares: dict[str, float]) -> None:
    from qalam_core.evaluation.model_tests.judging import score_text
    from qalam_core.reports.tables import group_rows

    for one in results:
        rows = group_rows(one)
        if len(rows) > 1:
            table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
            for column in ("group", "passed", "share", "95% interval"):
                table.add_column(column, justify="left" if column == "group" else "right")
            for row in rows:
                table.add_row(*row)
            out.print()
            out.print(table)
    out.print()
    for one in results:
        share, met = shares[one.name], one.meets(shares[one.name])
        missed = f"; {len(one.missed)} that must pass failed" if one.missed else ""
        required = f"at least {share:.1%} is required" if share else "no share is required"
        out.print(Text.assemble(
            ("passed" if met else "failed", "green" if met else "red"),
            printable(f"  {score_text(one)}; {required}{missed}"),
        ), soft_wrap=True)  # fmt: skip
