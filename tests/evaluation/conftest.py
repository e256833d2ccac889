"""A small package, and its evaluation."""

from __future__ import annotations

import subprocess

import pytest

from qalam_core.evaluation import integrity
from qalam_core.evaluation.results import Report
from tests.evaluation.small_evaluation import Exported, build


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return build(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="session")
def report(processes: None, exported: Exported) -> Report:
    return exported.evaluate()


@pytest.fixture
def fresh_interpreter(processes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages are imported in an interpreter of its own, as in use; elsewhere in a fork."""
    monkeypatch.setattr(integrity, "subprocess", subprocess)


@pytest.fixture
def no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the import in a fresh interpreter, for tests of something else."""
    nothing = integrity._Imported(integrity.NONE, integrity.NONE, [], "not tried")
    monkeypatch.setattr(integrity, "_import", lambda *_: nothing)
