"""Early stopping, in a training run whose validation loss gets worse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from qalam_core.files import sha256_file
from qalam_core.training.loop import validation_windows
from tests.training.small_training import (
    CYCLE,
    MODEL,
    STEPS,
    finish,
    metrics,
    small_model,
    spec_of,
    training_of,
    write_tokens,
)


@pytest.mark.usefixtures("processes")
def test_patience_ends_with_the_best_weights(cyclic: Path, tmp_path: Path) -> None:
    """The validation tokens count down, so the loss on them soon rises."""
    backwards = write_tokens(tmp_path / "backwards.arrow", [4 - n % CYCLE + CYCLE - 1 for n in range(600)])
    out = tmp_path / "out"
    out.mkdir()
    settings = STEPS.model_copy(update={"validate_every": 4, "patience": 3, "log_every": 4})
    spec_of(out, cyclic, backwards, MODEL, settings).save(out / "spec.json")
    assert finish(out / "spec.json")[0] == 0
    result = json.loads((out / "result.json").read_text())
    passes = {line["step"]: line["validation_loss"] for line in metrics(out) if "validation_loss" in line}
    assert result["steps"] == result["best_step"] + 12 < 60
    assert result["validation_loss"] == min(passes.values()) == passes[result["best_step"]]
    model = small_model()
    model.load_state_dict(
        {name: torch.from_numpy(value) for name, value in load_file(out / "model.safetensors").items()}, strict=False
    )
    windows = validation_windows([backwards], 16)
    assert windows is not None
    found = training_of(model, cyclic, settings, seed=3).validate(windows)
    assert found == pytest.approx(result["validation_loss"], rel=1e-4)
    state = load_file(out / "state.safetensors")
    assert all((state[f"model.{name}"] == value).all() for name, value in load_file(out / "model.safetensors").items())
    written = sha256_file(out / "state.safetensors")
    # started again after patience ran out, it does not continue
    (out / "result.json").unlink()
    assert finish(out / "spec.json")[0] == 0
    assert json.loads((out / "result.json").read_text()) == result
    assert sha256_file(out / "state.safetensors") == written
