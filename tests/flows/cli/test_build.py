"""How `qalam build` calls Prefect."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from al_qalam.flows.cli import build
from al_qalam.tasks.policy import tag_of
from qalam_core.store import Store


def test_a_build_has_the_tag_of_its_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from prefect.context import TagsContext

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("QALAM_TEST_SETTING", "set")
    monkeypatch.setattr(build, "embedded", lambda home: {"QALAM_TEST_SETTING": str(home)})
    found: list[set[str]] = []

    def stopped() -> Any:
        found.append(set(TagsContext.get().current_tags))
        raise KeyboardInterrupt

    terminal: Any = SimpleNamespace()
    with pytest.raises(typer.Exit):
        build.by_flow("my-recipe", Store(tmp_path / "store"), terminal, stopped)
    assert found == [{tag_of("my-recipe")}]
