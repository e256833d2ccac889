from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qalam_core.errors import StoreError
from qalam_core.store import Artifact, Store, replace_file


def fill(text: str = "hello") -> Any:
    def make(out: Path) -> Mapping[str, Any]:
        (out / "sub").mkdir(exist_ok=True)
        (out / "sub" / "file.txt").write_text(text)
        return {"letters": len(text)}

    return make


def never(out: Path) -> Mapping[str, Any]:
    raise AssertionError("built although it was there")


def make(store: Store, how: Any, **changes: Any) -> Artifact:
    arguments = {"stage": "s", "version": 1, "part": {"a": 1}, "inputs": {"i": "d"}, **changes}
    return store.build(**arguments, make=how)


def test_an_artifact_is_built_once(store: Store) -> None:
    first = make(store, fill())
    again = make(store, never)
    assert first == again
    assert (first.cached, again.cached) == (False, True)
    assert first.facts == {"letters": 5}
    assert not list(store.root.glob("artifacts/s/*.partial"))


@pytest.mark.parametrize(
    "change",
    [{"stage": "t"}, {"version": 2}, {"part": {"a": 2}}, {"inputs": {"i": "e"}}, {"inputs": {"j": "d"}}],
)
def test_every_part_of_the_identity_counts(store: Store, change: dict[str, Any]) -> None:
    assert make(store, fill()).digest != make(store, fill(), **change).digest


def test_the_digest_does_not_depend_on_where_the_store_is(tmp_path: Path) -> None:
    one, two = make(Store(tmp_path / "a"), fill()), make(Store(tmp_path / "b"), fill())
    assert one.digest == two.digest
    assert (one.path / "manifest.json").read_bytes() == (two.path / "manifest.json").read_bytes()


def _flip(file: Path) -> None:
    file.write_text("jello")


def _lose(file: Path) -> None:
    file.unlink()


def _add(file: Path) -> None:
    (file.parent / "extra").write_text("?")


def _cut_manifest(file: Path) -> None:
    manifest = file.parent.parent / "manifest.json"
    manifest.write_text(manifest.read_text()[:40])


def _lose_manifest(file: Path) -> None:
    (file.parent.parent / "manifest.json").unlink()


@pytest.mark.parametrize("damage", [_flip, _lose, _add, _cut_manifest, _lose_manifest])
def test_a_damaged_artifact_is_set_aside_and_built_again(store: Store, damage: Any) -> None:
    first = make(store, fill())
    damage(first.path / "sub" / "file.txt")
    again = make(store, fill())
    assert not again.cached
    assert again.digest == first.digest
    assert (again.path / "sub" / "file.txt").read_text() == "hello"
    assert len(list(first.path.parent.glob("*.damaged-*"))) == 1


def test_a_failed_build_leaves_nothing_that_counts(store: Store) -> None:
    def half(out: Path) -> Mapping[str, Any]:
        (out / "half").write_text("x")
        raise RuntimeError("mid-way")

    with pytest.raises(RuntimeError, match="mid-way"):
        make(store, half)
    artifact = make(store, fill())
    assert sorted(artifact.manifest["files"]) == ["sub/file.txt"]


def test_a_resumable_build_finds_what_the_killed_one_left(store: Store) -> None:
    def half(out: Path) -> Mapping[str, Any]:
        (out / "checkpoint").write_text("17")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(store, half, resumable=True)

    def rest(out: Path) -> Mapping[str, Any]:
        return {"from": (out / "checkpoint").read_text()}

    assert make(store, rest, resumable=True).facts == {"from": "17"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_failing_disk_is_one_line(store: Store, code: int) -> None:
    def make_and_fail(out: Path) -> Mapping[str, Any]:
        raise OSError(code, "as the kernel says")

    with pytest.raises(StoreError) as caught:
        make(store, make_and_fail)
    assert "\n" not in str(caught.value)
    assert str(store.root) in str(caught.value)


def test_an_unknown_error_keeps_its_own_face(store: Store) -> None:
    def broken(out: Path) -> Mapping[str, Any]:
        raise FileNotFoundError(errno.ENOENT, "ours")

    with pytest.raises(FileNotFoundError):
        make(store, broken)


def _slow_build(root: str, log: str) -> None:
    def slow(out: Path) -> Mapping[str, Any]:
        with Path(log).open("a") as file:
            file.write("built\n")
        time.sleep(0.5)
        (out / "file").write_text("x")
        return {}

    make(Store(Path(root)), slow)


def test_two_processes_build_it_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    both = [spawn.Process(target=_slow_build, args=(str(tmp_path / "store"), str(log))) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert log.read_text() == "built\n"


KILLED = """
import sys, time
from pathlib import Path
from qalam_core.store import Store

def make(out):
    (out / "file").write_text("half")
    print("half", flush=True)
    time.sleep(60)

Store(Path(sys.argv[1])).build("s", 1, {"a": 1}, {"i": "d"}, make)
"""


def test_a_killed_build_frees_its_lock_and_is_built_again(store: Store) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(store.root)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "half\n"
        os.kill(process.pid, signal.SIGKILL)
    since = time.monotonic()
    assert make(store, fill()).facts == {"letters": 5}
    assert time.monotonic() - since < 5


def test_replace_file_shows_old_or_new(tmp_path: Path) -> None:
    path = tmp_path / "pointer"
    replace_file(path, b"old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["pointer"]


# -- runs -----------------------------------------------------------------------------------------


def publish(store: Store, key: str, created: str = "2030-01-01") -> str:
    def write(folder: Path) -> None:
        (folder / "run.json").write_text(json.dumps({"created": created, "recipe": {"name": "demo"}}))

    run, _ = store.publish("demo", key.ljust(64, "0"), write)
    return run


def test_a_run_is_published_once(store: Store) -> None:
    run = publish(store, "a1")
    assert run == "demo-a10000000000"
    assert store.publish("demo", "a1".ljust(64, "0"), lambda folder: None) == (run, True)
    assert store.runs() == [run]


def test_runs_are_listed_by_age(store: Store) -> None:
    late, early = publish(store, "a", "2031-01-01"), publish(store, "b", "2030-01-01")
    assert store.runs() == [early, late]


def test_promotion_keeps_its_history(store: Store) -> None:
    first, second = publish(store, "a"), publish(store, "b")
    assert store.champion("demo") is None
    store.promote("demo", first, "t1", "passed", "tester")
    store.promote("demo", second, "t2", "passed", "tester")
    store.promote("demo", second, "t3", "again", "tester")
    store.promote("demo", first, "t4", "rolled back", "tester")
    assert store.champion("demo") == first
    assert [line["why"] for line in store.promotions("demo")] == ["passed", "passed", "rolled back"]


@pytest.mark.parametrize("run", ["", "none", "..", "../x", "a/b", "/etc"])
def test_a_run_that_is_not_there_is_named(store: Store, run: str) -> None:
    with pytest.raises(StoreError, match="qalam runs"):
        store.promote("demo", run, "t", "w", "tester")
