"""The commands that read a store change nothing in it, and a disk that fails is one line."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from qalam_core.recipe import to_toml
from tests.conftest import Built, sentences
from tests.failing_disk import LOCKS, READS, WRITES, broken, tree
from tests.flows.cli.command import qalam

Arguments = Callable[[str, Path], list[object]]  # of a run, and a file of its recipe

READING: dict[str, Arguments] = {
    "plan": lambda run, recipe: ["plan", recipe],
    "runs": lambda run, recipe: ["runs"],
    "report": lambda run, recipe: ["report", run],
    "lineage": lambda run, recipe: ["lineage", run],
    "corpus": lambda run, recipe: ["corpus"],
    "rejects": lambda run, recipe: ["corpus", "--rejects", "min_words"],
    "trace": lambda run, recipe: ["trace", run, sentences(3)[2]],
    "find": lambda run, recipe: ["find", sentences(3)[2]],
    "show": lambda run, recipe: ["show", run],
    "generate": lambda run, recipe: ["generate", run, "قال", "--tokens", "2", "--seed", "1"],
    "history": lambda run, recipe: ["history", "tiny"],
    "diff": lambda run, recipe: ["diff", run, run],
    "gc": lambda run, recipe: ["gc"],
}


@pytest.fixture
def arguments(built: Built, tmp_path: Path) -> Callable[[str], list[object]]:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(to_toml(built.recipe), encoding="utf-8")
    return lambda name: [*READING[name](built.published.run, recipe), "--store", built.store.root]


@pytest.mark.parametrize("name", READING)
def test_a_store_that_cannot_be_written_can_be_read(
    name: str, built: Built, arguments: Callable[[str], list[object]]
) -> None:
    """On a read-only mount, or of another user: neither locks nor writes."""
    before, usual = tree(built.store.root), qalam(*arguments(name))
    kinds = WRITES if name == "gc" else WRITES + LOCKS  # which looks whether a build is running
    with broken(built.store.root, kinds, errno.EROFS):
        done = qalam(*arguments(name))
    assert (done.returncode, done.stdout) == (0, usual.stdout), done.stderr
    assert tree(built.store.root) == before


@pytest.mark.parametrize("name", READING)
def test_a_disk_that_cannot_be_read_is_one_line_and_no_verdict(
    name: str, built: Built, arguments: Callable[[str], list[object]]
) -> None:
    # what is remembered of files need not be read, unless to delete what is of none
    but = None if name == "gc" else built.store.root / "digests"
    with broken(built.store.root, READS, chosen=range(0), but=but) as disk:
        qalam(*arguments(name))
    before = tree(built.store.root)
    for call in {0, disk.calls // 2, disk.calls - 1} if disk.calls else ():
        with broken(built.store.root, READS, errno.ESTALE, range(call, call + 1), but):
            done = qalam(*arguments(name))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), (call, done.stderr)
        assert "its disk does not answer; mount it again" in done.stderr or "cannot be read (Stale file" in done.stderr
        assert "damaged" not in done.stderr
    assert tree(built.store.root) == before
