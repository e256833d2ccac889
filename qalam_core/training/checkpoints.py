"""Checkpoints: files of named tensors that are whole or absent, and that name the conditions they hold for.
Takes tensors and what must be the same when training goes on; gives the newest file that can be gone on from.
It does not know what the tensors mean.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from qalam_core.errors import TrainingError

__all__ = ["Checkpoint", "find", "newest_step", "write", "write_tensors"]

log = logging.getLogger(__name__)

_KEPT = 2  # should the disk lose bytes of one, the other is as good


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: after how many steps, and the numbers that were kept beside its tensors."""

    path: Path
    done: int
    notes: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """All of it, on the CPU."""
        return load_file(self.path)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.safetensors"))


def newest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint; None when there is none."""
    return max((int(path.stem.rpartition("-")[2]) for path in _files(folder)), default=None)


def write(
    folder: Path, done: int, tensors: dict[str, Tensor], notes: Mapping[str, Any], conditions: Mapping[str, str]
) -> None:
    """Write the checkpoint after `done` steps, then delete all but the last two."""
    metadata = {"done": str(done), "notes": json.dumps(notes), **conditions}
    write_tensors(folder / f"checkpoint-{done:09d}.safetensors", tensors, metadata)
    for old in _files(folder)[:-_KEPT]:
        old.unlink()


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file: whole, on the disk, or not at all. OSError when the disk fails."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file(tensors, temporary, metadata)
    except SafetensorError as error:  # it keeps the disk's errno in its text only
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        temporary.unlink(missing_ok=True)  # a full disk needs the room
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def find(folder: Path, conditions: Mapping[str, str]) -> Checkpoint | None:
    """The newest checkpoint; TrainingError when it was made under other conditions, naming each."""
    for path in reversed(_files(folder)):
        try:
            with safe_open(path, "pt") as file:
                found = file.metadata()
        except SafetensorError:  # a disk that lost bytes: the one before it is as good, a few steps older
            log.warning("%s is damaged and left aside", path.name)
            path.unlink()
            continue
        changed = [f"{key} {found.get(key)} -> {value}" for key, value in conditions.items() if found.get(key) != value]
        if changed:
            raise TrainingError(
                f"the checkpoint at step {found['done']} was made with other conditions ({', '.join(changed)}) and "
                f"would not go on to the same weights; put them back, or delete {folder} to start over"
            )
        return Checkpoint(path, int(found["done"]), json.loads(found["notes"]))
    return None
