"""Watching a folder: send an event when files in it have changed and are complete.
Files are compared by size and modification time; a build compares their content, so an unneeded event costs seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

from httpx import HTTPError
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from al_qalam.tasks.events import NOT_PREFECTS, corpus_updated, deliver
from qalam_core.corpus.sources import expand
from qalam_core.errors import CorpusError, QalamError
from qalam_core.files import files_below, json_object, read_bytes, replace_file
from qalam_core.recipe import Recipe
from qalam_core.store import Store

Seen = dict[str, list[int]]
"""File -> [size in bytes, modification time in ns]."""


def watch(
    folder: Path, store: Store, recipe: Recipe, every: float, warn: Callable[[str], None], once: bool = False
) -> Iterator[list[str]]:
    """Send an event for new, changed and deleted files of `folder`; yields their names each time.

    A change is sent when two consecutive scans, `every` seconds apart, are equal: a file that is still being copied
    grows. What the server has confirmed is recorded in the store, so that changes made while no watcher ran are sent at
    the next start, and what it has not confirmed at the next scan. Events that builds could not send are sent as well.
    `warn` is called with each new problem. With `once`, return after the first two equal scans. Raises CorpusError, and
    with `once` QalamError when the server does not confirm.
    """
    if not folder.is_dir():
        raise CorpusError(f"{folder}: not a folder; give the folder that text files are added to")
    key = hashlib.sha256(f"{recipe.name} {folder.resolve()}".encode()).hexdigest()[:16]
    record = store.root / "watched" / f"{key}.json"
    try:
        sent: Seen = json_object(read_bytes(record))
    except (FileNotFoundError, ValueError):  # then all files are sent again, which is harmless
        sent = {}
    before, warned = _scan(folder), {"unread": "", "undeployed": "", "server": ""}

    def warn_once(kind: str, problem: str) -> None:
        if problem and problem != warned[kind]:
            warn(problem)
        warned[kind] = problem

    while True:
        time.sleep(every)
        now = _scan(folder)
        if now == before:
            warn_once("unread", _unread(folder, now, recipe))
            changed = sorted(file for file in now.keys() | sent.keys() if now.get(file) != sent.get(file))
            try:
                if changed:
                    warn_once("undeployed", _undeployed(recipe.name))
                    corpus_updated(recipe.name, changed)
                    sent = now  # also if that cannot be recorded: every scan would start another build
                    with store.disk_errors("watch"):
                        replace_file(record, (json.dumps(now, indent=1, sort_keys=True) + "\n").encode())
                    yield changed
                if problem := deliver(store):
                    raise QalamError(problem)
                warn_once("server", "")
            except QalamError as error:
                if once:
                    raise
                warn_once("server", f"{error}; trying again every {every:g} s")
            if once:
                return
        before = now


def _scan(folder: Path) -> Seen:
    """The files of `folder` and its subfolders, except hidden files and partial downloads."""
    if not folder.is_dir():
        raise CorpusError(f"{folder}: the folder is gone; mount or restore it")
    seen = {}
    try:
        names = files_below(folder)
    except OSError as error:
        raise CorpusError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from None
    for name in names:
        path = folder / name
        if not path.name.startswith(".") and not path.name.endswith((".part", ".tmp", ".crdownload")):
            with suppress(FileNotFoundError):
                status = path.stat()
                if S_ISREG(status.st_mode):
                    seen[name] = [status.st_size, status.st_mtime_ns]
    return seen


def _undeployed(recipe: str) -> str:
    """One line when the server has no deployment that an event would start, "" when it has."""
    name = f"build_model/on-new-corpus-{recipe}"
    try:
        with get_client(sync_client=True) as client:
            client.read_deployment_by_name(name)
    except ObjectNotFound:
        return f"the server has no deployment {name}, so that no build will start; create it with `qalam deploy`"
    except (HTTPError, *NOT_PREFECTS):  # which is said when the event is sent
        pass
    return ""


def _unread(folder: Path, seen: Seen, recipe: Recipe) -> str:
    """One line about files of `folder` that a build would not read, "" for none."""
    read = set()
    for source in recipe.corpus.sources:
        hub = source.path.startswith("hf:")
        if "://" in source.path or (hub and source.revision):
            continue
        for pattern in source.data_files if hub else (source.path,):
            with suppress(CorpusError):  # which a build reports
                read |= {os.path.realpath(path) for path in expand(source.model_copy(update={"path": pattern}))[0]}
    unread = sorted(file for file in seen if os.path.realpath(folder / file) not in read)
    if not unread:
        return ""
    files = "1 file is" if len(unread) == 1 else f"{len(unread)} files are"
    named = ", ".join(unread[:3]) + (" ..." if len(unread) > 3 else "")
    return (
        f"{files} not in the corpus of {recipe.name}, and a build will not read them: {named}; name the folder or a "
        f'glob as a source, such as path = "{folder / "*"}", and deploy the recipe again; or take them out of it'
    )
