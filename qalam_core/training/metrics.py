"""Training metrics: metrics.jsonl, the same lines on standard output, TensorBoard; and throughput."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from qalam_core.errors import TrainingError
from qalam_core.training.hardware import memory_mb, peak_flops


class MetricsLog:
    """Writes metrics.jsonl, the same lines to standard output, and TensorBoard's files if the recipe says so."""

    def __init__(self, path: Path, done: int, tensorboard: str) -> None:
        self._path = path
        path.write_text("".join(_earlier_metrics(path, done)), encoding="utf-8")
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise TrainingError(
                    'train.tensorboard is set, and TensorBoard is not installed; pip install "al-qalam[tensorboard]"'
                ) from None
            self._board = SummaryWriter(tensorboard, purge_step=done)

    def send(self, line: dict[str, Any]) -> None:
        """Write a line to standard output alone."""
        # the reader may have exited: that makes us stop, and must not prevent the checkpoint
        with suppress(BrokenPipeError):
            os.write(sys.stdout.fileno(), (json.dumps(line) + "\n").encode())

    def write(self, line: dict[str, Any]) -> None:
        """Write a line to the file, and to standard output."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.send(line)
        if self._board is not None:
            for name, value in line.items():
                if name != "step":
                    self._board.add_scalar(name, value, line["step"])
            self._board.flush()


class NullMetrics(MetricsLog):
    """Writes nothing: for every process but the first."""

    def __init__(self) -> None:
        pass

    def write(self, line: dict[str, Any]) -> None:
        """Do nothing."""

    send = write


def _earlier_metrics(path: Path, done: int) -> list[str]:
    """The lines of an interrupted run up to step `done`; later ones will be written again."""
    lines: list[str] = []
    with suppress(FileNotFoundError, ValueError):  # ValueError: a line was truncated when the run was killed
        for line in path.read_text(encoding="utf-8").splitlines():
            lines += [line + "\n"] if json.loads(line)["step"] <= done else []
    return lines


class Meter:
    """Tokens per second since the last reading, peak memory, and the share of the hardware's peak speed."""

    def __init__(self, device: torch.device, flops_per_token: float, processes: int) -> None:
        self._device, self._flops, self._processes = device, flops_per_token, processes
        self._peak = peak_flops(device)
        self.restart()

    def restart(self) -> None:
        """Start counting now."""
        self._since = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context manager of work that is not counted."""
        begun = time.monotonic()
        yield
        self._since += time.monotonic() - begun

    def rate(self, tokens: int) -> float:
        """Tokens per second, when all processes trained on `tokens` since the last reading."""
        return tokens / max(time.monotonic() - self._since, 1e-9)

    def read(self, tokens: int) -> dict[str, float]:
        """The figures for the `tokens` that all processes trained on since the last reading."""
        rate = self.rate(tokens)
        self.restart()
        figures: dict[str, float] = {"tokens_per_second": round(rate), "memory_mb": round(memory_mb(self._device), 1)}
        if self._peak is not None:
            figures["mfu"] = round(rate * self._flops / (self._peak * self._processes), 4)
        return figures
