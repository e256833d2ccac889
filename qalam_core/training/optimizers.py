"""Optimizers: the learning rate of each step, and AdamW, alone or together with Muon."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from qalam_core.recipe import Optimisation
from qalam_core.training.distributed import gather, shard_like


def learning_rate(settings: Optimisation, number: int) -> float:
    """The learning rate of step `number` (from 0): linear warm-up, then decay to `final` of the peak.

    "cosine" decays from the warm-up on; "wsd" (warm-up, stable, decay) stays at the peak and decays linearly over the
    last `decay` of the steps.
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


# torch's optimizers without the wrappers that keep their methods out of a compiled graph, and import the compiler for
# that, a second of every training; only the model is compiled here
class _AdamW(torch.optim.AdamW):
    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class _Muon(torch.optim.Muon):
    add_param_group = inspect.unwrap(torch.optim.Muon.add_param_group)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Muon.step))


class Optimizers:
    """AdamW, or Muon for 2-D block weights and AdamW for the rest; vectors have no weight decay."""

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], settings: Optimisation) -> None:
        self._named = list(named)
        self._settings = settings
        matrices = [p for _, p in named if p.dim() >= 2]
        vectors = [p for _, p in named if p.dim() < 2]
        self.all: list[torch.optim.Optimizer] = []
        if settings.optimizer == "muon":
            # the embedding is a table of rows, not a linear map
            hidden = [p for name, p in named if p.dim() == 2 and "blocks." in name]
            matrices = [p for p in matrices if all(p is not other for other in hidden)]
            # updates are scaled to AdamW's, so that both can use one learning rate and weight decay
            scaled, decay = "match_rms_adamw", settings.weight_decay
            muon = _Muon(hidden, lr=settings.learning_rate, weight_decay=decay, adjust_lr_fn=scaled)
            self.all.append(muon)
        tables = [p for name, p in named if name in ("embedding.weight", "lm_head.weight")]
        matrices = [p for p in matrices if all(p is not table for table in tables)]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay, "times": 1.0},
            {"params": tables, "weight_decay": settings.weight_decay, "times": settings.embedding_rate},
            {"params": vectors, "weight_decay": 0.0, "times": 1.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.all.append(_AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True))

    def zero_grad(self) -> None:
        """Delete the gradients."""
        for _, parameter in self._named:
            parameter.grad = None

    def step(self, number: int) -> None:
        """Update the weights, at the learning rate of step `number`."""
        rate = learning_rate(self._settings, number)
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("times", 1.0)
            optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the optimizers' state by `key.parameter`, in full, on the CPU."""
        return {
            f"{key}.{name}": gather(value)
            for name, parameter in self._named
            for optimizer in self.all
            for key, value in optimizer.state.get(parameter, {}).items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave."""
        owner = {id(p): one for one in self.all for group in one.param_groups for p in group["params"]}
        parameters = dict(self._named)
        for full, value in state.items():
            key, _, name = full.partition(".")
            p = parameters[name]
            owner[id(p)].state[p][key] = shard_like(value.to(p.device), p)
