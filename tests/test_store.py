from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qalam_core.digests import READ_ALL, State
from qalam_core.errors import StoreError
from qalam_core.evaluation.results import Verdict
from qalam_core.files import files_below, replace_file, sha256_bytes, sha256_file
from qalam_core.package.write import replace_card
from qalam_core.progress import Progress
from qalam_core.recipe import Frozen
from qalam_core.runs import Runs, exceptions, model_digest
from qalam_core.store import Artifact, Identity, Store, delete_folder
from tests.conftest import Built, examples, judged
from tests.failing_disk import READS, WRITES, broken, tree


class Letters(Frozen):
    letters: int


@dataclass(frozen=True)
class Work:
    """A minimal stage: `how` writes its files."""

    how: Callable[[Path], Frozen]
    identity: Identity
    resumable: tuple[str, ...] = ()

    def run(self, out: Path, progress: Progress) -> Frozen:
        return self.how(out)


def fill(text: str = "hello") -> Callable[[Path], Frozen]:
    def make(out: Path) -> Frozen:
        (out / "sub").mkdir(exist_ok=True)
        (out / "sub" / "file.txt").write_text(text)
        return Letters(letters=len(text))

    return make


def never(out: Path) -> Frozen:
    raise AssertionError("built although it was there")


def make(store: Store, how: Callable[[Path], Frozen], resumable: bool = False, **changes: Any) -> Artifact:
    arguments = {"stage": "s", "version": 1, "settings": {"a": 1}, "inputs": {"i": "d"}, **changes}
    return store.build(Work(how, Identity(**arguments), ("checkpoint",) if resumable else ()))


def test_an_artifact_is_built_once(store: Store) -> None:
    first = make(store, fill())
    again = make(store, never)
    assert first == again
    assert (first.cached, again.cached) == (False, True)
    assert first.facts(Letters) == Letters(letters=5)
    assert not list(store.root.glob("artifacts/s/*.partial"))


@pytest.mark.parametrize(
    "change",
    [{"stage": "t"}, {"version": 2}, {"settings": {"a": 2}}, {"inputs": {"i": "e"}}, {"inputs": {"j": "d"}}],
)
def test_every_part_of_the_identity_changes_the_digest(store: Store, change: dict[str, Any]) -> None:
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


def test_a_failed_build_leaves_no_artifact(store: Store) -> None:
    def half(out: Path) -> Frozen:
        (out / "half").write_text("x")
        raise RuntimeError("mid-way")

    with pytest.raises(RuntimeError, match="mid-way"):
        make(store, half)
    artifact = make(store, fill())
    assert sorted(artifact.manifest.files) == ["sub/file.txt"]


def test_a_resumable_build_continues_from_what_a_killed_one_left(store: Store) -> None:
    def half(out: Path) -> Frozen:
        (out / "checkpoint").write_text("17")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(store, half, resumable=True)

    def rest(out: Path) -> Frozen:
        return Letters(letters=int((out / "checkpoint").read_text()))

    assert make(store, rest, resumable=True).facts(Letters).letters == 17


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_failing_disk_is_a_one_line_error(store: Store, code: int) -> None:
    def make_and_fail(out: Path) -> Frozen:
        raise OSError(code, "as the kernel says")

    with pytest.raises(StoreError) as caught:
        make(store, make_and_fail)
    assert "\n" not in str(caught.value)
    assert str(store.root) in str(caught.value)


def test_an_unknown_disk_error_is_raised_unchanged(store: Store) -> None:
    def broken(out: Path) -> Frozen:
        raise FileNotFoundError(errno.ENOENT, "ours")

    with pytest.raises(FileNotFoundError):
        make(store, broken)


def _slow_build(root: str, log: str) -> None:
    def slow(out: Path) -> Frozen:
        with Path(log).open("a") as file:
            file.write("built\n")
        time.sleep(0.5)
        (out / "file").write_text("x")
        return Frozen()

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
from tests.test_store import make

def half(out):
    (out / "file").write_text("half")
    print("half", flush=True)
    time.sleep(60)

make(Store(Path(sys.argv[1])), half)
"""


@pytest.mark.usefixtures("processes")
def test_a_killed_build_frees_its_lock_and_is_built_again(store: Store) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(store.root)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "half\n"
        os.kill(process.pid, signal.SIGKILL)
    since = time.monotonic()
    assert make(store, fill()).facts(Letters).letters == 5
    assert time.monotonic() - since < 5


def test_replace_file_shows_old_or_new(tmp_path: Path) -> None:
    path = tmp_path / "pointer"
    replace_file(path, b"old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["pointer"]


def test_waiting_is_not_part_of_the_seconds(store: Store) -> None:
    """For another build, and for a slot; the work begins after both."""
    identity = Identity(stage="s", version=1, settings={"a": 1}, inputs={"i": "d"})
    seen: list[str] = []

    @contextmanager
    def slot() -> Iterator[None]:
        time.sleep(0.2)
        seen.append("slot")
        yield

    with ExitStack() as held:
        held.enter_context(store.locked(f"s-{identity.digest}"))
        release = threading.Timer(0.2, held.close)
        release.start()
        since = time.monotonic()
        made = store.build(Work(fill(), identity), lambda done, total, _="": seen.append(f"{done} of {total}"), slot)
        whole = time.monotonic() - since
        release.join()
    assert made.waited["lock"] > 0.1
    assert made.waited["slot"] >= 0.2
    assert made.seconds + sum(made.waited.values()) <= whole
    assert seen == ["slot", "0 of 0"]
    assert pickle.loads(pickle.dumps(made)).waited == made.waited


def test_find_neither_locks_nor_writes(store: Store, tmp_path: Path) -> None:
    work = Work(never, Identity(stage="s", version=1, settings={"a": 1}, inputs={"i": "d"}))
    assert store.find(work.identity) is None
    assert not store.root.exists() or not list(store.root.iterdir())
    made = make(store, fill())
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    found = store.find(work.identity)
    assert found == made
    assert found.cached
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == before
    _flip(made.path / "sub" / "file.txt")
    assert store.find(work.identity) is None
    assert made.path.exists(), "only a build sets a damaged artifact aside"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("remembered", [True, False])
def test_a_disk_that_cannot_be_read_is_not_damage(store: Store, number: int, remembered: bool) -> None:
    """Whichever file or folder it is; a reader and a build say so, and nothing is renamed, deleted or built again."""
    made = make(store, fill())
    store.digests = store.digests if remembered else READ_ALL
    find = Identity(stage="s", version=1, settings={"a": 1}, inputs={"i": "d"})
    calls = 3 if remembered else 4  # the manifest, two folders, and the file
    for use in (lambda: make(store, never), lambda: store.artifact("s", made.digest), lambda: store.find(find)):
        with broken(made.path, READS, chosen=range(0)) as disk:
            use()
        assert disk.calls == calls
        before = tree(store.root / "artifacts")
        for call in range(calls):
            with broken(made.path, READS, number, range(call, call + 1)), pytest.raises(StoreError) as caught:
                use()
            assert type(caught.value) is StoreError, "no verdict"
            assert str(caught.value).startswith(f"store {store.root}, stage s: {made.path}")
            assert "\n" not in str(caught.value)
        assert tree(store.root / "artifacts") == before
    assert make(store, never).cached, "it is undamaged"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files of artifacts that are read for their digests."""
    found: list[Path] = []

    def counted(path: Path) -> str:
        found.append(path)
        return sha256_file(path)

    monkeypatch.setattr("qalam_core.store.sha256_file", counted)
    return found


def test_an_artifact_that_did_not_change_is_not_read_again(
    store: Store, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its build on; without a record the next build reads it, and what writes nothing does so each time."""
    made = make(store, fill())
    file = made.path / "sub" / "file.txt"
    for again in (store, Store(store.root)):
        assert make(again, never).cached
        assert again.find(made.manifest)
        assert again.reuse(made.manifest)
        assert again.artifact("s", made.digest)
    assert len(read) == 1
    assert store.doubting().artifact("s", made.digest)
    assert read[1:] == [file]
    shutil.rmtree(store.root / "digests")
    monkeypatch.setattr("qalam_core.digests.SETTLED_SECONDS", 0.0)
    for use, count in ((store.find, 3), (store.find, 4), (store.reuse, 5), (store.reuse, 5), (store.find, 5)):
        assert use(made.manifest)
        assert len(read) == count
    assert store.delete_artifact(f"s/{made.digest}", unused_since=math.inf)
    assert not files_below(store.root / "digests")


def _flip_with_times(file: Path) -> None:
    before = file.stat()
    file.write_text("jello")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_damage_is_noticed_whatever_became_of_the_file(store: Store, tmp_path: Path) -> None:
    """At once, and after the store was used, moved or copied."""
    key = make(store, fill()).digest

    def used() -> Store:
        assert make(store, never).cached
        return store

    def copied() -> Store:
        return Store(shutil.copytree(store.root, tmp_path / "copied"))

    def moved() -> Store:
        store.root.rename(tmp_path / "moved")
        return Store(tmp_path / "moved")

    for place in (copied, used, moved):
        now = place()
        for damage in (_flip, _flip_with_times):
            damage(now.artifact_folder("s", key) / "sub" / "file.txt")
            assert now.find(Identity(stage="s", version=1, settings={"a": 1}, inputs={"i": "d"})) is None
            again = make(now, fill())
            assert not again.cached
            assert make(now, never).cached


def test_damage_that_nothing_shows_is_found_by_doubt(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A bad disk changes no times: here the record is changed instead."""
    made = make(store, fill())
    _flip(made.path / "sub" / "file.txt")
    record = store._remembered("s", made.digest)
    record.add("sub/file.txt", State.of(made.path / "sub" / "file.txt"), sha256_bytes(b"hello"))
    record.save()
    assert make(store, never).cached
    assert store.doubting().find(made.manifest) is None
    assert make(store, never).cached
    store.doubt()
    assert not make(Store(store.root), fill()).cached
    assert f"{made.path}: its content changed, although its size and times are the same" in caplog.messages
    assert (made.path / "sub" / "file.txt").read_text() == "hello"
    assert make(Store(store.root), never).cached


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
@pytest.mark.parametrize("resumable", [True, False])
def test_a_disk_that_fails_at_any_call_of_a_build_loses_nothing(store: Store, number: int, resumable: bool) -> None:
    other = make(store, fill(), inputs={"i": "other"})
    with broken(store.root, WRITES, chosen=range(0)) as disk:
        make(store, fill(), resumable)
    shutil.rmtree(store.root / "artifacts" / "s" / make(store, never).digest)
    assert disk.calls > 8
    for call in range(disk.calls):
        with broken(store.root, WRITES, number, range(call, 1 << 30)), pytest.raises(StoreError) as caught:
            make(store, fill(), resumable)
        assert str(caught.value).startswith(f"store {store.root}, stage s: /")
        assert [name for name in store.artifacts() if not name.endswith(".partial")] == [f"s/{other.digest}"]
    assert not make(store, fill(), resumable).cached
    assert make(store, never, inputs={"i": "other"}).cached


def test_a_store_that_is_moved_during_a_build_is_one_line(store: Store) -> None:
    def moved(out: Path) -> Frozen:
        store.root.rename(store.root.with_name("moved"))
        (out / "file").write_text("x")
        return Frozen()

    with pytest.raises(StoreError, match="was moved or deleted while it was in use; put it back"):
        make(store, moved)
    assert not store.root.exists()


def test_what_a_crash_left_does_not_prevent_a_deletion(store: Store) -> None:
    """Nor does another process that deletes in the same folder."""
    made = make(store, fill())
    for name in (f".{made.digest}.deleted", f".{made.digest}.0123456789abcdef.deleted"):
        (made.path.with_name(name) / "sub").mkdir(parents=True)
    assert store.delete_artifact(f"s/{made.digest}", unused_since=math.inf)
    assert not list(made.path.parent.iterdir())
    assert not make(store, fill()).cached


def test_a_manifest_is_parsed_once_in_a_process(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(store, fill())
    again = make(store, never)

    def parsed_twice(content: bytes) -> Any:
        raise AssertionError("parsed twice")

    monkeypatch.setattr("qalam_core.store.json_object", parsed_twice)
    assert make(store, never).manifest == store.artifact("s", made.digest).manifest
    assert store.reference("s", made.digest).manifest.facts == {"letters": 5}

    def parsed_again(folder: Path) -> Any:
        raise AssertionError("parsed again")

    monkeypatch.setattr("qalam_core.store._read_manifest", parsed_again)
    for artifact in (made, again):
        assert artifact.manifest.facts == {"letters": 5}
    sent = pickle.loads(pickle.dumps(made))
    assert sent == made
    assert "manifest" not in sent.__dict__, "a reference stays small when it is sent to a worker"


def test_a_built_and_a_reused_artifact_have_the_same_manifest(built: Built) -> None:
    """Facts must survive the manifest, or the stages after it would be built twice."""
    for artifact in built.published.artifacts:
        fresh = Artifact(artifact.stage, artifact.digest, artifact.path)
        assert fresh.manifest == artifact.manifest
        assert list(fresh.manifest.facts) == list(artifact.manifest.facts)


# -- runs -----------------------------------------------------------------------------------------


@pytest.fixture
def runs(store: Store) -> Runs:
    return Runs(store)


def publish(
    runs: Runs, built: Built, key: str, created: str = "2030-01-01", model: str = "", verdict: Verdict | None = None
) -> str:
    """A run with a model of its own, or `model`."""
    made = built.published.record
    recipe = made.recipe.model_copy(update={"name": "demo"})
    changed = {"created": created, "recipe": recipe, "verdict": verdict or made.verdict, "files": {}}
    record = made.model_copy(update=changed)
    files = {"config.py": "c", "vocab.py": "v", "MODEL_CARD.md": key, "loader.py": key}
    manifest = json.dumps({"files": files, "tensors": {"w": model or key}})

    def fill(folder: Path) -> None:
        replace_file(folder / "model" / "manifest.json", manifest.encode())
        replace_file(folder / "run.json", record.to_json())

    run = runs.run_id("demo", key.ljust(64, "0"))
    runs.publish(run, fill)
    return run


def promote(runs: Runs, run: str, when: str = "t", why: str = "w", accepted: tuple[str, ...] = ()) -> None:
    runs.promote("demo", run, when=when, why=why, who="tester", accepted=accepted)


def offer(runs: Runs, run: str, incumbent: str | None = None) -> str:
    """Offer a run that the gate has compared with the champion of now, or with `incumbent`."""
    against = (runs.champion("demo") or "") if incumbent is None else incumbent
    record = runs.record(run).model_copy(update={"incumbent": against})
    replace_file(runs.folder(run) / "run.json", record.to_json())
    return runs.offer("demo", run, "t")


def test_a_run_is_published_once(runs: Runs, built: Built) -> None:
    run = publish(runs, built, "a1")
    assert run == "demo-a10000000000"

    def again(folder: Path) -> None:
        raise AssertionError("filled again")

    runs.publish(run, again)
    assert runs.ids() == [run]


def test_runs_are_listed_by_age(runs: Runs, built: Built) -> None:
    late, early = publish(runs, built, "a", "2031-01-01"), publish(runs, built, "b", "2030-01-01")
    assert runs.ids() == [early, late]


def test_a_record_reads_as_it_was_written(runs: Runs, built: Built) -> None:
    diverged = built.published.record.model_copy(
        update={"bits_per_byte": built.published.record.bits_per_byte.model_copy(update={"model": math.inf})}
    )
    run = runs.run_id("demo", "c" * 64)
    runs.publish(run, lambda folder: replace_file(folder / "run.json", diverged.to_json()))
    assert runs.record(run) == diverged
    assert built.runs.record(built.published.run) == built.published.record


def test_promotion_keeps_its_history(runs: Runs, built: Built) -> None:
    first, second = publish(runs, built, "a"), publish(runs, built, "b")
    assert runs.champion("demo") is None
    promote(runs, first, "t1", "passed")
    promote(runs, second, "t2", "passed")
    promote(runs, second, "t3", "again")
    promote(runs, first, "t4", "by hand")
    assert runs.champion("demo") == first
    assert [line.why for line in runs.promotions("demo")] == ["passed", "passed", "by hand"]
    assert [run for run, _ in runs.champions("demo")] == [first, second, first]


@pytest.mark.parametrize("run", ["", "none", "..", "../x", "a/b", "/etc"])
def test_a_missing_run_is_named(runs: Runs, run: str) -> None:
    with pytest.raises(StoreError, match="qalam runs"):
        promote(runs, run)


# -- decisions about models -------------------------------------------------------------------------


def test_the_digest_of_a_model_is_of_its_weights_configuration_and_vocabulary(built: Built, tmp_path: Path) -> None:
    """Neither a card with other figures nor the code of another release makes it another model."""
    package = tmp_path / "model"
    shutil.copytree(built.published.folder / "model", package)
    before = model_digest(package)
    assert before == built.runs.model(built.published.run)
    replace_card(package, "# another card")
    assert model_digest(package) == before
    original = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    for part, name, same in (
        ("files", "loader.py", True), ("files", "config.py", False), ("files", "vocab.py", False),
        ("tensors", "embedding.weight", False),
    ):  # fmt: skip
        changed = {**original, part: {**original[part], name: "0" * 64}}
        (package / "manifest.json").write_text(json.dumps(changed), encoding="utf-8")
        assert (model_digest(package) == before) == same, name
    for content in ("{", "[]", '{"files": 1, "tensors": {}}', '{"tensors": {}, "files": {"config.py": "a"}}'):
        (package / "manifest.json").write_text(content, encoding="utf-8")
        with pytest.raises(StoreError, match="missing or damaged") as caught:
            model_digest(package)
        assert "\n" not in str(caught.value)


def test_a_model_that_was_rolled_back_does_not_return_by_itself(runs: Runs, built: Built) -> None:
    """Nor under another run id, nor after other champions, until a person promotes it."""
    first, bad = publish(runs, built, "a"), publish(runs, built, "b", model="bad")
    assert [offer(runs, run) for run in (first, bad)] == ["", ""]
    assert runs.rollback("demo", "2030-02-03T04:05", "wrong dates", "amal") == first
    another = publish(runs, built, "c", model="bad")
    reason = "rolled back on 2030-02-03 by amal: wrong dates"
    for champion in (first, publish(runs, built, "d"), publish(runs, built, "e")):
        assert offer(runs, champion) == ""
        for run in (bad, another):
            assert offer(runs, run) == reason
        assert runs.champion("demo") == champion
        assert bad not in [run for run, _ in runs.champions("demo")]
    assert runs.exceptions(another) == {"rolled-back": f"it was {reason}"}
    promote(runs, another, accepted=("rolled-back",))
    assert runs.exceptions(bad) == {}
    newer = publish(runs, built, "f")
    assert offer(runs, newer) == ""
    assert "it was champion before" in offer(runs, bad)


def test_a_model_that_was_compared_with_another_champion_is_not_promoted(runs: Runs, built: Built) -> None:
    """Of two builds at once the second one would be champion by a comparison with the champion before the first."""
    first, second, third = (publish(runs, built, key) for key in "abc")
    assert offer(runs, first, "") == ""
    assert offer(runs, second, "").startswith(f"it was compared with no champion, and {first} is champion now")
    assert offer(runs, second, first) == ""
    assert offer(runs, third, first).startswith(f"it was compared with {first}, and {second} is champion now")
    assert runs.rollback("demo", "t", "w", "amal") == first
    assert offer(runs, third, second).startswith(f"it was compared with {second}, and {first} is champion now")
    assert runs.champion("demo") == first
    assert offer(runs, third, first) == ""
    # another run of the champion's model, with other figures of its card, takes its place
    assert offer(runs, same := publish(runs, built, "d", model="c"), second) == ""
    assert runs.champion("demo") == same


def test_a_rollback_returns_to_another_model(runs: Runs, built: Built) -> None:
    first, second, same = publish(runs, built, "a"), publish(runs, built, "b"), publish(runs, built, "c", model="b")
    for run in (first, second, same):
        assert offer(runs, run) == ""
    assert runs.champion("demo") == same
    assert offer(runs, second) == "", "the model is champion already"
    assert runs.champion("demo") == same, "and an earlier run of it does not take its place"
    assert runs.rollback_target("demo") == first
    assert runs.rollback("demo", "t", "w", "amal") == first
    assert runs.promotions("demo")[-1].undone == runs.model(second)
    assert runs.rollback_target("demo") is None
    with pytest.raises(StoreError, match="nothing came before it"):
        runs.rollback("demo", "t", "w", "amal")


def test_a_rollback_does_not_return_to_a_model_that_was_rolled_back(runs: Runs, built: Built) -> None:
    """Though an earlier run of it is still in the history."""
    bad, good, again = (
        publish(runs, built, "a", model="bad"),
        publish(runs, built, "b"),
        publish(runs, built, "c", model="bad"),
    )
    for run in (bad, good, again):
        promote(runs, run)
    assert runs.rollback("demo", "t", "w", "amal") == good
    assert runs.rollback_target("demo") is None
    assert [run for run, _ in runs.champions("demo")] == [good]


@settings(max_examples=examples(25), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["offer", "promote", "rollback"]), st.integers(0, 5)), max_size=15))
def test_what_was_undone_holds_after_any_history(
    built: Built, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    """Six runs of three models: what is offered is champion only if no rollback from its model is in force."""
    runs = Runs(Store(tmp_path_factory.mktemp("history")))
    ids = [publish(runs, built, key, model="xyz"[place % 3]) for place, key in enumerate("abcdef")]
    models = {run: runs.model(run) for run in ids}
    undone: set[str] = set()
    been: set[str] = set()
    for action, place in steps:
        run, champion = ids[place], runs.champion("demo")
        current = models[champion] if champion else ""
        if action == "promote":
            promote(runs, run)
            undone.discard(models[run])
        elif action == "offer":
            held = offer(runs, run)
            assert bool(held) == (models[run] in undone or models[run] in been - {current})
            assert models[str(runs.champion("demo"))] == (current if held else models[run])
        elif (target := runs.rollback_target("demo")) is not None:
            assert runs.rollback("demo", "t", "w", "amal") == target
            assert models[target] not in {*undone, current}
            undone.add(current)
        found = runs.champion("demo")
        if found:
            been.add(models[found])
            in_force = [run for run, _ in runs.champions("demo")]
            assert in_force[0] == found
            assert not {models[run] for run in in_force} & undone


@pytest.mark.parametrize(
    ("failed", "needed"),
    [
        ((), {}),
        (("yardstick",), {"new-yardstick": "it failed: yardstick"}),
        (("gate settings",), {"looser-gate": "it failed: gate settings"}),
        (
            ("unigram", "yardstick", "champion"),
            {"refused": "it failed: unigram, champion", "new-yardstick": "it failed: yardstick"},
        ),
    ],
)
def test_failed_checks_need_exceptions(
    failed: tuple[str, ...], needed: dict[str, str], runs: Runs, built: Built
) -> None:
    verdict = judged(*failed)
    assert runs.exceptions(publish(runs, built, "a", verdict=verdict)) == needed


def test_a_refusal_without_a_check_is_a_refusal() -> None:
    assert exceptions(Verdict(passed=False, checks=())) == {"refused": ()}


def test_accepted_exceptions_are_of_the_model(runs: Runs, built: Built) -> None:
    """A later run of it, which passed, does not hide them; nor does a later promotion without one."""
    refused = publish(runs, built, "a", model="m", verdict=judged("unigram"))
    assert runs.accepted(refused) == ("the gate did not pass it, and nobody promoted it",)
    promote(runs, refused, why="better on poetry", accepted=("refused",))
    other, passed = publish(runs, built, "b"), publish(runs, built, "c", model="m")
    promote(runs, other)
    promote(runs, passed)
    assert runs.accepted(passed) == runs.accepted(refused) == ("refused: better on poetry",)
    assert runs.accepted(other) == ()


def test_what_others_delete_meanwhile_is_no_error(tmp_path: Path) -> None:
    store, ended = Store(tmp_path), threading.Event()
    (tmp_path / "artifacts" / "train").mkdir(parents=True)
    keys = [sha256_bytes(bytes([number])) for number in range(4)]

    def make() -> None:
        while not ended.is_set():
            for key in keys:
                made = tmp_path / "made" / str(time.monotonic_ns())
                (made / "deep").mkdir(parents=True)
                (made / "deep" / "file").write_bytes(b"1")
                with suppress(OSError):
                    made.rename(tmp_path / "artifacts" / "train" / key)

    def delete() -> None:
        while not ended.is_set():
            for key in keys:
                delete_folder(tmp_path / "artifacts" / "train" / key)

    def look() -> int:
        until, looked = time.monotonic() + 0.5, 0
        while time.monotonic() < until:
            for name in store.artifacts():
                assert store.size(f"artifacts/{name}") in (0, 1)
                store.delete_artifact(name, time.time() + 1)
                looked += 1
        return looked

    with ThreadPoolExecutor(5) as pool:
        working = [pool.submit(make), pool.submit(delete), pool.submit(delete)]
        found = [pool.submit(look), pool.submit(look)]
        try:
            assert sum(each.result() for each in found)
        finally:
            ended.set()
        for each in working:
            each.result()
