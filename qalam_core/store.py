"""The store: content-addressed artifacts, versioned runs, and who is champion.
Takes what identifies an artifact and a function that builds it; gives the finished artifact, built at
most once, whole or not at all, also under two processes and kill -9.
It does not know what is inside an artifact, and never guesses: every reference is a digest or a run id.

    <store>/artifacts/<stage>/<digest>/          files, and manifest.json written last
    <store>/artifacts/<stage>/<digest>.partial/  being built (or left by a killed build)
    <store>/runs/<run id>/                       run.json, tokenizer.json, model/, report.json, .md, .html
    <store>/champions/<recipe name>.jsonl        one line a promotion; the last line is the champion
    <store>/locks/                               flock files; a killed holder frees its own
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qalam_core.errors import StoreError
from qalam_core.recipe import digest

__all__ = ["DEFAULT_STORE", "DISK_ERRORS", "Artifact", "Progress", "Store", "file_sha256", "replace_file", "silent"]

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called as (done, total) in whatever unit the stage counts; total 0 means not known yet."""


DEFAULT_STORE = Path(".qalam")
"""Where builds go unless somebody says otherwise; relative to where one stands."""


def silent(done: int, total: int) -> None:
    """The progress of whoever does not watch."""


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: the only thing that crosses a task's border. Small, and plain values only."""

    stage: str
    digest: str
    path: Path
    # of the call that returned it: whether it was found rather than built, and how long that took
    cached: bool = field(default=False, compare=False)
    seconds: float = field(default=0.0, compare=False)

    @property
    def manifest(self) -> dict[str, Any]:
        """What was recorded when it was finished: files, inputs, recipe part, and the stage's own facts."""
        text = (self.path / MANIFEST).read_text(encoding="utf-8")
        manifest: dict[str, Any] = json.loads(text)
        return manifest

    @property
    def facts(self) -> dict[str, Any]:
        """What the stage said about its result (counts, sizes)."""
        facts: dict[str, Any] = self.manifest["facts"]
        return facts


MANIFEST = "manifest.json"

# Errors of the disk under the store, which a user can mend; anything else is ours and keeps its traceback.
DISK_ERRORS = {
    errno.ENOSPC: "no space left on the disk; free some, then run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space, then run the same command again",
    errno.EROFS: "the disk is read-only; choose another place with --store",
    errno.EACCES: "no permission to write; choose another place with --store",
    errno.EPERM: "no permission to write; choose another place with --store",
    errno.EIO: "the disk fails to read or write; what is finished stays in the store",
}


class Store:
    """A folder of artifacts and runs; see the module's docstring for its layout."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def ensure_writable(self) -> None:
        """Raise StoreError now rather than after an hour of work."""
        with self._disk("start"):
            replace_file(self.root / ".writable", b"")

    # -- artifacts ------------------------------------------------------------------------------

    def build(
        self,
        stage: str,
        version: int,
        part: Mapping[str, Any],
        inputs: Mapping[str, str],
        make: Callable[[Path], Mapping[str, Any]],
        resumable: bool = False,
    ) -> Artifact:
        """The artifact of `stage` for this recipe `part` and these `inputs` (name -> digest).

        A whole one is reused; a damaged one is set aside and built again. `make` fills an empty folder
        and returns facts for the manifest; with `resumable` it finds there what a killed build left.
        Raises StoreError when the disk fails.
        """
        identity = _identity(stage, version, part, inputs)
        key = digest(identity)
        home = self.artifact_folder(stage, key)
        since = time.monotonic()
        with self._disk(stage), self.locked(f"{stage}-{key}"):
            if self._is_whole(home):
                with suppress(OSError):  # a store that cannot be written can still be read
                    os.utime(home / MANIFEST)  # when it was used last, for whoever makes room
                return Artifact(stage, key, home, True, time.monotonic() - since)
            partial = home.with_name(f"{key}.partial")
            if partial.exists() and not resumable:
                shutil.rmtree(partial)
            partial.mkdir(parents=True, exist_ok=True)
            try:
                facts = make(partial)
                _finish(partial, {**identity, "facts": facts})
            except BaseException:
                if not resumable:  # half an artifact helps nobody, least of all on a full disk
                    shutil.rmtree(partial, ignore_errors=True)
                raise
            partial.rename(home)
            _sync(home.parent)
        return Artifact(stage, key, home, False, time.monotonic() - since)

    def find(self, stage: str, version: int, part: Mapping[str, Any], inputs: Mapping[str, str]) -> Artifact | None:
        """What `build` would reuse, if it is there and whole."""
        since = time.monotonic()
        key = digest(_identity(stage, version, part, inputs))
        home = self.artifact_folder(stage, key)
        with self._disk(stage), self.locked(f"{stage}-{key}"):
            return Artifact(stage, key, home, True, time.monotonic() - since) if self._is_whole(home) else None

    def artifact(self, stage: str, key: str) -> Artifact:
        """The artifact of that digest. Raises StoreError where it is missing, damaged, or no digest at all."""
        home = self.artifact_folder(stage, key)
        with self._disk(stage), self.locked(f"{stage}-{key}"):
            if not self._is_whole(home):
                raise StoreError(f"{stage} {key[:12]} is not whole in {self.root}; build its recipe again")
        return Artifact(stage, key, home, True)

    def _is_whole(self, home: Path) -> bool:
        """Whether the artifact is there with the very bytes that were finished; a damaged one is set aside."""
        if not home.exists():
            return False
        try:
            files = json.loads((home / MANIFEST).read_text(encoding="utf-8"))["files"]
            whole = sorted(files) == _files(home) and all(
                file_sha256(home / name) == entry["sha256"] for name, entry in files.items()
            )
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            aside = home.with_name(f"{home.name}.damaged-{os.urandom(4).hex()}")
            home.rename(aside)
            log.warning("%s was damaged; it is set aside as %s and built again", home.name[:12], aside.name)
        return whole

    def artifact_folder(self, stage: str, key: str) -> Path:
        """Where the artifact of that stage and digest is, or would be. Raises StoreError for what is no digest."""
        # it may come from a run's parameters, and must not lead out of the store
        if not re.fullmatch("[0-9a-f]{64}", key) or not re.fullmatch("[a-z]+", stage):
            raise StoreError(f"{stage} {key[:80]!r} is no artifact: a digest has 64 hex digits")
        return self.root / "artifacts" / stage / key

    def artifacts(self) -> dict[str, float]:
        """`<stage>/<folder>` of every artifact, whole, partial or set aside -> when it was used last (Unix time)."""
        folders = sorted(path for path in (self.root / "artifacts").glob("*/[!.]*") if path.is_dir())
        return {f"{folder.parent.name}/{folder.name}": _last_use(folder) for folder in folders}

    def delete_artifact(self, name: str, unused_since: float) -> bool:
        """Delete `<stage>/<folder>`, one of `artifacts`; -> whether it was.

        One that is being built stays, and one that a build began to use after `unused_since` (Unix time).
        """
        folder = self.root / "artifacts" / name
        stage, key = folder.parent.name, folder.name.partition(".")[0]
        with self._disk("gc"), self._try_lock(f"{stage}-{key}") as free:
            unused = free and _last_use(folder) < unused_since
            if unused:
                _delete(folder)
            return unused

    def held(self) -> list[str]:
        """Names of the locks that somebody holds: what is being built or published at the moment."""
        names = sorted(path.name for path in (self.root / "locks").glob("*"))
        with self._disk("gc"):
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
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the store's lock `name`; waits for whoever holds it. The kernel frees a dead holder's."""
        path = self.root / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            # A process that we start to do the work holds the lock too: should we be killed, the next
            # build waits until that process has ended, and never writes beside it.
            os.set_inheritable(file.fileno(), True)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("waiting for another build, which works on %s", name[:24])
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _disk(self, stage: str) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise StoreError(f"store {self.root}: a file is in its place; choose another one with --store") from None
        except OSError:
            pass  # whoever writes first says why
        try:
            yield
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            raise StoreError(f"store {self.root}, stage {stage}: {DISK_ERRORS[error.errno]}") from error

    # -- runs and champions ---------------------------------------------------------------------

    def publish(self, name: str, key: str, fill: Callable[[Path], None]) -> tuple[str, bool]:
        """Create run `<name>-<key>` with what `fill` writes; -> (run id, whether it was there already).

        The folder appears by one rename, so a run is whole or absent.
        """
        run = self.run_id(name, key)
        home = self.root / "runs" / run
        with self._disk("publish"), self.locked(run):
            if home.exists():
                return run, True
            partial = self.root / "runs" / f".{run}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            fill(partial)
            for file in _files(partial):
                _sync(partial / file)
            partial.rename(home)
            _sync(home.parent)
        return run, False

    @staticmethod
    def run_id(name: str, key: str) -> str:
        """What `publish` calls the run of this name and key."""
        return f"{name}-{key[:12]}"

    def has_run(self, run: str) -> bool:
        """Whether there is a run of that id."""
        return bool(run) and Path(run).name == run and (self.root / "runs" / run / "run.json").is_file()

    def run_folder(self, run: str) -> Path:
        """The folder of a run; StoreError when there is none of that id."""
        home = self.root / "runs" / run
        if not self.has_run(run):
            raise StoreError(f"run {run!r} is not in {self.root}; `qalam runs` lists those that are")
        return home

    def run_record(self, run: str) -> dict[str, Any]:
        """run.json of a run: resolved recipe, artifact digests, verdict, machine, timings."""
        file = self.run_folder(run) / "run.json"
        return _object(file.read_text(encoding="utf-8", errors="replace"), str(file))

    def take_run(self, other: Store, run: str) -> None:
        """Copy the folder of `run` from another store; nothing happens when it is here already."""
        folder = other.run_folder(run)
        partial = self.root / "runs" / f".{run}.partial"
        with self._disk("publish"), self.locked(run):
            if not self.has_run(run):
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(folder, partial)
                partial.rename(self.root / "runs" / run)

    def delete_run(self, run: str) -> None:
        """Delete the folder of a run; its artifacts and the history of champions stay."""
        folder = self.run_folder(run)
        with self._disk("gc"), self.locked(run):
            _delete(folder)

    def runs(self) -> list[str]:
        """Ids of all runs, oldest first."""
        ids = [path.parent.name for path in (self.root / "runs").glob("[!.]*/run.json")]
        return sorted(ids, key=lambda run: (self.run_record(run)["created"], run))

    def promotions(self, name: str) -> list[dict[str, str]]:
        """Every promotion under recipe name `name`, oldest first; the last one is the champion."""
        try:
            text = self._champions(name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        return [_object(line, f"{self._champions(name)}:{number}") for number, line in enumerate(text.splitlines(), 1)]

    def champion(self, name: str) -> str | None:
        """Run id of the champion under `name`."""
        promotions = self.promotions(name)
        return promotions[-1]["run"] if promotions else None

    def promote(self, name: str, run: str, when: str, why: str, who: str, action: str = "promote") -> None:
        """Make `run` the champion under `name`; nothing happens when it is already.

        The history grows by one line, and what stands in it is never rewritten: `why` and `who` are texts
        for people, `action` is "promote" or "rollback".
        """
        self.run_folder(run)
        with self._disk("publish"), self.locked(f"champion-{name}"):
            promotions = self.promotions(name)
            if promotions and promotions[-1]["run"] == run:
                return
            line = {"run": run, "when": when, "why": why, "who": who, "action": action}
            text = json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n"
            history = self._champions(name)
            earlier = history.read_bytes() if history.exists() else b""
            # not an append: half a line, from a full disk, would end every later build
            replace_file(history, earlier + text.encode())

    def _champions(self, name: str) -> Path:
        return self.root / "champions" / f"{name}.jsonl"


def _identity(stage: str, version: int, part: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any]:
    return {"stage": stage, "version": version, "part": part, "inputs": inputs}


def _finish(folder: Path, manifest: dict[str, Any]) -> None:
    """Sync every file, then write the manifest: where it stands, all the rest stands too."""
    names = _files(folder)
    for name in names:
        _sync(folder / name)
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)} for name in names}
    text = json.dumps({**manifest, "files": files}, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    replace_file(folder / MANIFEST, text.encode())


def _object(text: str, place: str) -> dict[str, Any]:
    """A record that people look after by hand too, so that it may be damaged."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise StoreError(f"{place}: damaged, this is no record of ours; restore it from a copy, or move it away")
    return value


def _last_use(folder: Path) -> float:
    """The newest time in a folder that somebody may be filling: its own, and its files'."""
    times = []
    for path in (folder, *folder.rglob("*")):
        with suppress(FileNotFoundError):  # a build at work replaces its files
            times.append(path.stat().st_mtime)
    return max(times, default=0.0)


def _delete(folder: Path) -> None:
    """Delete a folder so that a kill in the middle leaves nothing that looks whole, and nothing for ever."""
    doomed = folder.with_name(f".{folder.name}.deleted")
    folder.rename(doomed)
    for scrap in folder.parent.glob(".*.deleted"):  # this one, and what a kill left of others
        shutil.rmtree(scrap, ignore_errors=scrap != doomed)


def _files(folder: Path) -> list[str]:
    """Names of all files below `folder` but its manifest, sorted."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in paths if name != MANIFEST)


def replace_file(path: Path, content: bytes) -> None:
    """Write `path` so that a reader, or a crash, sees the old bytes or the new ones and nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync(path.parent)


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
