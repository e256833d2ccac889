"""A disk that fails: what Python asks of the kernel below a folder raises an OSError, also for root."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

READS = ("open", "os.listdir", "os.scandir")
WRITES = ("write", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.utime")
LOCKS = ("fcntl.flock",)


class Failing:
    """The calls of some kinds below `folder`, and not below `but`, in their order; those in `chosen` fail."""

    def __init__(self, folder: Path, kinds: tuple[str, ...], number: int, chosen: range, but: Path | None) -> None:
        self.folder, self.kinds, self.number, self.chosen, self.but = folder, kinds, number, chosen, but
        self.calls = 0

    def meet(self, event: str, arguments: tuple[object, ...]) -> None:
        """Raise the error if this call is one of the chosen."""
        target = arguments[0] if arguments else None
        if event == "open" and len(arguments) == 3 and isinstance(arguments[2], int):
            changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
            event = "write" if arguments[2] & changing else "open"
        if event not in self.kinds:
            return
        if isinstance(target, int):
            target = f"/proc/self/fd/{target}"
        if not isinstance(target, str | os.PathLike):
            return
        path = Path(os.path.realpath(target))
        if self.folder in (path, *path.parents) and self.but not in path.parents:
            self.calls += 1
            if self.calls - 1 in self.chosen:
                raise OSError(self.number, os.strerror(self.number), os.fspath(target))


_failing: list[Failing] = []


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    for disk in tuple(_failing):
        disk.meet(event, arguments)


sys.addaudithook(_audit)


@contextmanager
def broken(
    folder: Path, kinds: tuple[str, ...], number: int = errno.EIO, chosen: range = range(1 << 30),
    but: Path | None = None,
) -> Iterator[Failing]:  # fmt: skip
    """Context manager in which the `chosen` calls of some kinds below `folder` fail with errno `number`."""
    disk = Failing(folder.resolve(), kinds, number, chosen, but and but.resolve())
    _failing.append(disk)
    try:
        yield disk
    finally:
        _failing.remove(disk)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder -> when it was modified (ns), and its size."""
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in sorted(folder.rglob("*"))}
