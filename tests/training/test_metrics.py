"""The outputs of metrics."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.training.small_training import finish, spec


@pytest.mark.usefixtures("processes")
def test_missing_tensorboard_is_a_one_line_error(cyclic: Path, tmp_path: Path) -> None:
    if find_spec("tensorboard"):
        pytest.skip("it is installed")
    status, _, errors = finish(spec(tmp_path / "out", cyclic, tensorboard=str(tmp_path / "board")))
    assert status == 2
    assert "al-qalam[tensorboard]" in errors
    assert len(errors.splitlines()) == 1
