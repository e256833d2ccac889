"""Single steps: the target, gradients, spikes, and the state that resumes a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qalam_core.training.step import Training, weights_of
from tests.training.small_training import CYCLE, STEPS, small_model, training_of


def test_the_target_is_the_next_token(cyclic: Path) -> None:
    """The shift is applied once: a model trained on a cycle predicts t + 1, not t + 2."""
    torch.manual_seed(0)
    model = small_model()
    training = training_of(model, cyclic)
    for number in range(STEPS.steps):
        training.step(number)
    model.eval()
    ids = torch.tensor([[4 + n % CYCLE for n in range(16)]])
    predicted = model(ids)[0].argmax(-1)
    assert torch.equal(predicted, 4 + (ids - 4 + 1) % CYCLE)
    assert not torch.equal(predicted, 4 + (ids - 4 + 2) % CYCLE)


def test_accumulation_does_not_change_the_gradient(cyclic: Path) -> None:
    norms = []
    for parts in (1, 4):
        torch.manual_seed(0)
        settings = STEPS.model_copy(update={"accumulate": parts, "dtype": "float32"})
        loss, norm = training_of(small_model(), cyclic, settings).step(0)
        norms.append((loss.item(), norm.item()))
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_a_spike_is_skipped(cyclic: Path) -> None:
    """A step with a huge gradient does not change the weights; the next one does."""
    torch.manual_seed(0)
    model = small_model()
    training = training_of(model, cyclic, STEPS.model_copy(update={"spike": 5.0}))
    for number in range(5):
        training.step(number)
    before = {name: tensor.clone() for name, tensor in weights_of(model).items()}
    hook = model.ln_out.weight.register_hook(lambda gradient: gradient * 1e6)
    training.step(5)
    hook.remove()
    assert training.skipped == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(model).items())
    training.step(6)
    assert training.skipped == 1
    assert not torch.equal(weights_of(model)["ln_out.weight"], before["ln_out.weight"])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_embedding_can_have_a_rate_of_its_own(optimizer: str, cyclic: Path) -> None:
    """AdamW's first update is its rate for every value with a gradient, but for weight decay."""
    moved = {}
    for times in (1.0, 3.0):
        torch.manual_seed(0)
        model = small_model()
        before = {name: tensor.clone() for name, tensor in weights_of(model).items()}
        change = {"optimizer": optimizer, "embedding_rate": times, "weight_decay": 0.0, "dtype": "float32"}
        training_of(model, cyclic, STEPS.model_copy(update=change)).step(0)
        moved[times] = {name: float((tensor - before[name]).abs().max()) for name, tensor in weights_of(model).items()}
    assert moved[3.0]["embedding.weight"] == pytest.approx(3 * moved[1.0]["embedding.weight"], rel=1e-3)
    others = {name: move for name, move in moved[1.0].items() if name != "embedding.weight"}
    assert others == {name: moved[3.0][name] for name in others}


def test_the_complete_optimizer_state_is_resumed(cyclic: Path) -> None:
    """Not a fixed list of keys: amsgrad's running maximum is one that the default optimizers do not have."""

    def with_amsgrad() -> Training:
        training = training_of(small_model(), cyclic, STEPS.model_copy(update={"optimizer": "adamw", "spike": 5.0}))
        for optimizer in training.optimizers.all:
            for group in optimizer.param_groups:
                group["amsgrad"] = True
        return training

    torch.manual_seed(0)
    straight, resumed = with_amsgrad(), with_amsgrad()
    for number in range(3):
        straight.step(number)
    tensors, notes = straight.state()
    maxima = {name for name in tensors if name.startswith("optimizer.max_exp_avg_sq.")}
    assert len(maxima) == len(list(straight.model.parameters()))
    assert all(tensors[name].any() for name in maxima)
    # a copy, as a file would be: the next step changes the original in place
    resumed.load({name: tensor.clone() for name, tensor in tensors.items()}, notes)
    again, noted = resumed.state()
    assert noted == notes
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    straight.step(3)
    resumed.step(3)
    (one, _), (other, _) = straight.state(), resumed.state()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_training_continues_with_the_optimizers_averages_and_begins_without(optimizer: str, cyclic: Path) -> None:
    settings = STEPS.model_copy(update={"optimizer": optimizer})
    before, continued, begun = (training_of(small_model(), cyclic, settings) for _ in range(3))
    for number in range(3):
        before.step(number)
    state = {name: tensor.clone() for name, tensor in before.state()[0].items()}
    continued.begin(state)
    begun.begin({name: tensor for name, tensor in state.items() if name.startswith("model.")})
    for training in (before, continued, begun):
        training.step(3)
    expected, same, other = (weights_of(training.model) for training in (before, continued, begun))
    assert all(torch.equal(same[name], expected[name]) for name in expected)
    assert not any(torch.equal(other[name], expected[name]) for name in expected)
