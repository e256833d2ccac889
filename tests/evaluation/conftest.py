"""A small package, and its evaluation."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

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


@pytest.fixture(scope="package", autouse=True)
def fresh_interpreter() -> Iterator[None]:
    """Here, packages are imported in an interpreter of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integrity, "subprocess", subprocess)
        yield


@pytest.fixture
def no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the import in a fresh interpreter, for tests of something else."""
    nothing = integrity._Imported(integrity.NONE, integrity.NONE, [], "not tried")
    monkeypatch.setattr(integrity, "_import", lambda *_: nothing)
