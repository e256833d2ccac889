"""The store: content-addressed artifacts, built at most once, and complete or absent even after kill -9.

Layout:
    <store>/artifacts/<stage>/<digest>/          files, and manifest.json, written last
    <store>/artifacts/<stage>/<digest>.partial/  being built, or left behind by a killed build
    <store>/locks/                               flock files; the kernel releases them when their process ends
    <store>/digests/                             what tells that files are as they were; see digests.py
    <store>/runs/, <store>/champions/            see runs.py
"""

from __future__ import annotations

import copy
import errno
import logging
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any, Protocol, Self, TypeVar

from pydantic import ValidationError

from qalam_core.digests import Digests, Record, State, clock_after
from qalam_core.errors import DamagedError, StoreError
from qalam_core.files import (
    NOT_THERE,
    digest,
    disk_problem,
    files_below,
    json_object,
    names,
    read_bytes,
    replace_file,
    sha256_file,
    sync,
    try_lock,
)
from qalam_core.progress import Progress, no_progress, waiting
from qalam_core.recipe import Frozen

log = logging.getLogger(__name__)

DEFAULT_STORE = ".qalam"  # relative to the working directory
MANIFEST = "manifest.json"
ELSEWHERE = "elsewhere"  # folder, in that of a resumable stage, with what another machine's interrupted run has left
_MANIFEST_LIMIT = 1 << 30

_TEMPORARY = re.compile(r"\.(.+\.([0-9a-f]{16}|deleted|partial)|(reproducing|measuring|keeping)-.+)")
"""Names of files being replaced, of folders being deleted or published, and of the stores of audits."""

Facts = TypeVar("Facts", bound=Frozen)
Value = TypeVar("Value")
Result = TypeVar("Result")


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
    """manifest.json of a finished artifact."""

    facts: dict[str, Any]  # of the result, from the stage
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Artifact:
    """A reference to a finished artifact: small, and all that stages and tasks pass to one another."""

    stage: str
    digest: str
    path: Path
    # of the call that returned it: whether it was reused, the seconds that reusing or building it took, and before
    # that the seconds of waiting: for the "lock" of another build, and for a "slot"
    cached: bool = field(default=False, compare=False)
    seconds: float = field(default=0.0, compare=False)
    waited: Mapping[str, float] = field(default_factory=dict, compare=False)

    @cached_property
    def manifest(self) -> Manifest:
        """Its manifest.json, read once. Raises DamagedError, and OSError when it cannot be read."""
        try:
            return _read_manifest(self.path)
        except (*NOT_THERE, ValueError) as error:
            raise DamagedError(
                f"{self.path / MANIFEST}: missing or damaged ({error}); build its recipe again"
            ) from None

    def exists(self) -> bool:
        """Whether it is in the store; it may be damaged."""
        return "manifest" in self.__dict__ or (self.path / MANIFEST).is_file()

    def facts(self, kind: type[Facts]) -> Facts:
        """The facts that its stage recorded."""
        return kind.model_validate(self.manifest.facts)

    def file(self, name: str) -> ArtifactFile:
        """One of its files, as an input of a stage that depends on no other."""
        return ArtifactFile(self, name, self.manifest.files[name].sha256)

    def with_manifest(self, manifest: Manifest) -> Self:
        """The same artifact, whose manifest need not be read."""
        self.__dict__["manifest"] = manifest
        return self

    def __getstate__(self) -> dict[str, Any]:  # without the manifest, which may be large and can be read again
        return {part.name: getattr(self, part.name) for part in fields(self)}


@dataclass(frozen=True)
class ArtifactFile:
    """One file of an artifact."""

    artifact: Artifact
    name: str
    digest: str  # of its content

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.artifact.path / self.name

    def is_as_recorded(self) -> bool:
        """Whether the file is there, with the digest that was recorded."""
        return self.path.is_file() and sha256_file(self.path) == self.digest


class Buildable(Protocol):
    """What the store requires of a stage."""

    @property
    def identity(self) -> Identity:
        """Everything that its result depends on."""

    @property
    def resumable(self) -> tuple[str, ...]:
        """Patterns of the files in its folder from which `run` continues when it was interrupted; empty: from none."""

    def run(self, out: Path, progress: Progress) -> Frozen:
        """Write the result's files into the folder `out`; -> facts about the result."""


class Store:
    """A folder of artifacts and runs, as in `Store(Path(".qalam"))`; it is made when something is built."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).resolve()
        self.digests = Digests(self.root / "digests")

    @property
    def place(self) -> str:
        """What `store_at` opens: its folder, or its URL."""
        return str(self.root)

    def ensure_writable(self) -> None:
        """Raise StoreError if the store cannot be written."""
        with self.disk_errors("start"):
            replace_file(self.root / ".writable", b"")

    def build(
        self,
        stage: Buildable,
        progress: Progress = no_progress,
        slot: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Artifact:
        """The artifact of `stage`: reused when it exists undamaged, else built.

        A damaged one is set aside and built again. The context manager of `slot` is held while the stage runs, and not
        for an artifact that is reused. Raises StoreError when the disk fails, and whatever `stage.run` raises.
        """
        identity = stage.identity
        name, key = identity.stage, identity.digest
        home = self.artifact_folder(name, key)
        since = time.monotonic()
        with self._alone(stage), self.disk_errors(name), self.locked(f"{name}-{key}"):
            waited = {"lock": time.monotonic() - since}
            if (artifact := self._undamaged(name, key, remember=True)) is not None:
                self.mark_used(artifact)
                return replace(artifact, waited=waited).with_manifest(artifact.manifest)
            if home.exists():
                aside = home.rename(home.with_name(f"{key}.damaged-{secrets.token_hex(4)}"))
                log.warning("%s was damaged; it is kept as %s and built again", key[:12], aside.name)
            stage = self.here(stage)
            partial = home.with_name(f"{key}.partial")
            if partial.exists() and not stage.resumable:
                shutil.rmtree(partial)
            partial.mkdir(parents=True, exist_ok=True)
            try:
                asked = time.monotonic()
                with slot(), self._interruptible(stage, partial):
                    waited["slot"] = time.monotonic() - asked
                    progress(0, 0)  # from here on it works
                    facts = stage.run(partial, progress)
                manifest = _finish(partial, identity, facts, self._remembered(name, key))
                partial.rename(home)
            except BaseException:
                if not stage.resumable:  # a partial result is useless, and takes space on a full disk
                    shutil.rmtree(partial, ignore_errors=True)
                raise
            sync(home.parent)
            shared = self._share(Artifact(name, key, home).with_manifest(manifest))
        seconds = time.monotonic() - since - sum(waited.values())
        return replace(shared, seconds=seconds, waited=waited).with_manifest(shared.manifest)

    def _share(self, artifact: Artifact) -> Artifact:
        """Make a new artifact available to others; -> the one that is in the store now."""
        return artifact

    def here(self, value: Value) -> Value:
        """An artifact that another machine has made, or a stage that reads such, with the paths of this machine."""
        return value

    def _alone(self, stage: Buildable) -> AbstractContextManager[None]:
        """Context manager that keeps other machines from building the same meanwhile; the lock is for this one."""
        return nullcontext()

    def _interruptible(self, stage: Buildable, partial: Path) -> AbstractContextManager[None]:
        """Context manager that lets other machines continue what is interrupted in `partial`."""
        return nullcontext()

    def find(self, identity: Identity) -> Artifact | None:
        """What `build` would reuse, or None. Neither locks nor writes."""
        return self._undamaged(identity.stage, identity.digest)

    def reuse(self, identity: Identity) -> Artifact | None:
        """What `build` would reuse, which is in use from here on, or None. Does not lock."""
        home = self.artifact_folder(identity.stage, identity.digest)
        self.mark_used(Artifact(identity.stage, identity.digest, home))  # first: gc keeps what is in use
        return self._undamaged(identity.stage, identity.digest, remember=True)

    def at_once(self, work: Callable[[Value], Result], values: Sequence[Value]) -> list[Result]:
        """The results of `work`, which asks this store, on each value; on object storage of several at a time."""
        return list(map(work, values))

    def doubt(self) -> None:
        """Have all sources and artifacts read the next time that they are used, also where their sizes and times are as
        they were. Raises StoreError."""
        with self.disk_errors():
            self.digests.doubt()

    def _remembered(self, stage: str, key: str) -> Record:
        """Of the files of an artifact."""
        return self.digests.of(stage, key, str(self.artifact_folder(stage, key)))

    def artifact(self, stage: str, key: str) -> Artifact:
        """The artifact of that digest. Raises DamagedError, and StoreError if `key` is not a digest."""
        artifact = self._undamaged(stage, key)
        if artifact is None:
            raise self._missing(stage, key)
        return artifact

    def manifests(self) -> Store:
        """The same store, for a command that writes nothing. On object storage, only `here` copies an artifact then."""
        return self._with(self.digests.read_only())

    def doubting(self) -> Self:
        """The same store, for a command that writes nothing and reads whatever it checks."""
        return self._with(self.digests.doubting())

    def _with(self, digests: Digests) -> Self:
        found = copy.copy(self)
        found.digests = digests
        return found

    def _missing(self, stage: str, key: str) -> DamagedError:
        return DamagedError(f"{stage} {key[:12]} is missing or damaged in {self.place}; build its recipe again")

    def reference(self, stage: str, key: str) -> Artifact:
        """The artifact of a recorded digest, unchecked: it may be missing or damaged."""
        return Artifact(stage, key, self.artifact_folder(stage, key))

    def manifest(self, stage: str, key: str) -> Manifest:
        """The manifest of a recorded digest; the files may be damaged. Raises DamagedError."""
        return self.reference(stage, key).manifest

    def size(self, path: str) -> int:
        """Bytes of what is at a path relative to the store; 0 of what is gone."""
        return sum(status.st_size for status in _statuses(self.root / path) if stat.S_ISREG(status.st_mode))

    def _undamaged(self, stage: str, key: str, remember: bool = False) -> Artifact | None:
        """The artifact of that digest if it has exactly the bytes that were finished.

        Files are read unless they are remembered; what was read is, with `remember`. Only wrong bytes count as damage:
        a disk that cannot be read raises StoreError.
        """
        since, home = time.monotonic(), self.artifact_folder(stage, key)
        known = self._remembered(stage, key)
        with self.disk_errors(stage):
            try:
                manifest = _read_manifest(home)
                if any(
                    known.of_file(name, home / name, sha256_file) != entry.sha256
                    for name, entry in manifest.files.items()
                ):
                    return None
                if sorted(manifest.files) != _files(home):
                    return None
            except (*NOT_THERE, ValueError):
                return None
        if remember:
            known.save()
        return Artifact(stage, key, home, True, time.monotonic() - since).with_manifest(manifest)

    def artifact_folder(self, stage: str, key: str) -> Path:
        """Where the artifact of that stage and digest is, or would be. Raises StoreError if `key` is not a digest."""
        # a digest may come from a flow run's parameters, and must not lead out of the store
        if not re.fullmatch("[0-9a-f]{64}", key) or not re.fullmatch("[a-z]+", stage):
            raise StoreError(f"{stage} {key[:80]!r} is not an artifact: a digest has 64 hex digits")
        return self.root / "artifacts" / stage / key

    def artifacts(self) -> dict[str, float]:
        """`<stage>/<folder>` of every artifact, finished, partial or damaged -> its last use (Unix time)."""
        home = self.root / "artifacts"
        with self.disk_errors():
            found = [f"{stage}/{name}" for stage in names(home) for name in names(home / stage)]
            return {name: _last_use(home / name) for name in found if "/." not in name and (home / name).is_dir()}

    def mark_used(self, artifact: Artifact) -> None:
        """Record that an artifact is in use now, for garbage collection."""
        with suppress(OSError):  # a store that cannot be written can still be read
            os.utime(artifact.path / MANIFEST)

    def delete_artifact(self, name: str, unused_since: float) -> bool:
        """Delete `<stage>/<folder>`, one of `artifacts`; -> whether it was deleted.

        It is kept while it is being built, and when it was used after `unused_since` (Unix time).
        """
        folder = self.root / "artifacts" / name
        stage, key = folder.parent.name, folder.name.partition(".")[0]
        with self.disk_errors("gc"), self._try_lock(f"{stage}-{key}") as free:
            if not free or _last_use(folder) >= unused_since:
                return False
            delete_folder(folder)
            self.digests.forget(stage, folder.name)
            return True

    def abandoned(self, unused_since: float) -> list[str]:
        """Temporary files and folders that killed processes left, and records of files that are gone, relative to the
        store; none used since (Unix time).

        Only their age tells that nobody, perhaps on another machine, is writing them.
        """
        with self.disk_errors():
            stages = [f"artifacts/{stage}" for stage in names(self.root / "artifacts")]
            places = ["", "runs", "champions", "outbox", *stages]
            found = [Path(place, name) for place in places for name in names(self.root / place)]
            left = [str(path) for path in found if _TEMPORARY.fullmatch(path.name)]
            left += [f"digests/{name}" for name in self.digests.of_what_is_gone()]
            return [path for path in left if _last_use(self.root / path) < unused_since]

    def delete_abandoned(self, name: str) -> None:
        """Delete one of `abandoned`."""
        path = self.root / name
        with self.disk_errors("gc"), suppress(FileNotFoundError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    # -- runs and histories, whose content runs.py knows

    def run_names(self) -> list[str]:
        """The names of all complete runs, sorted."""
        home = self.root / "runs"
        return [name for name in names(home) if name[0] != "." and (home / name / "run.json").is_file()]

    def run_file(self, run: str, name: str = "") -> Path:
        """A file of a run, or its folder; it may be missing."""
        return self.root / "runs" / run / name

    def last_change(self, run: str) -> float:
        """When a run was published (Unix time). Raises FileNotFoundError."""
        return self.run_file(run, "run.json").stat().st_mtime

    def publish_run(self, run: str, fill: Callable[[Path], object]) -> None:
        """Create a run, whose files `fill` writes into a folder; does nothing when the run exists.

        The folder is renamed when it is complete, so that a run is complete or absent.
        """
        home = self.root / "runs" / run
        with self.disk_errors("publish"), self.locked(run):
            if home.exists():
                return
            partial = home.with_name(f".{run}.partial")
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir(parents=True)
            fill(partial)
            for name in files_below(partial):
                sync(partial / name)
            partial.rename(home)
            sync(home.parent)

    def delete_run(self, run: str) -> None:
        """Delete a run."""
        with self.disk_errors("gc"), self.locked(run):
            delete_folder(self.root / "runs" / run)

    def history(self, name: str) -> bytes:
        """The history of the champions under a name; empty where there is none."""
        try:
            return self._history_file(name).read_bytes()
        except FileNotFoundError:
            return b""

    def replace_history(self, name: str, earlier: bytes, content: bytes) -> bool:
        """Replace a history that is `earlier`; -> False where it is not. The caller holds the lock of the name."""
        if self.history(name) != earlier:
            return False
        replace_file(self._history_file(name), content)
        return True

    def _history_file(self, name: str) -> Path:
        return self.root / "champions" / f"{name}.jsonl"

    def held_locks(self) -> list[str]:
        """Names of the locks that are held: what is being built or published now. Writes nothing."""
        held = []
        with self.disk_errors():
            for name in names(self.root / "locks"):
                with (self.root / "locks" / name).open() as file:
                    if not try_lock(file, shared=True):
                        held.append(name)
        return held

    @contextmanager
    def _try_lock(self, name: str) -> Iterator[bool]:
        """Hold the lock `name` if it is free; gives whether it is."""
        with self._lock_file(name) as file:
            yield try_lock(file)

    @contextmanager
    def locked(self, name: str, *, shared: bool = False, inherited: bool = True) -> Iterator[None]:
        """Wait for the store's lock `name`, and hold it."""
        with self._lock_file(name) as file:
            # A process that is started for the work inherits the lock: if this one is killed, the next build waits
            # until that process has ended, and they never write at the same time.
            os.set_inheritable(file.fileno(), inherited)
            if not try_lock(file, shared=shared):
                with waiting(f"another build, which works on {name[:24]}"):
                    try_lock(file, blocking=True, shared=shared)
            yield

    def _lock_file(self, name: str) -> IO[str]:
        path = self.root / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w")

    @contextmanager
    def disk_errors(self, stage: str = "") -> Iterator[None]:
        """Turn the disk errors that a user can fix into StoreError; `stage` names what is done."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTDIR) and not os.path.isdir(self.root):  # noqa: PTH112  no error
                raise StoreError(
                    f"store {self.root}: a file is in its place; choose another one with --store"
                ) from None
            if error.errno == errno.ENOENT and not os.path.exists(self.root):  # noqa: PTH110
                raise StoreError(
                    f"store {self.root}: was moved or deleted while it was in use; put it back, or give its new place "
                    "with --store"
                ) from None
            if not (problem := disk_problem(error)):
                raise
            raise StoreError(f"store {self.root}{stage and f', stage {stage}'}: {problem}") from error


def delete_folder(folder: Path) -> None:
    """Delete crash-safely: rename first, then remove, together with what an earlier crash left."""
    renamed = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.deleted")
    with suppress(FileNotFoundError):  # another thread or process deletes in the same folder, and this as well
        folder.rename(renamed)
        shutil.rmtree(renamed)
    for leftover in folder.parent.glob(".*.deleted"):
        shutil.rmtree(leftover, ignore_errors=True)


def _read_manifest(folder: Path) -> Manifest:
    return _parsed_manifest(read_bytes(folder / MANIFEST, _MANIFEST_LIMIT))


@lru_cache(maxsize=4096)  # a plan, a build and a report read the same manifests
def _parsed_manifest(content: bytes) -> Manifest:
    try:
        return Manifest.model_validate(json_object(content))
    except ValidationError as error:
        raise ValueError(f"not a manifest: {error.errors()[0]['msg']}") from None


def _finish(folder: Path, identity: Identity, facts: Frozen, record: Record) -> Manifest:
    """Flush every file, then write the manifest: an artifact with a manifest is complete."""
    written = _files(folder)
    for name in written:
        sync(folder / name)
    states = {name: State.of(folder / name) for name in written}
    clock = clock_after(list(states.values()), folder / MANIFEST)
    files = {name: FileEntry(bytes=state.size, sha256=sha256_file(folder / name)) for name, state in states.items()}
    manifest = Manifest(**dict(identity), facts=facts.canonical(), files=files)
    replace_file(folder / MANIFEST, manifest.to_json())
    for name, entry in files.items():
        if states[name].before(clock):
            record.add(name, states[name], entry.sha256)
    record.save()
    return manifest


def _last_use(folder: Path) -> float:
    """The newest modification time of a folder and its files."""
    return max((status.st_mtime for status in _statuses(folder)), default=0.0)


def _statuses(place: Path) -> Iterator[os.stat_result]:
    """Of a folder and its files, or of a file, without what another process deletes meanwhile."""
    for path in (place, *(place / name for name in files_below(place))):
        with suppress(FileNotFoundError):
            yield path.stat()


def _files(folder: Path) -> list[str]:
    """Names of all files below `folder` but its manifest, sorted."""
    return [name for name in files_below(folder) if name != MANIFEST]
