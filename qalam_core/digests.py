"""Digests that files had when they were last read, so that what did not change is not read again.

Layout, in a folder of this machine:
    <kind>/<name>   of one artifact, source file or object: the sha256 of what follows, and JSON
    doubted         a random word: what was not recorded under it is not trusted

A record only saves time: where there is none, or a damaged one, the file is read. It is trusted while a file's size,
times and inode are what they were, and only if the clock had moved on from these times when the file was read: a file
that changes twice within one step of its clock has the same times after both.
Source: Git, Documentation/technical/racy-git.txt.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from qalam_core.files import NOT_THERE, files_below, json_object, read_bytes, replace_file, sha256_bytes

log = logging.getLogger(__name__)

SETTLED_SECONDS = 10.0
"""A source that changed so recently may change again under the same times: some disks tell them in steps of two
seconds, and the clock of a server differs from that of this machine."""

TICK_SECONDS = 0.02
"""Twice the longest step in which a local disk tells times."""

URL_SECONDS = 30 * 24 * 3600.0
"""How long an object at a URL is remembered: whether it is gone cannot be seen here."""

_SOURCES = "sources"  # a kind that is no stage's name
_DOUBTED = "doubted"
_LIMIT = 1 << 30  # bytes of a record


class State(NamedTuple):
    """What tells that a file is as it was."""

    size: int  # bytes
    modified: int  # ns
    changed: int  # ns; of the inode, which no program can set
    version: str  # the inode, or an object's ETag; "" where there is none, so that nothing is remembered

    @classmethod
    def of(cls, path: Path) -> Self:
        """That of a file, or of the one that a link leads to. Raises OSError."""
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, str(found.st_ino))

    def before(self, clock: int) -> bool:
        """Whether it would not be the same after a change at `clock` (ns) or later."""
        return max(self.modified, self.changed) < clock


def clock_after(states: list[State], probe: Path) -> int:
    """Wait for the next step of a disk's clock, and write a file there; -> the clock (ns), which may not have moved."""
    newest = max((max(state.modified, state.changed) for state in states), default=0)
    time.sleep(min(TICK_SECONDS, max(0.0, newest / 1e9 + TICK_SECONDS - time.time())))
    probe.write_bytes(b" ")
    return probe.stat().st_mtime_ns


class Record:
    """What is remembered of one place: the values of its files, or several values of one file, by name."""

    def __init__(self, file: Path | None, place: str, word: str, writes: bool) -> None:
        self._file, self._place, self._word, self._writes = file, place, word, writes
        self._known, self._trusted = _read(file, place, word) if file else ({}, False)
        self._new: dict[str, tuple[State, Any]] = {}

    def value(self, name: str, look: Callable[[], State], read: Callable[[], Any]) -> Any:
        """What `read` gives, as JSON holds it: as it is remembered, unless `look` says that it may differ now."""
        state = look()
        before, known = self._known.get(name, (None, None))
        same = bool(state.version) and before == state
        if same and self._trusted:
            return known
        clock = time.time_ns() - round(SETTLED_SECONDS * 1e9)
        value = json.loads(json.dumps(read()))  # as it will be remembered
        if same and value != known:
            log.warning("%s: its content changed, although its size and times are the same", self._place)
        if self._file and self._writes and state.version and state.before(clock):
            self.add(name, state, value)
        return value

    def of_file(self, name: str, path: Path, read: Callable[[Path], Any]) -> Any:
        """The same of a file. Raises OSError."""
        return self.value(name, lambda: State.of(path), lambda: read(path))

    def add(self, name: str, state: State, value: Any) -> None:
        """Remember what was read when the clock had moved on from `state`."""
        self._new[name] = (state, value)

    def save(self) -> None:
        """Write what is new. What cannot be written is read again the next time."""
        if not (self._new and self._file and self._writes):
            return
        found = {**(self._known if self._trusted else {}), **self._new}
        values = {name: [*state, value] for name, (state, value) in found.items()}
        content = json.dumps({"place": self._place, "word": self._word, "values": values}).encode()
        with suppress(OSError):
            replace_file(self._file, f"{sha256_bytes(content)}\n".encode() + content, durable=False)


@dataclass
class Digests:
    """What is remembered in a folder; in none, nothing is."""

    folder: Path | None
    writes: bool = True
    _word: str | None = field(default=None, repr=False)  # None where it was not read yet

    def read_only(self) -> Digests:
        """The same, for a command that writes nothing."""
        return replace(self, writes=False)

    def of(self, kind: str, name: str, place: str) -> Record:
        """What is remembered of a place, under the name of its record."""
        return Record(self.folder and self.folder / kind / name, place, self._current(), self.writes)

    def of_source(self, place: str) -> Record:
        """What is remembered of a source's file, by its absolute path, or of an object, by its URL."""
        return self.of(_SOURCES, sha256_bytes(os.fsencode(place)), place)

    @property
    def doubted(self) -> float:
        """When `doubt` was last called (Unix time), 0 for never."""
        try:
            return (self.folder / _DOUBTED).stat().st_mtime if self.folder else 0.0
        except OSError:
            return 0.0

    def doubting(self) -> Digests:
        """The same, of which nothing is trusted; for a command that writes nothing."""
        return replace(self, writes=False, _word=secrets.token_hex(8))

    def doubt(self) -> None:
        """Let no process trust what was recorded before, until it was read again. Raises OSError."""
        self._word = secrets.token_hex(8)
        if self.folder:
            replace_file(self.folder / _DOUBTED, self._word.encode())

    def _current(self) -> str:
        if self._word is None:
            try:
                self._word = read_bytes(self.folder / _DOUBTED, 64).decode() if self.folder else ""
            except NOT_THERE:
                self._word = ""
            except (OSError, ValueError):
                self._word = secrets.token_hex(8)
        return self._word

    def forget(self, kind: str, name: str) -> None:
        """Delete a record."""
        if self.folder:
            with suppress(OSError):
                (self.folder / kind / name).unlink()

    def of_what_is_gone(self) -> Iterator[str]:
        """The records of places that are gone, and what killed processes left, relative to the folder; OSError."""
        if self.folder:
            for name in files_below(self.folder):
                if name != _DOUBTED and not _is_there(self.folder / name):
                    yield name


READ_ALL = Digests(None)
"""Remembers nothing."""


def _read(file: Path, place: str, word: str) -> tuple[dict[str, tuple[State, Any]], bool]:
    """What a record says of `place`, and whether that is trusted; nothing where it is missing or damaged."""
    try:
        found = _content(file)
        values = {name: (State(*value[:4]), value[4]) for name, value in found["values"].items()}
        return (values, found["word"] == word) if found["place"] == place else ({}, False)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}, False


def _content(file: Path) -> dict[str, Any]:
    check, _, content = read_bytes(file, _LIMIT).partition(b"\n")
    if sha256_bytes(content).encode() != check:
        raise ValueError("damaged")
    return json_object(content)


def _is_there(file: Path) -> bool:
    """Whether what a record is of may be there still. OSError when it cannot be read."""
    try:
        place = str(_content(file)["place"])
        return file.stat().st_mtime > time.time() - URL_SECONDS if "://" in place else os.path.lexists(place)
    except (*NOT_THERE, ValueError, LookupError):
        return False
