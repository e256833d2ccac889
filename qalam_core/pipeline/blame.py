"""Since when a row or a tensor stands as it does: compares the packages that a model's weights came through."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qalam_core.errors import PackageError, did_you_mean
from qalam_core.files import json_object, read_bytes
from qalam_core.package.comments import TOKEN_TENSORS
from qalam_core.package.editing.rows import find_row
from qalam_core.package.editing.seal import HEADING
from qalam_core.package.read import read, read_tensor_rows, read_vocabulary_of
from qalam_core.package.runtime.data_reader import quote, read_config
from qalam_core.package.write import tensor_digest
from qalam_core.pipeline.export import PACKAGE
from qalam_core.runs import Runs

_GROUPS, _GROUP = 8, 8  # of rows, evenly spaced: the median of their changes is the typical one
_GIT = ("git", "-c", "core.fsmonitor=false", "-c", "log.showSignature=false", "--no-pager")  # each may run a program

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Version:
    """A package that the weights came through. `folder` is None if it was deleted."""

    name: str  # a run, a folder, or a commit
    folder: Path | None
    when: str  # ISO 8601; "" if nothing tells
    why: str  # who promoted or committed it, with the reason, or the notes of its edits
    is_run: bool = True  # as exported, so that its manifest is right


@dataclass(frozen=True)
class Step:
    """What changed from one version to the next newer one that is left; lengths are Euclidean."""

    newer: Version
    older: Version
    deleted: tuple[Version, ...]  # between the two
    moved: float
    length: float  # in the older one
    typical: float | None  # median change of 64 rows; None for a whole tensor or a vector

    @property
    def factor(self) -> float | None:
        """How many times the typical change of a row the change is; None if that is not known."""
        return self.moved / self.typical if self.typical else None


@dataclass(frozen=True)
class Blame:
    """The steps back through the versions, newest first, and why they end."""

    what: str
    steps: tuple[Step, ...]
    last: Version  # the oldest one that was compared
    end: str

    @property
    def since(self) -> Step | None:
        """The newest step that changed anything; None if none did."""
        return next((step for step in self.steps if step.moved), None)

    @property
    def outlier(self) -> Step | None:
        """The step with the largest change, compared with the typical row's; None if no row's is known."""
        return max((step for step in self.steps if step.factor), key=lambda step: step.factor or 0.0, default=None)


# -- versions -------------------------------------------------------------------------------------


def versions(runs: Runs, model: str, place: Path, commits: int) -> list[Version]:
    """The packages that a model's weights came through, newest first; `model` is a run id or a package folder.

    A folder is followed by the run that it was copied from, which is the one with the same provenance, and if there is
    none, by at most so many commits of its git repository, which are written into the folder `place`. Raises
    StoreError and PackageError.
    """
    folder = Path(model)
    if not folder.is_dir():
        return list(_lineage(runs, model))
    origin = _origin(runs, folder)
    if origin and _manifest(runs.folder(origin) / PACKAGE) == _manifest(folder) and not read(folder).edited:
        return list(_lineage(runs, origin))
    own = Version(model, folder, "", "; ".join(_notes(folder)), is_run=False)
    return [own, *(_lineage(runs, origin) if origin else _commits(folder, place, commits))]


def _lineage(runs: Runs, run: str) -> Iterator[Version]:
    record = runs.record(run)
    promoted = {promotion.run: promotion for promotion in runs.promotions(record.recipe.name)}
    for name in (run, *(ancestor.run for ancestor in record.lineage)):
        promotion, left = promoted.get(name), name in runs
        why = f"promoted by {promotion.who}: {promotion.why}" if promotion else "never promoted"
        when = runs.record(name).created if left else promotion.when if promotion else ""
        yield Version(name, runs.folder(name) / PACKAGE if left else None, when, why)


def _origin(runs: Runs, folder: Path) -> str:
    """The run that a package was copied from; "" if none is left."""
    given = _manifest(folder)["provenance"]
    wanted = {key: text for key, text in given.items() if key != "edits" and not key.startswith("merged ")}
    folders = ((run, runs.folder(run) / PACKAGE) for run in runs.ids())
    return next((run for run, package in folders if wanted and _manifest(package)["provenance"] == wanted), "")


def _notes(folder: Path) -> list[str]:
    """What a package was merged from, and the notes that `seal` wrote into its card."""
    merged = [f"{key} {text}" for key, text in _manifest(folder)["provenance"].items() if key.startswith("merged ")]
    lines = (folder / "MODEL_CARD.md").read_text(encoding="utf-8").split("\n")
    below = lines[lines.index(HEADING) :] if HEADING in lines else []
    return [*merged, *(line for line in below if line[:1].isdigit())]


def _commits(folder: Path, place: Path, most: int) -> Iterator[Version]:
    """The commits that changed the data of a package, newest first, each written into a folder; none outside git."""
    form = "--format=%H%x00%aI%x00%an%x00%s"
    data = ["weights*.py", "config.py", "vocab.py"]
    log = _git(folder, "log", f"--max-count={most}", form, "--", *data)
    for line in log.decode("utf-8", "replace").splitlines() if log else ():
        commit, when, who, subject = line.split("\0")
        target = place / commit
        target.mkdir()
        listed = _git(folder, "ls-tree", "-z", "--name-only", commit, "./") or b""
        for name in map(os.fsdecode, filter(None, listed.split(b"\0"))):
            content = _git(folder, "cat-file", "blob", f"{commit}:./{name}")
            if content is not None:  # a folder below has none
                (target / name).write_bytes(content)
        yield Version(commit[:12], target, when, f"committed by {who}: {subject}", is_run=False)


def _git(folder: Path, *arguments: str) -> bytes | None:
    """The output of a git command; None where it fails, or there is no git."""
    try:
        done = subprocess.run([*_GIT, "-C", folder, *arguments], capture_output=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


# -- comparing ------------------------------------------------------------------------------------


def tensors_since(chain: Sequence[Version]) -> dict[str, tuple[Version, tuple[Version, ...]]]:
    """For each tensor the version since which its values stand, and the deleted ones before, which may have had them.

    Compares digests: those of the manifests of runs, and of what was edited those of the values. Raises PackageError.
    """
    newest = _newest(chain)
    gap: tuple[Version, ...] = ()
    found = {name: (newest, gap, digest, True) for name, digest in _digests(newest).items()}
    for version in chain[chain.index(newest) + 1 :]:
        if version.folder is None:
            gap = (*gap, version)
            continue
        digests = _digests(version)
        for name, (since, _, digest, open_) in found.items():
            if open_:
                same = digests.get(name) == digest
                found[name] = (version, (), digest, True) if same else (since, gap, digest, False)
        gap = ()
    return {name: (since, gap if open_ else unknown) for name, (since, unknown, _, open_) in found.items()}


def blame(chain: Sequence[Version], tensor: str, row: str = "") -> Blame:
    """Compare a row, or without one the whole tensor, through the versions of a model.

    Rows of `embedding.weight` and `lm_head.weight` are found by their word in each vocabulary, others by number. Raises
    PackageError.
    """
    newer, words = _newest(chain), _Words()
    names = list(_manifest(_folder(newer))["tensors"])
    if tensor not in names:
        raise PackageError(f'there is no tensor "{tensor}"; {did_you_mean(tensor, names, ", ".join(names))}')
    number, word = None, ""
    if row:
        vocabulary = read_vocabulary_of(_folder(newer))
        number = find_row(vocabulary, tensor, row)
        if tensor in TOKEN_TENSORS and number < len(vocabulary.words):
            word = vocabulary.words[number]
    values = _values(newer, tensor, number)
    what = tensor if number is None else f"{tensor} row {number}" + (f" {quote(word)}" if word else "")
    steps: list[Step] = []
    gap: tuple[Version, ...] = ()
    end = ""
    for older in chain[chain.index(newer) + 1 :]:
        if older.folder is None:
            gap = (*gap, older)
            continue
        place = words(older.folder).get(word) if word else number
        if word and place is None:
            end = f"{quote(word)} is not in the vocabulary of {older.name}, so it is new in {newer.name}"
            break
        try:
            before = _values(older, tensor, place)
        except PackageError as error:
            end = f"{older.name} has no such row or tensor ({error})"
            break
        if before.shape != values.shape:
            end = f"it has another shape in {older.name}: {' x '.join(map(str, before.shape))}"
            break
        typical = _typical(newer, older, tensor, words) if number is not None and values.ndim == 2 else None
        steps.append(Step(newer, older, gap, _distance(values, before), _length(before), typical))
        newer, values, gap = older, before, ()
    if not end:
        deleted = f"deleted, so unknown: {', '.join(version.name for version in gap)}"
        end = deleted if gap else _beginning(newer)
    elif gap:
        end += f" (or in one that was deleted: {', '.join(version.name for version in gap)})"
    return Blame(what, tuple(steps), newer, end)


class _Words:
    """Word -> row of packages. Runs that kept their tokenizer have the same file, which is parsed once."""

    def __init__(self) -> None:
        self._known: dict[bytes, dict[str, int]] = {}

    def __call__(self, folder: Path) -> dict[str, int]:
        key = hashlib.sha256((folder / "vocab.py").read_bytes()).digest()
        if key not in self._known:
            if len(self._known) > 1:  # only neighbours are compared
                self._known.pop(next(iter(self._known)))
            self._known[key] = {word: row for row, word in enumerate(read_vocabulary_of(folder).words)}
        return self._known[key]


def _typical(newer: Version, older: Version, tensor: str, words: _Words) -> float | None:
    """The median change of 64 evenly spaced rows, in tensors of tokens of those whose word both have."""
    count, before = (_shapes(version)[tensor][0] for version in (newer, older))
    others: dict[int, int | None]
    if tensor in TOKEN_TENSORS:
        places = words(_folder(older))
        others = {row: places.get(word) for word, row in words(_folder(newer)).items()}
    else:
        others = {row: row if row < before else None for row in range(count)}
    moved: list[float] = []
    for start in sorted({count * group // _GROUPS for group in range(_GROUPS)}):
        rows = range(start, min(start + _GROUP, count))
        new = read_tensor_rows(_folder(newer), tensor, rows.start, rows.stop)
        if [others[row] for row in rows] == list(rows):
            old = read_tensor_rows(_folder(older), tensor, rows.start, rows.stop)
            moved += map(_distance, new, old)
        else:
            found = ((values, others[row]) for row, values in zip(rows, new, strict=True))
            moved += [_distance(values, _values(older, tensor, at)) for values, at in found if at is not None]
    return float(np.median(moved)) if moved else None


def _distance(values: Rows, others: Rows) -> float:
    return float(np.linalg.norm(values.astype(np.float64) - others))


def _length(values: Rows) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))


def _newest(chain: Sequence[Version]) -> Version:
    found = next((version for version in chain if version.folder is not None), None)
    if found is None:
        raise PackageError("every package of this lineage was deleted from the store; nothing is left to compare")
    return found


def _folder(version: Version) -> Path:
    assert version.folder is not None
    return version.folder


def _shapes(version: Version) -> dict[str, tuple[int, ...]]:
    return read_config(_folder(version) / "config.py").tensor_shapes()


def _values(version: Version, tensor: str, row: int | None) -> Rows:
    return read_tensor_rows(_folder(version), tensor, row or 0, None if row is None else row + 1)


def _digests(version: Version) -> dict[str, str]:
    if version.is_run:
        return _manifest(_folder(version))["tensors"]
    return {name: tensor_digest(tensor) for name, tensor in read(_folder(version)).weights.items()}


def _manifest(folder: Path) -> dict[str, dict[str, str]]:
    try:
        found = json_object(read_bytes(folder / "manifest.json"))
        return {name: dict(found[name]) for name in ("provenance", "tensors", "files")}
    except (OSError, ValueError, TypeError, KeyError):
        raise PackageError(f"{folder}: no manifest.json of a package; name a package folder or a run") from None


def _beginning(version: Version) -> str:
    origin = _manifest(_folder(version))["provenance"].get("initial_weights", "")
    if origin == "random":
        return f"{version.name} began from random weights"
    return f"{version.name} began from {origin}" if origin else f"nothing is known before {version.name}"
