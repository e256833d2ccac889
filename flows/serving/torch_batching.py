"""`Batch` in torch, on the CPU or a GPU: keys, values and logits are computed there, and tokens drawn as in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from qalam_core.errors import QalamError
from qalam_core.evaluation.integrity import transformer
from qalam_core.model import Transformer
from qalam_core.package.batching import Batch
from qalam_core.package.runtime.numpy_model import Floats, Ids, NumpyTransformer


class TorchBatch(Batch):
    """As `Batch`, with `transformer`, whose weights are those of `model`, on its device."""

    def __init__(self, model: NumpyTransformer, transformer: Transformer, places: int) -> None:
        self._transformer = transformer
        super().__init__(model, places)

    def _empty(self, shape: tuple[int, ...]) -> Any:
        return torch.zeros(shape, device=self._transformer.device)

    @torch.inference_mode()
    def _read(self, row: int, ids: Sequence[int], since: int) -> Floats:
        ids_1T = torch.tensor([ids], device=self._transformer.device)
        features_1TC = self._transformer.features(ids_1T, self._cache[:, :, row : row + 1], 0)
        return _floats(self._transformer.lm_head(features_1TC[0, since:]))

    @torch.inference_mode()
    def _next(self, ids_B1: Ids, positions_B: Ids) -> Floats:
        device = self._transformer.device
        start = torch.from_numpy(positions_B).to(device) if len(positions_B) > 1 else int(positions_B[0])
        cache_L2BKPD = self._cache[:, :, : len(ids_B1)]
        features_B1C = self._transformer.features(torch.from_numpy(ids_B1).to(device), cache_L2BKPD, start)
        return _floats(self._transformer.lm_head(features_B1C[:, 0]))


def torch_batch(model: NumpyTransformer, places: int, *, cuda: bool) -> TorchBatch:
    """A batch on the CPU or a GPU. Raises QalamError where there is none."""
    if cuda and not torch.cuda.is_available():
        raise QalamError("--backend cuda: torch sees no GPU here; use torch, or numpy")
    weights = {name: torch.from_numpy(values) for name, values in model.weights.items()}
    return TorchBatch(model, transformer(model.config, weights).to("cuda" if cuda else "cpu"), places)


def _floats(logits: torch.Tensor) -> Floats:
    found: Floats = logits.float().cpu().numpy().astype(np.float32, copy=False)
    return found
