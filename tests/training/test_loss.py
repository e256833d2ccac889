"""The loss computed in chunks, against the plain formula and its gradients by autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qalam_core.model import PureDynamicTransformer
from qalam_core.training.loss import Objective


def small(tied: bool = True) -> PureDynamicTransformer:
    torch.manual_seed(0)
    model = PureDynamicTransformer(
        vocab_size=50, dim=16, num_heads=2, num_layers=1, max_seq_len=12, dropout=0.0, tied=tied
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # logits that matter
    return model


def gradients(model: PureDynamicTransformer, loss: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_loss_and_gradients_are_those_of_the_plain_formula(tied: bool, z_loss: float) -> None:
    """6 x 11 = 66 rows, in chunks of 16, the last one shorter."""
    windows = torch.randint(0, 50, (6, 12))
    plain, chunked = small(tied), small(tied)
    logits = plain(windows[:, :-1])[0].flatten(0, 1)
    expected = F.cross_entropy(logits, windows[:, 1:].flatten())
    loss = Objective(chunked, z_loss=z_loss)(windows)
    assert torch.allclose(loss, expected)
    wanted = gradients(plain, expected + z_loss * logits.logsumexp(-1).square().mean())
    found = gradients(chunked, loss)
    assert len(found) == len(wanted) == len(list(plain.parameters()))
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_gradients_of_micro_batches_add_up() -> None:
    windows = torch.randint(0, 50, (6, 12))
    model = small()
    objective = Objective(model)
    complete = gradients(model, objective(windows))
    model.zero_grad()
    for part in windows.split(2):
        objective(part, 1 / 3).backward()
    for one, parameter in zip(complete, model.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.allclose(one, parameter.grad, rtol=1e-4, atol=1e-7)


def test_the_incoming_gradient_is_applied() -> None:
    windows = torch.randint(0, 50, (6, 12))
    model = small()
    objective = Objective(model)
    once = [gradient.clone() for gradient in gradients(model, objective(windows))]
    thrice = gradients(model, 3 * objective(windows))
    for one, three in zip(once, thrice, strict=True):
        assert torch.allclose(3 * one, three, rtol=1e-4, atol=1e-5)


def test_evaluation_mode_has_no_gradients_and_no_dropout() -> None:
    torch.manual_seed(0)
    model = PureDynamicTransformer(vocab_size=50, dim=16, num_heads=2, num_layers=1, max_seq_len=12, dropout=0.5)
    windows = torch.randint(0, 50, (6, 12))
    objective = Objective(model).eval()
    with torch.no_grad():
        assert torch.equal(objective(windows), objective(windows))
        assert torch.allclose(objective(windows), model(windows[:, :-1], windows[:, 1:])[1])


def test_bfloat16_is_close() -> None:
    windows = torch.randint(0, 50, (6, 12))
    exact, near = (Objective(small(), dtype)(windows).item() for dtype in (torch.float32, torch.bfloat16))
    assert near == pytest.approx(exact, rel=0.02)
    assert near != exact
