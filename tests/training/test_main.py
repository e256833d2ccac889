"""Exit statuses of the process, and user errors in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qalam_core.errors import TrainingError
from qalam_core.tokens.shards import Batches
from tests.training.small_training import finish, spec, write_tokens

pytestmark = pytest.mark.usefixtures("processes")


def test_a_missing_gpu_is_a_one_line_error(cyclic: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    status, _, errors = finish(spec(tmp_path / "out", cyclic, device="cuda"))
    assert status == 2
    assert "sees no GPU" in errors


def test_data_shorter_than_the_context_is_a_one_line_error(tmp_path: Path) -> None:
    short = write_tokens(tmp_path / "short.arrow", [5, 6])
    status, _, errors = finish(spec(tmp_path / "out", short))
    assert status == 2
    assert "lower model.max_seq_len" in errors
    with pytest.raises(TrainingError):
        Batches([short], 8, 16, 0)
