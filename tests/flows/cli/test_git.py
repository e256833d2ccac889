"""`qalam git` and `qalam merge`, in real repositories: branches, a remote, a rebase, a cherry-pick."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from al_qalam.flows.cli.git import MARKER
from qalam_core.package import read
from qalam_core.package.editing.rows import add_token, scale_row, set_value
from qalam_core.package.editing.seal import seal
from tests.flows.cli.command import qalam
from tests.flows.processes import clean_environment
from tests.small_package import export, row_of, same_weights

EMBEDDING = "embedding.weight"
FOLDER = "نموذج جديد"
ROOT = Path(__file__).parents[3]


def git(*arguments: str, status: int = 0) -> str:
    """Run git in the current folder."""
    done = subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "core.editor=true", *arguments],
        capture_output=True, check=False,
        env=clean_environment(GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_SYSTEM=os.devnull, PYTHONPATH=str(ROOT)),
    )  # fmt: skip
    assert done.returncode == status, done.stdout.decode() + done.stderr.decode()
    return done.stdout.decode() + done.stderr.decode()


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: None) -> Path:
    """A package in a fresh repository, which is the current folder, with a bare remote; `qalam git install` was run."""
    repository = tmp_path / "my work"
    export(repository / FOLDER, dtype="q8")
    monkeypatch.chdir(repository)
    git("init", "-q", "-b", "main")
    assert qalam("git", "install").returncode == 0
    git("init", "-q", "--bare", str(tmp_path / "remote.git"))
    git("remote", "add", "origin", str(tmp_path / "remote.git"))
    git("add", "-A")
    git("commit", "-qm", "base")
    git("push", "-q", "origin", "main")
    return repository / FOLDER


def commit(model: Path, branch: str, *, word: str, factor: float, token: str = "") -> None:
    """A sealed edit, committed."""
    scale_row(model, EMBEDDING, word, factor)
    if token:
        add_token(model, token)
    seal(model, f"edit of {branch}")
    git("commit", "-qam", branch)


def two_branches(model: Path, word: str = "يأكل") -> None:
    """main and topic, each with an edit of a row and a new word; topic is pushed as for a pull request."""
    git("checkout", "-qb", "topic")
    commit(model, "topic", word="القط", factor=2, token="كتاب")
    git("push", "-q", "origin", "topic")
    git("checkout", "-q", "main")
    commit(model, "main", word=word, factor=3, token="قلم")


def united(model: Path) -> None:
    package = read(model, strict=True)
    assert package.vocabulary.words[-2:] in (("قلم", "كتاب"), ("كتاب", "قلم"))
    assert package.manifest["provenance"]["edits"] == "2"


def test_install_is_idempotent_and_leaves_nothing(model: Path) -> None:
    attributes, config = Path(".git/info/attributes"), Path(".git/config")
    attributes.write_text("*.txt text" + "\n" + attributes.read_text())
    before = attributes.read_text(), config.read_text()
    assert qalam("git", "install").stdout == "nothing to change\n"
    assert (attributes.read_text(), config.read_text()) == before
    assert "removed" in qalam("git", "install", "--uninstall").stdout
    assert attributes.read_text() == "*.txt text\n"
    assert "qalam" not in config.read_text()
    assert qalam("git", "install", "--uninstall").stdout == "nothing to change\n"


def test_outside_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: None) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (("git", "install"), ("merge", "--git")):
        done = qalam(*command)
        assert done.returncode == 2
        assert done.stderr.startswith("error: git rev-parse: fatal: not a git repository")
        assert done.stderr.count("\n") == 1


def test_diffs_name_words(model: Path) -> None:
    set_value(model, EMBEDDING, "القط", 2, 0.75)
    old = "column 2 0.0634997 -> 0.75"
    assert 'embedding.weight "القط": moved' in git("diff")
    assert old in git("diff")
    git("add", "-A")
    assert old in git("diff", "--cached")
    git("commit", "-qm", "edit")
    for command in (("log", "-p", "-1", "--ext-diff"), ("show", "--ext-diff"), ("diff", "HEAD~")):
        assert old in git(*command)
    text = git("log", "-p", "-1")
    assert '+embedding.weight "القط": norm' in text
    assert '-embedding.weight "القط": norm' in text
    with (model / "weights.py").open("a") as file:
        file.write("broken\n")
    assert "shown as text: weights.py:" in git("diff")
    assert "+broken" in git("diff", "--no-ext-diff", "--no-textconv")


def test_the_program_in_the_repository_is_not_run(model: Path) -> None:
    """The current folder of git's programs is somebody's repository."""
    for name in ("numpy.py", "typer.py"):
        Path(name).write_text("raise SystemExit('run')")
    set_value(model, EMBEDDING, "القط", 2, 0.75)
    assert "moved" in git("diff")


def test_an_interpreter_below_a_folder_with_spaces(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "an $(environment) 'of' mine"
    folder.mkdir()
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert "diff.qalam.command" in qalam("git", "install").stdout
    set_value(model, EMBEDDING, "القط", 2, 0.75)
    assert "moved" in git("diff")


def test_a_pull_requests_branch_is_merged(model: Path) -> None:
    """Until it is united, git has a conflict and no reader takes the package, not even committed."""
    two_branches(model)
    git("fetch", "-q", "origin")
    assert "CONFLICT" in git("merge", "origin/topic", status=1)
    assert qalam("verify", model).returncode == 2
    assert (model / "weights.py").read_text().startswith(MARKER)
    done = qalam("merge", "--git")
    assert done.returncode == 0, done.stderr
    assert 'words +1: "كتاب"' in done.stdout
    assert git("status", "--short").count("\n") == git("diff", "--cached", "--name-only").count("\n")
    git("commit", "-qm", "merged")
    united(model)
    git("push", "-q", "origin", "main")
    git("clone", "-q", "-b", "main", "../remote.git", "../clone")
    united(Path("../clone") / FOLDER)


def test_a_merge_of_several_branches_at_once_is_refused(model: Path) -> None:
    """Git goes on with the last branch if the others were merged by file, and names them all as parents."""
    git("checkout", "-qb", "notes")
    Path("notes.txt").touch()
    git("add", "-A")
    git("commit", "-qm", "notes")
    git("checkout", "-q", "main")
    two_branches(model)
    git("merge", "notes", "topic", status=1)
    done = qalam("merge", "--git")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done
    assert "git merge --abort, and merge one after another" in done.stderr
    git("merge", "--abort")
    git("merge", "-q", "notes")
    git("merge", "topic", status=1)
    assert qalam("merge", "--git").returncode == 0
    united(model)


def test_a_damaged_base_is_named(model: Path) -> None:
    config = (model / "config.py").read_text()
    (model / "config.py").write_text(config.replace("DIM = ", "DIM = x", 1))
    git("commit", "-qam", "damaged")
    git("branch", "topic")
    for branch, factor in (("topic", 3), ("main", 2)):
        git("checkout", "-q", branch)
        (model / "config.py").write_text(config)
        commit(model, branch, word="القط", factor=factor)
    git("merge", "topic", status=1)
    base = git("merge-base", "main", "topic")
    done = qalam("merge", "--git")
    assert done.returncode == 2
    assert f"error: base, {base[:12]}: config.py:" in done.stderr


def test_conflicts_are_named_and_nothing_changes_until_they_are_decided(model: Path) -> None:
    two_branches(model, word="القط")
    git("merge", "topic", status=1)
    before = git("status", "--short"), (model / "weights.py").read_bytes()
    done = qalam("merge", "--git")
    assert done.returncode == 1
    assert 'conflict: embedding.weight "القط": both sides changed it' in done.stdout
    assert (git("status", "--short"), (model / "weights.py").read_bytes()) == before
    git("commit", "-qm", "half", status=128)
    assert qalam("merge", "--git", "--row", "embedding.weight القط=theirs").returncode == 0
    git("commit", "-qm", "merged")
    united(model)
    git("checkout", "-q", "topic")
    topic = row_of(model, EMBEDDING, 4)
    git("checkout", "-q", "main")
    assert row_of(model, EMBEDDING, 4).tobytes() == topic.tobytes()


@pytest.mark.parametrize("how", ["rebase", "cherry-pick"])
def test_a_rebase_and_a_cherry_pick(model: Path, how: str) -> None:
    two_branches(model)
    if how == "rebase":
        git("checkout", "-q", "topic")
        git("rebase", "main", status=1)
    else:
        git("cherry-pick", "topic", status=1)
    assert qalam("verify", model).returncode == 2
    assert qalam("merge", "--git").returncode == 0
    git(how, "--continue")
    united(model)
    assert git("status", "--short") == ""


def test_an_edit_since_the_merge_began_is_not_lost(model: Path) -> None:
    two_branches(model)
    git("merge", "topic", status=1)
    (model / "config.py").write_text((model / "config.py").read_text() + "# mine\n")
    done = qalam("merge", "--git")
    assert done.returncode == 2
    assert "config.py: edited since the merge began; git restore it, and edit it afterwards" in done.stderr
    git("restore", str(model / "config.py"))
    assert qalam("merge", "--git").returncode == 0
    united(model)


def test_a_card_that_somebody_resolved_is_not_overwritten(model: Path) -> None:
    two_branches(model)
    git("merge", "topic", status=1)
    card = model / "MODEL_CARD.md"
    card.write_text("# mine\n")
    git("add", str(card))
    done = qalam("merge", "--git")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done
    assert card.read_text() == "# mine\n"
    assert "MODEL_CARD.md: staged since the merge began" in done.stderr
    cure = shlex.split(done.stderr.partition("; git ")[2].rpartition(", and edit")[0])
    git(*cure)
    assert qalam("merge", "--git").returncode == 0
    united(model)


def test_files_of_the_same_names_elsewhere_are_merged_as_git_does(model: Path) -> None:
    site = Path("site")
    site.mkdir()
    lines = [f"{number}\n" for number in range(9)]

    def write(at: int, text: str, message: str) -> None:
        lines[at] = text
        (site / "manifest.json").write_text("".join(lines))
        git("add", "-A")
        git("commit", "-qm", message)

    write(4, "middle\n", "site")
    git("checkout", "-qb", "topic")
    write(0, "first\n", "topic")
    git("checkout", "-q", "main")
    lines[0] = "0\n"
    write(8, "last\n", "main")
    git("merge", "-q", "-m", "merged", "topic")
    assert (site / "manifest.json").read_text().split()[::4] == ["first", "middle", "last"]


def test_a_repository_that_is_a_package(model: Path) -> None:
    """The package's own .gitattributes must not change."""
    other = Path("../whole").absolute()
    shutil.copytree(model, other)
    os.chdir(other)
    git("init", "-q", "-b", "main")
    assert qalam("git", "install").returncode == 0
    git("add", "-A")
    git("commit", "-qm", "base")
    two = {"topic": "القط", "main": "في"}
    git("checkout", "-qb", "topic")
    commit(other, "topic", word=two["topic"], factor=2)
    git("checkout", "-q", "main")
    commit(other, "main", word=two["main"], factor=2)
    git("merge", "topic", status=1)
    assert qalam("merge", "--git").returncode == 0
    git("commit", "-qm", "merged")
    assert qalam("verify", other).returncode == 0


def test_merge_of_folders(tmp_path: Path, processes: None) -> None:
    base = export(tmp_path / "base")
    ours, theirs = (Path(shutil.copytree(base, tmp_path / name)) for name in ("ours", "theirs"))
    scale_row(ours, EMBEDDING, "القط", 2)
    three = [base, ours, theirs]
    done = qalam("merge", *three, "--out", tmp_path / "same")
    assert (done.returncode, done.stdout.split("\n")[0]) == (0, "only one side changed: the result is ours")
    assert same_weights(tmp_path / "same", ours)
    scale_row(theirs, EMBEDDING, "القط", 3)
    done = qalam("merge", *three, "--out", tmp_path / "none")
    assert done.returncode == 1
    assert not (tmp_path / "none").exists()
    assert qalam("merge", *three, "--mean").stdout.endswith("no conflict; write the result with --out\n")
    assert qalam("merge", *three, "--theirs", "--out", tmp_path / "theirs is it").returncode == 0
    assert same_weights(tmp_path / "theirs is it", theirs)
    for wrong, reason in (
        (("--mean", "--ours"), "choose one of"),
        (("--row", "embedding.weight=ours"), "write 'TENSOR ROW=ours'"),
        (("--row", "embedding.weight القط=mine"), "write 'TENSOR ROW=ours'"),
        (("--row", "embedding.weight في=ours"), "not in conflict"),
        (("--out", base), "exists"),
        (("--git",), "leave out BASE"),
    ):
        done = qalam("merge", *three, *wrong)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done
        assert reason in done.stderr
    assert qalam("merge", base, ours).returncode == 2
    (base / "config.py").write_text("")
    for command in (("merge", *three), ("diff", ours, base), ("diff", base, ours)):
        done = qalam(*command)
        assert (done.returncode, done.stderr.startswith(f"error: {base}: config.py:")) == (2, True), done
