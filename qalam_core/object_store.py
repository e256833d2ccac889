"""A store on object storage, for machines that share nothing else.

Objects:
    <url>/artifacts/<stage>/<digest>/manifest.json   written last, and only where there is none: the first writer wins
    <url>/artifacts/<stage>/<digest>/<version>/...   its files; the version is of the manifest's content, so that two
                                                     writers with different results never mix
    <url>/runs/<run>/files.json                      the digests of a run's files, written last
    <url>/runs/<run>/<version>/...                   its files
    <url>/champions/<recipe name>.jsonl              replaced only by who has read what it replaces
    <url>/leases/<stage>-<digest>                    of a machine that trains, while it does
    <url>/interrupted/<stage>-<digest>/...           what another machine needs to continue that, as a run's files
    <url>/used/<stage>/<digest>                      empty, written when the artifact is used

Each machine works in a folder of its own, laid out as a store, in which artifacts and runs are copies: they are
downloaded when something is read of them, verified by their digests, and deleted when they have long not been used. In
its folder `parts`, laid out likewise, are copies of single files of others. To reuse an artifact, none is made.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from qalam_core.digests import State
from qalam_core.errors import DamagedError, StoreError
from qalam_core.files import files_below, json_object, replace_file, sha256_bytes, sha256_file
from qalam_core.inputs import moved, read_by
from qalam_core.leases import lease
from qalam_core.objects import NOT_PLAIN, SCHEMES, Objects, is_url, shown
from qalam_core.progress import every
from qalam_core.store import (
    ELSEWHERE,
    MANIFEST,
    Artifact,
    Buildable,
    FileEntry,
    Identity,
    Manifest,
    Result,
    Store,
    Value,
    delete_folder,
)

log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
"""A machine that has not renewed its lease for so long has stopped; it renews it three times as often. All machines
must agree: $QALAM_LEASE_SECONDS."""

CACHE_GB = 50.0
"""Copies of artifacts on a machine may take so many gigabytes: $QALAM_CACHE_GB."""

FRESH_SECONDS = 24 * 3600.0
"""Copies that were used since are not deleted to make room: a running build may read them again."""

STALE_SECONDS = 3600.0
"""A lease that is older is that of a machine that stopped; clocks of machines differ by less."""

REQUESTS = 8
"""Files that are downloaded or uploaded at the same time."""

_INDEX = "files.json"
_PARTS = "parts"
_READ = "read"  # what is remembered of artifacts that were read after `doubt`, and deleted here


def store_at(place: str | Path) -> Store:
    """The store in a folder, or at a URL of object storage; file:// is a folder. Raises StoreError."""
    if not is_url(place):
        return Store(Path(place))
    parts = urlsplit(str(place))
    return Store(Path(unquote(parts.path))) if parts.scheme == "file" and not parts.netloc else ObjectStore(str(place))


def folder_of(url: str) -> Path:
    """The folder of this machine for a store's URL: in $QALAM_CACHE, or in the user's cache folder."""
    base = os.environ.get("QALAM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qalam"
    return Path(base).absolute() / sha256_bytes(url.rstrip("/").encode())[:16]


def _setting(name: str, default: float) -> float:
    """A number of the environment. Raises StoreError."""
    given = os.environ.get(name) or default
    try:
        value = float(given)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise StoreError(f"{name}={given!r}: not a number above 0; correct it, or unset it")
    return value


class ObjectStore(Store):
    """A store at a URL; see the module's docstring."""

    def __init__(self, url: str) -> None:
        scheme = url.partition("://")[0].lower()
        if scheme not in SCHEMES:
            known = ", ".join(f"{each}://" for each in SCHEMES)
            raise StoreError(f"store {shown(url)}: no store is at {scheme}://; {known} and paths are known")
        url = scheme + url[len(scheme) :]
        if not url.partition("://")[2].partition("/")[0]:
            raise StoreError(f"store {url}: names no bucket; write {scheme}://BUCKET/PREFIX")
        if shown(url) != url:
            raise StoreError(f"store {shown(url)}: {NOT_PLAIN}")
        self._objects = Objects(url)
        # bytes of copies, and of those that were added since `_make_room` looked, which it does the first time
        self._limit = self._added = _setting("QALAM_CACHE_GB", CACHE_GB) * 1e9
        self._making_room = threading.Lock()
        self._lease_seconds = _setting("QALAM_LEASE_SECONDS", LEASE_SECONDS)
        super().__init__(folder_of(url))
        self._parts = Store(self.root / _PARTS)
        self._copies = (Store(self.root), self._parts)

    @property
    def place(self) -> str:
        """Its URL."""
        return self._objects.url

    def ensure_writable(self) -> None:
        """Raise StoreError if the store cannot be written."""
        super().ensure_writable()
        self._objects.write("writable", b"")

    # -- artifacts

    def artifact(self, stage: str, key: str) -> Artifact:
        """The artifact of that digest, of which a copy is made. Raises DamagedError, and StoreError if `key` is not a
        digest."""
        found = super().artifact(stage, key)
        copied = found if found.path.exists() else self._fetch(stage, key)
        if copied is None:
            raise self._missing(stage, key)
        return copied

    def reference(self, stage: str, key: str) -> Artifact:
        """The artifact of a recorded digest, of which a copy is made if it is in the store."""
        home = self.artifact_folder(stage, key)
        fetched = None if (home / MANIFEST).is_file() else self._fetch(stage, key)
        return fetched or Artifact(stage, key, home)

    def manifest(self, stage: str, key: str) -> Manifest:
        """The manifest of a recorded digest, without its files. Raises DamagedError."""
        if (self.artifact_folder(stage, key) / MANIFEST).is_file():
            return super().manifest(stage, key)
        with suppress(DamagedError):  # or it is not there
            return self._parts.manifest(stage, key)
        if (found := self._manifest(stage, key)) is None:
            raise self._missing(stage, key)
        return found[0]

    def mark_used(self, artifact: Artifact) -> None:
        """Record that an artifact is in use now, for garbage collection."""
        self._objects.write(f"used/{artifact.stage}/{artifact.digest}", b"")
        super().mark_used(artifact)

    def here(self, value: Value) -> Value:
        """The same stage, artifact or tuple, with the paths of this machine, and with copies of what it reads."""
        read: dict[tuple[str, str], Set[str] | None] = {}
        for artifact, names in read_by(value):
            key = artifact.stage, artifact.digest
            before = read.setdefault(key, names)
            read[key] = None if before is None or names is None else before | names
        folders = self.at_once(lambda key: self._copied(*key, read[key]), list(read))
        return moved(value, dict(zip(read, folders, strict=True)))

    def _copied(self, stage: str, key: str, names: Set[str] | None) -> Path:
        """The folder of an artifact's copy, which may have no other files than `names`. Raises DamagedError."""
        home = self.artifact_folder(stage, key)
        if (home / MANIFEST).is_file():
            super().mark_used(Artifact(stage, key, home))
            return home
        for _ in range(2):  # it may be the connection that was at fault
            if names is not None:
                found = self._copied_in_part(stage, key, names)
            else:
                found = home if self._fetch(stage, key) else None
            if found:
                return found
        self._objects.delete(_manifest_of(stage, key))  # else the next build reuses it, and fails as this one
        raise self._missing(stage, key)

    def _copied_in_part(self, stage: str, key: str, names: Set[str]) -> Path | None:
        """The folder in `parts` of an artifact's manifest, of files of these names, and perhaps of others; None where
        the store has not all of these."""
        artifact, lock, place = self._parts.reference(stage, key), f"{stage}-{key}", f"artifacts/{stage}/{key}"
        known = self.digests.of(_PARTS, lock, str(artifact.path))

        def is_there(name: str, entry: FileEntry) -> bool:
            path = artifact.path / name
            return _is_below(name) and path.is_file() and known.of_file(name, path, sha256_file) == entry.sha256

        def copied(file: tuple[str, FileEntry]) -> bool:
            name, entry = file
            # its own lock: other files are copied at the same time
            with self._parts.locked(f"{lock}-{name.replace('/', '-')}", inherited=False):
                return is_there(name, entry) or self._copy_parts(place, content, {name: entry})

        # nobody deletes it meanwhile; a training that another thread starts does not keep it
        with self.disk_errors(stage), self._parts.locked(lock, shared=True, inherited=False):
            try:
                files = _chosen(artifact.manifest, names)
                whole = all(is_there(*file) for file in files)
            except DamagedError:
                whole = False
            if not whole:
                if (found := self._manifest(stage, key)) is None:
                    return None
                manifest, content = found
                try:
                    files = _chosen(manifest, names)
                    if not all(self.at_once(copied, files)):
                        return None
                except (FileNotFoundError, ValueError, DamagedError):
                    return None
                replace_file(artifact.path / MANIFEST, content)
                self._make_room(sum(entry.bytes for _, entry in files))
            self._parts.mark_used(artifact)
        known.save()
        return artifact.path

    def manifests(self) -> Store:
        """The same store, for a command that writes nothing: only `here` copies an artifact's files."""
        return _Manifests(self)

    def _undamaged(self, stage: str, key: str, remember: bool = False) -> Artifact | None:
        if not self.artifact_folder(stage, key).exists():
            return self._elsewhere(stage, key)
        found = super()._undamaged(stage, key, remember)
        if found is None:
            return self._fetch(stage, key)
        try:
            there, _ = self._objects.read(_manifest_of(stage, key))
        except FileNotFoundError:  # a killed build did not come so far
            return replace(self._share(found), cached=True, seconds=found.seconds)
        if there == (found.path / MANIFEST).read_bytes():
            return found
        shared = self._share(found)  # nor did this one, and another machine was first
        return replace(shared, cached=True, seconds=found.seconds)

    def _elsewhere(self, stage: str, key: str) -> Artifact | None:
        """An artifact that was not copied, or None where the store has not all of its files. `here` copies what is
        read of it. One that is older than the last `doubt` is copied and read the first time that it is used."""
        since, doubted = time.monotonic(), self.digests.doubted
        if (there := self._manifest(stage, key)) is None:
            return None
        manifest, content = there
        version = sha256_bytes(content)
        try:
            older = doubted > 0 and self._objects.meta(_manifest_of(stage, key)).changed < doubted
        except FileNotFoundError:  # another machine has just found it damaged
            return None
        if older:
            read = self.digests.of(_READ, f"{stage}-{key}", self.place)
            state = State(len(content), 0, 0, version)
            if not read.value(MANIFEST, lambda: state, lambda: self._fetch(stage, key) is not None):
                return None
            read.save()

        def is_there(name: str) -> bool:
            if not _is_below(name):
                return False
            try:
                found = self._objects.meta(f"artifacts/{stage}/{key}/{version[:16]}/{name}")
            except FileNotFoundError:
                return False
            return found.size == manifest.files[name].bytes

        if not all(self.at_once(is_there, list(manifest.files))):
            log.warning("%s/artifacts/%s/%s has lost a file", self.place, stage, key)
            return None
        home = self.artifact_folder(stage, key)
        return Artifact(stage, key, home, True, time.monotonic() - since).with_manifest(manifest)

    def _manifest(self, stage: str, key: str) -> tuple[Manifest, bytes] | None:
        """A manifest in the storage, and its content; None where it is missing or damaged."""
        try:
            content, _ = self._objects.read(_manifest_of(stage, key))
            return Manifest.model_validate(json_object(content)), content
        except (FileNotFoundError, ValueError):
            return None

    def _fetch(self, stage: str, key: str) -> Artifact | None:
        """A copy of an artifact, or None where the store has none that is whole."""
        since, home = time.monotonic(), self.artifact_folder(stage, key)
        if (there := self._manifest(stage, key)) is None:
            return None
        manifest, content = there
        with self.disk_errors(stage):
            partial = home.with_name(f".{key}.{secrets.token_hex(8)}")
            try:
                if not self._copy(f"artifacts/{stage}/{key}", content, manifest.files, partial):
                    return None
                replace_file(partial / MANIFEST, content)
                if home.exists() and super()._undamaged(stage, key) is None:
                    with suppress(FileNotFoundError):  # another thread has just made room
                        home.rename(home.with_name(f"{key}.damaged-{secrets.token_hex(4)}"))
                with suppress(OSError):  # another process was first
                    partial.rename(home)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        self._make_room(sum(entry.bytes for entry in manifest.files.values()))
        return Artifact(stage, key, home, True, time.monotonic() - since).with_manifest(manifest)

    def _copy(self, place: str, index: bytes, files: dict[str, FileEntry], out: Path) -> bool:
        """Download files; -> whether all of them are there, with their digests."""
        version = sha256_bytes(index)[:16]
        out.mkdir(parents=True, exist_ok=True)

        def copied(name: str) -> bool:
            same = _is_below(name)
            if same:
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                try:
                    sha256 = self._objects.download(f"{place}/{version}/{name}", out / name, files[name].bytes)
                except FileNotFoundError:
                    sha256 = ""
                same = sha256 == files[name].sha256
            if not same:
                log.warning("%s/%s/%s is missing or damaged", self.place, place, name)
            return same

        return all(self.at_once(copied, list(files)))

    def _share(self, artifact: Artifact) -> Artifact:
        place, index = f"artifacts/{artifact.stage}/{artifact.digest}", (artifact.path / MANIFEST).read_bytes()
        self._upload(place, index, list(artifact.manifest.files), artifact.path)
        name = _manifest_of(artifact.stage, artifact.digest)
        if self._objects.create(name, index):
            self._make_room(sum(entry.bytes for entry in artifact.manifest.files.values()))
            return artifact
        # another machine was first, and its result is another one, or damaged
        aside = artifact.path.rename(artifact.path.with_name(f".{artifact.digest}.{secrets.token_hex(8)}"))
        _, version = self._objects.read(name)
        first = self._fetch(artifact.stage, artifact.digest)
        if first is None and self._objects.replace(name, index, version):
            aside.rename(artifact.path)
            return artifact
        shutil.rmtree(aside)
        if first is None:
            raise StoreError(f"{self.place}/{place}: changes under several hands; run the same command again")
        self._objects.delete(*self._objects.below(f"{place}/{sha256_bytes(index)[:16]}"))
        return replace(first, cached=False)

    def _upload(self, place: str, index: bytes, names: list[str], folder: Path) -> None:
        version = sha256_bytes(index)[:16]
        self.at_once(lambda name: self._objects.upload(f"{place}/{version}/{name}", folder / name), names)

    @contextmanager
    def _alone(self, stage: Buildable) -> Iterator[None]:
        """Only stages that take hours are worth it; of others the first result counts."""
        identity = stage.identity
        if not stage.resumable or self.find(identity) is not None:
            yield
            return
        name, manifest = f"{identity.stage}-{identity.digest}", _manifest_of(identity.stage, identity.digest)
        with lease(self._objects, name, self._lease_seconds, done=lambda: self._objects.exists(manifest)):
            yield
            self._objects.delete(*self._objects.below(_interrupted(identity)))

    @contextmanager
    def _interruptible(self, stage: Buildable, partial: Path) -> Iterator[None]:
        """Continue what another machine has begun, and upload what others need to continue this."""
        if not stage.resumable:
            yield
            return
        place, kept = _interrupted(stage.identity), ""
        with suppress(DamagedError):  # then it begins again
            if not any(partial.iterdir()) and (index := self._files(place)) is not None:
                files, content = index
                if not self._copy(place, content, files, partial / ELSEWHERE):
                    shutil.rmtree(partial / ELSEWHERE)

        def keep() -> None:
            nonlocal kept
            newest = [max(found) for pattern in stage.resumable if (found := [*partial.glob(pattern)])]
            if len(newest) == len(stage.resumable) and newest[0].name != kept:
                with suppress(StoreError, OSError):  # the next attempt may succeed
                    self._keep(place, newest)
                    kept = newest[0].name

        try:
            with every(self._lease_seconds / 3, keep):
                yield
        except BaseException:
            keep()
            raise

    def _keep(self, place: str, paths: Sequence[Path]) -> None:
        """Upload copies of files, which change meanwhile, in place of what was uploaded before."""
        before = self._objects.below(place)
        with tempfile.TemporaryDirectory(prefix=".keeping-", dir=paths[0].parent.parent) as folder:
            for path in paths:
                shutil.copyfile(path, Path(folder, path.name))
            index = _index_of(Path(folder))
            self._upload(place, index, [path.name for path in paths], Path(folder))
        self._objects.write(f"{place}/{_INDEX}", index)
        new = f"{place}/{sha256_bytes(index)[:16]}/"
        self._objects.delete(*(name for name in before if not name.startswith((new, f"{place}/{_INDEX}"))))

    def at_once(self, work: Callable[[Value], Result], values: Sequence[Value]) -> list[Result]:
        """The results of `work` on each value, in threads, which wait for the storage at the same time."""
        if len(values) < 2:
            return super().at_once(work, values)
        with ThreadPoolExecutor(REQUESTS) as pool:
            return list(pool.map(work, values))

    # -- runs and histories

    def run_names(self) -> list[str]:
        """The names of all complete runs, sorted."""
        return [run for run in self._objects.folders("runs") if run[0] != "." and self._index(run) is not None]

    def run_file(self, run: str, name: str = "") -> Path:
        """A file of a run, or its folder, of which a copy is made; it may be missing."""
        home = self.root / "runs" / run
        if home.exists() or (index := self._index(run)) is None:
            return home / name
        files, content = index
        with self.disk_errors():
            if name:  # alone: a list of runs reads one file of each, and not their packages
                part = self._parts.run_file(run, name)
                if name in files and not part.is_file():
                    self._copy_parts(f"runs/{run}", content, {name: files[name]})
                return part
            partial = home.with_name(f".{run}.{secrets.token_hex(8)}")
            try:
                if self._copy(f"runs/{run}", content, files, partial):
                    with suppress(OSError):  # another process was first
                        partial.rename(home)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return home

    def _copy_parts(self, place: str, index: bytes, files: dict[str, FileEntry]) -> bool:
        """Download single files into `parts`; -> whether all of them are there, with their digests."""
        home = self._parts.root / place
        partial = home.with_name(f".{home.name}.{secrets.token_hex(8)}")
        try:
            copied = self._copy(place, index, files, partial)
            for name in files if copied else ():
                (home / name).parent.mkdir(parents=True, exist_ok=True)
                (partial / name).replace(home / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return copied

    def _index(self, run: str) -> tuple[dict[str, FileEntry], bytes] | None:
        """The files of a run, with the content that says so; None where there is no such run."""
        return self._files(f"runs/{run}")

    def _files(self, place: str) -> tuple[dict[str, FileEntry], bytes] | None:
        try:
            content, _ = self._objects.read(f"{place}/{_INDEX}")
            return {name: FileEntry.model_validate(entry) for name, entry in json_object(content).items()}, content
        except FileNotFoundError:
            return None
        except ValueError:
            raise DamagedError(
                f"{self.place}/{place}/{_INDEX}: damaged; restore it from a copy, or delete it"
            ) from None

    def last_change(self, run: str) -> float:
        """When a run was published (Unix time). Raises FileNotFoundError."""
        return self._objects.meta(f"runs/{run}/{_INDEX}").changed

    def publish_run(self, run: str, fill: Callable[[Path], object]) -> None:
        """Create a run, whose files `fill` writes into a folder; does nothing when the run exists."""
        if self._index(run) is not None:
            return
        super().publish_run(run, fill)
        home = self.root / "runs" / run
        index = _index_of(home)
        self._upload(f"runs/{run}", index, files_below(home), home)
        if not self._objects.create(f"runs/{run}/{_INDEX}", index):
            delete_folder(home)  # another machine was first, at another time of day
            self._objects.delete(*self._objects.below(f"runs/{run}/{sha256_bytes(index)[:16]}"))
            self.run_file(run)

    def delete_run(self, run: str) -> None:
        """Delete a run."""
        self._objects.delete(f"runs/{run}/{_INDEX}")  # first, so that it is never there in part
        self._objects.delete(*self._objects.below(f"runs/{run}"))
        shutil.rmtree(self._parts.run_file(run), ignore_errors=True)
        if (self.root / "runs" / run).exists():
            super().delete_run(run)

    def history(self, name: str) -> bytes:
        """The history of the champions under a name; empty where there is none."""
        try:
            return self._objects.read(_history_of(name))[0]
        except FileNotFoundError:
            return b""

    def replace_history(self, name: str, earlier: bytes, content: bytes) -> bool:
        """Replace a history that is `earlier`; -> False where it is not."""
        if not earlier:
            return self._objects.create(_history_of(name), content)
        try:
            current, version = self._objects.read(_history_of(name))
        except FileNotFoundError:
            return False
        return current == earlier and self._objects.replace(_history_of(name), content, version)

    # -- garbage

    def held_locks(self) -> list[str]:
        """What is being built or published now: on this machine, and by trainings of others."""
        since = time.time() - STALE_SECONDS
        leases = {Path(name).name for name, meta in self._objects.below("leases").items() if meta.changed > since}
        return sorted({*super().held_locks(), *leases})

    def artifacts(self) -> dict[str, float]:
        """`<stage>/<digest>` of every artifact, and of what this machine has in part -> its last use (Unix time)."""
        found = super().artifacts()
        for name, used in self._parts.artifacts().items():
            found[name] = max(found.get(name, 0.0), used)
        for prefix in ("artifacts", "used"):
            for name, meta in self._objects.below(prefix).items():
                place = "/".join(name.split("/")[1:3])
                if prefix == "artifacts" or place in found:
                    found[place] = max(found.get(place, 0.0), meta.changed)
        return found

    def delete_artifact(self, name: str, unused_since: float) -> bool:
        """Delete `<stage>/<digest>`, one of `artifacts`; -> whether it was deleted."""
        for home in self._copies:
            if (home.root / "artifacts" / name).exists() and not home.delete_artifact(name, unused_since):
                return False
        with suppress(FileNotFoundError):  # another machine may have begun to use it
            if self._objects.meta(f"used/{name}").changed >= unused_since:
                return False
        self._objects.delete(f"artifacts/{name}/{MANIFEST}")
        self._objects.delete(f"used/{name}", *self._objects.below(f"artifacts/{name}"))
        return True

    def abandoned(self, unused_since: float) -> list[str]:
        """Temporary files of this machine, and what interrupted trainings left that nobody continues."""
        changed: dict[str, float] = {}
        for name, meta in self._objects.below("interrupted").items():
            place = "/".join(name.split("/")[:2])
            changed[place] = max(changed.get(place, 0.0), meta.changed)
        old = [place for place, last in changed.items() if last < unused_since]
        parts = (f"{_PARTS}/{name}" for name in self._parts.abandoned(unused_since))
        return [*super().abandoned(unused_since), *parts, *old]

    def delete_abandoned(self, name: str) -> None:
        """Delete one of `abandoned`."""
        if name.startswith("interrupted/"):
            self._objects.delete(*self._objects.below(name))
        else:
            super().delete_abandoned(name)

    def size(self, path: str) -> int:
        """Bytes of what is at a path relative to the store."""
        there = sum(meta.size for meta in self._objects.below(path).values())
        return there or super().size(path) + self._parts.size(path)

    def _make_room(self, added: int) -> None:
        """Delete the copies that were used longest ago where there are more than there is room for."""
        with self._making_room:  # files are downloaded in several threads
            self._added += added
            if self._added < self._limit / 20:
                return
            self._added = 0
        homes = self._copies
        copies = [(used, number, name) for number, home in enumerate(homes) for name, used in home.artifacts().items()]
        found = sorted(copy for copy in copies if ".partial" not in copy[2])
        sizes = [homes[number].size(f"artifacts/{name}") for _, number, name in found]
        left, now = sum(sizes), time.time()
        for (used, number, name), size in zip(found, sizes, strict=True):
            if left <= self._limit or used > now - FRESH_SECONDS:
                return
            if homes[number].delete_artifact(name, now - FRESH_SECONDS):
                left -= size


class _Manifests(ObjectStore):
    """A store of which artifacts are given as their manifests say, and not copied."""

    def __init__(self, store: ObjectStore) -> None:
        self.__dict__ |= store.__dict__
        self.digests = store.digests.read_only()
        self._store = store

    def here(self, value: Value) -> Value:
        """The same stage, artifact or tuple, with copies of what it reads."""
        return self._store.here(value)

    def _undamaged(self, stage: str, key: str, remember: bool = False) -> Artifact | None:
        return self._elsewhere(stage, key) or Store._undamaged(self, stage, key)

    def _fetch(self, stage: str, key: str) -> Artifact | None:
        if (there := self._manifest(stage, key)) is None:
            return None
        return Artifact(stage, key, self.artifact_folder(stage, key), True).with_manifest(there[0])

    def run_file(self, run: str, name: str = "") -> Path:
        """A file of a run, of which a copy is made; or its folder, of which none is."""
        return super().run_file(run, name) if name else self.root / "runs" / run


def _chosen(manifest: Manifest, names: Set[str]) -> list[tuple[str, FileEntry]]:
    """The files of these names. Raises DamagedError where one is unknown."""
    if not names <= manifest.files.keys():
        raise DamagedError
    return [(name, manifest.files[name]) for name in sorted(names)]


def _is_below(name: str) -> bool:
    """Whether a name that the store says leads to a file below a folder: whoever may write to a bucket chooses it."""
    return bool(name) and not name.startswith("/") and not {"", ".", ".."} & set(name.split("/")) and "\\" not in name


def _manifest_of(stage: str, key: str) -> str:
    return f"artifacts/{stage}/{key}/{MANIFEST}"


def _interrupted(identity: Identity) -> str:
    return f"interrupted/{identity.stage}-{identity.digest}"


def _index_of(folder: Path) -> bytes:
    """The digests of the files below a folder."""
    sizes = {name: (folder / name).stat().st_size for name in files_below(folder)}
    files = {name: {"bytes": size, "sha256": sha256_file(folder / name)} for name, size in sizes.items()}
    return json.dumps(files, sort_keys=True).encode()


def _history_of(name: str) -> str:
    return f"champions/{name}.jsonl"
