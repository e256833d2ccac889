"""The earlier run whose weights a training begins with, and what is known of the models before it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from qalam_core.corpus.exclusion import Excluded
from qalam_core.corpus.filters import weights_by_slice
from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.errors import DamagedError, TrainingError
from qalam_core.files import digest
from qalam_core.inputs import reads
from qalam_core.pipeline.prepare import Documents, Prepare
from qalam_core.recipe import Continuing, Optimisation, Recipe, changed_pairs
from qalam_core.runs import Ancestor, Parent, RunRecord, Runs
from qalam_core.store import Artifact, ArtifactFile
from qalam_core.training.spec import STATE, WEIGHTS

log = logging.getLogger(__name__)

_SHOWN = 60  # characters of a value


@dataclass(frozen=True)
class WarmStart:
    """The run whose weights a training begins with."""

    lineage: tuple[Ancestor, ...]  # this run first, then the one that it began with, and so on
    path: Path  # of its package
    seen: Artifact  # what it and the runs before it have read
    # of its training, which this one continues, with the weights; None: it takes the weights of the package alone
    state: ArtifactFile | None = field(default=None, metadata=reads(WEIGHTS))

    @property
    def parent(self) -> Parent:
        """The run, as the training records it."""
        return Parent(run=self.lineage[0].run, package=self.lineage[0].package)

    @property
    def digest(self) -> str:
        """Of the package's manifest, which has the digests of all its files; and of all else that is read."""
        package = self.lineage[0].package
        return digest([package, self.state.digest, self.seen.digest]) if self.state else package

    @classmethod
    def of(cls, runs: Runs, run: str, recipe: Recipe) -> WarmStart:
        """Begin with `run`, and continue its training if `recipe` asks for that and its state is there.

        Raises StoreError, and TrainingError when it is not recorded what that run has read.
        """
        record = runs.record(run)
        seen = seen_of(runs, record)
        if seen is None:
            raise TrainingError(
                f"train.start: there is no undamaged record of the texts that run {run} has read, so that its "
                "held-out documents cannot be told from them; build its recipe again, name another run, or set "
                'train.start to "scratch"'
            )
        state = _state_of(runs, record) if recipe.train.start == "continue" else None
        if state and record.recipe.train.optimizer != recipe.train.optimizer:
            state = None
        ancestor = Ancestor(
            run=run, package=runs.package(run).package, corpus=record.artifacts["prepare"][0], seen=seen.digest,
            documents=record.seen.own, changes=_changes(record.recipe, recipe),
            accepted=runs.accepted(run), state=state.digest if state else "",
        )  # fmt: skip
        return cls((ancestor, *record.lineage), runs.package_folder(run), seen, state)

    @classmethod
    def recorded(cls, runs: Runs, record: RunRecord) -> WarmStart | None:
        """What the training of `record` began with; the parent may have been deleted since. A proposal has none."""
        if record.proposal or not record.lineage:
            return None
        parent = record.lineage[0]
        path = runs.store.run_file(parent.run) / "model"
        seen = runs.store.manifests().reference("seen", parent.seen)
        return cls(record.lineage, path, seen, _recorded_state(runs, parent))


def warm_start(recipe: Recipe, documents: Documents, runs: Runs) -> WarmStart | None:
    """The run whose weights to begin with; None for random ones.

    "champion" and "continue" are the newest champion that was trained otherwise than this one. If a champion was
    trained like this one, on the same text, it is what that one began with, whatever its recipe asked for: building a
    champion again finds the training that made it, and a build without new text finds the champion's. Raises
    TrainingError when the run has read a text that the recipe excludes, or when it is not recorded what it has read.
    """
    requested = recipe.train.start
    if requested == "scratch":
        return None
    if requested not in ("champion", "continue"):
        return _checked(WarmStart.of(runs, requested, recipe), recipe, runs)
    for run, record in runs.champions(recipe.name):
        start = WarmStart.recorded(runs, record)
        if _is_trained_so(record, start, recipe, documents):
            if record.recipe.train.start != requested:
                log.warning(
                    "there is no new text since champion %s, whose training is taken; to train on from it, set "
                    "train.start to its id", run,
                )  # fmt: skip
            return start
        if _cold_is_due(recipe, runs, run, record):
            log.info("%d builds came after one from scratch: the weights start at random", len(record.lineage))
            return None
        start = _checked(WarmStart.of(runs, run, recipe), recipe, runs)
        if requested == "continue" and not start.state:
            why = "is an edit, and not a training" if record.proposal else "left no state of its training"
            log.warning(
                "run %s %s that can be continued: its weights alone are taken, for %d steps on all text",
                run, why, recipe.train.steps,
            )  # fmt: skip
        return start
    log.info("there is no champion under %s yet: the weights start at random", recipe.name)
    return None


def cold_is_next(nights: int, every: int) -> bool:
    """Whether one build in `every` is from scratch behind a champion that comes `nights` after one from scratch.

    A cold build that was not better is in no chain. So `every` - 1 nights are between two, whatever becomes of them.
    """
    between = every - 1
    return every > 0 and (between == 0 or (nights > 0 and nights % between == 0))


def readers(runs: Runs, excluded: Excluded) -> dict[str, list[str] | None]:
    """Run -> the excluded entries that it or an ancestor has read, oldest first; None where no record is left.

    Runs that have read none are omitted.
    """
    found: dict[str, list[str] | None] = {}
    for run, record in runs.records().items():
        seen = seen_of(runs, record)
        read = excluded.read_by(Fingerprints.load(runs.store.here(seen).path)) if seen else None
        if read != []:
            found[run] = read
    return found


def last_without(recipe: Recipe, excluded: Excluded, runs: Runs) -> str:
    """The newest run in the champion's lineage that has read none of the excluded texts, "" when there is none."""
    champion = runs.champion(recipe.name)
    lineage = [champion, *(one.run for one in runs.record(champion).lineage)] if champion else []
    for run in lineage:
        seen = seen_of(runs, runs.record(run)) if run in runs else None
        if seen and not excluded.read_by(Fingerprints.load(runs.store.here(seen).path)):
            return run
    return ""


def seen_of(runs: Runs, record: RunRecord) -> Artifact | None:
    """The undamaged record of what a run has read; `here` copies it from object storage."""
    try:
        (key,) = record.artifacts.get("seen", ())
        return runs.store.manifests().artifact("seen", key)
    except (ValueError, DamagedError):
        return None


def _state_of(runs: Runs, record: RunRecord) -> ArtifactFile | None:
    """The undamaged state of a run's training; a proposal was not trained."""
    if record.proposal:
        return None
    try:
        training = runs.store.manifests().artifact("train", record.artifacts["train"][0])
    except DamagedError:
        return None
    return training.file(STATE) if STATE in training.manifest.files else None


def _recorded_state(runs: Runs, parent: Ancestor) -> ArtifactFile | None:
    """The state that a training continued from; it, and the run, may have been deleted since."""
    if not parent.state:
        return None
    key = runs.record(parent.run).artifacts["train"][0] if parent.run in runs else parent.package
    return ArtifactFile(runs.store.manifests().reference("train", key), STATE, parent.state)


def _cold_is_due(recipe: Recipe, runs: Runs, champion: str, record: RunRecord) -> bool:
    """Whether this build starts from scratch, for comparison with a champion that comes from a chain.

    Once there is such a run since that champion, which then was not better, the chain goes on.
    """
    if not cold_is_next(len(record.lineage), recipe.train.cold_every):
        return False
    later = takewhile(lambda run: run != champion, runs.newest_of(recipe.name))
    return all(runs.record(run).lineage for run in later)


def _is_trained_so(record: RunRecord, start: WarmStart | None, recipe: Recipe, documents: Documents) -> bool:
    """Whether `recipe` would train as the run of `record` was, which began with `start`, and on the same text.

    No recipe gives the weights of a proposal: a training begins with them, or their edit would be lost.
    """
    if record.proposal:
        return False
    continued = bool(start and start.state)
    if _training(record.recipe, continued) != _training(recipe, continued):
        return False
    corpus = Prepare.of(recipe, documents, start.seen if start else None)
    return corpus.identity.digest == record.artifacts["prepare"][0]


def _training(recipe: Recipe, continued: bool) -> object:
    """The settings that a training depends on, besides those of its corpus, what it begins with and the tokenizer that
    it was to keep."""
    train = recipe.train
    validate_every = train.validate_every if train.patience else None
    reading = train.narrowed(Continuing) if continued else None
    tokenizer = recipe.tokenizer.model_dump(exclude={"keep", "regrow"})
    weights = weights_by_slice(recipe.corpus)
    return recipe.seed, tokenizer, recipe.model, train.narrowed(Optimisation), validate_every, reading, weights


def _check_ids(excluded: Excluded, start: WarmStart, recipe: Recipe, runs: Runs) -> None:
    """Raise TrainingError where ids are those of another normalisation than an ancestor's, and would meet nothing."""
    for run in (one.run for one in start.lineage if one.run in runs):
        theirs = runs.record(run).recipe.corpus.normalisation
        if excluded.ids and theirs != recipe.corpus.normalisation:
            raise TrainingError(
                f"corpus.exclude: {recipe.corpus.exclude} has ids, which depend on the normalisation, and run {run} "
                f'was normalised as {theirs}; give the texts instead, or set train.start to "scratch"'
            )


def _checked(start: WarmStart, recipe: Recipe, runs: Runs) -> WarmStart:
    if recipe.corpus.exclude:
        excluded = Excluded.load(Path(recipe.corpus.exclude))
        _check_ids(excluded, start, recipe, runs)
        if read := excluded.read_by(Fingerprints.load(runs.store.here(start.seen).path)):
            raise TrainingError(
                f"train.start: run {start.parent.run}, or a run before it, has read {len(read)} of the texts in "
                f"{recipe.corpus.exclude}; `qalam forget` builds from the last run that has not"
            )
    return start


def _changes(before: Recipe, after: Recipe) -> tuple[str, ...]:
    """One line for each value of the recipe that differs; without paths, and without the start and the tokenizer
    that were asked for: what they resolved to is recorded."""
    old, new = (recipe.model_dump(mode="json", exclude={"runner", "name"}) for recipe in (before, after))
    for values in (old, new):
        for section, key in (
            ("train", "start"),
            ("train", "cold_every"),
            ("tokenizer", "keep"),
            ("tokenizer", "regrow"),
        ):
            del values[section][key]
        values["tests"] = {tests["name"]: tests["share"] for tests in values["tests"]}
        corpus = values["corpus"]
        corpus["exclude"] = bool(corpus["exclude"])
        corpus["sources"] = [
            {key: value for key, value in source.items() if key not in ("path", "data_files")}
            for source in corpus["sources"]
        ]
    return tuple(changed_values(old, new))


def changed_values(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """One line for each value that differs: "section.key: old -> new"; long values are not shown."""
    for key, before, after in changed_pairs(old, new):
        long = min(len(str(before)), len(str(after))) > _SHOWN
        yield f"{key} changed" if long else f"{key}: {_shown(before)} -> {_shown(after)}"


def _shown(value: Any) -> str:
    text = "none" if value is None else " ".join(str(value).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
