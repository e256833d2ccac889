"""One training step: gradients over micro-batches, clipping, the optimizers' update; and the state that resumes it.

Everything random is a function of (seed, step, rank): the batch, and dropout masks. So a checkpoint needs no random
state, and a killed run resumes to the same bits.

Shapes: B batch, T time, N windows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from qalam_core.errors import TrainingError
from qalam_core.model import PureDynamicTransformer, Transformer
from qalam_core.recipe import Optimisation
from qalam_core.tokens.shards import Batches
from qalam_core.training.distributed import World, full, gather, local_shard, shard_like
from qalam_core.training.hardware import choose_numerics
from qalam_core.training.loss import Objective
from qalam_core.training.optimizers import Optimizers

SKIPS = 20  # skipped steps in a row that stop a run


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors by name, on the CPU, without a tied head, as in checkpoints and packages."""
    tied = getattr(model, "tied", False)
    state = {name: t for name, t in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    return {name: gather(t) for name, t in state.items()}


class Training:
    """A model, its optimizers and its batches; `step(n)` does the n-th step and nothing else."""

    def __init__(
        self, model: Transformer, batches: Batches, settings: Optimisation, seed: int,
        world: World | None = None, device: torch.device | None = None,
    ) -> None:  # fmt: skip
        self.model, self.batches, self.settings, self.seed = model, batches, settings, seed
        self.world = world or World()
        self.device = device or model.device
        self.numerics = choose_numerics(settings, self.device, model.count_parameters(), model.max_seq_len)
        dtype = getattr(torch, self.numerics.dtype)
        self.objective = Objective(model, dtype, self.numerics.compile, settings.z_loss)
        self._run: nn.Module = self.objective
        if self.world.size > 1 and settings.distributed == "fsdp":
            from torch.distributed.fsdp import fully_shard

            for module in (*model.blocks, self.objective):  # FSDP2: each is gathered only while it computes
                fully_shard(module, reshard_after_forward=True)
        elif self.world.size > 1:
            self._run = DistributedDataParallel(self.objective)
        self._named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._parameters = [p for _, p in self._named]
        self.optimizers = Optimizers(self._named, settings)
        self.norm_average, self.skipped, self._skipped_in_row = 0.0, 0, 0

    def _windows(self, rows: npt.NDArray[np.int64]) -> Tensor:
        windows_BT = torch.from_numpy(rows)
        cuda = self.device.type == "cuda"
        return windows_BT.pin_memory().to(self.device, non_blocking=True) if cuda else windows_BT

    def step(self, number: int) -> tuple[Tensor, Tensor]:
        """Step `number` (from 0) -> this process's mean loss in nats and the gradient norm, still on the device."""
        # dropout masks differ by step and process
        torch.manual_seed(((self.seed << 32) + number + self.world.rank * 0x9E3779B97F4A7C15) % (1 << 64))
        self.optimizers.zero_grad()
        share = np.split(self.batches[number], self.world.size)[self.world.rank]
        parts = np.split(share, self.settings.accumulate)
        total = torch.zeros((), device=self.device)
        for index, part in enumerate(parts):
            # only the last micro-batch needs the other processes
            last = index == len(parts) - 1
            with self._run.no_sync() if isinstance(self._run, DistributedDataParallel) and not last else nullcontext():
                loss = self._run(self._windows(part), 1 / len(parts))
                loss.backward()
            total += loss.detach()
        norm = full(nn.utils.clip_grad_norm_(self._parameters, self.settings.clip))
        if not (self.settings.spike and self._is_spike(norm.item())):
            self.optimizers.step(number)
        return total, norm

    def _is_spike(self, norm: float) -> bool:
        """Whether to skip a step for its gradient norm, which then is not averaged."""
        if not math.isfinite(norm) or norm > self.settings.spike * self.norm_average > 0:
            self.skipped += 1
            self._skipped_in_row += 1
            if self._skipped_in_row == SKIPS:
                raise TrainingError(
                    f"{SKIPS} steps in a row were skipped as spikes (the last gradient norm is {norm:.4g}); "
                    "lower train.learning_rate, or raise train.spike"
                )
            return True
        self.norm_average = norm if not self.norm_average else 0.98 * self.norm_average + 0.02 * norm
        self._skipped_in_row = 0
        return False

    def validate(self, windows: npt.NDArray[np.int64]) -> float:
        """Mean loss in nats over (N, T + 1) windows, without dropout; every process evaluates all of them."""
        size = max(1, self.settings.batch_size // (self.settings.accumulate * self.world.size))
        parts = np.split(windows, range(size, len(windows), size))
        self._run.eval()
        with torch.no_grad():
            losses = [self._run(self._windows(part)) * len(part) for part in parts]
        self._run.train()
        return float(torch.stack(losses).sum()) / len(windows)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """-> tensors by name, and plain numbers: all that `load` needs to resume to the same bits."""
        tensors = {f"model.{name}": t for name, t in weights_of(self.model).items()}
        tensors |= {f"optimizer.{name}": t for name, t in self.optimizers.state().items()}
        return tensors, {"norm": self.norm_average, "skipped": self.skipped, "in_row": self._skipped_in_row}

    def load(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""
        self.load_weights(under("model.", tensors))
        self.optimizers.load(under("optimizer.", tensors))
        self.norm_average, self.skipped, self._skipped_in_row = notes["norm"], notes["skipped"], notes["in_row"]

    def begin(self, tensors: Mapping[str, Tensor]) -> None:
        """Begin with the weights of an earlier training, and its optimizer state where there is one."""
        self.load_weights(under("model.", tensors))
        self.optimizers.load(under("optimizer.", tensors))

    def is_finite(self) -> bool:
        """Whether all weights are finite, in every process."""
        return not self.world.any(not all(bool(local_shard(p).isfinite().all()) for p in self._parameters))[0]

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set every weight, by name."""
        for name, parameter in self._named:
            parameter.copy_(shard_like(weights[name].to(self.device), parameter))


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def flops_per_token(model: Transformer) -> float:
    """Training FLOPs per token: 6 for each weight of a matrix product (a tied head is one), and attention's."""
    positions = model.pos_embedding.numel() if isinstance(model, PureDynamicTransformer) else 0
    matrices = model.count_parameters() - positions
    if not model.tied:
        matrices -= model.embedding.weight.numel()  # rows are looked up, not multiplied
    return 6.0 * matrices + 12.0 * model.num_layers * model.num_heads * model.head_dim * model.max_seq_len
