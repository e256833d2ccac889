"""Processes forked from one that has imported torch already: importing it takes longer than a small training, or than
measuring its package.

They are processes as real as `python -m qalam_core.training`, and as the interpreter in which the evaluation imports a
package, which the tests of the command line start.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any, Self

_COMMAND = [sys.executable, "-m", "qalam_core.training"]
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["torch._dynamo", "torch.distributed.fsdp", "qalam_core.training.__main__"])


class _Stream:
    """A file descriptor that the new process receives."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        return _received, (DupFd(self.number),)


def _received(handle: Any) -> _Stream:
    return _Stream(handle.detach())


def _begin(what: Callable[..., None], arguments: tuple[Any, ...], streams: list[_Stream]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream.number, number)
        os.close(stream.number)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)  # multiprocessing has closed the first one
    what(*arguments)
    sys.stdout.flush()


class Fork:
    """The part of subprocess.Popen[str] that these processes need; it runs `what(*arguments)`."""

    def __init__(self, what: Callable[..., None], *arguments: Any, stderr: IO[str] | None = None) -> None:
        (in_, self_in), (self_out, out), (self_errors, errors) = os.pipe(), os.pipe(), os.pipe()
        self.stdin, self.stdout = os.fdopen(self_in, "w", encoding="utf-8"), os.fdopen(self_out, encoding="utf-8")
        self.stderr = os.fdopen(self_errors, encoding="utf-8")
        theirs = [_Stream(in_), _Stream(out), _Stream(stderr.fileno() if stderr else errors)]
        self._process = _forks.Process(target=_begin, args=(what, arguments, theirs))
        try:
            self._process.start()
        finally:
            for number in (in_, out, errors):
                os.close(number)
        assert self._process.pid
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """-> exit status, negative for a signal. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(_COMMAND, timeout or 0)
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def communicate(self) -> tuple[str, str]:
        """-> the rest of standard output and standard error."""
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        found = self.stdout.read(), self.stderr.read()
        self.wait()
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        self.wait()
        self.stdout.close()
        self.stderr.close()


def execute(code: str, *arguments: str, own_group: bool = True) -> None:
    """For a Fork: run `code` as `python -c` does."""
    if own_group:
        os.setsid()
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def _import(code: str, scratch: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "qalam_core"]:
        del sys.modules[name]
    execute(code, scratch)


def run_import(command: list[str], *, input: bytes, **_: Any) -> subprocess.CompletedProcess[bytes]:
    """The part of subprocess.run that the evaluation uses to import a package."""
    assert command[:3] == [sys.executable, "-I", "-c"]
    with Fork(_import, *command[3:]) as process:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.buffer.write(input)
            process.stdin.close()
        out, errors = bytes(process.stdout.buffer.read()), bytes(process.stderr.buffer.read())
        return subprocess.CompletedProcess(command, process.wait(), out, errors)


def _train(spec: str, environment: dict[str, str], folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["qalam_core.training", spec]
    from qalam_core.training.__main__ import main
    from qalam_core.training.distributed import exit_process

    exit_process(main())


class Trainer(Fork):
    """A training process."""

    def __init__(self, command: list[str], *, stdin: int, stdout: int, stderr: IO[str] | int, **_: Any) -> None:
        assert command[:-1] == _COMMAND
        assert (stdin, stdout) == (subprocess.PIPE, subprocess.PIPE)
        file = None if isinstance(stderr, int) else stderr
        super().__init__(_train, command[-1], dict(os.environ), Path.cwd(), stderr=file)
