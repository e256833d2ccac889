"""A model of more than 1,000 weights files: whatever `write` writes, every reader reads."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from qalam_core.errors import PackageError
from qalam_core.package import ModelConfig, read, read_tensor_rows, verify
from qalam_core.package.release.wheel import wheel
from qalam_core.package.runtime import weights_reader as reader
from qalam_core.package.runtime.architecture import SPECIALS
from tests.small_package import export, vocabulary, weights

CONFIG = ModelConfig(vocab_size=1003, dim=1, num_heads=1, num_layers=1, max_seq_len=1)


def test_more_than_a_thousand_weights_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["qalam_core.package.write"], "SHARD_LIMIT", 1)  # a row in each file
    words = (*SPECIALS, *(f"w{index}" for index in range(CONFIG.vocab_size - len(SPECIALS))))
    expected = weights(CONFIG)
    folder = export(tmp_path / "model", config=CONFIG, vocabulary=vocabulary(words=words), weights=expected)
    assert (folder / "weights_999.py").exists()
    assert (folder / "weights_1000.py").exists()
    assert verify(folder) == []
    found = read(folder)
    assert all(np.array_equal(found.weights[name], tensor) for name, tensor in expected.items())
    for row in (0, 99, 100, 999, 1000, 1002):  # the files of one digit more are last in the order of names
        assert read_tensor_rows(folder, "embedding.weight", row, row + 1) == expected["embedding.weight"][row]
    assert np.array_equal(read_tensor_rows(folder, "ln_out.weight"), expected["ln_out.weight"])
    with zipfile.ZipFile(wheel(folder, tmp_path, "many", "1.0")) as archive:
        assert sum("weights" in name for name in archive.namelist()) == len(reader.weight_files(folder)) + 1
    (folder / "weights_1000.py").rename(tmp_path / "elsewhere.py")
    with pytest.raises(PackageError, match=r"^weights_1000\.py:0: cannot be read"):
        read(folder)
