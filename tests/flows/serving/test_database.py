"""The database of a build without a server: whatever is wrong with it, there is one to go on with."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from al_qalam.flows.serving import database
from al_qalam.flows.serving.database import NAME, usable_home


def new(home: Path, revision: str = "9725c1cbee35") -> Path:
    """A database as Prefect leaves it: with a journal, a revision that it knows, and some pages of rows."""
    home.mkdir()
    with closing(sqlite3.connect(home / NAME)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE alembic_version (version_num)")
        connection.execute("INSERT INTO alembic_version VALUES (?)", [revision])
        connection.execute("CREATE TABLE log (message)")
        connection.executemany("INSERT INTO log VALUES (?)", [(str(n) * 100,) for n in range(500)])
        connection.commit()
    return home / NAME


def temporary(home: Path, chosen: Path) -> bool:
    return chosen != home and chosen.is_dir() and not (chosen / NAME).exists()


@pytest.mark.parametrize("made", [lambda home: None, new, lambda home: home.mkdir() or (home / NAME).touch()])
def test_a_sound_database_is_used(made: Callable[[Path], object], tmp_path: Path) -> None:
    home = tmp_path / "prefect"
    made(home)
    before = (home / NAME).read_bytes() if home.exists() else b""
    assert usable_home(home) == (home, "")
    assert (home / NAME).read_bytes() == before
    assert (home / NAME).stat().st_mode & 0o777 == 0o600


def garbage(path: Path) -> None:
    path.write_bytes(b"not a database" * 100)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwritten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3 * 4096 : 5 * 4096] = os.urandom(2 * 4096)
    path.write_bytes(content)


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")
        connection.commit()


@pytest.mark.parametrize("harm", [garbage, truncated, overwritten, newer])
def test_a_damaged_or_newer_database_is_renamed(harm: Callable[[Path], None], tmp_path: Path) -> None:
    home = tmp_path / "prefect"
    path = new(home)
    for _ in range(2):  # the second replaces the first
        harm(path)
        size = path.stat().st_size
        chosen, line = usable_home(home)
        assert chosen == home
        assert str(path) in line
        assert "\n" not in line
        assert ("newer version" in line) == (harm is newer)
        assert not path.exists()
        assert (home / f"{NAME}.damaged").stat().st_size == size
        assert len(list(home.glob("*.damaged"))) == 1
        assert usable_home(home) == (home, "")
        path.unlink()
        new(tmp_path / "again").rename(path)
        (tmp_path / "again").rmdir()


@pytest.mark.parametrize("revision", ["9725c1cbee35", "fedcba987654"])
def test_a_database_in_use_stays(revision: str, tmp_path: Path) -> None:
    """Of the same Prefect it is shared; of a newer one, which works with it, it must not be renamed."""
    home = tmp_path / "prefect"
    path = new(home, revision)
    with closing(sqlite3.connect(path)) as other:
        other.execute("SELECT * FROM log").fetchone()
        chosen, line = usable_home(home)
        assert path.exists()
        assert not (home / f"{NAME}.damaged").exists()
        if revision == "9725c1cbee35":
            assert (chosen, line) == (home, "")
        else:
            assert temporary(home, chosen)
            assert "newer version of Prefect, and another process uses it; this build uses a temporary database" in line


def test_a_locked_database_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.1)
    home = tmp_path / "prefect"
    with closing(sqlite3.connect(new(home))) as other:
        other.execute("BEGIN IMMEDIATE")
        chosen, line = usable_home(home)
        assert temporary(home, chosen)
        assert "another process has locked it" in line
        other.rollback()
        assert usable_home(home) == (home, "")


def test_a_folder_or_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "folder" / NAME).mkdir(parents=True)
    (tmp_path / "file").touch()
    for home in (tmp_path / "folder", tmp_path / "file"):
        chosen, line = usable_home(home)
        assert temporary(home, chosen)
        assert str(home) in line


def test_a_database_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "prefect"
    path = new(home)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "chmod", refuse)
    chosen, line = usable_home(home)
    assert temporary(home, chosen)
    assert line == f"{path}: belongs to another user; this build uses a temporary database"
