"""Watching a folder: an event when files in it have changed and are complete.
Takes a folder and a recipe's name; gives the changed files, each change once, also over a restart.
It does not read the files: a build digests them, and a superfluous event costs it seconds.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from al_qalam.tasks.events import corpus_updated
from qalam_core.errors import CorpusError
from qalam_core.files import replace_file
from qalam_core.store import Store

__all__ = ["watch"]

Seen = dict[str, list[int]]


def watch(folder: Path, store: Store, name: str, every: float, once: bool = False) -> Iterator[list[str]]:
    """Send an event for new, changed and deleted files of `folder`; yields their names each time.

    A change counts when two scans, `every` seconds apart, see the same: a file that is being copied grows. What was
    sent is recorded in the store, so that changes while nothing watched are sent at the start. With `once` it scans a
    folder that is not being written, and ends. Raises CorpusError.
    """
    if not folder.is_dir():
        raise CorpusError(f"{folder}: not a folder; name the one that text is put into")
    key = hashlib.sha256(f"{name} {folder.resolve()}".encode()).hexdigest()[:16]
    record = store.root / "watched" / f"{key}.json"
    try:
        sent: Seen = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # sending an event twice is harmless
        sent = {}
    before = _scan(folder)
    while True:
        time.sleep(every)
        now = _scan(folder)
        if now == before:
            changed = sorted(file for file in now.keys() | sent.keys() if now.get(file) != sent.get(file))
            if changed:
                corpus_updated(name, changed)
                replace_file(record, (json.dumps(now, indent=1, sort_keys=True) + "\n").encode())
                sent = now
                yield changed
            if once:
                return
        before = now


def _scan(folder: Path) -> Seen:
    """File -> [size in bytes, time of change in ns], hidden files and partial downloads aside."""
    if not folder.is_dir():
        raise CorpusError(f"{folder}: the folder is gone; mount it, or put it back")
    seen = {}
    for path in folder.rglob("*"):
        if not path.name.startswith(".") and not path.name.endswith((".part", ".tmp", ".crdownload")):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            if path.is_file():
                seen[path.relative_to(folder).as_posix()] = [stat.st_size, stat.st_mtime_ns]
    return seen
