"""The store: content-addressed artifacts.
Takes a stage (what identifies its result, and how to make it) and gives the finished artifact: built at most once,
complete or not at all, also with two processes at once and under kill -9.
It does not know what is inside an artifact, and never guesses: every reference is a digest.

    <store>/artifacts/<stage>/<digest>/          files, and manifest.json, written last
    <store>/artifacts/<stage>/<digest>.partial/  being built, or left behind by a killed build
    <store>/locks/                               flock files; the kernel releases those of a dead holder
    <store>/runs/, <store>/champions/            see runs.py
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from qalam_core.errors import StoreError
from qalam_core.files import DISK_ERRORS, digest, json_object, read_bytes, replace_file, sha256_file, sync, try_lock
from qalam_core.progress import Progress, no_progress
from qalam_core.recipe import Frozen

__all__ = ["DEFAULT_STORE", "Artifact", "ArtifactFile", "Buildable", "FileEntry", "Identity", "Manifest", "Store"]

log = logging.getLogger(__name__)

DEFAULT_STORE = Path(".qalam")
"""The default store, relative to the working directory."""

MANIFEST = "manifest.json"
_MANIFEST_LIMIT = 1 << 30

Facts = TypeVar("Facts", bound=Frozen)


class Identity(Frozen):
    """Everything that an artifact depends on; its digest is the artifact's name."""

    stage: str
    version: int
    settings: dict[str, Any]
    inputs: dict[str, str]  # name -> digest

    @property
    def digest(self) -> str:
        """sha256 of its canonical JSON."""
        return digest({name: getattr(self, name) for name in Identity.model_fields})


class FileEntry(Frozen):
    """A file of an artifact, as it was finished."""

    bytes: int
    sha256: str


class Manifest(Identity):
    """What is recorded when an artifact is finished."""

    facts: dict[str, Any]  # what the stage said about its result
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Artifact:
    """A reference to a finished artifact: small, and the only thing that stages and tasks hand to one another."""

    stage: str
    digest: str
    path: Path
    # about the call that returned it: whether it was reused, and how many seconds that or building it took
    cached: bool = field(default=False, compare=False)
    seconds: float = field(default=0.0, compare=False)

    @cached_property
    def manifest(self) -> Manifest:
        """What was recorded when it was finished; read once. Raises StoreError when it is gone or damaged."""
        try:
            return _read_manifest(self.path)
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.path / MANIFEST}: missing or damaged ({error}); build its recipe again") from None

    def facts(self, kind: type[Facts]) -> Facts:
        """What the stage said about its result."""
        return kind.model_validate(self.manifest.facts)

    def file(self, name: str) -> ArtifactFile:
        """One of its files, as an input of a stage that reads no other."""
        return ArtifactFile(self, name, self.manifest.files[name].sha256)

    def __getstate__(self) -> dict[str, Any]:  # without the manifest, which may be large and can be read again
        return {part.name: getattr(self, part.name) for part in fields(self)}


@dataclass(frozen=True)
class ArtifactFile:
    """One file of an artifact; its digest is that of its content."""

    artifact: Artifact
    name: str
    digest: str

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.artifact.path / self.name


class Buildable(Protocol):
    """What the store needs to know of a stage."""

    @property
    def identity(self) -> Identity:
        """Everything that its result depends on."""

    @property
    def resumable(self) -> bool:
        """Whether `run` can go on from what an interrupted run left in its folder."""

    def run(self, out: Path, progress: Progress) -> Frozen:
        """Write the result's files into the folder `out`; -> facts about the result."""


class Store:
    """A folder of artifacts and runs; see the module's docstring for its layout."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).resolve()

    def ensure_writable(self) -> None:
        """Raise StoreError now rather than after an hour of work."""
        with self.disk_errors("start"):
            replace_file(self.root / ".writable", b"")

    # -- building -------------------------------------------------------------------------------

    def build(
        self,
        stage: Buildable,
        progress: Progress = no_progress,
        slot: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Artifact:
        """The artifact of `stage`: reused when it is there and undamaged, else built.

        A damaged one is set aside and built again. `slot` is entered around the work alone: what is reused waits for
        nobody. Raises StoreError when the disk fails, and whatever `stage.run` raises.
        """
        identity = stage.identity
        name, key = identity.stage, identity.digest
        home = self.artifact_folder(name, key)
        since = time.monotonic()
        with self.disk_errors(name), self.locked(f"{name}-{key}"):
            if (manifest := self._intact(home)) is not None:
                artifact = _with_manifest(Artifact(name, key, home, True, time.monotonic() - since), manifest)
                self.mark_used(artifact)
                return artifact
            if home.exists():
                self._set_aside(home)
            partial = home.with_name(f"{key}.partial")
            if partial.exists() and not stage.resumable:
                shutil.rmtree(partial)
            partial.mkdir(parents=True, exist_ok=True)
            try:
                with slot():
                    facts = stage.run(partial, progress)
                manifest = _finish(partial, identity, facts)
            except BaseException:
                if not stage.resumable:  # a partial result helps nobody, least of all on a full disk
                    shutil.rmtree(partial, ignore_errors=True)
                raise
            partial.rename(home)
            sync(home.parent)
        return _with_manifest(Artifact(name, key, home, False, time.monotonic() - since), manifest)

    def find(self, identity: Identity) -> Artifact | None:
        """What `build` would reuse, or None. Neither locks nor writes."""
        since = time.monotonic()
        name, key = identity.stage, identity.digest
        home = self.artifact_folder(name, key)
        with self.disk_errors(name):
            manifest = self._intact(home)
        if manifest is None:
            return None
        return _with_manifest(Artifact(name, key, home, True, time.monotonic() - since), manifest)

    def artifact(self, stage: str, key: str) -> Artifact:
        """The artifact of that digest. Raises StoreError where it is missing, damaged, or no digest at all."""
        home = self.artifact_folder(stage, key)
        with self.disk_errors(stage):
            manifest = self._intact(home)
        if manifest is None:
            raise StoreError(f"{stage} {key[:12]} is missing or damaged in {self.root}; build its recipe again")
        return _with_manifest(Artifact(stage, key, home, True), manifest)

    def _intact(self, home: Path) -> Manifest | None:
        """The manifest of an artifact that is there with exactly the bytes that were finished.

        Only wrong bytes count as damage: a disk that cannot be read raises OSError.
        """
        try:
            manifest = _read_manifest(home)
            intact = sorted(manifest.files) == _files(home) and all(
                sha256_file(home / name) == entry.sha256 for name, entry in manifest.files.items()
            )
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
            return None
        return manifest if intact else None

    def _set_aside(self, home: Path) -> None:
        aside = home.with_name(f"{home.name}.damaged-{os.urandom(4).hex()}")
        home.rename(aside)
        log.warning("%s was damaged; it is kept as %s and built again", home.name[:12], aside.name)

    # -- artifacts as folders -------------------------------------------------------------------

    def artifact_folder(self, stage: str, key: str) -> Path:
        """Where the artifact of that stage and digest is, or would be. Raises StoreError for what is no digest."""
        # it may come from a run's parameters, and must not lead out of the store
        if not re.fullmatch("[0-9a-f]{64}", key) or not re.fullmatch("[a-z]+", stage):
            raise StoreError(f"{stage} {key[:80]!r} is no artifact: a digest has 64 hex digits")
        return self.root / "artifacts" / stage / key

    def artifacts(self) -> dict[str, float]:
        """`<stage>/<folder>` of every artifact, finished, partial or damaged -> its last use (Unix time)."""
        folders = sorted(path for path in (self.root / "artifacts").glob("*/[!.]*") if path.is_dir())
        return {f"{folder.parent.name}/{folder.name}": _last_use(folder) for folder in folders}

    def mark_used(self, artifact: Artifact) -> None:
        """Record that an artifact is in use now, for garbage collection."""
        with suppress(OSError):  # a store that cannot be written can still be read
            os.utime(artifact.path / MANIFEST)

    def delete_artifact(self, name: str, unused_since: float) -> bool:
        """Delete `<stage>/<folder>`, one of `artifacts`; -> whether it was deleted.

        One that is being built is kept, and so is one that was used after `unused_since` (Unix time).
        """
        folder = self.root / "artifacts" / name
        stage, key = folder.parent.name, folder.name.partition(".")[0]
        with self.disk_errors("gc"), self._try_lock(f"{stage}-{key}") as free:
            unused = free and _last_use(folder) < unused_since
            if unused:
                delete_folder(folder)
            return unused

    # -- locks and disk errors ------------------------------------------------------------------

    def held_locks(self) -> list[str]:
        """Names of the locks that somebody holds: what is being built or published right now."""
        names = sorted(path.name for path in (self.root / "locks").glob("*"))
        with self.disk_errors("gc"):
            return [name for name in names if not self._is_free(name)]

    def _is_free(self, name: str) -> bool:
        with self._try_lock(name) as free:
            return free

    @contextmanager
    def _try_lock(self, name: str) -> Iterator[bool]:
        """Hold the lock `name` if nobody does; gives whether that is so."""
        path = self.root / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            yield try_lock(file)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the store's lock `name`, and wait for its holder first."""
        path = self.root / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            # A process that we start for the work inherits the lock: should we be killed, the next build waits until
            # that process has ended, and never writes beside it.
            os.set_inheritable(file.fileno(), True)
            if not try_lock(file):
                log.warning("waiting for another build, which works on %s", name[:24])
                try_lock(file, blocking=True)
            yield

    @contextmanager
    def disk_errors(self, stage: str) -> Iterator[None]:
        """Turn the disk errors that a user can cure into StoreError."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTDIR) and not self.root.is_dir():
                raise StoreError(
                    f"store {self.root}: a file is in its place; choose another one with --store"
                ) from None
            if error.errno not in DISK_ERRORS:
                raise
            raise StoreError(f"store {self.root}, stage {stage}: {DISK_ERRORS[error.errno]}") from error


def delete_folder(folder: Path) -> None:
    """Delete crash-safely: rename first, then remove, and remove what an earlier crash left."""
    renamed = folder.with_name(f".{folder.name}.deleted")
    folder.rename(renamed)
    for leftover in folder.parent.glob(".*.deleted"):
        shutil.rmtree(leftover, ignore_errors=leftover != renamed)


def _with_manifest(artifact: Artifact, manifest: Manifest) -> Artifact:
    """The artifact, spared from reading its manifest again."""
    artifact.__dict__["manifest"] = manifest
    return artifact


def _read_manifest(folder: Path) -> Manifest:
    try:
        return Manifest.model_validate(json_object(read_bytes(folder / MANIFEST, _MANIFEST_LIMIT)))
    except ValidationError as error:
        raise ValueError(f"not a manifest: {error.errors()[0]['msg']}") from None


def _finish(folder: Path, identity: Identity, facts: Frozen) -> Manifest:
    """Flush every file, then write the manifest: where it exists, everything else does too."""
    names = _files(folder)
    for name in names:
        sync(folder / name)
    entries = {
        name: FileEntry(bytes=(folder / name).stat().st_size, sha256=sha256_file(folder / name)) for name in names
    }
    manifest = Manifest(**dict(identity), facts=facts.canonical(), files=entries)
    replace_file(folder / MANIFEST, manifest.to_json())
    return manifest


def _last_use(folder: Path) -> float:
    """The newest modification time of a folder and its files, while somebody may be writing to it."""
    times = []
    for path in (folder, *folder.rglob("*")):
        with suppress(FileNotFoundError):  # a running build replaces its files
            times.append(path.stat().st_mtime)
    return max(times, default=0.0)


def _files(folder: Path) -> list[str]:
    """Names of all files below `folder` but its manifest, sorted."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in paths if name != MANIFEST)
