"""Stage: a package that a person edited, imported or merged -> a verified copy; and what is known of its model."""

from __future__ import annotations

import getpass
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from qalam_core.errors import DamagedError, PackageError
from qalam_core.files import sha256_file
from qalam_core.package.editing.diff import Difference, diff, render
from qalam_core.package.editing.seal import edits
from qalam_core.package.read import Package, changes, read
from qalam_core.package.runtime.rows import MATRIX_TYPES
from qalam_core.pipeline.export import PACKAGE
from qalam_core.pipeline.lineage import seen_of
from qalam_core.pipeline.stage import Stage
from qalam_core.pipeline.vocab import TOKENIZER
from qalam_core.progress import Progress
from qalam_core.recipe import Frozen, Model, Recipe, explain
from qalam_core.runs import Ancestor, KeptTokenizer, Proposal, ProposedFacts, RunRecord, Runs, SeenFacts, model_digest
from qalam_core.store import Artifact
from qalam_core.tokens.tokenizer import ArabicTokenizer

EDITED = 0.1
"""Share of the values up to which a difference from the last training, of one edit or of several after each other, is
an edit. More may be a training on unknown text."""

PROVENANCE = "proposal"
"""Key of the provenance of a published proposal: the digest of its artifact."""

_SHOWN = 20  # lines of changes, and of sealed edits, that are recorded
_LENGTH = 500  # characters of one, and of a reason

_STAGES = {"corpus": "prepare", "tokenizer": "vocab", "checkpoint": "train", "seen": "seen"}
"""Key of an exported package's provenance -> the stage whose artifact it names."""


class ProposeSettings(Frozen):
    """There are none: a copy depends on the package alone."""


@dataclass(frozen=True)
class Folder:
    """A package on the disk, by its content."""

    path: Path
    digest: str  # sha256 of manifest.json, which has the digests of all other files


@dataclass(frozen=True)
class Propose(Stage):
    """Copies a sealed package into the store. Raises PackageError when it is not as its manifest says."""

    name = "propose"
    version = 1

    settings: ProposeSettings
    package: Folder

    @classmethod
    def of(cls, package: Folder) -> Propose:
        """The stage for a package."""
        return cls(ProposeSettings(), package)

    def run(self, out: Path, progress: Progress) -> ProposedFacts:
        """Write the folder `model` with the package's files, and its tokenizer.json beside it."""
        copy, source = out / PACKAGE, self.package.path
        copy.mkdir()
        names = ("manifest.json", *read(source, strict=True).manifest["files"])
        for number, name in enumerate(names):
            shutil.copyfile(source / name, copy / name, follow_symlinks=False)
            progress(number + 1, len(names))
        package = read(copy, strict=True)  # the copy: the folder may change while it is read
        if sha256_file(copy / "manifest.json") != self.package.digest:
            raise PackageError(f"{source}: changed while it was copied; propose it again")
        shutil.copyfile(copy / TOKENIZER, out / TOKENIZER)
        size = sum((copy / name).stat().st_size for name in names)
        return ProposedFacts(parameters=package.config.parameters, bytes=size, files=len(names))


@dataclass(frozen=True)
class Candidate:
    """A package to be proposed, and what the store knows of it."""

    recipe: Recipe  # its name has the champion, its [gate] decides
    package: Folder
    proposal: Proposal
    lineage: tuple[Ancestor, ...]  # the run that it is an edit of, and those before; () where there is none
    read: SeenFacts
    seen: Artifact | None  # what its model has read; None where that is not known
    corpus: Artifact | None  # whose test split it is measured on; None: the recipe's is prepared
    tokenizer: Artifact | None  # its parent's; None: its words were edited, or it has no parent
    kept: KeptTokenizer | None  # of its parent
    only_judged: bool = False  # the champion stays, whatever the verdict

    @classmethod
    def recorded(cls, runs: Runs, record: RunRecord) -> Candidate:
        """What a published run was, whose artifacts may have been deleted since."""
        assert record.proposal
        there = runs.store.manifests()
        found = {
            stage: there.reference(stage, keys[0])
            for stage, keys in record.artifacts.items()
            if stage in (Propose.name, "seen", "prepare", "vocab")
        }
        proposed = runs.store.reference(Propose.name, found[Propose.name].digest)
        package = Folder(proposed.path / PACKAGE, record.proposal.package)
        return cls(
            record.recipe, package, record.proposal, record.lineage, record.seen, found.get("seen"),
            found["prepare"], found.get("vocab"), record.tokenizer,
        )  # fmt: skip


def candidate(runs: Runs, folder: Path, why: str, who: str, recipe: Recipe | None = None) -> Candidate:
    """What is known of a package that is to be proposed; the store is only read.

    Its parent is the run that exported it, by the digests in its provenance. Without a `recipe`, the parent's says
    what is required; with the parent's [corpus], the model is measured on what the parent held out. Raises
    PackageError when the package is not sealed, is no edit, has a foreign tokenizer, or has no parent and there is no
    recipe.
    """
    if not (why := " ".join(why.split())):
        raise PackageError("--why is blank; say in one line why the edit should become champion")
    if max(len(why), len(who)) > _LENGTH:
        raise PackageError(f"--why and --who have at most {_LENGTH} characters; say more in the note of `qalam seal`")
    package = _sealed(folder)
    digest = sha256_file(folder / "manifest.json")
    parent = parent_of(runs, package.manifest["provenance"])
    if parent is None:
        if recipe is None:
            raise PackageError(
                f"{folder}: no run in {runs.store.place} exported it, so that its corpus and its gate are not known; "
                "name them with --recipe"
            )
        proposal = Proposal(
            package=digest, why=why, who=who, edits=_edits(folder), changes=(),
            unknown="no run of this store exported the package",
        )  # fmt: skip
        nothing = SeenFacts(own={}, lineage={}, gone={})
        return Candidate(
            _described(recipe, package), Folder(folder, digest), proposal, (), nothing, None, None, None, None
        )
    record, home = runs.record(parent), runs.folder(parent) / PACKAGE
    if folder.resolve() == home.resolve():
        raise PackageError(f"{folder}: the package of run {parent} itself; copy it elsewhere, and edit the copy")
    if runs.model(parent) == model_digest(folder):
        raise PackageError(
            f"{folder}: the model of run {parent}, without an edit; `qalam promote {parent}` makes it champion"
        )
    before = read(home, strict=True)
    found, seen = diff(before, package, shown=3), seen_of(runs, record)
    changed = tuple(line[:_LENGTH] for line in render(found).splitlines())
    share = _share(before, diff(_stored_as(before, package.manifest["dtype"]), package, shown=0))
    share += record.proposal.share if record.proposal else 0.0
    proposal = Proposal(
        package=digest, why=why, who=who, edits=_edits(folder), changes=_first(changed, "differences"),
        unknown=_unknown(parent, record, seen, share), share=share,
    )  # fmt: skip
    ancestor = Ancestor(
        run=parent, package=runs.package(parent).package, corpus=record.artifacts["prepare"][0],
        seen=record.artifacts.get("seen", ("",))[0], documents=record.seen.own,
        changes=tuple(f"edited: {line}" for line in proposal.edits or proposal.changes), accepted=runs.accepted(parent),
    )  # fmt: skip
    tokenizer = _of_run(runs, record, "vocab")
    if tokenizer:
        file = runs.store.here(tokenizer.file(TOKENIZER)).path
        if ArabicTokenizer.from_file(file).vocabulary != package.vocabulary:
            tokenizer = None
    same = recipe is None or recipe.corpus == record.recipe.corpus
    return Candidate(
        _described(recipe or record.recipe, package), Folder(folder, digest), proposal, (ancestor, *record.lineage),
        record.seen.model_copy(update={"own": {}}), None if proposal.unknown else seen,
        _of_run(runs, record, "prepare") if same else None, tokenizer, record.tokenizer if tokenizer else None,
    )  # fmt: skip


def proposer(who: str) -> str:
    """The name in one line; of an empty one the name of the user."""
    return " ".join(who.split()) or getpass.getuser()


def parent_of(runs: Runs, provenance: Mapping[str, str]) -> str | None:
    """The run that exported a package with this provenance, the champion or else the newest of several; None for an
    imported package, or where the run was deleted."""
    built = {stage: (provenance.get(key),) for key, stage in _STAGES.items()}
    exported: list[str] = []
    proposed: list[str] = []
    for run, record in runs.records().items():
        if PROVENANCE in provenance and record.artifacts.get(Propose.name) == (provenance[PROVENANCE],):
            proposed.append(run)
        elif not record.proposal and all(record.artifacts.get(stage) == keys for stage, keys in built.items()):
            exported.append(run)
    found = proposed or exported
    champions = [run for run in found if runs.champion(runs.record(run).recipe.name) == run]
    newest = champions or found
    return newest[-1] if newest else None


def _sealed(folder: Path) -> Package:
    """The package. Raises PackageError where it is not as its manifest says, or could not be measured."""
    package = read(folder)
    if package.vocabulary.is_foreign:
        raise PackageError(
            f"{folder}: its tokenizer is of the kind {package.vocabulary.split}, which does not normalise text as "
            "corpora are, so that it cannot be measured like a champion; try `qalam test`, `generate` and `review`"
        )
    if changed := changes(package):
        more = f" and {len(changed) - 1} more changes" if len(changed) > 1 else ""
        raise PackageError(
            f"{folder}: not sealed: {changed[0]}{more}; say what was edited with `qalam seal {folder} --note TEXT`, "
            "and propose it then"
        )
    if package.unlisted:
        raise PackageError(
            f"{folder}: {package.unlisted[0]} is not part of the package; delete it, or move it elsewhere"
        )
    return package


def _of_run(runs: Runs, record: RunRecord, stage: str) -> Artifact | None:
    """The undamaged artifact of a stage of a run."""
    try:
        return runs.store.manifests().artifact(stage, record.artifacts[stage][0])
    except (KeyError, DamagedError):
        return None


def _described(recipe: Recipe, package: Package) -> Recipe:
    """The recipe with the package's own architecture."""
    config = package.config
    shape = {name: getattr(config, name, None) for name in type(recipe.model).model_fields}
    given = {name: value for name, value in shape.items() if value is not None}
    try:
        model = Model(dropout=recipe.model.dropout, **given)
    except ValidationError as error:
        raise PackageError(f"{package.path}: no recipe can have this architecture: {explain(error, Model)}") from None
    return recipe.model_copy(update={"model": model})


def _edits(folder: Path) -> tuple[str, ...]:
    lines = edits((folder / "MODEL_CARD.md").read_text(encoding="utf-8"))
    return _first([line[:_LENGTH] for line in lines], "edits")


def _first(lines: Sequence[str], what: str) -> tuple[str, ...]:
    more = (f"and {len(lines) - _SHOWN} more {what}",) if len(lines) > _SHOWN else ()
    return (*lines[:_SHOWN], *more)


def _unknown(parent: str, record: RunRecord, seen: Artifact | None, share: float) -> str:
    """Why it is not known what the model has read; "" where it has read what its parent has."""
    if record.proposal and record.proposal.unknown:
        return f"it is an edit of run {parent}, of which that is not known: {record.proposal.unknown}"
    if seen is None:
        return f"the record of what run {parent} has read was deleted or damaged"
    if share > EDITED:
        edits = " and the edits before it" if record.proposal else ""
        how = f"{share:.0%} of its values differ" if math.isfinite(share) else "its shape differs"
        return (
            f"{how} from those of run {parent}{edits}, more than the {EDITED:.0%} of an edit: it may have been trained"
        )
    return ""


def _stored_as(package: Package, dtype: str) -> Package:
    """The package as an export in another storage type has it: rounding is no edit."""
    if package.manifest["dtype"] == dtype:
        return package
    rounded = MATRIX_TYPES[dtype].rounded
    weights = {name: rounded(tensor) if tensor.ndim > 1 else tensor for name, tensor in package.weights.items()}
    return replace(package, weights=weights)


def _share(before: Package, found: Difference) -> float:
    """Share of the values, of the parent's and of those added, that differ; infinite for another architecture."""
    shape = found.config.keys() - {"VOCAB_SIZE", "PARAMETERS"}
    if shape or found.reshaped or found.only_first or found.only_second:
        return math.inf
    width = before.config.dim
    size = sum(tensor.size for tensor in before.weights.values())
    rows = {name: tensor.size / len(tensor) for name, tensor in before.weights.items()}
    added = (len(found.added) + len(found.removed)) * width * (1 if before.config.tied else 2)
    return (sum(one.changed * rows[one.name] for one in found.tensors) + added) / size
