"""The command line `qalam`: build, init, and the verbs of the other *_cli modules.
Takes arguments, gives text and an exit status: 0 done, 1 the gate refused or training failed, 2 a mistake
that the user can mend, told in one line.
It does not know how anything is built; it starts the flow, or asks the library.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from al_qalam.flows.cli import corpus as corpus_cli
from al_qalam.flows.cli import packages as package_cli
from al_qalam.flows.cli import runs as registry_cli
from al_qalam.flows.cli import serving as deploy_cli
from al_qalam.flows.cli.packages import StoreOption
from al_qalam.flows.cli.terminal import bars, err, out, summary
from al_qalam.flows.recipes import recipe_path
from al_qalam.flows.serving.prefect_env import embedded
from qalam_core.errors import QalamError, RecipeError, StoreError, TrainingError
from qalam_core.recipe import SIZES, Recipe, Source, to_toml
from qalam_core.store import DEFAULT_STORE, Store

if TYPE_CHECKING:
    from prefect.client.schemas import State

__all__ = ["app", "main"]


app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Turn an Arabic corpus into a language model you can review like code.",
)  # fmt: skip

for verbs in (registry_cli, corpus_cli, package_cli, deploy_cli):
    verbs.register(app)


@app.command()
def build(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or a name: demo, small, medium, large.")],
    store: StoreOption = DEFAULT_STORE,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a recipe value: train.steps=200."),
    ] = None,
) -> None:
    """Build a model; what the store already holds is not built again."""
    parsed = Recipe.load(recipe_path(recipe), set_ or ())
    target = Store(store)
    target.ensure_writable()
    _prepare_prefect(target)
    from al_qalam.flows.build_model import build_model  # takes seconds, and reads its settings from the environment
    from al_qalam.tasks.progress import watchers

    with bars() as terminal:
        watchers.append(terminal)
        try:
            state: State[Any] = build_model(parsed, str(target.root), return_state=True)  # type: ignore[assignment]
        except KeyboardInterrupt:
            err.print("stopped; what is finished is kept, and the same command goes on from there")
            raise typer.Exit(130) from None
        finally:
            watchers.remove(terminal)
    result = state.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        if shutil.disk_usage(target.root).free < 1 << 20 and not isinstance(result, QalamError):
            raise StoreError(
                f"store {target.root}: no space left on the disk; free some, then run the same command again"
            ) from None
        raise result
    summary(result)
    if not result.verdict.passed:
        raise typer.Exit(1)


@app.command()
def init(
    recipe: Annotated[Path, typer.Argument(help="The recipe file to write.")],
    more: Annotated[list[str] | None, typer.Argument(help="More corpus files.", hidden=True)] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option("--corpus", metavar="FILES...", help="Your text: files, folders or globs."),
    ] = None,
    size: Annotated[str, typer.Option("--size", help="small, medium or large.")] = "small",
) -> None:
    """Write a recipe for your own text, every knob in it with a comment."""
    if size not in SIZES:
        raise RecipeError(f"--size {size}: choose one of {', '.join(SIZES)}")
    if recipe.exists():
        raise RecipeError(f"{recipe}: is there already; choose another name, or edit it")
    if not recipe.parent.is_dir():
        raise RecipeError(f"{recipe}: there is no folder {recipe.parent}; create it first")
    paths = [*(corpus or []), *(more or [])]
    if not paths:
        raise RecipeError("which text? name it with --corpus FILES")
    anchor = recipe.resolve().parent
    sources = [
        Source(
            path=path if ":" in path else os.path.relpath(path, anchor),
            revision="PIN" if path.startswith("hf:") else "",
        )
        for path in paths
    ]
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in recipe.stem.lower()).strip("-")[:40]
    data = {"name": name or "model", "corpus": {"sources": sources}, **SIZES[size]}
    recipe.write_text(to_toml(Recipe.parse(data, str(recipe))), encoding="utf-8")
    out.print(f"wrote {recipe}; build it with: qalam build {recipe}", soft_wrap=True)


def _prepare_prefect(store: Store) -> None:
    """Settings for a build of one's own, before Prefect is imported; what the user has set stays.

    Without PREFECT_API_URL, Prefect runs embedded in this process, with its home in the store.
    """
    for name, value in embedded(store.root).items():
        os.environ.setdefault(name, value)


def main() -> None:
    """Entry point of the console script: a user's mistake is one line, ours keeps its traceback."""
    try:
        app()
    except QalamError as error:
        err.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(1 if isinstance(error, TrainingError) else 2)
