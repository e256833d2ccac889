"""Tokens, and an uninterrupted training run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.small_training import CYCLE, DROPOUT, finish, spec, write_tokens


@pytest.fixture(scope="session")
def cyclic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4, 5, ..., 23, 4, 5, ...: token n is always followed by n + 1."""
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens.arrow", [4 + n % CYCLE for n in range(4000)])


@pytest.fixture(scope="session")
def uninterrupted(cyclic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight")
    status, _, errors = finish(spec(out, cyclic, DROPOUT))
    assert (status, errors) == (0, "")
    return out
