"""How `qalam build` calls Prefect."""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from al_qalam.flows.cli import build
from al_qalam.flows.serving import private_server
from al_qalam.tasks.policy import tag_of
from qalam_core.errors import StoreError
from qalam_core.store import Store
from tests.conftest import tiny_recipe


def test_a_build_has_the_tag_of_its_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from prefect.context import TagsContext

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("QALAM_TEST_SETTING", "set")
    monkeypatch.setattr(build, "private_settings", lambda home: {"QALAM_TEST_SETTING": str(home)})
    # Prefect may have read other settings before
    monkeypatch.setattr(private_server, "private_server", lambda _: nullcontext())
    found: list[set[str]] = []

    def stopped() -> Any:
        found.append(set(TagsContext.get().current_tags))
        raise KeyboardInterrupt

    terminal: Any = SimpleNamespace()
    with pytest.raises(KeyboardInterrupt):
        build.by_flow("my-recipe", Store(tmp_path / "store"), terminal, stopped)
    assert found == [{tag_of("my-recipe")}]


@pytest.fixture
def signals() -> Iterator[None]:
    """SIGTERM and SIGHUP as in a new process, whatever those of the tests are."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_does_not_disturb_what_the_first_one_ends(
    how: signal.Signals, signals: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `timeout` sends it."""
    ended = []

    def work() -> None:
        try:
            os.kill(os.getpid(), how)
        finally:
            os.kill(os.getpid(), how)
            ended.append(how)

    with pytest.raises(typer.Exit) as stopped, build.stoppable():
        work()
    assert (ended, stopped.value.exit_code) == ([how], 128 + how)
    assert capsys.readouterr().err.count("\n") == 1
    assert signal.getsignal(how) is signal.SIG_DFL


def test_a_build_under_nohup_goes_on(signals: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with build.stoppable():
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("verify", [False, True])
def test_a_flow_that_verifies_trusts_nothing_that_was_recorded_before(
    monkeypatch: pytest.MonkeyPatch, corpus_file: Path, store: Store, verify: bool
) -> None:
    """From before the sources are resolved on, and in every process."""
    from al_qalam.flows.build_model import build_model
    from al_qalam.tasks import stages

    doubted = []

    def stopped(*_: object) -> Any:
        doubted.append((store.root / "digests" / "doubted").exists())
        raise StoreError("stopped")

    monkeypatch.setattr(stages, "resolve", stopped)
    with pytest.raises(StoreError, match="stopped"):
        inspect.unwrap(build_model.fn)(tiny_recipe(corpus_file), str(store.root), verify=verify)
    assert doubted == [verify]
