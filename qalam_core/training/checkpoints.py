"""Checkpoints: files of named tensors, written atomically, with the conditions under which they may be resumed."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from qalam_core.errors import TrainingError
from qalam_core.files import replacing
from qalam_core.training.spec import CHECKPOINTS

log = logging.getLogger(__name__)

_KEPT = 2  # if one is damaged, the other is usable


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: the steps that were done, and the plain numbers beside its tensors."""

    path: Path
    done: int
    notes: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, on the CPU."""
        return load_file(self.path)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(CHECKPOINTS))


def newest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint; None when there is none."""
    return max((int(path.stem.rpartition("-")[2]) for path in _files(folder)), default=None)


def write(
    folder: Path, done: int, tensors: dict[str, Tensor], notes: Mapping[str, Any], conditions: Mapping[str, str]
) -> None:
    """Write the checkpoint after `done` steps, then delete all but the last two."""
    for partial in folder.glob(".checkpoint-*"):  # of a training that was killed while it wrote
        partial.unlink()
    metadata = {"done": str(done), "notes": json.dumps(notes), **conditions}
    write_tensors(folder / f"checkpoint-{done:09d}.safetensors", tensors, metadata)
    for old in _files(folder)[:-_KEPT]:
        old.unlink()


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically and durably. OSError when the disk fails."""
    with replacing(path) as temporary, _disk_errors(path):
        save_file(tensors, temporary, metadata)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Give an error of the disk its errno, which safetensors has in the text only."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise


def find(folder: Path, conditions: Mapping[str, str]) -> Checkpoint | None:
    """The newest usable checkpoint. Raises TrainingError naming the conditions in which it differs, and OSError when
    the disk fails."""
    for path in reversed(_files(folder)):
        try:
            with _disk_errors(path), safe_open(path, "pt") as file:
                found = file.metadata()
        except SafetensorError:  # a damaged file: the one before it is usable, a few steps older
            log.warning("%s is damaged and was deleted", path.name)
            path.unlink()
            continue
        changed = [f"{key} {found.get(key)} -> {value}" for key, value in conditions.items() if found.get(key) != value]
        if changed:
            raise TrainingError(
                f"the checkpoint at step {found['done']} was made under other conditions ({', '.join(changed)}) and "
                f"would not resume to the same weights; restore them, or delete {folder} to start over"
            )
        return Checkpoint(path, int(found["done"]), json.loads(found["notes"]))
    return None
