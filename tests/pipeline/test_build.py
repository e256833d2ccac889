"""The whole pipeline in one process, without Prefect: reuse, reproducibility, kill -9, damage, full disks."""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qalam_core.errors import DamagedError, PackageError, QalamError, StoreError
from qalam_core.evaluation import integrity
from qalam_core.files import sha256_file
from qalam_core.package import read, verify
from qalam_core.pipeline import build as module
from qalam_core.pipeline import train as train_stage
from qalam_core.pipeline.build import build
from qalam_core.pipeline.publish import Published
from qalam_core.pipeline.stage import Stage
from qalam_core.recipe import Recipe
from qalam_core.runs import Runs
from qalam_core.store import Artifact, Store
from qalam_core.training.process import follow
from tests.conftest import COLD, Built, sentences, tiny_recipe
from tests.forks import Fork, execute

STAGES = tuple(stage.name for stage in COLD)


def promote(runs: Runs, run: str) -> None:
    runs.promote("tiny", run, when="2030-01-01T00:00:00+00:00", why="by hand", who="tester")


def fresh(published: Published) -> list[str]:
    """Stages that had to be built."""
    return [artifact.stage for artifact in published.artifacts if not artifact.cached]


def of(published: Published, stage: str) -> Artifact:
    return next(artifact for artifact in published.artifacts if artifact.stage == stage)


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def assert_same_result(published: Published, reference: Published) -> None:
    """The same run, weights, package and tokenizer, byte for byte."""
    assert published.run == reference.run
    assert [a.digest for a in published.artifacts] == [a.digest for a in reference.artifacts]
    for stage, files in (("prepare", "*.arrow"), ("tokenize", "*.arrow"), ("train", "*.safetensors")):
        ours, theirs = of(published, stage).path, of(reference, stage).path
        names = sorted(path.name for path in theirs.glob(files))
        assert names
        assert {name: sha256_file(ours / name) for name in names} == {
            name: sha256_file(theirs / name) for name in names
        }
    assert contents(published.folder / "model") == contents(reference.folder / "model")
    for name in ("tokenizer.json", "report.json"):
        assert sha256_file(published.folder / name) == sha256_file(reference.folder / name)


def assert_tidy(store: Store) -> None:
    assert not [path for path in store.root.rglob("*partial*") if "prefect" not in path.parts]


# Runs a build in a separate process, and kills it at a point that the test names. A stage is killed after its files
# are written, each truncated to half.
DRIVER = """
import json, os, signal, sys
from pathlib import Path
from qalam_core import store as stores
from qalam_core.pipeline import train
from qalam_core.pipeline.build import STAGES, build
from qalam_core.recipe import Recipe
from qalam_core.runs import Runs
from qalam_core.store import Store
from qalam_core.training import process

recipe, root, where = Recipe.model_validate_json(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def kill():
    os.killpg(os.getpgrp(), signal.SIGKILL)

def halve(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)

def cut(fill):
    def filled(folder):
        fill(folder)
        halve(folder)
        kill()
    return filled

def at_step(number, act):
    follow, Popen = train.follow, process.subprocess.Popen
    started = []

    def start(*arguments, **options):
        started.append(Popen(*arguments, **options))
        return started[-1]

    def watched(spec, steps, progress):
        follow(spec, steps, lambda done, total, _="": act(started[-1]) if done >= number else None)

    process.subprocess.Popen, train.follow = start, watched

def orphan(trainer):
    os.kill(trainer.pid, signal.SIGSTOP)
    print(trainer.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

if where.startswith("train"):
    at_step(int(where.partition(" at ")[2] or 30), lambda trainer: kill())
elif where == "parent":
    at_step(0, orphan)
elif where == "publish":
    publish = Runs.publish
    Runs.publish = lambda self, run, fill: publish(self, run, cut(fill))
elif where == "promote":
    Runs.offer = lambda *arguments: kill()
elif where == "manifest":
    finish = stores._finish
    def late(folder, identity, facts, record):
        if identity.stage == "vocab":
            (folder / "manifest.json").write_text("{")
            kill()
        return finish(folder, identity, facts, record)
    stores._finish = late
elif where:
    kind = next(kind for kind in STAGES if kind.name == where)
    run = kind.run
    def killed(self, out, progress):
        run(self, out, progress)
        halve(out)
        kill()
    kind.run = killed

published = build(recipe, Store(root))
print(json.dumps({"run": published.run, "cached": [a.stage for a in published.artifacts if a.cached]}))
"""


def start(recipe: Recipe, store: Store, where: str = "", own_group: bool = True) -> Fork:
    arguments = recipe.model_dump_json(), str(store.root), where
    return Fork(functools.partial(execute, own_group=own_group), DRIVER, *arguments)


# -- one build ------------------------------------------------------------------------------------


def test_a_build_gives_a_run(built: Built) -> None:
    published = built.published
    assert published.verdict.passed, published.verdict.reasons()
    assert published.champion
    assert built.runs.champion("tiny") == published.run
    assert built.runs.ids() == [published.run]
    assert {path.name for path in published.folder.iterdir()} == {
        "run.json", "tokenizer.json", "model", "report.md", "report.html", "report.json",
    }  # fmt: skip
    assert verify(published.folder / "model") == []
    assert len(read(published.folder / "model").vocabulary.words) == 320
    record = built.runs.record(published.run)
    assert tuple(record.artifacts) == STAGES
    assert record.verdict.passed
    assert record.recipe == built.recipe
    assert tuple(record.timings) == STAGES
    assert [artifact.stage for artifact in published.artifacts] == [
        "ingest", "filter", "match", "prepare", "vocab", "tokenize", "tokenize", "train", "fingerprint", "seen",
        "export", "evaluate", "gate",
    ]  # fmt: skip
    assert_tidy(built.store)


def test_the_same_recipe_again_builds_nothing(mine: Built) -> None:
    again = build(mine.recipe, mine.store)
    assert again.cached
    assert again.champion
    assert_same_result(again, mine.published)
    assert len(mine.runs.promotions("tiny")) == 1


def test_monitoring_settings_rebuild_nothing(mine: Built) -> None:
    train = {**mine.recipe.train.canonical(), "log_every": 7, "validate_every": 11, "checkpoint_every": 13}
    again = build(Recipe.parse({**mine.recipe.canonical(), "train": train}), mine.store)
    assert fresh(again) == []
    assert again.run == mine.published.run


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("gate", "max_package_mb", 1999.0, ["gate"]),
        ("gate", "tolerance", 0.03, ["gate"]),
        ("gate", "prompts", ["كان"], ["evaluate", "gate"]),
        ("package", "dtype", "f16", ["export", "evaluate", "gate"]),
    ],
)
def test_an_edit_rebuilds_what_reads_it(mine: Built, section: str, key: str, value: Any, expected: list[str]) -> None:
    recipe = mine.recipe.canonical()
    recipe[section] = {**recipe[section], key: value}
    again = build(Recipe.parse(recipe), mine.store)
    assert fresh(again) == expected
    assert again.run != mine.published.run
    assert again.verdict.passed, again.verdict.reasons()


def other_text(split: str) -> str:
    """A document that the digest of its text sends to `split` (test 0.1, validation 0.1)."""
    borders = {"test": (0.0, 0.1), "validation": (0.1, 0.2), "train": (0.2, 1.0)}[split]
    for text in sentences(400, seed=99):
        place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        if borders[0] <= place < borders[1]:
            return text
    raise AssertionError(split)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        # what is not affected keeps its artifact: the other file, the other split's shard; a vocabulary is measured on
        # the validation split
        ("test", ["ingest", "filter", "match", "prepare"]),
        ("validation", ["ingest", "filter", "match", "prepare", "vocab", "tokenize"]),
        ("train", ["ingest", "filter", "match", "prepare", "vocab", "tokenize", "tokenize"]),
    ],
)
def test_one_more_file_rebuilds_what_it_affects(
    mine: Built, split: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "more.txt").write_text(other_text(split) + "\n", encoding="utf-8")
    recipe = mine.recipe.canonical()
    recipe["corpus"]["sources"] += [{"path": str(tmp_path / "more.txt")}]
    seen = build_through("tokenize", Recipe.parse(recipe), mine.store, monkeypatch)
    assert [artifact.stage for artifact in seen if not artifact.cached] == expected
    assert seen[0] == mine.published.artifacts[0]
    assert (seen[0].cached, seen[1].cached) == (True, False)


class EnoughError(Exception):
    """Ends a build after the stage that a test is about."""


def build_through(last: str, recipe: Recipe, store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Artifact]:
    """Build up to the stage `last`, and no further."""
    seen: list[Artifact] = []
    run = Store.build

    def until(self: Store, stage: Stage, *arguments: Any) -> Artifact:
        if STAGES.index(stage.name) > STAGES.index(last):
            raise EnoughError
        seen.append(run(self, stage, *arguments))
        return seen[-1]

    def publish(*_: object) -> None:
        raise EnoughError

    with monkeypatch.context() as patch:
        patch.setattr(Store, "build", until)
        patch.setattr(module, "publish", publish)
        with pytest.raises(EnoughError):
            build(recipe, store)
    return seen


# -- the same bits --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def raced(built: Built, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Published]:
    """The output of two processes that built the recipe at once in an empty store; and the run."""
    folder = tmp_path_factory.mktemp("raced")
    corpus = shutil.copy(built.recipe.corpus.sources[0].path, folder / "stories.jsonl")
    recipe, store = tiny_recipe(Path(corpus)), Store(folder / "store")
    said = []
    both = [start(recipe, store) for _ in range(2)]
    for process in both:
        with process:
            out, errors = process.communicate()
        assert process.returncode == 0, errors
        said.append(json.loads(out))
    return said, build(recipe, store)


def test_concurrent_builds_build_each_artifact_once(
    raced: tuple[list[dict[str, Any]], Published], built: Built
) -> None:
    (one, other), published = raced
    assert one["run"] == other["run"] == built.published.run
    # each artifact was built by one of them and found by the other
    assert sorted(one["cached"] + other["cached"]) == sorted(a.stage for a in built.published.artifacts)
    store = Store(published.folder.parents[1])
    assert Runs(store).ids() == [published.run]
    assert len(Runs(store).promotions("tiny")) == 1
    assert_tidy(store)


def test_two_empty_stores_give_the_same_bytes(raced: tuple[list[dict[str, Any]], Published], built: Built) -> None:
    _, published = raced
    assert published.folder != built.published.folder
    assert_same_result(published, built.published)


# -- kill -9 --------------------------------------------------------------------------------------


def test_a_build_killed_in_every_stage_ends_with_the_same_result(built: Built, tmp_path: Path) -> None:
    """In one store, each stage in turn is killed with kill -9 when its files are half written."""
    store = Store(tmp_path / "store")
    for stage in (*STAGES, "publish", "promote"):
        for where in (stage, "manifest") if stage == "vocab" else (stage,):
            with start(built.recipe, store, where) as process:
                _, errors = process.communicate()
            assert process.returncode == -signal.SIGKILL, f"{where}: {errors}"
        if stage in STAGES:
            home = store.root / "artifacts" / stage
            halves = [path.name for path in home.iterdir()]
            assert halves, stage
            assert all(name.endswith(".partial") for name in halves), f"{stage}: {halves}"
        if stage == "train":
            assert [*home.glob("*.partial/checkpoint-*")], "killed before the first checkpoint"
        assert Runs(store).champion("tiny") is None, stage
        # the run is complete or absent
        assert Runs(store).ids() == ([built.published.run] if stage == "promote" else [])
    published = build(built.recipe, store)
    assert published.champion
    assert published.cached
    assert_same_result(published, built.published)
    assert verify(published.folder / "model") == []
    assert_tidy(store)


def test_an_orphaned_trainer_saves_and_exits_and_the_next_build_continues(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After kill -9 of the parent alone, a second build waits until the trainer exits, and continues its work."""
    # the only checkpoint is the one written on the request to stop
    train = {**built.recipe.train.canonical(), "checkpoint_every": 1000}
    recipe, store = Recipe.parse({**built.recipe.canonical(), "train": train}), Store(tmp_path / "store")
    for stage in STAGES[: STAGES.index("train")]:
        shutil.copytree(built.store.root / "artifacts" / stage, store.root / "artifacts" / stage)
    # in this process group: the kernel sends SIGHUP to a stopped orphan in a group of its own
    with start(recipe, store, "parent", own_group=False) as process:
        assert process.stdout
        orphan = int(process.stdout.readline())
        assert process.wait() == -signal.SIGKILL
    found: list[int] = []

    def noted(spec: Path, *arguments: Any) -> None:
        assert not _alive(orphan), "two processes at once would work on one artifact"
        found.extend(int(path.stem.rpartition("-")[2]) for path in spec.parent.glob("checkpoint-*"))
        follow(spec, *arguments)

    monkeypatch.setattr(train_stage, "follow", noted)
    monkeypatch.setenv("QALAM_PROGRESS_SECONDS", "0.1")  # a shorter wait is not reported
    caplog.set_level(logging.INFO, "qalam_core")
    woken = threading.Timer(0.5, os.kill, (orphan, signal.SIGCONT))
    since = time.monotonic()
    woken.start()
    try:
        trained = build_through("train", recipe, store, monkeypatch)[-1]
    finally:
        woken.join()
    assert "waiting for another build" in caplog.text
    assert len(found) == 1, "the orphan left no checkpoint, or was not waited for"
    assert 0 < found[0] < recipe.train.steps, "it did not stop by itself"
    assert time.monotonic() - since < 60
    reference = of(built.published, "train")
    assert trained.digest == reference.digest
    assert sha256_file(trained.path / "model.safetensors") == sha256_file(reference.path / "model.safetensors")


def _alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")  # a zombie that was not reaped yet does no work
    try:
        return status.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


# -- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_flipped_byte_is_noticed_and_rebuilt(mine: Built, stage: str) -> None:
    artifact = of(mine.published, stage)
    victim = max((path for path in artifact.path.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    damaged = bytearray(victim.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    victim.write_bytes(damaged)
    again = build(mine.recipe, mine.store)
    assert [a for a in again.artifacts if not a.cached] == [artifact]
    aside = [path for path in artifact.path.parent.iterdir() if ".damaged-" in path.name]
    assert len(aside) == 1
    assert (aside[0] / victim.relative_to(artifact.path)).read_bytes() == bytes(damaged)
    assert_same_result(again, mine.published)
    assert build(mine.recipe, mine.store).cached


def test_an_evaluation_killed_for_memory_is_not_kept(mine: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing about the package."""
    shutil.rmtree(of(mine.published, "evaluate").path)

    def killed(command: list[str], **options: Any) -> Any:
        return subprocess.CompletedProcess(command, -signal.SIGKILL, b"", b"")

    with monkeypatch.context() as patch:
        patch.setattr(integrity, "subprocess", SimpleNamespace(run=killed))
        assert "was killed" in one_line(lambda: build(mine.recipe, mine.store), PackageError)
    again = build(mine.recipe, mine.store)
    assert fresh(again) == ["evaluate"]
    assert_same_result(again, mine.published)


# -- disks ----------------------------------------------------------------------------------------


class Disk:
    """A small file system."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def options(self, text: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{text}", str(self.path)], check=True)

    def room(self, size: int) -> None:
        """Leave `size` bytes free, down to the page."""
        gc.collect()  # a failed build's files may still be open: deleted, but on the disk
        used = shutil.disk_usage(self.path).used
        self.options(f"size={max(4096, used + size // 4096 * 4096)}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)  # memory-mapped shards may still be open


def one_line(what: Callable[[], object], kind: type[QalamError]) -> str:
    with pytest.raises(kind) as caught:
        what()
    assert type(caught.value) is kind
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert "Traceback" not in text
    return text


def test_a_full_disk_in_any_stage_is_a_one_line_error_and_loses_no_artifact(
    disk: Disk, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for half of what a stage writes, the build fails with a one-line message; with more it continues."""
    store = Store(disk.path / "store")
    finished: dict[Path, int] = {}
    for stage in STAGES:
        artifact = of(built.published, stage)
        disk.room(sum(path.stat().st_size for path in artifact.path.rglob("*") if path.is_file()) // 2)
        message = one_line(lambda: build(built.recipe, store), StoreError)
        assert f"stage {stage}" in message
        assert "no space left" in message
        partial = [*(store.root / "artifacts").glob("*/*.partial")]
        assert not partial or stage == "train", "a partial artifact takes up the missing room"
        disk.options("size=64m")
        build_through(stage, built.recipe, store, monkeypatch)
        now = {path: path.stat().st_ino for path in store.root.glob("artifacts/*/*/manifest.json")}
        assert finished.items() <= now.items(), "something was built twice"
        assert {path.parents[1].name for path in now} == set(STAGES[: STAGES.index(stage) + 1])
        finished = now
    disk.room(100_000)
    message = one_line(lambda: build(built.recipe, store), StoreError)
    assert "no space left" in message
    assert Runs(store).ids() == []
    disk.options("size=64m")
    published = build(built.recipe, store)
    assert published.cached
    assert published.champion
    assert_same_result(published, built.published)
    assert_tidy(store)


def test_a_read_only_disk_is_a_one_line_error(disk: Disk, built: Built) -> None:
    disk.options("size=64m")
    shutil.copytree(built.store.root, disk.path / "store")
    store = Store(disk.path / "store")
    disk.options("ro")
    other = tiny_recipe(Path(built.recipe.corpus.sources[0].path), tokenizer={"vocab_size": 300})
    for recipe in (built.recipe, other):
        message = one_line(lambda recipe=recipe: build(recipe, store), StoreError)  # type: ignore[misc]
        assert "read-only" in message
        assert "--store" in message
    one_line(store.ensure_writable, StoreError)
    assert Runs(store).champion("tiny") == built.published.run  # it can still be read
    disk.options("rw")
    assert build(built.recipe, store).cached


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_a_one_line_error(mine: Built) -> None:
    locks = mine.store.root / "locks"
    shutil.rmtree(locks)
    mine.store.root.chmod(0o555)
    try:
        assert "no permission" in one_line(lambda: build(mine.recipe, mine.store), StoreError)
    finally:
        mine.store.root.chmod(0o755)
    assert build(mine.recipe, mine.store).cached


# -- the gate -------------------------------------------------------------------------------------


def test_a_refused_model_is_a_result_and_the_champion_stays(mine: Built) -> None:
    recipe = tiny_recipe(Path(mine.recipe.corpus.sources[0].path), gate={"beat_unigram": 0.99})
    refused = build(recipe, mine.store)
    assert not refused.verdict.passed
    assert len(refused.verdict.reasons()) == 1
    assert "unigram" in refused.verdict.reasons()[0]
    assert not refused.champion
    assert mine.runs.champion("tiny") == mine.published.run
    assert sorted(mine.runs.ids()) == sorted([mine.published.run, refused.run])
    assert not mine.runs.record(refused.run).verdict.passed
    assert verify(refused.folder / "model") == []
    again = build(recipe, mine.store)
    assert again.cached
    assert not again.verdict.passed


def test_without_a_champion_a_refused_model_makes_none(mine: Built) -> None:
    (mine.store.root / "champions" / "tiny.jsonl").unlink()
    recipe = tiny_recipe(Path(mine.recipe.corpus.sources[0].path), gate={"beat_unigram": 0.99})
    assert not build(recipe, mine.store).champion
    assert mine.runs.champion("tiny") is None


def test_the_published_package_is_the_exported_one_but_for_its_card(built: Built) -> None:
    exported, shipped = of(built.published, "export").path / "model", built.published.folder / "model"
    assert verify(shipped) == []
    ours, theirs = contents(exported), contents(shipped)
    assert {name for name in ours if ours[name] != theirs[name]} == {"MODEL_CARD.md", "manifest.json"}
    assert ours.keys() == theirs.keys()
    bits = f"{built.published.record.bits_per_byte.model:.4f} ("
    assert bits in (shipped / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_an_identical_model_is_no_new_champion(mine: Built) -> None:
    """Two deployments with other gates, or other wishes for the initial weights, build it on the same text."""
    corpus, first = Path(mine.recipe.corpus.sources[0].path), mine.published.run
    history = mine.runs.promotions("tiny")
    for recipe in (
        tiny_recipe(corpus, gate={"tolerance": 0.03}),
        tiny_recipe(corpus, gate={"tolerance": 0.03}, train={"start": "champion"}),
    ):
        same = build(recipe, mine.store)
        assert same.run != first
        assert set(fresh(same)) <= {"gate"}
        assert (same.champion, same.promoted, same.held) == (False, False, "")
        assert same.decision == f"passed: the same model as {first}, which is the champion"
        assert mine.runs.repeated("tiny")[same.run] == first
    assert mine.runs.promotions("tiny") == history
    other_card = build(described(mine.recipe), mine.store)
    assert other_card.promoted
    assert mine.runs.model(other_card.run) == mine.runs.model(first)


def described(recipe: Recipe) -> Recipe:
    """The same model, whose card says more."""
    sources = [source.model_copy(update={"licence": "CC0-1.0"}) for source in recipe.corpus.sources]
    return recipe.model_copy(update={"corpus": recipe.corpus.model_copy(update={"sources": tuple(sources)})})


def test_a_rollback_holds(mine: Built) -> None:
    newer = described(mine.recipe)
    second = build(newer, mine.store)
    assert second.champion
    promote(mine.runs, mine.published.run)
    again = build(newer, mine.store)
    assert again.cached
    assert again.run == second.run
    assert not again.champion
    assert mine.runs.champion("tiny") == mine.published.run
    assert [line.run for line in mine.runs.promotions("tiny")] == [
        mine.published.run, second.run, mine.published.run,
    ]  # fmt: skip


def test_a_worse_model_is_refused_against_the_champion(mine: Built) -> None:
    worse = tiny_recipe(Path(mine.recipe.corpus.sources[0].path), train={"steps": 1}, gate={"tolerance": 0.01})
    refused = build(worse, mine.store)
    assert not refused.verdict.passed
    champion = next(check for check in refused.verdict.checks if check.name == "champion")
    assert not champion.passed
    assert re.search(r"the champion \d+\.\d+ on the same", champion.message)
    assert mine.runs.champion("tiny") == mine.published.run
    # the champion, built again, still finds the verdict that made it champion
    again = build(mine.recipe, mine.store)
    assert again.cached
    assert again.champion
    # against the worse model, made champion by hand, the better one passes, and does not return by itself
    promote(mine.runs, refused.run)
    better = build(tiny_recipe(Path(mine.recipe.corpus.sources[0].path), gate={"tolerance": 0.0}), mine.store)
    assert fresh(better) == ["gate"]
    assert next(check for check in better.verdict.checks if check.name == "champion").limit is not None
    assert better.verdict.passed
    assert not better.champion
    assert better.held.startswith("it was champion before, promoted on ")


def test_a_deleted_old_run_does_not_prevent_a_build(mine: Built) -> None:
    other = described(mine.recipe)
    second = build(other, mine.store)
    assert second.champion
    shutil.rmtree(mine.published.folder)
    assert build(other, mine.store).verdict.passed
    # but the current champion is needed, and the message names its run
    current = mine.runs.champion("tiny")
    assert current
    (mine.runs.folder(current) / "report.json").write_text("?")
    assert "champion" in one_line(lambda: build(mine.recipe, mine.store), DamagedError)
    shutil.rmtree(mine.runs.folder(current))
    assert current in one_line(lambda: build(mine.recipe, mine.store), DamagedError)
