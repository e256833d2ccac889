"""A package in the hands of git, installers, formatters, file managers and systems without threads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from qalam_core.errors import PackageError
from qalam_core.package import read, verify
from qalam_core.package.editing.rows import scale_row
from qalam_core.package.editing.seal import seal
from qalam_core.package.release.sign import sign, verify_signature
from qalam_core.package.release.wheel import wheel
from qalam_core.package.runtime.data_reader import read_vocabulary
from qalam_core.package.runtime.weights_reader import FormatError, read_weights
from qalam_core.package.statistics import PREAMBLE
from tests.package.conftest import write_key
from tests.small_package import CONFIG, contents, export, same_weights

# -- git ------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, env=environment, capture_output=True)
    return done.stdout.decode()


def clone(package: Path, *settings: str, attributes: str = "", forgotten: str = "") -> Path:
    """A clone, with these settings, of a repository that was given these attributes and the package."""
    repository = package.parent / "repository"
    shutil.copytree(package, repository / "model")
    (repository / ".gitattributes").write_text(attributes, encoding="utf-8")
    if forgotten:
        (repository / "model" / forgotten).unlink()
    git(repository, "init", "--quiet")
    git(repository, "add", "--all", "--force")
    git(repository, "commit", "--quiet", "--message=x")
    git(repository.parent, "clone", "--quiet", *(f"--config={setting}" for setting in settings), "repository", "clone")
    return repository.parent / "clone" / "model"


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("attributes", ["", "* text=auto eol=crlf\n", "*.py eol=crlf\n* text\n"])
def test_a_clone_with_windows_line_ends_is_as_exported(package: Path, attributes: str) -> None:
    copy = clone(package, "core.autocrlf=true", "core.eol=crlf", attributes=attributes)
    assert contents(copy) == contents(package)
    assert verify(copy) == []


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    "attributes", ["* binary\n", "*.py -diff -merge\n", "model/** linguist-generated merge=union\n"]
)
def test_attributes_of_a_folder_above_hide_no_edit(package: Path, attributes: str) -> None:
    copy = clone(package, attributes=attributes)
    scale_row(copy, "embedding.weight", 5, 2)
    assert "\n+        " in git(copy, "diff")
    for name, value in {"diff": "set", "merge": "set", "linguist-generated": "unset"}.items():
        found = git(copy, "check-attr", name, *contents(copy))
        assert all(line.endswith(f": {name}: {value}") for line in found.splitlines()), found


@pytest.mark.usefixtures("processes")
def test_a_clone_without_gitattributes_is_refused_with_a_cure_that_works(package: Path) -> None:
    copy = clone(package, "core.autocrlf=true", forgotten=".gitattributes")
    for _ in range(2):  # also after the file was put back
        with pytest.raises(PackageError, match=r"Windows line end.*git clone -c core\.autocrlf=false"):
            read(copy)
        shutil.copy(package / ".gitattributes", copy)
    git(package.parent, "clone", "--quiet", "-c", "core.autocrlf=false", "repository", "cure")
    cured = package.parent / "cure" / "model"
    with pytest.raises(PackageError, match=r"^\.gitattributes:0: cannot be read .*hidden files"):
        read(cured)
    shutil.copy(package / ".gitattributes", cured)
    assert verify(cured) == []


def test_windows_line_ends_are_named_by_every_reader(package: Path) -> None:
    for path in package.glob("*.py"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    for task in (
        lambda: read(package),
        lambda: read_weights(package, CONFIG.tensor_shapes()),
        lambda: read_vocabulary(package / "vocab.py", CONFIG.vocab_size),
    ):
        with pytest.raises((PackageError, FormatError), match=r"Windows line end.*core\.autocrlf=false"):
            task()


# -- installers and file managers ---------------------------------------------------------------


def test_hard_links_are_read_and_an_edit_leaves_the_other_name_alone(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(package, cache, copy_function=os.link)
    before = contents(cache)
    assert verify(package) == []
    assert read(package, strict=True).edited == ()
    scale_row(package, "embedding.weight", 5, 2)
    seal(package, "louder")
    assert verify(package) == []
    assert contents(cache) == before
    assert verify(cache) == []


LITTER = [
    ".DS_Store", "Thumbs.db", "desktop.ini", "._weights.py", "weights.py~", ".weights.py.swp", "weights.py.orig",
    "weights.py.rej", "vocab.py.bak", "#weights.py#", "Icon\r", "LICENSE", "notes ü.txt", ".nfs0001",
]  # fmt: skip
LITTER_FOLDERS = ["__MACOSX", ".idea", ".ipynb_checkpoints", ".ruff_cache"]


def test_what_editors_and_file_managers_leave_is_named(package: Path, tmp_path: Path) -> None:
    clean = wheel(package, tmp_path / "clean", "my_model").read_bytes()
    key, public = write_key(tmp_path, ec.derive_private_key(1234567, ec.SECP256R1()))
    sign(package, key)
    for name in LITTER:
        (package / name).write_bytes(b"\0Bud1")
    for name in LITTER_FOLDERS:
        (package / name).mkdir()
        (package / name / "evil.py").write_bytes(b"raise SystemExit")
    (package / ".#weights.py").symlink_to("user@host.1234:5678")  # how Emacs locks a file
    found = read(package)
    shown = {ascii(name)[1:-1] for name in (*LITTER, *LITTER_FOLDERS, ".#weights.py")}
    assert (set(found.unlisted), len(found.unlisted)) == (shown, len(shown))
    assert verify(package) == []
    assert wheel(package, tmp_path / "littered", "my_model").read_bytes() == clean
    for task in (
        lambda: read(package, strict=True),
        lambda: sign(package, key),
        lambda: verify_signature(package, public),
    ):
        with pytest.raises(PackageError, match=r"delete it") as caught:
            task()
        assert "\n" not in str(caught.value)
        assert "\r" not in str(caught.value)


@pytest.mark.parametrize("name", ["evil.py", "Weights.PY", "x.cpython-311-x86_64-linux-gnu.so", "x.pyd", "x.pyc"])
def test_what_python_could_import_is_refused(package: Path, name: str) -> None:
    (package / name).write_bytes(b"raise SystemExit")
    with pytest.raises(PackageError, match="not listed"):
        read(package)


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("/nowhere")])
def test_a_folder_that_python_could_import_is_refused(package: Path, make: Callable[[Path], Any]) -> None:
    for name in ("weights", "نموذج"):
        make(package / name)
        with pytest.raises(PackageError, match="not listed"):
            read(package)


# -- formatters -----------------------------------------------------------------------------------


def test_every_file_of_python_keeps_formatters_away(package: Path) -> None:
    for path in package.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        magic = text.partition("\n")[0] + "\n" if text.startswith("# qalam ") else ""
        assert text.startswith(magic + PREAMBLE), path.name


@pytest.mark.usefixtures("processes")
def test_ruff_leaves_a_package_as_it_is(package: Path, tmp_path: Path) -> None:
    before = contents(package)
    (tmp_path / "ruff.toml").write_text(
        'line-length = 60\n[format]\nquote-style = "single"\nindent-style = "tab"\ndocstring-code-format = true\n'
        '[lint]\nselect = ["E", "F", "I", "UP", "Q", "D", "COM", "RUF"]\n[lint.flake8-quotes]\n'
        'inline-quotes = "single"\n',
        encoding="utf-8",
    )
    (package.parent / "mine.py").write_text('x = "y"\n', encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff"]
    settings = ["--config", str(tmp_path / "ruff.toml"), "--no-cache", "--quiet"]
    for command in (["format", *settings], ["check", "--fix", "--unsafe-fixes", "--exit-zero", *settings]):
        subprocess.run([*ruff, *command, str(package.parent)], check=True, capture_output=True)
    assert (package.parent / "mine.py").read_text(encoding="utf-8") == "x = 'y'\n"
    assert contents(package) == before


# -- systems without threads ------------------------------------------------------------------


@pytest.mark.parametrize("available", [0, 1, 2])
def test_without_threads_everything_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: int
) -> None:
    """Pyodide can start none; a limit of processes allows some."""
    monkeypatch.setattr(sys.modules["qalam_core.package.write"], "SHARD_LIMIT", 8000)
    expected = export(tmp_path / "expected")
    start, left = threading.Thread.start, [available]

    def limited(thread: threading.Thread) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    for task in (
        lambda: export(tmp_path / "found"),
        lambda: verify(tmp_path / "found"),
        lambda: read_weights(tmp_path / "found", CONFIG.tensor_shapes()),
    ):
        left[0] = available
        task()
    assert len(list(expected.glob("weights_*.py"))) > 1
    assert contents(tmp_path / "found") == contents(expected)
    assert same_weights(tmp_path / "found", expected)
    weights_file = tmp_path / "found" / "weights_001.py"
    weights_file.write_bytes(weights_file.read_bytes()[:-1])
    left[0] = available
    with pytest.raises(PackageError, match=r"^weights_001\.py:"):  # an error is that of the reader
        read(tmp_path / "found")
