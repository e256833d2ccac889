"""Early stopping: the best weights on the validation split so far, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_PREFIX = "best."  # of its tensors in a checkpoint


@dataclass
class EarlyStopping:
    """Stops after `patience` validation passes without improvement; 0 never stops, and keeps no weights."""

    patience: int
    loss: float = math.inf
    step: int = 0
    passes: int = 0  # without improvement
    weights: dict[str, Tensor] | None = None

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return 0 < self.patience <= self.passes

    def update(self, loss: float, step: int, weights: Callable[[], dict[str, Tensor]]) -> None:
        """Record a validation loss after `step` steps; calls `weights` when it is the best so far."""
        if self.patience and loss < self.loss:
            self.loss, self.step, self.passes = loss, step, 0
            self.weights = {name: tensor.clone() for name, tensor in weights().items()}
        else:
            self.passes += 1

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """-> tensors by name, and plain numbers, for a checkpoint."""
        tensors = {f"{_PREFIX}{name}": tensor for name, tensor in (self.weights or {}).items()}
        return tensors, {"best": [self.loss, self.step, self.passes] if self.weights else None}

    def load(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""
        if notes["best"]:
            self.loss, self.step, self.passes = notes["best"]
            best = (name for name in tensors if name.startswith(_PREFIX))
            self.weights = {name.removeprefix(_PREFIX): tensors[name] for name in best}
