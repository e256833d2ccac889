"""The earlier run whose weights a training begins with, and what is known of the models before it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qalam_core.corpus.exclusion import Excluded
from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.errors import DamagedError, TrainingError
from qalam_core.pipeline.prepare import Documents, Prepare
from qalam_core.recipe import Optimisation, Recipe
from qalam_core.runs import Ancestor, Parent, RunRecord, Runs
from qalam_core.store import Artifact

log = logging.getLogger(__name__)

_SHOWN = 60  # characters of a value


@dataclass(frozen=True)
class WarmStart:
    """The run whose weights a training begins with."""

    lineage: tuple[Ancestor, ...]  # this run first, then the one that it began with, and so on
    path: Path  # of its package
    seen: Artifact  # what it and the runs before it have read

    @property
    def parent(self) -> Parent:
        """The run, as the training records it."""
        return Parent(run=self.lineage[0].run, package=self.lineage[0].package)

    @property
    def digest(self) -> str:
        """Of the package's manifest, which has the digests of all its files."""
        return self.lineage[0].package

    @classmethod
    def of(cls, runs: Runs, run: str, recipe: Recipe) -> WarmStart:
        """Begin with `run`. Raises StoreError, and TrainingError when it is not recorded what that run has read."""
        record = runs.record(run)
        seen = seen_of(runs, record)
        if seen is None:
            raise TrainingError(
                f"train.warm_start: there is no undamaged record of the texts that run {run} has read, so that its "
                "held-out documents cannot be told from them; build its recipe again, name another run, or set "
                'train.warm_start to ""'
            )
        ancestor = Ancestor(
            run=run, package=runs.package(run).package, corpus=record.artifacts["prepare"][0], seen=seen.digest,
            documents=record.seen.own, changes=_changes(record.recipe, recipe),
            accepted=runs.accepted(run),
        )  # fmt: skip
        return cls((ancestor, *record.lineage), runs.folder(run) / "model", seen)

    @classmethod
    def recorded(cls, runs: Runs, record: RunRecord) -> WarmStart | None:
        """What the training of `record` began with; the parent may have been deleted since."""
        if not record.lineage:
            return None
        parent = record.lineage[0]
        path = runs.store.root / "runs" / parent.run / "model"
        return cls(record.lineage, path, runs.store.reference("seen", parent.seen))


def warm_start(recipe: Recipe, documents: Documents, runs: Runs) -> WarmStart | None:
    """The run whose weights to begin with; None for random ones.

    "champion" is the newest champion that was trained otherwise than this one. If a champion was trained like this
    one, on the same text, it is what that one began with, whatever its recipe asked for: building a champion again
    finds the training that made it, and a build without new text finds the champion's. Raises
    TrainingError when the run has read a text that the recipe excludes, or when it is not recorded what it has read.
    """
    requested = recipe.train.warm_start
    if not requested:
        return None
    if requested != "champion":
        return _checked(WarmStart.of(runs, requested, recipe), recipe, runs)
    for run, record in runs.champions(recipe.name):
        if _training(record.recipe) == _training(recipe):
            start = WarmStart.recorded(runs, record)
            if (
                Prepare.of(recipe, documents, start.seen if start else None).identity.digest
                == record.artifacts["prepare"][0]
            ):
                if record.recipe.train.warm_start != requested:
                    log.warning(
                        "there is no new text since champion %s, whose training is taken; to train on from it, set "
                        "train.warm_start to its id", run,
                    )  # fmt: skip
                return start
        return _checked(WarmStart.of(runs, run, recipe), recipe, runs)
    log.info("there is no champion under %s yet: the weights start at random", recipe.name)
    return None


def readers(runs: Runs, excluded: Excluded) -> dict[str, list[str] | None]:
    """Run -> the excluded entries that it or an ancestor has read, oldest first; None where no record is left.

    Runs that have read none are omitted.
    """
    found: dict[str, list[str] | None] = {}
    for run, record in runs.records().items():
        seen = seen_of(runs, record)
        read = excluded.read_by(Fingerprints.load(seen.path)) if seen else None
        if read != []:
            found[run] = read
    return found


def last_without(recipe: Recipe, excluded: Excluded, runs: Runs) -> str:
    """The newest run in the champion's lineage that has read none of the excluded texts, "" when there is none."""
    champion = runs.champion(recipe.name)
    lineage = [champion, *(one.run for one in runs.record(champion).lineage)] if champion else []
    for run in lineage:
        seen = seen_of(runs, runs.record(run)) if run in runs else None
        if seen and not excluded.read_by(Fingerprints.load(seen.path)):
            return run
    return ""


def seen_of(runs: Runs, record: RunRecord) -> Artifact | None:
    """The undamaged record of what a run has read."""
    try:
        (key,) = record.artifacts.get("seen", ())
        return runs.store.artifact("seen", key)
    except (ValueError, DamagedError):
        return None


def _training(recipe: Recipe) -> object:
    """The settings that a training depends on, besides those of its corpus, its initial weights and the tokenizer that
    it was to keep."""
    validate_every = recipe.train.validate_every if recipe.train.patience else None
    tokenizer = recipe.tokenizer.model_dump(exclude={"keep", "regrow"})
    return recipe.seed, tokenizer, recipe.model, recipe.train.narrowed(Optimisation), validate_every


def _check_ids(excluded: Excluded, start: WarmStart, recipe: Recipe, runs: Runs) -> None:
    """Raise TrainingError where ids are those of another normalisation than an ancestor's, and would meet nothing."""
    for run in (one.run for one in start.lineage if one.run in runs):
        theirs = runs.record(run).recipe.corpus.normalisation
        if excluded.ids and theirs != recipe.corpus.normalisation:
            raise TrainingError(
                f"corpus.exclude: {recipe.corpus.exclude} has ids, which depend on the normalisation, and run {run} "
                f'was normalised as {theirs}; give the texts instead, or set train.warm_start to ""'
            )


def _checked(start: WarmStart, recipe: Recipe, runs: Runs) -> WarmStart:
    if recipe.corpus.exclude:
        excluded = Excluded.load(Path(recipe.corpus.exclude))
        _check_ids(excluded, start, recipe, runs)
        if read := excluded.read_by(Fingerprints.load(start.seen.path)):
            raise TrainingError(
                f"train.warm_start: run {start.parent.run}, or a run before it, has read {len(read)} of the texts in "
                f"{recipe.corpus.exclude}; `qalam forget` builds from the last run that has not"
            )
    return start


def _changes(before: Recipe, after: Recipe) -> tuple[str, ...]:
    """One line for each value of the recipe that differs; without paths, and without the initial weights and the
    tokenizer that were asked for: what they resolved to is recorded."""
    old, new = (recipe.model_dump(mode="json", exclude={"runner", "name"}) for recipe in (before, after))
    for values in (old, new):
        del values["train"]["warm_start"], values["tokenizer"]["keep"], values["tokenizer"]["regrow"]
        corpus = values["corpus"]
        corpus["exclude"] = bool(corpus["exclude"])
        corpus["sources"] = [
            {key: value for key, value in source.items() if key not in ("path", "data_files")}
            for source in corpus["sources"]
        ]
    return tuple(changed_values("", old, new))


def changed_values(prefix: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """One line for each value that differs: "section.key: old -> new"; long values are not shown."""
    for key in dict.fromkeys((*new, *old)):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from changed_values(f"{prefix}{key}.", before, after)
        elif min(len(str(before)), len(str(after))) > _SHOWN:
            yield f"{prefix}{key} changed"
        else:
            yield f"{prefix}{key}: {_shown(before)} -> {_shown(after)}"


def _shown(value: Any) -> str:
    text = "none" if value is None else " ".join(str(value).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
