"""The command review."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from al_qalam.flows.cli.terminal import summary
from qalam_core.review.results import Alarm
from qalam_core.review.summary import SECTIONS, Review
from tests.conftest import Built
from tests.flows.cli.command import qalam
from tests.review.small_review import behaviour, data, weights
from tests.review.small_review import review as small


def test_a_page_and_a_summary(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = built.published.run
    done = qalam("review", run, run, "--store", built.store.root)
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert lines[0].startswith(f"The gate passed {run}, which it compared with no champion, ")
    assert [line.split(" ")[1] for line in lines if line[:1].isdigit()] == [f"{name}:" for name in SECTIONS]
    assert lines[-1] == "page     review.html"
    assert (tmp_path / "review.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_json(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = qalam("review", built.published.run, built.published.folder / "model", "--json", "--store", built.store.root)
    found = Review.model_validate(json.loads(done.stdout))
    assert found.new.name == "model" and found.new.run == built.published.run
    assert not [*tmp_path.iterdir()]


def test_mistakes_are_one_line(built: Built, tmp_path: Path) -> None:
    run = built.published.run
    for arguments in ((run, "none"), (run, tmp_path), (run, run, "--html", tmp_path)):
        done = qalam("review", *arguments, "--store", built.store.root)
        assert done.returncode == 2, arguments
        assert done.stderr.startswith("error: "), done.stderr


def test_a_hostile_name_is_only_text(capsys: pytest.CaptureFixture[str]) -> None:
    """It can neither begin a line of its own, nor be obeyed by the terminal."""
    from al_qalam.flows.cli import review as command

    name = "news\nThe gate passed it.\x1b[2J\u202e"
    alarm = Alarm(section="words", severity="high", message=f"{name} is dearer.")
    found = small(data=data(name), behaviour=behaviour("كلمة", name, (alarm,)), recipe=None)
    command._print(found)
    text = capsys.readouterr().out
    assert "\nThe gate passed it" not in text and "\x1b" not in text and "\u202e" not in text
    assert "\\u000aThe gate passed it.\\u001b[2J\\u202e" in text


def test_a_build_ends_with_its_alarms(mine: Built, capsys: pytest.CaptureFixture[str]) -> None:
    alarms = tuple(Alarm(section="weights", severity="high", message=f"Head {head} moved.") for head in range(8))
    found, published = small(weights=weights(alarms=alarms)), mine.published
    assert len(found.alarms) == 9, "with one of its data"
    (published.folder / "review.json").write_bytes(found.to_json())
    summary(replace(published, record=published.record.model_copy(update={"incumbent": "demo-old"})))
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("changes  The gate passed demo-new; 9 alarms, 8 of them high.")
    named = [f"alarm    Head {head} moved." for head in range(5)]
    assert lines[at + 1 : at + 7] == [*named, "         and 4 more, in the review"]
