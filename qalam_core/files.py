"""Files: atomic writes, locks, digests, and bounded readers of text and JSON.

Functions raise OSError for disk errors and ValueError for unacceptable content; callers add where it happened and how
to fix it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

TEXT_LIMIT = 64 << 20  # default of `read_bytes`

DISK_ERRORS = {
    errno.ENOSPC: "no space left on the disk; free some, then run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space, then run the same command again",
    errno.EROFS: "the disk is read-only; choose another place with --store",
    errno.EACCES: "no permission; ask its owner for it, or choose another place with --store",
    errno.EPERM: "no permission; ask its owner for it, or choose another place with --store",
    errno.EIO: "the disk fails to read or write; what is finished stays: check the disk, then run the command again",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n 4096), then run the same command again",
    errno.ENFILE: "too many open files on this machine; end other programs, then run the same command again",
    errno.ENOLCK: "its file system has no locks; mount it with locks, or choose another place with --store",
    **dict.fromkeys(
        (errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENODEV, errno.ENXIO),
        "its disk does not answer; mount it again, then run the same command again",
    ),
}
"""errno -> message, for the disk errors that a user can fix."""


def disk_problem(error: OSError) -> str:
    """The message for an error in DISK_ERRORS, with the file where it happened; "" for others."""
    message = DISK_ERRORS.get(error.errno or 0, "")
    return f"{error.filename}: {message}" if message and error.filename else message


NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""Errors that say that a path is no file. All other OSErrors say nothing about the file, but that it was not read."""

WRONG_PLACE = (FileExistsError, NotADirectoryError, IsADirectoryError)
"""Errors that another path mends; all other OSErrors are the disk's, and the store says what to do about those."""


def digest(value: object) -> str:
    """sha256 of the canonical JSON of `value` (sorted keys, no spaces), as 64 hex digits."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def sha256_bytes(content: bytes) -> str:
    """sha256 of bytes, as 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Context manager of a temporary path that replaces `path` atomically and durably at the end of the block.

    Readers see the old content or the new one, also after a crash. When the block fails, the temporary file is deleted
    and `path` is unchanged. One that is not `durable` may have any content after the machine has crashed.
    """
    with _temporary(path) as temporary:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
        if durable:
            sync(path.parent)


def replace_file(path: Path, content: bytes, durable: bool = True) -> None:
    """Write a file atomically and durably; create its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable) as temporary:
        temporary.write_bytes(content)


def replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Replace files of a folder in the given order: each atomically, and none before all are on the disk."""
    with ExitStack() as stack:
        temporaries = {name: stack.enter_context(_temporary(folder / name)) for name in contents}
        for name, content in contents.items():
            temporaries[name].write_bytes(content)
            sync(temporaries[name])
            if (folder / name).exists():
                temporaries[name].chmod((folder / name).stat().st_mode & 0o7777)
        for name, temporary in temporaries.items():
            temporary.replace(folder / name)
        sync(folder)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    # random: containers that share a folder may have equal process ids
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink()


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def try_lock(file: IO[Any], blocking: bool = False, shared: bool = False) -> bool:
    """Acquire the exclusive flock of an open file; -> False when another process holds it and `blocking` is off.

    A `shared` one is enough to see whether it is held, and needs no permission to write. The lock is released when the
    file is closed or the process ends.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if blocking else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def names(folder: Path) -> list[str]:
    """The names in a folder, sorted; none where there is no folder. Path.glob passes over one that is unreadable."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def files_below(folder: Path) -> list[str]:
    """The paths of all files below a folder, relative to it, sorted. OSError when a folder cannot be read."""

    def fail(error: OSError) -> None:
        if not isinstance(error, NOT_THERE):  # one that was deleted meanwhile has no files
            raise error

    walked = os.walk(folder, onerror=fail)
    return sorted((Path(place) / name).relative_to(folder).as_posix() for place, _, found in walked for name in found)


def read_bytes(path: Path, limit: int = TEXT_LIMIT) -> bytes:
    """The content of a file of at most `limit` bytes; ValueError when it is larger, OSError when unreadable."""
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"larger than {limit} bytes")
    return content


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: it has no half of a surrogate pair, which JSON and command lines may hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def json_object(content: bytes | str) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError when it is not one, an object in it has a key twice, or a string is not
    Unicode text: an escaped half of a surrogate pair could not be written again.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(value := dict(pairs)) != len(pairs):
            raise KeyError
        return value

    try:
        # decoded first: json.loads guesses other encodings from bytes, and lets surrogates pass
        text = content.decode() if isinstance(content, bytes) else content
        value = json.loads(text, object_pairs_hook=unique)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a string is not Unicode text: half of a surrogate pair") from None
    except KeyError:
        raise ValueError("holds a key twice; parsers disagree about which counts") from None
    except (ValueError, RecursionError):
        raise ValueError("not valid JSON") from None
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object")
    return value
