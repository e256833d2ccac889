"""What is remembered of files: no other content than they have, whatever changed, and whatever the record holds."""

from __future__ import annotations

import itertools
import json
import math
import mmap
import multiprocessing
import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qalam_core import digests as module
from qalam_core.corpus import pieces, sources
from qalam_core.corpus.sources import resolve
from qalam_core.digests import Digests, State
from qalam_core.files import files_below, sha256_bytes
from qalam_core.pipeline.collect import collect
from qalam_core.recipe import Source
from qalam_core.store import Store
from tests.conftest import examples
from tests.failing_disk import WRITES, broken

SETTLED = 0.03  # seconds; a local disk's clock takes steps of at most 10 ms


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are remembered that have not changed for a moment."""
    monkeypatch.setattr(module, "SETTLED_SECONDS", SETTLED)


def settle() -> None:
    time.sleep(2 * SETTLED)


def write(path: Path, content: bytes = b"a line of text\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def known(path: Path, digests: Digests) -> str:
    (file,) = resolve([Source(path=str(path))], digests)
    return file.digest


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read for their digests."""
    found: list[Path] = []

    def counted(path: Path) -> str:
        found.append(path)
        return sha256_bytes(path.read_bytes())

    monkeypatch.setattr(sources, "sha256_file", counted)
    monkeypatch.setattr("qalam_core.store.sha256_file", counted)
    return found


def test_what_did_not_change_is_not_read_again(soon: None, reads: list[Path], tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / "in" / f"{name}.txt", name.encode())
    settle()
    asked = [Source(path=str(tmp_path / "in"))]
    first = resolve(asked, Digests(tmp_path / "known"))
    assert len(reads) == 3
    assert resolve(asked, Digests(tmp_path / "known")) == first
    assert len(reads) == 3
    write(tmp_path / "in" / "b.txt", b"x")
    second = resolve(asked, Digests(tmp_path / "known"))
    assert [one == other for one, other in zip(first, second, strict=True)] == [True, False, True]
    assert reads[3:] == [tmp_path / "in" / "b.txt"]
    assert resolve(asked, Digests(tmp_path / "other")) == resolve(asked), "another record knows nothing"


def test_the_pieces_of_a_large_file_are_remembered(
    soon: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for place in (pieces, sources):
        monkeypatch.setattr(place, "PIECE_BYTES", 2_000)
    path = write(tmp_path / "a.txt", b"".join(b"%d\n\n" % number for number in range(5_000)))
    settle()
    asked = [[Source(path=str(path), unit=unit)] for unit in ("line", "paragraph")]
    found = [resolve(each, Digests(tmp_path / "known")) for each in asked]
    assert len(found[0]) > 2
    assert found[0] != found[1]
    assert [resolve(each, Digests(tmp_path / "known").doubting()) for each in asked] == found
    assert not caplog.messages, "nothing changed"
    monkeypatch.setattr(sources, "pieces", None)
    assert [resolve(each, Digests(tmp_path / "known")) for each in asked] == found


# -- changes ----------------------------------------------------------------------------------------


def _in_place(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _renamed(path: Path, content: bytes) -> None:
    write(path.with_name("new"), content).rename(path)


def _kept_times(path: Path, content: bytes) -> None:
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _renamed_with_times(path: Path, content: bytes) -> None:
    before = path.stat()
    new = write(path.with_name("new"), content)
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.rename(path)


def _cut_and_extended(path: Path, content: bytes) -> None:
    size = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, size)
    with path.open("r+b") as file:
        file.write(content)


def _mapped(path: Path, content: bytes) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[: len(content)] = content


def _linked(path: Path, content: bytes) -> None:
    """Another file under its name, as old and as large, which was there before."""
    before = path.stat()
    path.unlink()
    path.hardlink_to(_as_old(path, content, before))


def _retargeted(path: Path, content: bytes) -> None:
    before = path.stat()
    path.unlink()
    path.symlink_to(_as_old(path, content, before))


def _as_old(path: Path, content: bytes, before: os.stat_result) -> Path:
    other = write(path.with_name(f"other-{secrets.token_hex(4)}"), content)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    return other


def _by_another_name(path: Path, content: bytes) -> None:
    other = path.with_name(f"same-{secrets.token_hex(4)}")
    other.hardlink_to(path)
    _kept_times(other, content)


CHANGES = (
    _in_place, _renamed, _kept_times, _renamed_with_times, _cut_and_extended, _mapped, _linked, _retargeted,
    _by_another_name,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(
    soon: None, reads: list[Path], change: Callable[[Path, bytes], None], tmp_path: Path
) -> None:
    path = write(tmp_path / "a.txt", b"12345678")
    settle()
    assert known(path, Digests(tmp_path / "known")) == known(path, Digests(tmp_path / "known"))
    assert len(reads) == 1, "it is remembered"
    change(path, b"abcdefgh")
    assert known(path, Digests(tmp_path / "known")) == sha256_bytes(b"abcdefgh")


def test_without_times_of_inodes_another_file_is_seen(
    soon: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on disks that know only one time of a file, which programs can set."""
    path, of_disk = write(tmp_path / "a.txt", b"first"), State.of
    monkeypatch.setattr(State, "of", lambda path: of_disk(path)._replace(changed=0))
    settle()
    known(path, Digests(tmp_path / "known"))
    _renamed_with_times(path, b"later")
    assert known(path, Digests(tmp_path / "known")) == sha256_bytes(b"later")


@given(st.lists(st.sampled_from([*CHANGES, None, None]), max_size=8))
@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_sequence_of_changes_gives_another_digest(
    soon: None, tmp_path: Path, sequence: list[Callable[[Path, bytes], None] | None]
) -> None:
    """Each is looked at once; between some of them the clock moves on."""
    folder = tmp_path / secrets.token_hex(4)
    path, content = write(folder / "a.txt", b"00000000"), b"00000000"
    for number, change in enumerate(sequence, 1):
        if change:
            content = b"%08d" % number
            change(path, content)
        else:
            settle()
        assert known(path, Digests(folder / "known")) == sha256_bytes(content)


@pytest.mark.parametrize("step", [0, 2_000_000_000])
def test_a_change_within_one_step_of_the_clock_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """With times that do not move at all for a while, as disks have that tell them in steps of two seconds."""
    path, at, of_disk = write(tmp_path / "a.txt", b"first"), time.time_ns() - step, State.of
    monkeypatch.setattr(State, "of", lambda path: of_disk(path)._replace(modified=at, changed=at))
    assert known(path, Digests(tmp_path / "known")) == sha256_bytes(b"first")
    path.write_bytes(b"later")
    assert known(path, Digests(tmp_path / "known")) == sha256_bytes(b"later")


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_jumps(
    soon: None, reads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """Back: files are from the future, and are not remembered. And what is remembered holds for equal times alone."""
    path, now = write(tmp_path / "a.txt", b"first"), time.time_ns
    settle()
    monkeypatch.setattr(time, "time_ns", lambda: now() + hours * 3_600_000_000_000)
    known(path, Digests(tmp_path / "known"))
    known(path, Digests(tmp_path / "known"))
    assert len(reads) == (2 if hours < 0 else 1)
    path.write_bytes(b"later")
    os.utime(path, ns=(0, time.time_ns() - 7_200_000_000_000))
    assert known(path, Digests(tmp_path / "known")) == sha256_bytes(b"later")


def test_a_change_while_it_is_read_is_seen(soon: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.txt", b"first")
    settle()

    def slow(path: Path) -> str:
        content = path.read_bytes()
        _kept_times(path, b"later")
        return sha256_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr(sources, "sha256_file", slow)
        known(path, Digests(tmp_path / "known"))
    settle()
    assert known(path, Digests(tmp_path / "known")) == sha256_bytes(b"later")


# -- records ----------------------------------------------------------------------------------------


@pytest.fixture
def recorded(soon: None, tmp_path: Path) -> tuple[Path, Path]:
    """A file, and the record of it."""
    path = write(tmp_path / "in" / "a.txt", b"first")
    settle()
    known(path, Digests(tmp_path / "known"))
    (name,) = files_below(tmp_path / "known")
    return path, tmp_path / "known" / name


def test_a_damaged_record_costs_time_alone(recorded: tuple[Path, Path], reads: list[Path], tmp_path: Path) -> None:
    path, record = recorded
    whole = record.read_bytes()
    known(path, Digests(tmp_path / "known"))
    assert not reads
    spoiled = [whole[:cut] for cut in range(0, len(whole), 5)]
    spoiled += [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(0, len(whole), 3)]
    for kind in ("[]", "{}", '{"place": 1}', f'{{"place": "{path}", "word": "", "values": []}}',
                 f'{{"place": "{path}", "word": "", "values": {{"sha256": [1, 2]}}}}'):  # fmt: skip
        spoiled.append(f"{sha256_bytes(kind.encode())}\n{kind}".encode())
    for content in (*spoiled, b"", b"\xff" * 100):
        reads.clear()
        record.write_bytes(content)
        assert known(path, Digests(tmp_path / "known")) == sha256_bytes(b"first")
        assert reads == [path]
        assert record.read_bytes() == whole, "it is written again"


def test_a_record_of_other_files_is_not_taken(recorded: tuple[Path, Path], tmp_path: Path) -> None:
    """Neither under the name of another file, nor for another file that took the place."""
    path, record = recorded
    other = write(tmp_path / "in" / "b.txt", b"other")
    settle()
    place = Digests(tmp_path / "known").of_source(str(other))._file
    assert place
    shutil.copy(record, place)
    assert known(other, Digests(tmp_path / "known")) == sha256_bytes(b"other")
    path.rename(path.with_name("c.txt"))
    shutil.copy2(other, path)
    assert known(path, Digests(tmp_path / "known")) == sha256_bytes(b"other")


def test_a_record_that_cannot_be_read_or_written_is_no_error(recorded: tuple[Path, Path], tmp_path: Path) -> None:
    path, record = recorded
    record.unlink()
    with broken(tmp_path / "known", ("open", *WRITES)) as disk:
        assert known(path, Digests(tmp_path / "known")) == sha256_bytes(b"first")
    assert disk.calls > 1
    record.mkdir()  # a folder in its place
    assert known(path, Digests(tmp_path / "known")) == sha256_bytes(b"first")
    assert known(path, Digests(write(tmp_path / "a file"))) == sha256_bytes(b"first")


def test_a_command_that_writes_nothing_uses_what_is_remembered(
    recorded: tuple[Path, Path], reads: list[Path], tmp_path: Path
) -> None:
    path, record = recorded
    digests = Digests(tmp_path / "known").read_only()
    known(path, digests)
    assert not reads
    record.unlink()
    known(path, digests)
    assert reads == [path]
    assert files_below(tmp_path / "known") == []


# -- doubt ------------------------------------------------------------------------------------------


def _silently(path: Path, record: Path, content: bytes) -> None:
    """Change a file, and make the record say that its size and times are as they were, as a bad disk would."""
    path.write_bytes(content)
    found = json.loads(record.read_text().partition("\n")[2])
    for value in found["values"].values():
        value[:4] = State.of(path)
    text = json.dumps(found)
    record.write_text(f"{sha256_bytes(text.encode())}\n{text}")
    settle()


@pytest.mark.parametrize("lasting", [True, False])
def test_what_is_doubted_is_read_and_a_change_is_said(
    recorded: tuple[Path, Path], reads: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, lasting: bool
) -> None:
    path, record = recorded
    _silently(path, record, b"later")
    assert known(path, Digests(tmp_path / "known")) == sha256_bytes(b"first"), "which nothing shows"
    before = record.read_bytes()
    digests = Digests(tmp_path / "known")
    if lasting:
        digests.doubt()
        digests = Digests(tmp_path / "known")  # in another process
    else:
        digests = digests.doubting()
    assert known(path, digests) == sha256_bytes(b"later")
    (said,) = caplog.messages
    assert said == f"{path}: its content changed, although its size and times are the same"
    assert (record.read_bytes() == before) == (not lasting)
    if lasting:
        reads.clear()
        assert known(path, Digests(tmp_path / "known")) == sha256_bytes(b"later")
        assert not reads, "it was read once, and is trusted again"


def test_a_word_that_cannot_be_read_is_no_trust(recorded: tuple[Path, Path], reads: list[Path], tmp_path: Path) -> None:
    path, _ = recorded
    Digests(tmp_path / "known").doubt()
    known(path, Digests(tmp_path / "known"))
    reads.clear()
    with broken(tmp_path / "known" / "doubted", ("open",)):
        known(path, Digests(tmp_path / "known"))
    assert reads == [path]


# -- processes --------------------------------------------------------------------------------------


def _record(folder: Path, number: int, rounds: int) -> None:
    module.SETTLED_SECONDS = SETTLED
    for turn in range(rounds) if rounds else itertools.count():
        if not rounds or turn % 3 == number:
            shutil.rmtree(folder / "digests" / "sources", ignore_errors=True)
        found = resolve([Source(path=str(folder / "in"))], Digests(folder / "digests"))
        assert [file.digest for file in found] == [sha256_bytes(b"%d" % each) for each in range(9)]


@pytest.fixture
def folder(processes: None, soon: None, tmp_path: Path) -> Iterator[Path]:
    for number in range(9):
        write(tmp_path / "in" / f"{number}.txt", b"%d" % number)
    settle()
    yield tmp_path
    found = resolve([Source(path=str(tmp_path / "in"))], Digests(tmp_path / "digests"))
    assert [file.digest for file in found] == [sha256_bytes(b"%d" % each) for each in range(9)]


def _start(*arguments: Any) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=_record, args=arguments)
    process.start()
    return process


def test_processes_that_record_the_same_at_once(folder: Path) -> None:
    running = [_start(folder, number, 60) for number in range(3)]
    for process in running:
        process.join()
        assert process.exitcode == 0


def test_a_process_that_is_killed_while_it_records(folder: Path) -> None:
    store = Store(folder)
    for moment in range(5):
        shutil.rmtree(folder / "digests", ignore_errors=True)
        process = _start(folder, 0, 0)
        while not (folder / "digests" / "sources").exists():
            time.sleep(0.01)
        time.sleep(0.01 * moment)
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        known(folder / "in" / "1.txt", Digests(folder / "digests"))
    (folder / "digests" / "sources" / ".0.0123456789abcdef").write_bytes(b"half")
    collect(store, keep=1, delete=True, fresh_seconds=-1)
    assert all("/." not in f"/{name}" for name in files_below(folder / "digests")), "what it left was deleted"


def test_the_records_of_what_is_gone_are_deleted(recorded: tuple[Path, Path], tmp_path: Path) -> None:
    store, (path, _) = Store(tmp_path / "store"), recorded
    kept = write(tmp_path / "in" / "b.txt")
    settle()
    for each in (path, kept):
        known(each, store.digests)
    for url, age in (("s3://bucket/new.txt", 0.0), ("s3://bucket/old.txt", module.URL_SECONDS + 60)):
        record = store.digests.of_source(url)
        record.add("content", State(1, 1, 1, "e"), ["x", 1])
        record.save()
        assert record._file
        os.utime(record._file, (time.time() - age,) * 2)
    assert len(store.abandoned(math.inf)) == 1, "the one that is old"
    path.unlink()
    collect(store, keep=1, delete=True, fresh_seconds=-1)
    left = [(store.root / "digests" / name).read_text() for name in files_below(store.root / "digests")]
    assert sorted(json.loads(text.partition("\n")[2])["place"] for text in left) == [str(kept), "s3://bucket/new.txt"]
