"""`qalam test`: dots, failures in full, exit status, JUnit and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Built
from tests.flows.cli.command import qalam
from tests.small_package import export

MORE = {"kind": "pair", "id": "more", "right": "القط", "wrong": "القط يأكل السمك القط", "group": "length"}
LESS = {"kind": "pair", "id": "less", "right": MORE["wrong"] + " \u202eفي", "wrong": MORE["right"], "group": "length"}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("package") / "model")


def cases(folder: Path, *lines: dict[str, Any]) -> Path:
    path = folder / "cases.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_file_that_passes(package: Path, tmp_path: Path) -> None:
    done = qalam("test", package, cases(tmp_path, MORE))
    assert (done.returncode, done.stderr) == (0, "")
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("cases .")
    assert first.endswith("[100%]")
    assert last.startswith("passed  cases: 1 of 1 cases passed")


def test_failures_are_shown_in_full_and_give_status_1(package: Path, tmp_path: Path) -> None:
    known = {**LESS, "id": "known", "right": LESS["right"] + " في", "mark": "known failure"}
    better = {**MORE, "id": "better", "wrong": MORE["wrong"] + " في", "mark": "known failure"}
    done = qalam("test", package, cases(tmp_path, MORE, LESS, known, better))
    assert done.returncode == 1
    assert done.stdout.startswith("cases .FxX ")
    assert "failed cases less, length\n  right:\n" in done.stdout
    assert (
        f"\n    {MORE['wrong']} في\n  wrong:\n    {MORE['right']}\n" in done.stdout
    )  # the control was normalised away
    assert "unexpectedly passed cases better, length\n" in done.stdout
    assert "1 of 2 cases passed" in done.stdout
    assert "1 failed as known, 1 known to fail passed (better)" in done.stdout


def test_a_share_and_a_must(package: Path, tmp_path: Path) -> None:
    file = cases(tmp_path, MORE, LESS)
    assert qalam("test", package, file, "--share", "0.5").returncode == 0
    assert qalam("test", package, file, "--share", "0.6").returncode == 1
    done = qalam("test", package, cases(tmp_path, MORE, {**LESS, "mark": "must"}), "--share", "0")
    assert done.returncode == 1
    assert "failed cases less (must), length" in done.stdout
    assert "1 that must pass failed" in done.stdout


def test_json_and_junit(package: Path, tmp_path: Path) -> None:
    file = cases(tmp_path, MORE, LESS)
    done = qalam("test", package, file, "--json", "--junit", tmp_path / "out.xml")
    assert done.returncode == 1
    (found,) = json.loads(done.stdout)
    assert (found["name"], found["share"], found["passed"]) == ("cases", 1.0, False)
    assert [case["passed"] for case in found["cases"]] == [True, False]
    assert b'failures="1"' in (tmp_path / "out.xml").read_bytes()


def test_a_package_is_tested_with_the_shipped_suite(package: Path) -> None:
    done = qalam("test", package, "--share", "0")
    assert done.returncode == 0
    assert "passed  arabic: " in done.stdout
    assert "resumptive-pronoun" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("absent.jsonl",), "there is no file absent.jsonl"),
        (("suite:arabi",), 'did you mean "arabic"?'),
        (("suite:arabic", "suite:arabic"), 'two files of tests have the name "arabic"'),
        (("-.jsonl",), "name: must be 1 to 40 letters and digits"),
    ],
)
def test_a_wrong_use_is_one_line_and_status_2(package: Path, arguments: tuple[str, ...], told: str) -> None:
    done = qalam("test", package, "--", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_is_tested_with_its_recipes_tests(built: Built, tmp_path: Path) -> None:
    store = ("--store", built.store.root)
    done = qalam("test", built.published.run, *store)
    assert done.returncode == 2
    assert "has no tests; name files of cases, or suite:arabic" in done.stderr
    named = qalam("test", built.published.run, "suite:arabic", "--share", "0", *store)
    assert named.returncode == 0
