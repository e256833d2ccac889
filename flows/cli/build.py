"""The commands that build a model: init, plan, build."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from al_qalam.flows.cli.options import RecipeArgument, SetOption, StoreOption, VerifyOption
from al_qalam.flows.cli.terminal import Bars, bars, err, out, plan_table, print_json, reused, summary
from al_qalam.flows.recipes import included_recipe, recipe_path
from al_qalam.flows.serving.database import usable_home
from al_qalam.flows.serving.prefect_env import private_settings, server_may_be_configured
from qalam_core.errors import QalamError, RecipeError, StoreError
from qalam_core.object_store import store_at
from qalam_core.recipe import Recipe, Source, to_toml
from qalam_core.store import DEFAULT_STORE, Store

if TYPE_CHECKING:
    from prefect.client.schemas import State

    from qalam_core.corpus.sources import SourceFile
    from qalam_core.pipeline.publish import Published

log = logging.getLogger("qalam_core.build")

DATABASE_BYTES = 8 << 20
"""Free space that a build needs at least: Prefect's new database has half as much."""

SIZES = ("small", "medium", "large", "small-llama", "medium-llama", "large-llama")  # included recipes


def plan(
    recipe: RecipeArgument,
    store: StoreOption = DEFAULT_STORE,
    set_: SetOption = None,
    verify: VerifyOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show which stages a build would reuse, which it would build, why, and how long it would take."""
    from qalam_core.pipeline.estimate import UNITS
    from qalam_core.pipeline.plan import plan as make_plan

    home = store_at(store)
    found = make_plan(Recipe.load(recipe_path(recipe), set_ or ()), home.doubting() if verify else home)
    if as_json:
        rows = [
            {"stage": row.stage, "label": row.label, "action": row.action, "reasons": row.reasons, "digest": row.digest}
            for row in found.rows
        ]
        work = [
            {"stage": part.stage, "amount": part.amount, "unit": UNITS.get(part.stage), "seconds": part.seconds}
            for part in found.work
        ]
        print_json({"against": found.against, "stages": rows, "work": work, "seconds": found.seconds})
    else:
        plan_table(found)


def build(
    recipe: RecipeArgument,
    store: StoreOption = DEFAULT_STORE,
    set_: SetOption = None,
    verify: VerifyOption = False,
) -> None:
    """Build a model; artifacts that are in the store are reused."""
    parsed = Recipe.load(recipe_path(recipe), set_ or ())
    target = store_at(store)
    target.ensure_writable()
    if verify:
        target.doubt()
    finish(_built(parsed, target), target)


def finish(published: Published, store: Store, as_json: dict[str, object] | None = None) -> None:
    """Print what a build or a proposal ended with, or `as_json`; exit status 1 where the gate did not pass it.

    Raises QalamError when the server has not got the notice of it.
    """
    if as_json:
        print_json(as_json)
    else:
        summary(published)
    if not published.verdict.passed:
        if not (published.waits or as_json):
            from qalam_core.evaluation.cures import cures
            from qalam_core.runs import exceptions

            flags = " ".join(f"--accept-{name}" for name in exceptions(published.verdict))
            for cure in cures(published.verdict):
                out.print(f"to do    {cure}", soft_wrap=True)
            promote = f"qalam promote {published.run} {flags} --why REASON"
            out.print(f"or       accept it as it is: {promote}", soft_wrap=True)
        raise typer.Exit(1)
    if server_may_be_configured():
        from al_qalam.tasks.events import undelivered

        if waiting := undelivered(store):
            raise QalamError(
                f"{published.run} is published, but {waiting} of the notices in {store.root / 'outbox'} could not be "
                "delivered to the Prefect server; the next build or `qalam watch` with this store sends them"
            )


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

    excluded, target = Excluded.load(exclude), store_at(store)
    target.ensure_writable()
    path, runs = recipe_path(recipe), Runs(target)
    asked = Recipe.load(path, set_ or ())
    if asked.corpus.exclude and Path(asked.corpus.exclude).resolve() != exclude.resolve():
        raise RecipeError(
            f"{path}: corpus.exclude is {asked.corpus.exclude} already, whose texts would be read again; add the "
            "entries to that file, and pass it as --exclude"
        )
    start = last_without(asked, excluded, runs) if asked.train.start != "scratch" else ""
    old, champion = readers(runs, excluded), runs.champion(asked.name)  # before the build adds to them
    if excluded.ids and any(runs.record(run).recipe.corpus.normalisation != asked.corpus.normalisation for run in old):
        raise RecipeError(
            f"{exclude}: has ids, which depend on the normalisation, and the runs that have read these documents were "
            f"not normalised as {asked.corpus.normalisation}; give the texts instead"
        )
    out.print(f"training begins with {f'the weights of run {start}' if start else 'random weights'}", soft_wrap=True)
    changes = (*(set_ or ()), f"corpus.exclude={exclude.resolve()}", f"train.start={start or 'scratch'}")
    parsed = Recipe.load(path, changes)
    published = _built(parsed, target)
    summary(published)
    seen = Fingerprints.load(target.doubting().artifact("seen", published.record.artifacts["seen"][0]).path)
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
            f"delete the folders of these runs in {target.place}/runs, then `qalam gc --delete`; documents as read "
            "stay in the store's `ingest`, `filter` and `prepare` artifacts as long as a run needs them",
            soft_wrap=True,
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


def _built(recipe: Recipe, store: Store) -> Published:
    """The run, from the store when every stage can be reused: that saves the seconds that Prefect needs to start.

    By the flow where it would do more than reuse: record a run on a server, or start workers.
    """
    runner = os.environ.get("QALAM_RUNNER") or recipe.runner
    with stoppable(), bars(store, recipe) as terminal:
        if server_may_be_configured() or runner not in ("threads", "processes"):
            return _by_flow(recipe, store, terminal)
        from qalam_core.corpus.sources import resolve

        with terminal.tracked("resolve", "files"):
            files = resolve(recipe.corpus.sources, store.digests)
        return _from_store(recipe, store, files) or _by_flow(recipe, store, terminal, files)


def _from_store(recipe: Recipe, store: Store, files: Sequence[SourceFile]) -> Published | None:
    from qalam_core.pipeline.build import History, NotBuiltError, Reuse, stages_in_order
    from qalam_core.pipeline.publish import publish
    from qalam_core.runs import Runs

    runs, executor = Runs(store), Reuse(store)
    try:
        artifacts = stages_in_order(recipe, files, History(runs), executor)
    except NotBuiltError:
        return None
    for label, artifact in executor.found:
        reused(label, artifact)
    return publish(runs, recipe, artifacts)


def _by_flow(recipe: Recipe, store: Store, terminal: Bars, files: Sequence[SourceFile] = ()) -> Published:
    """Run the flow of a build. `files` are those of the sources, when they are known already."""

    def flow() -> State[Any]:
        from al_qalam.flows.build_model import build_model
        from al_qalam.tasks.stages import known

        known[:] = files
        try:
            return build_model(recipe, store.place, return_state=True)
        finally:
            known.clear()

    return by_flow(recipe.name, store, terminal, flow)


@contextmanager
def stoppable() -> Iterator[None]:
    """Context manager of a build, which SIGINT, SIGTERM and SIGHUP end alike: with one line, and the exit status that a
    shell gives a process that the signal has ended."""
    received = signal.SIGINT

    def stop(number: int, _: object) -> None:
        nonlocal received
        received = signal.Signals(number)
        for each in ends:  # `timeout` sends it to the process, and then to its group
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    # `nohup` has SIGHUP ignored
    ends = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL]
    for each in ends:
        signal.signal(each, stop)
    try:
        yield
    except KeyboardInterrupt:
        err.print("stopped; what is finished is kept, and the same command resumes the build")
        raise typer.Exit(128 + received) from None
    finally:
        for each in ends:
            signal.signal(each, signal.SIG_DFL)


def by_flow(name: str, store: Store, terminal: Bars, flow: Callable[[], State[Any]]) -> Published:
    """Run a flow, with the server that Prefect's settings name, else with one that ends with the build.

    `flow` imports Prefect, which takes seconds; `name` is that of the recipe.
    """
    home = store.root / "prefect"
    if not os.environ.get("PREFECT_API_URL") and not os.environ.get("PREFECT_HOME"):
        _need_space(store)
        home, replaced = usable_home(home)
        if replaced:
            log.warning("%s", replaced)
    for setting, value in private_settings(home).items():  # before Prefect is imported; the user's settings are kept
        os.environ.setdefault(setting, value)
    from httpx import HTTPError
    from prefect import tags  # reads the settings above

    from al_qalam.flows.serving.private_server import ServerError, private_server
    from al_qalam.tasks.outcome import RefusedError
    from al_qalam.tasks.policy import tag_of
    from al_qalam.tasks.progress import watchers

    watchers.append(terminal)
    try:
        with private_server(lambda: import_module("al_qalam.flows.build_model")), tags(tag_of(name)):
            state = flow()
    except (RuntimeError, ValueError, HTTPError, ServerError) as error:
        _need_space(store)
        raise _prefect_failed(error, home) from None
    finally:
        watchers.remove(terminal)
    result: Any = state.result(raise_on_failure=False)
    if isinstance(result, RefusedError):
        result = result.result
    if isinstance(result, BaseException):
        if isinstance(result, QalamError):
            raise result
        _need_space(store)
        raise _prefect_failed(result, home) if isinstance(result, HTTPError) else result
    published: Published = result
    return published


def _need_space(store: Store) -> None:
    """Raises StoreError when the disk is full, which Prefect's errors do not say."""
    if shutil.disk_usage(store.root).free < DATABASE_BYTES:
        raise StoreError(f"store {store.root}: no space left on the disk; free some, then run the same command again")


def _prefect_failed(error: Exception, home: Path) -> Exception:
    """The error to show for one of Prefect's."""
    from al_qalam.tasks.events import server_address

    url = server_address()
    unreachable = str(error).startswith("Failed to reach API")  # Prefect has no class for it
    if url and (unreachable or isinstance(error, ValueError)):  # about a version that is none, of another program
        return QalamError(
            f"no Prefect server responds at {url}; start it, or build without one: unset PREFECT_API_URL, and "
            "remove the address from Prefect's settings in this folder"
        )
    if isinstance(error, RuntimeError | ValueError) and not unreachable:
        return error
    what = " ".join(str(error).split("\n")[0].split())
    if url:
        return QalamError(f"the Prefect server at {url} failed: {what}; run the same command again to continue")
    return StoreError(
        f"the Prefect server of this build failed: {what}; delete {home}, then run the same command again to continue"
    )


def init(
    recipe: Annotated[Path, typer.Argument(help="The recipe file to write.")],
    more: Annotated[list[str] | None, typer.Argument(help="More corpus files.", hidden=True)] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option("--corpus", metavar="FILES...", help="Text files, folders or globs."),
    ] = None,
    size: Annotated[
        str,
        typer.Option("--size", help="The model's: small, medium or large, or with -llama; by default it fits."),
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
