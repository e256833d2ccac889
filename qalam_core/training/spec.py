"""The specification of a training run: what the training process reads, and the statuses that it exits with.
Takes and gives plain values as JSON. It does not know torch, so that the parent process starts without it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from qalam_core.errors import TrainingError
from qalam_core.recipe import Frozen, Model, Monitoring, Optimisation

__all__ = ["DISK_FAILED", "PEER_LOST", "RESULT", "STOPPED", "USER_ERROR", "WEIGHTS", "Spec", "TrainSettings"]

WEIGHTS, RESULT = "model.safetensors", "result.json"
"""What training leaves in its folder; the latter last."""

USER_ERROR = 2
"""A mistake of the user: the last line of standard error says which."""
DISK_FAILED = 74
"""A file cannot be written (EX_IOERR): the last line of standard error begins with the errno."""
STOPPED = 75
"""Stopped by a signal (EX_TEMPFAIL): the checkpoint is written, and the same command continues from it."""
PEER_LOST = 76
"""Another process of the group vanished: not this one's fault."""


class TrainSettings(Frozen):
    """Everything that the weights depend on, beside the tokens and the initial weights."""

    seed: int
    model: Model
    vocab_size: int
    optimisation: Optimisation
    validate_every: int | None  # decides when training stops early; None without train.patience


class Spec(Frozen):
    """What `python -m qalam_core.training` reads; paths are absolute."""

    settings: TrainSettings
    monitoring: Monitoring
    tokens: tuple[str, ...]
    validation: tuple[str, ...]
    out: str
    initial: str = ""  # a safetensors file of initial weights; random when empty

    @property
    def validate_every(self) -> int:
        """Steps between two validation passes."""
        return self.settings.validate_every or self.monitoring.validate_every

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_bytes(self.to_json())

    @classmethod
    def load(cls, path: Path) -> Spec:
        """Read what `save` wrote. Raises TrainingError."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            raise TrainingError(f"{path}: not the specification of a training run; `qalam build` writes one") from None
