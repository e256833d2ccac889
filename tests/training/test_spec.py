"""The specification of a training run: it is complete, and survives its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from qalam_core.errors import TrainingError
from qalam_core.recipe import Continuing, Monitoring, Optimisation, Train
from qalam_core.training.spec import Spec, TrainSettings
from tests.training.small_training import DROPOUT, STEPS, spec_of


@pytest.mark.parametrize("patience", [0, 3])
def test_a_specification_survives_its_file(patience: int, tmp_path: Path) -> None:
    train = STEPS.model_copy(update={"patience": patience, "betas": (0.8, 0.999), "z_loss": 1e-4, "tensorboard": "لوح"})
    made = spec_of(tmp_path / "خرج", tmp_path / "a.arrow", tmp_path / "b.arrow", DROPOUT, train)
    made = made.model_copy(update={"tokens": (*made.tokens, "c.arrow"), "initial": "initial.safetensors"})
    made.save(tmp_path / "spec.json")
    assert Spec.load(tmp_path / "spec.json") == made
    assert made.validate_every == train.validate_every


@pytest.mark.parametrize("text", [None, "", "{}", '{"settings": 1}'])
def test_another_file_is_refused_in_one_line(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "spec.json").write_text(text, encoding="utf-8")
    with pytest.raises(TrainingError, match=r"spec\.json: not the specification of a training run") as caught:
        Spec.load(tmp_path / "spec.json")
    assert "\n" not in str(caught.value)


def test_the_settings_contain_every_field_of_the_optimisation(tmp_path: Path) -> None:
    """A training's digest is made from them: a change of a missing field would not cause a rebuild."""
    settings = spec_of(tmp_path, tmp_path, tmp_path, DROPOUT, STEPS).settings
    assert TrainSettings.model_fields["optimisation"].annotation is Optimisation
    found = settings.canonical()["optimisation"]
    assert found.keys() == Optimisation.model_fields.keys()
    assert found == {name: STEPS.canonical()[name] for name in Optimisation.model_fields}


def test_every_field_of_train_is_in_one_group() -> None:
    groups = (Optimisation, Monitoring, Continuing)
    kinds = (*(group.model_fields.keys() for group in groups), {"start", "cold_every"})
    assert sum(map(len, kinds)) == len(Train.model_fields)
    assert set().union(*kinds) == Train.model_fields.keys()
