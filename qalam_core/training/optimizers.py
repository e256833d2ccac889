"""What moves the weights: the learning rate of each step, and AdamW, alone or beside Muon.
Takes the recipe's train part and a model's named parameters, gives optimizers and their state by name.
It does not know losses, batches or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from qalam_core.recipe import Train

__all__ = ["Optimizers", "learning_rate"]


def learning_rate(settings: Train, number: int) -> float:
    """Of step `number` (from 0): linear up over the warm-up, then down to `final` of the peak.

    "cosine" goes down all the way; "wsd" (warm-up, stable, decay) stays at the peak and takes a straight
    line over the last `decay` of the steps.
    """
    warmup = max(1, round(settings.warmup * settings.steps))
    if number < warmup:
        return settings.learning_rate * (number + 1) / warmup
    if settings.schedule == "cosine":
        done = (number - warmup) / max(1, settings.steps - warmup)
        left = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    else:
        left = min(1.0, (settings.steps - number) / max(1.0, settings.decay * settings.steps))
    return settings.learning_rate * (settings.final + (1 - settings.final) * left)


class Optimizers:
    """Every parameter in exactly one group of one optimizer; vectors do not decay."""

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], settings: Train) -> None:
        self._named = list(named)
        self._settings = settings
        matrices = [p for _, p in named if p.dim() >= 2]
        vectors = [p for _, p in named if p.dim() < 2]
        self.all: list[torch.optim.Optimizer] = []
        if settings.optimizer == "muon":
            # the embedding is a table of rows, not a map from vectors to vectors: that stays AdamW's
            hidden = [p for name, p in named if p.dim() == 2 and "blocks." in name]
            matrices = [p for p in matrices if all(p is not other for other in hidden)]
            # scaled so that an update is as large as AdamW's: one learning rate and decay serve both
            self.all.append(
                torch.optim.Muon(
                    hidden, lr=settings.learning_rate, weight_decay=settings.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )  # fmt: skip
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.all.append(torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)

    def step(self, number: int) -> None:
        """Move the weights by their gradients, at the learning rate of step `number`."""
        rate = learning_rate(self._settings, number)
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the optimizers' memory, as `key.parameter`."""
        return {
            f"{key}.{name}": value
            for name, parameter in self._named
            for optimizer in self.all
            for key, value in optimizer.state.get(parameter, {}).items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        owner = {
            id(p): optimizer for optimizer in self.all for group in optimizer.param_groups for p in group["params"]
        }
        for name, parameter in self._named:
            found = {key: state[f"{key}.{name}"] for key in _KEYS if f"{key}.{name}" in state}
            owner[id(parameter)].state[parameter] = found


_KEYS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
