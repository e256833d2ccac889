"""The commands that build a model: init, plan, build."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from al_qalam.flows.cli.options import RecipeArgument, SetOption, StoreOption
from al_qalam.flows.cli.terminal import bars, err, out, plan_table, print_json, reused, summary
from al_qalam.flows.recipes import included_recipe, recipe_path
from al_qalam.flows.serving.prefect_env import embedded, server_may_be_configured
from qalam_core.errors import QalamError, RecipeError, StoreError
from qalam_core.recipe import Recipe, Source, to_toml
from qalam_core.store import DEFAULT_STORE, Store

if TYPE_CHECKING:
    from prefect.client.schemas import State

    from qalam_core.pipeline.publish import Published

SIZES = ("small", "medium", "large")  # included recipes


def plan(
    recipe: RecipeArgument,
    store: StoreOption = DEFAULT_STORE,
    set_: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show which stages a build would reuse, which it would build, and why."""
    from qalam_core.pipeline.plan import plan as make_plan

    found = make_plan(Recipe.load(recipe_path(recipe), set_ or ()), Store(store))
    if as_json:
        rows = [
            {"stage": row.stage, "label": row.label, "action": row.action, "reasons": row.reasons, "digest": row.digest}
            for row in found.rows
        ]
        print_json({"against": found.against, "stages": rows})
    else:
        plan_table(found)


def build(recipe: RecipeArgument, store: StoreOption = DEFAULT_STORE, set_: SetOption = None) -> None:
    """Build a model; artifacts that are in the store are reused."""
    parsed = Recipe.load(recipe_path(recipe), set_ or ())
    target = Store(store)
    target.ensure_writable()
    published = _from_store(parsed, target) or _by_flow(parsed, target)
    summary(published)
    if not published.verdict.passed:
        if not published.waits:
            from qalam_core.runs import exceptions

            flags = " ".join(f"--accept-{name}" for name in exceptions(published.verdict))
            out.print(
                "to do    add text, or change [model] and [train]; or accept it as it is: "
                f"qalam promote {published.run} {flags} --why REASON", soft_wrap=True,
            )  # fmt: skip
        raise typer.Exit(1)


def forget(
    recipe: RecipeArgument,
    exclude: Annotated[Path, typer.Option(help="File of the texts, ids or digests, one a line.")],
    store: StoreOption = DEFAULT_STORE,
    set_: SetOption = None,
) -> None:
    """Build a model that has never read some texts, from the last run that had not, and check that it has not."""
    from qalam_core.corpus.exclusion import Excluded
    from qalam_core.corpus.fingerprints import Fingerprints
    from qalam_core.pipeline.lineage import last_without, readers
    from qalam_core.runs import Runs

    excluded, target = Excluded.load(exclude), Store(store)
    target.ensure_writable()
    path, runs = recipe_path(recipe), Runs(target)
    asked = Recipe.load(path, set_ or ())
    if asked.corpus.exclude and Path(asked.corpus.exclude).resolve() != exclude.resolve():
        raise RecipeError(
            f"{path}: corpus.exclude is {asked.corpus.exclude} already, whose texts would be read again; add the "
            "entries to that file, and pass it as --exclude"
        )
    start = last_without(asked, excluded, runs) if asked.train.warm_start else ""
    old, champion = readers(runs, excluded), runs.champion(asked.name)  # before the build adds to them
    if excluded.ids and any(runs.record(run).recipe.corpus.normalisation != asked.corpus.normalisation for run in old):
        raise RecipeError(
            f"{exclude}: has ids, which depend on the normalisation, and the runs that have read these documents were "
            f"not normalised as {asked.corpus.normalisation}; give the texts instead"
        )
    out.print(f"training begins with {f'the weights of run {start}' if start else 'random weights'}", soft_wrap=True)
    changes = (*(set_ or ()), f"corpus.exclude={exclude.resolve()}", f"train.warm_start={start}")
    parsed = Recipe.load(path, changes)
    published = _from_store(parsed, target) or _by_flow(parsed, target)
    summary(published)
    seen = Fingerprints.load(target.artifact("seen", published.record.artifacts["seen"][0]).path)
    if read := excluded.read_by(seen):
        raise StoreError(f"{published.run}: its lineage has read {len(read)} of the texts in {exclude}; do not use it")
    out.print(f"{published.run}: neither it nor a run before it has read any text of {exclude}", soft_wrap=True)
    for run, read_here in old.items():
        what = "what it has read is not recorded" if read_here is None else f"has read {len(read_here)} of them"
        reigning = f"; it is still the champion of {asked.name}" if run == champion and not published.champion else ""
        out.print(f"to be deleted: {run}: {what}{reigning}", soft_wrap=True)
    met = {entry for read_here in old.values() for entry in read_here or ()}
    unmet = [entry for entry in excluded.entries if entry not in met]
    if unmet:
        out.print(
            f"{len(unmet)} of {len(excluded.entries)} entries met no earlier run; check that they are complete: "
            + "; ".join(" ".join(entry.split())[:60] for entry in unmet[:5]), soft_wrap=True,
        )  # fmt: skip
    if old:
        out.print(
            f"delete the folders of these runs in {target.root / 'runs'}, then `qalam gc --delete`; documents as read "
            "stay in the store's `ingest` and `prepare` artifacts as long as a run needs them", soft_wrap=True,
        )  # fmt: skip
    if not published.champion:
        out.print(
            f"{published.run} is not the champion: `qalam report {published.run}` says why, and `qalam promote` makes "
            "it the champion, with a reason; until then nightly builds are refused", soft_wrap=True,
        )  # fmt: skip
    if asked.corpus.exclude != parsed.corpus.exclude:
        out.print(
            f'so that later builds leave them out as well, set exclude = "{exclude.resolve()}" in [corpus] of {path}',
            soft_wrap=True,
        )  # fmt: skip
    if not published.verdict.passed:
        raise typer.Exit(1)


def _from_store(recipe: Recipe, store: Store) -> Published | None:
    """The run, when every stage can be reused; None otherwise. Saves the seconds that Prefect needs to start.

    Also None where the flow would do more than reuse: record a run on a server, or start workers.
    """
    runner = os.environ.get("QALAM_RUNNER") or recipe.runner
    if server_may_be_configured() or runner not in ("threads", "processes"):
        return None
    from qalam_core.corpus.sources import resolve
    from qalam_core.pipeline.build import History, NotBuiltError, Reuse, stages_in_order
    from qalam_core.pipeline.publish import publish
    from qalam_core.runs import Runs

    runs, executor = Runs(store), Reuse(store)
    try:
        artifacts = stages_in_order(recipe, resolve(recipe.corpus.sources), History(runs), executor)
    except NotBuiltError:
        return None
    for label, artifact in executor.found:
        reused(label, artifact)
    return publish(runs, recipe, artifacts)


def _by_flow(recipe: Recipe, store: Store) -> Published:
    """Run the flow, with the server of $PREFECT_API_URL if set, else with Prefect embedded in this process."""
    for name, value in embedded(store.root).items():  # before Prefect is imported; the user's settings are kept
        os.environ.setdefault(name, value)
    from al_qalam.flows.build_model import build_model  # takes seconds, and reads the settings above
    from al_qalam.tasks.progress import watchers

    with bars(store, recipe) as terminal:
        watchers.append(terminal)
        try:
            state: State[Any] = build_model(recipe, str(store.root), return_state=True)  # type: ignore[assignment]
        except KeyboardInterrupt:
            err.print("stopped; what is finished is kept, and the same command resumes the build")
            raise typer.Exit(130) from None
        except RuntimeError as error:  # Prefect has no class for it
            if not str(error).startswith("Failed to reach API"):
                raise
            url = str(error).removeprefix("Failed to reach API at ")
            raise QalamError(
                f"no Prefect server responds at {url}; start it, or build without one: unset PREFECT_API_URL, and "
                "remove the address from Prefect's settings in this folder"
            ) from None
        finally:
            watchers.remove(terminal)
    result = state.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        if shutil.disk_usage(store.root).free < 1 << 20 and not isinstance(result, QalamError):
            raise StoreError(
                f"store {store.root}: no space left on the disk; free some, then run the same command again"
            ) from None
        raise result
    published: Published = result
    return published


def init(
    recipe: Annotated[Path, typer.Argument(help="The recipe file to write.")],
    more: Annotated[list[str] | None, typer.Argument(help="More corpus files.", hidden=True)] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option("--corpus", metavar="FILES...", help="Text files, folders or globs."),
    ] = None,
    size: Annotated[
        str, typer.Option("--size", help="The model's: small, medium or large; by default it fits the text.")
    ] = "",
) -> None:
    """Write a recipe that fits your own text, with a comment for every setting."""
    from qalam_core.pipeline.new_recipe import new_recipe

    if size not in ("", *SIZES):
        raise RecipeError(f"--size {size}: choose one of {', '.join(SIZES)}")
    if recipe.exists():
        raise RecipeError(f"{recipe}: exists; choose another name, or edit it")
    if not recipe.parent.is_dir():
        raise RecipeError(f"{recipe}: there is no folder {recipe.parent}; create it first")
    paths = [*(corpus or []), *(more or [])]
    if not paths:
        raise RecipeError("no corpus; give its files with --corpus FILES")
    sources = [Source(path=path, revision="PIN" if path.startswith("hf:") else "") for path in paths]
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in recipe.stem.lower()).strip("-")[:40]
    base, folder = Recipe.load(included_recipe(size or SIZES[0])), recipe.resolve().parent
    made = new_recipe(base, name or "model", sources, folder, size)
    recipe.write_text(to_toml(made.recipe), encoding="utf-8")
    for note in made.notes:
        out.print(note, soft_wrap=True)
    out.print(f"wrote {recipe}; build the model with: qalam build {recipe}", soft_wrap=True)
