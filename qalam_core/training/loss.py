"""The training loss: next-token cross-entropy through a head that never materialises all its logits.

At the sizes of this project the head and the loss are most of a step, and their logits most of its memory. So the head
is computed in chunks that stay in the cache: logits, loss and the gradients of both, in one pass.

Shapes: N tokens, R rows of a chunk, C channels (dim), V vocabulary, B batch, T time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qalam_core.model import Transformer

_CUDA_CHUNK = 1 << 26  # logits per chunk; few large chunks are faster on a GPU

Chunk = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def _chunk(logits_RV: Tensor, labels_R: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """-> the summed loss in nats, and the gradient of its sum (z-loss included) by the logits."""
    labels_R1 = labels_R[:, None]
    log_RV = F.log_softmax(logits_RV, -1, dtype=torch.float32)
    label_R1 = log_RV.gather(-1, labels_R1)
    grad_RV = log_RV.exp_()
    share_R1 = label_R1.exp()
    if z_loss:  # d/dx z * logsumexp(x)^2 = 2 * z * logsumexp(x) * softmax(x)
        factor_R1 = 1 + 2 * z_loss * (logits_RV.gather(-1, labels_R1).float() - label_R1)
        grad_RV, share_R1 = grad_RV.mul_(factor_R1), share_R1 * factor_R1
    grad_RV = grad_RV.scatter_(-1, labels_R1, share_R1 - 1)
    return -label_R1.sum(), grad_RV.to(logits_RV.dtype)


class _HeadLoss(torch.autograd.Function):
    """Mean cross-entropy of `features @ weight.T`, times `share`; the gradients are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, x_NC: Tensor, weight_VC: Tensor, labels_N: Tensor, share: float, z_loss: float, rows: int,
        dtype: torch.dtype, chunk: Chunk,
    ) -> Tensor:  # fmt: skip
        x_NC, weight_VC = x_NC.detach(), weight_VC.detach()
        xs_NC, ws_VC = x_NC.to(dtype), weight_VC.to(dtype)
        scale = share / len(x_NC)
        scaled_NC = xs_NC * scale
        total = x_NC.new_zeros((), dtype=torch.float32)
        dx_NC = torch.empty_like(xs_NC)
        dweight_VC: Tensor | None = None
        for begin in range(0, len(x_NC), rows):
            here = slice(begin, begin + rows)
            loss, grad_RV = chunk(xs_NC[here] @ ws_VC.T, labels_N[here], z_loss)
            total += loss
            dx_NC[here] = grad_RV @ ws_VC
            part_VC = grad_RV.T @ scaled_NC[here]
            dweight_VC = part_VC.to(weight_VC.dtype) if dweight_VC is None else dweight_VC.add_(part_VC)
        ctx.gradients = (dx_NC * scale).to(x_NC.dtype), dweight_VC
        return total * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        dx_NC, dweight_VC = ctx.gradients
        del ctx.gradients  # without another reference autograd uses them without a copy
        if grad.device.type != "cpu" or grad.item() != 1:  # reading it is cheaper than multiplying, but not on a GPU
            dx_NC, dweight_VC = dx_NC * grad, dweight_VC * grad
        return dx_NC, dweight_VC, None, None, None, None, None, None


class Objective(nn.Module):
    """A model with its loss as one module, which data parallelism can wrap."""

    def __init__(
        self, model: Transformer, dtype: torch.dtype = torch.float32, compiled: str = "off",
        z_loss: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.dtype, self.z_loss = model, dtype, z_loss
        self._chunk: Chunk = _chunk
        self._features: Callable[[Tensor], Tensor] = model.features
        if compiled != "off":
            torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())  # tells the compiler
            self._chunk = torch.compile(_chunk, dynamic=False)
            self._features = torch.compile(model.features, dynamic=False)

    def _rows(self, x_NC: Tensor) -> int:
        """Rows of a chunk."""
        if x_NC.device.type == "cuda":
            return max(self.model.dim, _CUDA_CHUNK // self.model.vocab_size)
        return self.model.dim  # the head's gradient, which each chunk updates, is then no larger than the chunk

    def forward(self, windows_BT: Tensor, share: float = 1.0) -> Tensor:
        """(B, T + 1) token ids -> the mean loss in nats, times `share` (of a micro-batch in its batch)."""
        # the only shift: the label of a token is the token after it
        ids_BT, labels_N = windows_BT[:, :-1], windows_BT[:, 1:].flatten()
        features = self._features if self.training else self.model.features
        with torch.autocast(windows_BT.device.type, torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            x_NC = features(ids_BT).flatten(0, 1)
            if not self.training:
                return self._measure(x_NC, labels_N)
        with torch.autocast(windows_BT.device.type, enabled=False):
            loss: Tensor = _HeadLoss.apply(
                x_NC, self.model.lm_head.weight, labels_N, share, self.z_loss, self._rows(x_NC), self.dtype, self._chunk
            )  # type: ignore[no-untyped-call]
        return loss

    def _measure(self, x_NC: Tensor, labels_N: Tensor) -> Tensor:
        """The mean loss without gradients or compilation."""
        total = x_NC.new_zeros((), dtype=torch.float32)
        for begin in range(0, len(x_NC), self._rows(x_NC)):
            here = slice(begin, begin + self._rows(x_NC))
            total += F.cross_entropy(self.model.lm_head(x_NC[here]).float(), labels_N[here], reduction="sum")
        return total / len(x_NC)
