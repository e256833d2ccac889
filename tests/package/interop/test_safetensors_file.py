from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qalam_core.errors import PackageError
from qalam_core.package import read, verify
from qalam_core.package.interop.safetensors_file import export_safetensors, import_safetensors
from tests.small_package import CONFIG, export, same_weights


@pytest.mark.parametrize("tied", [True, False])
def test_safetensors_round_trip(tmp_path: Path, tied: bool) -> None:
    package = export(tmp_path / "model", config=replace(CONFIG, tied=tied))
    file = tmp_path / "model.safetensors"
    export_safetensors(package, file)
    assert {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()} == {
        name: tensor.tobytes() for name, tensor in read(package).weights.items()
    }
    assert len(import_safetensors(file, package, tmp_path / "back")) == 1
    assert same_weights(package, tmp_path / "back")
    assert verify(tmp_path / "back") == []
    with pytest.raises(PackageError, match="exists"):
        export_safetensors(package, file)
    with pytest.raises(PackageError, match="cannot be written"):
        export_safetensors(package, tmp_path / "model" / "config.py" / "x.safetensors")
    with pytest.raises(PackageError, match="no such file"):
        import_safetensors(tmp_path / "none", package, tmp_path / "other")


def test_a_torch_checkpoint_may_contain_the_tied_head(tmp_path: Path) -> None:
    package = export(tmp_path / "model")
    state = {name: torch.from_numpy(tensor * 2) for name, tensor in read(package).weights.items()}
    state["lm_head.weight"] = state["embedding.weight"].clone()
    save_file(state, tmp_path / "model.safetensors")
    import_safetensors(tmp_path / "model.safetensors", package, tmp_path / "back")
    assert all(
        (read(tmp_path / "back").weights[name] == tensor.numpy()).all()
        for name, tensor in state.items()
        if "head" not in name
    )
    del state["embedding.weight"]
    save_file(state, tmp_path / "model.safetensors")
    import_safetensors(tmp_path / "model.safetensors", package, tmp_path / "head")
    assert same_weights(tmp_path / "head", tmp_path / "back")
    state["embedding.weight"] = state["lm_head.weight"] + 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(PackageError, match="a head of its own"):
        import_safetensors(tmp_path / "model.safetensors", package, tmp_path / "other")
