"""Watching a folder: send an event when files in it have changed and are complete.
Files are compared by size and modification time; a build compares their content, so an unneeded event costs seconds.
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

Seen = dict[str, list[int]]
"""File -> [size in bytes, modification time in ns]."""


def watch(folder: Path, store: Store, name: str, every: float, once: bool = False) -> Iterator[list[str]]:
    """Send an event for new, changed and deleted files of `folder`; yields their names each time.

    A change is sent when two consecutive scans, `every` seconds apart, are equal: a file that is still being copied
    grows. What was sent is recorded in the store, so that changes made while no watcher ran are sent at the next
    start. With `once`, return after the first two equal scans. Raises CorpusError.
    """
    if not folder.is_dir():
        raise CorpusError(f"{folder}: not a folder; give the folder that text files are added to")
    key = hashlib.sha256(f"{name} {folder.resolve()}".encode()).hexdigest()[:16]
    record = store.root / "watched" / f"{key}.json"
    try:
        sent: Seen = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # then all files are sent again, which is harmless
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
    """The files of `folder` and its subfolders, except hidden files and partial downloads."""
    if not folder.is_dir():
        raise CorpusError(f"{folder}: the folder is gone; mount or restore it")
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
