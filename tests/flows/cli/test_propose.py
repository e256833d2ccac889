"""`qalam propose`: its exit status, its comment and JSON, hostile reasons, and a process that is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from qalam_core.package.editing.rows import scale_row
from qalam_core.package.editing.seal import seal
from qalam_core.pipeline.build import propose
from qalam_core.pipeline.propose import candidate
from tests.conftest import Built
from tests.flows.cli.command import qalam
from tests.flows.processes import clean_environment
from tests.flows.processes import qalam as process

HOSTILE = "x | `y` </td><script>alert(1)</script>\x1b[31m \u202e$(id)"


def edited(built: Built, folder: Path, factor: float) -> Path:
    shutil.copytree(built.published.folder / "model", folder)
    scale_row(folder, "embedding.weight", "ال", factor)
    seal(folder, "louder")
    return folder


@pytest.fixture
def passing(mine: Built, tmp_path: Path) -> Path:
    """A package that was judged in the store `mine`, so that a command needs no Prefect."""
    package = edited(mine, tmp_path / "package", 1.001)
    propose(candidate(mine.runs, package, HOSTILE, "amal"), mine.store)
    return package


def test_the_decision_for_programs_and_people(mine: Built, passing: Path, tmp_path: Path) -> None:
    where = ("--store", mine.store.root)
    done = qalam("propose", passing, "--why", "again", "--json", "--markdown", tmp_path / "c.md", *where)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["passed"], found["champion"], found["waits"]) == (True, True, False)
    assert (found["parent"], found["proposal"]["who"]) == (mine.published.run, "amal")
    assert "this package was proposed before, by amal" in done.stderr
    text = (tmp_path / "c.md").read_text(encoding="utf-8")
    assert text.startswith(f"### {found['run']}: passed, ")
    assert "It passed the gate, and is the champion of tiny." in text
    assert "embedding.weight: 1 of 320 rows, moved" in text
    run, record = found["run"], mine.runs.record(found["run"])
    assert record.proposal
    assert record.proposal.why == " ".join(HOSTILE.split())
    pages = [
        text,
        *((mine.runs.folder(run) / name).read_text(encoding="utf-8") for name in ("report.md", "report.html")),
    ]
    shown = [
        qalam(*command, *where).stdout for command in (("runs",), ("show", run), ("lineage", run), ("history", "tiny"))
    ]
    for output in (*pages, *shown, done.stderr):
        assert "\x1b" not in output
        assert "\u202e" not in output
    assert not any("<script>alert" in output for output in pages)
    assert all("amal" in output for output in shown)
    card = (mine.runs.folder(run) / "model" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "<script>alert" not in card


def test_what_was_only_judged_waits(mine: Built, tmp_path: Path) -> None:
    package = edited(mine, tmp_path / "package", 1.001)
    found = candidate(mine.runs, package, "why", "amal")
    propose(replace(found, only_judged=True), mine.store)
    command = ("propose", package, "--why", "why", "--who", "amal", "--store", mine.store.root)
    done = qalam(*command, "--no-promote", "--markdown", tmp_path / "c.md")
    assert done.returncode == 0, done.stderr
    assert "passed, but not promoted: it was only to be judged" in done.stdout
    assert "It passed the gate, and is not champion yet" in (tmp_path / "c.md").read_text(encoding="utf-8")
    assert mine.runs.champion("tiny") == mine.published.run
    assert qalam(*command).returncode == 0
    champion = mine.runs.champion("tiny")
    assert champion
    assert mine.runs.record(champion).proposal == found.proposal
    assert "is the champion" not in (tmp_path / "c.md").read_text(encoding="utf-8")
    assert "same model" not in qalam(*command, "--no-promote").stdout  # it is the champion, and stays


def test_a_refused_edit_has_status_1(mine: Built, tmp_path: Path) -> None:
    package = edited(mine, tmp_path / "package", 30.0)
    propose(candidate(mine.runs, package, "why", "amal"), mine.store)
    done = qalam("propose", package, "--why", "why", "--store", mine.store.root, "--markdown", tmp_path / "c.md")
    assert done.returncode == 1
    assert "the gate refused" in done.stdout
    assert "or       accept it as it is: qalam promote" in done.stdout
    text = (tmp_path / "c.md").read_text(encoding="utf-8")
    assert "The gate refused it." in text
    assert "bits per byte" in text


def test_mistakes_are_one_line_and_status_2(mine: Built, tmp_path: Path) -> None:
    package = edited(mine, tmp_path / "package", 1.5)
    where = ("--store", mine.store.root)
    for arguments, said in (
        ((package, "--why", " "), "--why is blank"),
        ((tmp_path / "none", "--why", "x"), "not a folder, so not a package"),
        ((package, "--why", "x", "--set", "gate.tolerance=1"), "--set: changes a recipe; name it with --recipe"),
    ):
        done = qalam("propose", *arguments, *where)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    scale_row(package, "embedding.weight", "ال", 1.5)
    assert "`qalam seal" in qalam("propose", package, "--why", "x", *where).stderr


def test_a_killed_proposal_is_finished_by_the_next(mine: Built, api: str, tmp_path: Path) -> None:
    package = edited(mine, tmp_path / "package", 1.001)
    command = ["propose", package, "--why", "why", "--store", mine.store.root]
    for wait in ("propose", "evaluate"):
        child = subprocess.Popen(
            [sys.executable, "-c", "from al_qalam.flows.cli.main import main; main()", *map(str, command)],
            env=clean_environment(PREFECT_API_URL=api), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        home, until = mine.store.root / "artifacts" / wait, time.monotonic() + 120
        known = set(home.iterdir()) if home.exists() else set()
        while child.poll() is None and time.monotonic() < until:
            if home.exists() and set(home.iterdir()) - known:
                break
            time.sleep(0.005)
        assert child.poll() is None, "it ended before it could be killed"
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    assert len(mine.runs.ids()) == 1
    done = process(*command, PREFECT_API_URL=api)
    assert done.returncode == 0, done.stderr
    (run,) = set(mine.runs.ids()) - {mine.published.run}
    assert mine.runs.champion("tiny") == run
    for stage, keys in mine.runs.record(run).artifacts.items():
        assert all(mine.store.artifact(stage, key) for key in keys)  # their bytes are those that were finished
