"""The database of a build without a server: SQLite, in the store's folder `prefect`. It is disposable, because the
store is the ledger: whatever is wrong with it, the build goes on with another one.
"""

from __future__ import annotations

import atexit
import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path

from al_qalam.flows.serving.prefect_env import private
from qalam_core.errors import StoreError

NAME = "prefect.db"
LOCK_SECONDS = 10.0
"""How long to wait for a lock. Builds share the database, and write for milliseconds; the first one creates it."""

_UNUSABLE = {
    sqlite3.SQLITE_BUSY: f"another process has locked it for {LOCK_SECONDS:g} s",
    sqlite3.SQLITE_LOCKED: f"another process has locked it for {LOCK_SECONDS:g} s",
    sqlite3.SQLITE_READONLY: "no permission to write",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
    sqlite3.SQLITE_PERM: "no permission",
    sqlite3.SQLITE_IOERR: "the disk fails to read or write it",
}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def usable_home(home: Path) -> tuple[Path, str]:
    """PREFECT_HOME for a build whose own is `home`, and one line when its database had to be replaced.

    A damaged database, or one of a newer Prefect, is renamed, and replaces the one that was renamed before. One that
    another process uses, or that is not ours to rename, stays, and this process gets a temporary one.
    """
    database = home / NAME
    try:
        private(home)
        problem = _problem(database)
        if not problem:
            return home, ""
        if not _in_use(database):
            aside = _rename(database)
            return home, f"{database}: {problem}; it was renamed to {aside.name}, and a new one is created"
        problem += ", and another process uses it"
    except sqlite3.Error as error:
        problem = _UNUSABLE.get(_code(error), str(error))
    except StoreError:
        problem = "belongs to another user"
    except OSError as error:
        problem = str(error.strerror)
    return _temporary(), f"{database}: {problem}; this build uses a temporary database"


def _problem(database: Path) -> str:
    """Why a new database is needed, "" if it is not, as for an empty one. Raises sqlite3.Error when it
    cannot be known."""
    try:
        with closing(_connect(database, LOCK_SECONDS)) as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                return "damaged"
            connection.execute("BEGIN IMMEDIATE")  # as every write
            tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'alembic_version'").fetchall()
            rows = connection.execute("SELECT version_num FROM alembic_version").fetchall() if tables else []
            connection.rollback()
    except sqlite3.DatabaseError as error:
        if _code(error) in _DAMAGED:
            return "damaged"
        raise
    return "" if all(_is_known(revision) for (revision,) in rows) else "of a newer version of Prefect"


def _connect(database: Path, seconds: float) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.resolve().as_uri()}?mode=rw", uri=True, timeout=seconds, isolation_level=None)


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary code of an error."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_known(revision: str) -> bool:
    """Whether the installed Prefect has the migration to this revision of its schema."""
    spec = find_spec("prefect")  # does not import it
    assert spec
    assert spec.origin
    folder = Path(spec.origin).with_name("server") / "database" / "_migrations" / "versions" / "sqlite"
    return any(f'"{revision}"' in path.read_text(encoding="utf-8") for path in folder.glob("*.py"))


def _in_use(database: Path) -> bool:
    """Whether another process has the database open: the journal's mode can be changed by the only one."""
    try:
        with closing(_connect(database, 0)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE").fetchone()
    except sqlite3.Error as error:
        return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return False


def _rename(database: Path) -> Path:
    """Rename a database with its journal; -> its new path."""
    aside = database.with_name(f"{NAME}.damaged")
    for end in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            database.with_name(NAME + end).replace(aside.with_name(aside.name + end))
    return aside


def _temporary() -> Path:
    """A folder that is deleted when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="qalam-prefect-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # registered before the server's end, so later than that
    return folder
