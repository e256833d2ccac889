"""The command that proposes an edited, imported or merged package: propose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from al_qalam.flows.cli.build import by_flow, finish, stoppable
from al_qalam.flows.cli.options import SetOption, StoreOption
from al_qalam.flows.cli.packages import PackageArgument
from al_qalam.flows.cli.terminal import bars, err, reused
from al_qalam.flows.recipes import recipe_path
from al_qalam.flows.serving.prefect_env import server_may_be_configured
from qalam_core.display import printable
from qalam_core.errors import QalamError
from qalam_core.files import replace_file
from qalam_core.object_store import store_at
from qalam_core.recipe import Recipe
from qalam_core.store import DEFAULT_STORE, Store

if TYPE_CHECKING:
    from prefect.client.schemas import State

    from qalam_core.pipeline.propose import Candidate
    from qalam_core.pipeline.publish import Published


def propose(
    package: PackageArgument,
    why: Annotated[str, typer.Option(help="Why it should become champion, for the run and the history.")],
    who: Annotated[str, typer.Option(help="Your name; default: the login name.")] = "",
    recipe: Annotated[
        str, typer.Option(help="Its name has the champion, its [gate] decides; default: the recipe of its parent.")
    ] = "",
    set_: SetOption = None,
    no_promote: Annotated[
        bool, typer.Option("--no-promote", help="Only judge it: the champion stays, also if it passes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[
        Path | None, typer.Option(help="Also write the decision to this file, as a comment on a pull request.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Measure a sealed package that was edited, imported or merged, and make it champion if it passes the gate."""
    from qalam_core.pipeline.propose import candidate, proposer
    from qalam_core.runs import Runs

    target = store_at(store)
    target.ensure_writable()
    if set_ and not recipe:
        raise QalamError("--set: changes a recipe; name it with --recipe")
    parsed = Recipe.load(recipe_path(recipe), set_ or ()) if recipe else None
    found = replace(candidate(Runs(target), package, why, proposer(who), parsed), only_judged=no_promote)
    published = _published(found, parsed, target)
    if markdown:
        from qalam_core.reports.comment import comment

        review = published.review
        says = [review] if isinstance(review, str) else [review.verdict, *review.sentences.values()]
        _write(markdown, comment(published.run, published.record, published.champion, published.held, says))
    if (first := published.record.proposal) and (first.why, first.who) != (found.proposal.why, found.proposal.who):
        err.print(
            f"this package was proposed before, by {printable(first.who)}: {printable(first.why)}", soft_wrap=True
        )
    finish(published, target, _as_json(published) if as_json else None)


def _published(found: Candidate, recipe: Recipe | None, store: Store) -> Published:
    """From the store when every stage can be reused and there is no server, as for builds."""

    def flow() -> State[Any]:
        from al_qalam.flows.build_model import propose_model

        return propose_model(
            str(found.package.path), found.proposal.why, found.proposal.who, recipe, store.place,
            not found.only_judged, return_state=True,
        )  # fmt: skip

    with stoppable(), bars() as terminal:
        made = None if server_may_be_configured() else _from_store(found, store)
        return made or by_flow(found.recipe.name, store, terminal, flow)


def _from_store(found: Candidate, store: Store) -> Published | None:
    from qalam_core.pipeline.build import History, NotBuiltError, Reuse, proposed, sources_of
    from qalam_core.pipeline.publish import publish
    from qalam_core.runs import Runs

    runs, executor = Runs(store), Reuse(store)
    try:
        artifacts = proposed(found, sources_of(found, store), History(runs), executor)
    except NotBuiltError:
        return None
    for label, artifact in executor.found:
        reused(label, artifact)
    return publish(runs, found.recipe, artifacts, found)


def _as_json(published: Published) -> dict[str, object]:
    record, verdict, review = published.record, published.verdict, published.review
    comparison = verdict.comparison
    assert record.proposal
    return {
        "run": published.run, "recipe": record.recipe.name, "passed": verdict.passed, "waits": published.waits,
        "champion": published.champion, "promoted": published.promoted, "decision": published.decision,
        "failed": verdict.failed(), "reasons": verdict.reasons(), "parent": record.parent or None,
        "proposal": record.proposal.canonical(), "bits_per_byte": record.bits_per_byte.canonical(),
        "against_champion": comparison.overall.canonical() if comparison else None,
        "report": str(published.folder / "report.html"),
        "review": None if isinstance(review, str) else {"verdict": review.verdict, "sentences": review.sentences},
    }  # fmt: skip


def _write(file: Path, text: str) -> None:
    try:
        replace_file(file, text.encode())
    except OSError as error:
        raise QalamError(f"{file}: cannot be written ({error.strerror}); name another file") from None
