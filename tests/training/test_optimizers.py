"""Learning rates by step, and which optimizer updates which parameter."""

from __future__ import annotations

from pathlib import Path

import pytest

from qalam_core.recipe import Optimisation
from qalam_core.training.optimizers import learning_rate
from tests.training.small_training import STEPS, small_model, training_of


def test_matrices_decay_and_vectors_do_not(cyclic: Path) -> None:
    model = small_model()
    training = training_of(model, cyclic, STEPS.model_copy(update={"optimizer": "adamw"}))
    groups = training.optimizers.all[0].param_groups
    decayed, kept = (
        [p for group in groups if group["weight_decay"] == decay for p in group["params"]] for decay in (0.1, 0.0)
    )
    assert all(p.dim() >= 2 for p in decayed)
    assert all(p.dim() == 1 for p in kept)
    assert {*map(id, decayed), *map(id, kept)} == {*map(id, model.parameters())}
    assert len(decayed) + len(kept) == len(list(model.parameters()))


def test_muon_optimises_the_blocks_matrices_and_adamw_the_rest(cyclic: Path) -> None:
    model = small_model()
    muon, adamw = training_of(model, cyclic, STEPS.model_copy(update={"optimizer": "muon"})).optimizers.all
    names = {id(p): name for name, p in model.named_parameters()}
    matrices = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert matrices == {f"blocks.0.{part}.weight" for part in ("qkv", "out", "fc1", "fc2")}
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert matrices | rest == set(names.values())
    assert not matrices & rest


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    settings = Optimisation(steps=1000, warmup=0.1, learning_rate=1.0, schedule="cosine")
    rates = [learning_rate(settings, number) for number in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == rates[99] == pytest.approx(1.0)
    assert rates[550] == pytest.approx(0.55, abs=0.01)
    assert rates[999] == pytest.approx(0.1, abs=0.001)


def test_wsd_stays_at_the_peak_and_then_decays_linearly() -> None:
    settings = Optimisation(steps=1000, warmup=0.1, learning_rate=1.0, schedule="wsd", decay=0.2, final=0.0)
    rates = [learning_rate(settings, number) for number in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[100:801] == [1.0] * 701
    assert rates[900] == pytest.approx(0.5)
    assert rates[999] == pytest.approx(0.005)
