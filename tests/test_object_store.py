"""Stores on object storage: several machines that share nothing else, and what breaks."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest

from qalam_core import digests, object_store
from qalam_core import objects as objects_module
from qalam_core.corpus.prepare import HELD_OUT
from qalam_core.corpus.sources import resolve
from qalam_core.errors import DamagedError, StoreError
from qalam_core.files import files_below, read_bytes, replace_file, sha256_bytes, sha256_file
from qalam_core.object_store import ObjectStore, store_at
from qalam_core.objects import Objects
from qalam_core.package.editing.rows import scale_row
from qalam_core.package.editing.seal import seal
from qalam_core.pipeline.audit import reproduce
from qalam_core.pipeline.build import History, InPlace, Reuse, build, propose, stages_in_order
from qalam_core.pipeline.collect import collect
from qalam_core.pipeline.ingest import Ingest
from qalam_core.pipeline.match import Match
from qalam_core.pipeline.plan import plan
from qalam_core.pipeline.prepare import Prepare
from qalam_core.pipeline.propose import candidate
from qalam_core.pipeline.publish import Published
from qalam_core.pipeline.seen import Seen
from qalam_core.pipeline.stage import Stage
from qalam_core.pipeline.tokenize import Tokenize, TokenizeFacts
from qalam_core.pipeline.train import Train
from qalam_core.progress import Progress
from qalam_core.recipe import Recipe
from qalam_core.runs import Runs, TrainFacts
from qalam_core.store import Artifact, ArtifactFile, Store
from qalam_core.training.spec import CHECKPOINTS, METRICS, STATE, WEIGHTS
from tests.conftest import Built, tiny_recipe
from tests.object_storage import SECRET, Faulty, Server, on, s3_server


@pytest.fixture(scope="module")
def server(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


class Machines:
    """Changes which machine this process is, and gives its view of one store."""

    def __init__(self, server: Server, folder: Path, patch: pytest.MonkeyPatch, built: Built) -> None:
        self.server, self.folder, self.patch, self.built = server, folder, patch, built
        self.url = f"s3://bucket/{secrets.token_hex(4)}/prefix"
        self.objects = self.be("one")._objects
        self.objects.write("made", b"")  # this server makes a bucket with its first object

    def be(self, name: str) -> ObjectStore:
        on(self.patch, self.folder / name, self.server.port)
        return ObjectStore(self.url)

    def share(self) -> Published:
        """Build the tiny recipe on the first machine, of artifacts that are there already, which saves seconds."""
        one = self.be("one")
        shutil.copytree(self.built.store.root / "artifacts", one.root / "artifacts", dirs_exist_ok=True)
        return build(self.built.recipe, one)


@pytest.fixture
def machines(server: Server, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    return Machines(server, tmp_path, monkeypatch, built)


def content(folder: Path) -> dict[str, bytes]:
    return {name: read_bytes(folder / name) for name in files_below(folder)}


def states(published: Published) -> set[bool]:
    return {artifact.cached for artifact in published.artifacts}


# -- objects ----------------------------------------------------------------------------------------


def test_conditional_writes(machines: Machines) -> None:
    objects = machines.objects
    assert objects.create("x/y", b"1")
    assert objects.create("x/y", b"1"), "written by a request whose answer was lost"
    assert not objects.create("x/y", b"2")
    content, version = objects.read("x/y")
    assert content == b"1"
    assert objects.replace("x/y", b"3", version)
    assert not objects.replace("x/y", b"4", version)
    assert not objects.replace("none", b"4", version)
    assert objects.read("x/y")[0] == b"3"
    assert (objects.meta("x/y").size, objects.exists("x"), objects.exists("x/yz")) == (1, False, False)
    objects.write("x/z/1", b"")
    objects.write("xx", b"")
    assert list(objects.below("x")) == ["x/y", "x/z/1"]
    assert objects.folders("x") == ["z"]
    objects.delete("x/y", "x/none")
    with pytest.raises(FileNotFoundError):
        objects.read("x/y")


def test_files_of_any_size(machines: Machines, tmp_path: Path) -> None:
    for size in (0, 1, (8 << 20) - 1, 20 << 20):
        data = secrets.token_bytes(size)
        (tmp_path / "file").write_bytes(data)
        machines.objects.upload("file", tmp_path / "file")
        machines.objects.download("file", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == data


# -- builds -----------------------------------------------------------------------------------------


def test_two_machines_share_a_store(machines: Machines, corpus_file: Path, store: Store) -> None:
    recipe = tiny_recipe(corpus_file)
    one = build(recipe, machines.be("one"))
    assert states(one) == {False}
    there = machines.be("two")
    assert Runs(there).champion("tiny") == one.run
    two = build(recipe, there)
    assert states(two) == {True}
    assert two.folder != one.folder
    assert content(two.folder) == content(one.folder)
    assert two.folder.is_relative_to(there.root)
    for artifact in two.artifacts:
        assert artifact.path.is_relative_to(there.root)
    local = build(recipe, store)
    assert [artifact.digest for artifact in local.artifacts] == [artifact.digest for artifact in one.artifacts]
    assert content(local.folder / "model") == content(two.folder / "model")
    assert list(Runs(there).summaries()) == [one.run]
    assert not machines.objects.below("leases")


def copies(store: Store) -> list[str]:
    return [name for name in files_below(store.root / "artifacts") if not name.endswith("/manifest.json")]


@pytest.mark.parametrize("start", ["scratch", "champion", "continue"])
def test_a_plan_on_a_new_machine_copies_no_artifact(machines: Machines, start: str, tmp_path: Path) -> None:
    """It is the plan of the one that built; also where training begins with the champion and keeps its tokenizer."""
    machines.share()
    values = machines.built.recipe.canonical()
    values["train"] |= {"start": start, "steps": 7}
    values["tokenizer"]["keep"] = "" if start == "scratch" else "champion"
    recipe, one, there = Recipe.parse(values), machines.be("one"), machines.be("two")
    machines.be("one")
    expected = [plan(each, one) for each in (machines.built.recipe, recipe)]
    assert (expected[0].complete, expected[1].complete) == (True, False)
    machines.be("two")
    assert [plan(each, there) for each in (machines.built.recipe, recipe)] == expected
    assert not (there.root / "artifacts").exists()
    assert all("model/" not in name for name in files_below(there.root) if not name.endswith("model/manifest.json"))


def test_a_plan_copies_what_it_reads(machines: Machines, tmp_path: Path) -> None:
    """Whether the champion has read a text that the recipe excludes."""
    published = machines.share()
    values = machines.built.recipe.canonical()
    values["train"]["start"] = "champion"
    values["corpus"]["exclude"] = str(tmp_path / "exclude.txt")
    (tmp_path / "exclude.txt").write_text("نص لم يقرأه أحد من قبل في أي كتاب\n", encoding="utf-8")
    recipe, there = Recipe.parse(values), machines.be("two")
    assert not plan(recipe, there).complete
    seen = published.record.artifacts["seen"][0]
    assert {Path(name).parts[:2] for name in copies(there)} == {("seen", seen)}


def test_a_plan_counts_what_no_machine_has_shared(machines: Machines) -> None:
    machines.share()
    one = machines.be("one")
    machines.objects.delete(*machines.objects.below("artifacts"))
    assert plan(machines.built.recipe, one).complete, "this one has it, and shares it when it builds"
    there = machines.be("two")
    assert not plan(machines.built.recipe, there).complete
    assert not machines.objects.below("artifacts")


def test_a_list_of_runs_does_not_fetch_their_packages(machines: Machines) -> None:
    one = machines.share()
    there = machines.be("two")
    runs = Runs(there)
    assert (list(runs.summaries()), runs.newest_of("tiny"), one.run in runs) == ([one.run], [one.run], True)
    assert runs.record(one.run).verdict.passed
    assert files_below(there.root / "runs") == []
    assert "../x" not in runs
    assert ".." not in runs
    with pytest.raises(StoreError, match=f"{machines.url}; `qalam runs` lists"):
        runs.folder("none")


def test_what_was_damaged_is_built_again_and_mended(machines: Machines) -> None:
    recipe = machines.built.recipe
    one = machines.share()
    (trained,) = (artifact for artifact in one.artifacts if artifact.stage == "vocab")
    (name,) = (name for name in machines.objects.below(f"artifacts/vocab/{trained.digest}") if "tokenizer.json" in name)
    machines.objects.write(name, b"damaged")
    two = build(recipe, machines.be("two"))
    assert [artifact.stage for artifact in two.artifacts if not artifact.cached] == ["vocab"]
    assert machines.objects.read(name)[0] == (trained.path / "tokenizer.json").read_bytes()
    assert states(build(recipe, machines.be("three"))) == {True}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": {}}', b"\xff"])
def test_a_manifest_that_was_damaged_is_replaced(machines: Machines, content: bytes) -> None:
    recipe = machines.built.recipe
    one = machines.share()
    (vocab,) = (artifact for artifact in one.artifacts if artifact.stage == "vocab")
    for machine in ("one", "two"):  # with a copy, and without
        machines.objects.write(f"artifacts/vocab/{vocab.digest}/manifest.json", content)
        found = build(recipe, machines.be(machine))
        assert found.run == one.run
        assert [artifact.stage for artifact in found.artifacts if not artifact.cached] == ["vocab"] * (machine == "two")
    assert states(build(recipe, machines.be("three"))) == {True}


@pytest.mark.parametrize(
    "name", ["../../../../escaped", "/tmp/qalam-escaped", "a/../../escaped", "..", "", "a//b", "."]
)
def test_no_name_in_the_store_leads_out_of_a_copy(machines: Machines, name: str, tmp_path: Path) -> None:
    """Who may write to the bucket must not write to the machines."""
    key, entry = "0" * 64, {"bytes": 1, "sha256": sha256_bytes(b"x")}
    manifest = {"stage": "vocab", "version": 1, "settings": {}, "inputs": {}, "facts": {}, "files": {name: entry}}
    for place, content in (
        (f"artifacts/vocab/{key}/manifest.json", json.dumps(manifest).encode()),
        ("runs/tiny-0/files.json", json.dumps({name: entry}).encode()),
    ):
        machines.objects.write(place, content)
        with contextlib.suppress(Exception):  # which names an object cannot have
            machines.objects.write(f"{place.rpartition('/')[0]}/{sha256_bytes(content)[:16]}/{name}", b"x")
    there = machines.be("two")
    before = set(files_below(tmp_path))
    with pytest.raises(StoreError, match="missing or damaged"):
        there.artifact("vocab", key)
    assert not there.run_file("tiny-0").exists()
    assert not there.run_file("tiny-0", name).is_file()
    assert {*files_below(tmp_path)} == before
    (there.root / "escaped").write_bytes(b"x")
    (there.root / "parts" / "artifacts" / "vocab" / key).mkdir(parents=True)
    with pytest.raises(DamagedError, match="missing or damaged"):
        there.here(ArtifactFile(Artifact("vocab", key, tmp_path), name, sha256_bytes(b"x")))
    (there.root / "escaped").unlink()
    assert {file for file in files_below(tmp_path) if "/locks/" not in file} == before
    assert not Path("/tmp/qalam-escaped").exists()


def test_what_is_read_at_once_has_a_limit(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    machines.objects.write("champions/x.jsonl", b"x" * 1001)
    monkeypatch.setattr(objects_module, "_READ_AT_ONCE", 1000)
    with pytest.raises(StoreError, match=r"champions/x\.jsonl: has more than 0 MB"):
        machines.be("one").history("x")


def test_an_object_of_another_size_is_not_fetched(machines: Machines, tmp_path: Path) -> None:
    machines.objects.write("large", b"x" * 1000)
    with pytest.raises(FileNotFoundError):
        machines.objects.download("large", tmp_path / "file", 10)
    assert (tmp_path / "file").stat().st_size == 0


def test_a_copy_that_was_damaged_is_replaced(machines: Machines) -> None:
    recipe = machines.built.recipe
    one = machines.share()
    (vocab,) = (artifact for artifact in one.artifacts if artifact.stage == "vocab")
    (vocab.path / "tokenizer.json").write_bytes(b"damaged")
    assert states(build(recipe, machines.be("one"))) == {True}
    assert (vocab.path / "tokenizer.json").read_bytes() != b"damaged"


def test_a_build_that_was_killed_before_it_shared(machines: Machines) -> None:
    """Its artifacts are on its machine alone; the next build there shares them."""
    recipe = machines.built.recipe
    one = machines.share()
    machines.objects.delete(*machines.objects.below("artifacts"), *machines.objects.below("runs"))
    again = build(recipe, machines.be("one"))
    assert states(again) == {True}
    assert content(again.folder) == content(one.folder)
    assert states(build(recipe, machines.be("two"))) == {True}


def test_the_first_of_two_different_results_counts(machines: Machines) -> None:
    """As of two machines with other processors; the second one goes on with the first one's."""
    one = machines.share()
    there = machines.be("two")
    (vocab,) = (artifact for artifact in one.artifacts if artifact.stage == "vocab")
    other = there.artifact_folder("vocab", vocab.digest)
    other.mkdir(parents=True)
    (other / "tokenizer.json").write_bytes(b"{}")
    replace_file(other / "manifest.json", _manifest_for(vocab.path, other))
    found = there.artifact("vocab", vocab.digest)
    assert content(found.path) == content(vocab.path)
    assert content(machines.be("three").artifact("vocab", vocab.digest).path) == content(vocab.path)


def _manifest_for(like: Path, folder: Path) -> bytes:
    manifest = json.loads((like / "manifest.json").read_text(encoding="utf-8"))
    (name,) = files_below(folder)
    manifest["files"] = {name: {"bytes": 2, "sha256": sha256_file(folder / name)}}
    return json.dumps(manifest).encode()


def test_one_machine_trains_and_the_other_waits(machines: Machines, corpus_file: Path) -> None:
    recipe = tiny_recipe(corpus_file, train={"steps": 200})
    one, two = machines.be("one"), machines.be("two")
    found: dict[str, Published] = {}

    def built(name: str, store: Store) -> None:
        found[name] = build(recipe, store)

    both = [threading.Thread(target=built, args=(name, store)) for name, store in (("one", one), ("two", two))]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    trained = [artifact.cached for each in found.values() for artifact in each.artifacts if artifact.stage == "train"]
    assert sorted(trained) == [False, True]
    assert found["one"].run == found["two"].run
    assert len(Runs(machines.be("three")).promotions("tiny")) == 1


def test_the_lease_of_a_machine_that_stopped_is_taken_over(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "LEASE_SECONDS", 1.5)
    recipe = machines.built.recipe
    one = machines.share()
    (train,) = (artifact for artifact in one.artifacts if artifact.stage == "train")
    machines.objects.delete(*machines.objects.below(f"artifacts/train/{train.digest}"))
    lease = f"leases/train-{train.digest}"
    assert machines.objects.create(lease, b'{"by": "a machine that was switched off"}')
    two = build(recipe, machines.be("two"))
    assert [artifact.stage for artifact in two.artifacts if not artifact.cached] == ["train"]
    assert not machines.objects.exists(lease)


class PreemptedError(BaseException):
    """The machine is taken away."""


def trained(published: Published) -> Artifact:
    (train,) = (artifact for artifact in published.artifacts if artifact.stage == "train")
    return train


def losses(published: Published) -> dict[int, float]:
    lines = map(json.loads, (trained(published).path / METRICS).read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.parametrize("damaged", ["", "checkpoint-", "files.json"])
def test_a_training_goes_on_on_another_machine(
    machines: Machines, corpus_file: Path, damaged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same model and the same curve; what is damaged only costs time."""
    recipe, run = tiny_recipe(corpus_file, train={"steps": 100}), Train.run

    def until_a_checkpoint(stage: Train, out: Path, _: Progress) -> TrainFacts:
        def progress(done: int, total: int, note: str = "") -> None:
            if list(out.glob(CHECKPOINTS)):
                raise PreemptedError

        return run(stage, out, progress)

    monkeypatch.setattr(Train, "run", until_a_checkpoint)
    with pytest.raises(PreemptedError):
        build(recipe, machines.be("one"))
    (kept,) = (name for name in machines.objects.below("interrupted") if "checkpoint-" in name)
    step = int(Path(kept).stem.rpartition("-")[2])
    assert 0 < step < 100
    for name in machines.objects.below("interrupted") if damaged else ():
        if damaged in name:
            machines.objects.write(name, b"damaged")
    begun: list[int] = []

    def noting(stage: Train, out: Path, _: Progress) -> TrainFacts:
        return run(stage, out, lambda done, *_: begun.append(done))

    monkeypatch.setattr(Train, "run", noting)
    two = build(recipe, machines.be("two"))
    assert begun[0] == (0 if damaged else step)
    assert not machines.objects.below("interrupted")
    if damaged:
        return
    whole = build(recipe, Store(machines.folder / "whole"))
    assert two.run == whole.run
    curve, uninterrupted = losses(two), losses(whole)
    del uninterrupted[-(-step // 10) * 10]  # a training that is stopped logs its last step, and the mean since then
    assert {number: curve[number] for number in uninterrupted} == uninterrupted
    assert trained(two).file(WEIGHTS).digest == trained(whole).file(WEIGHTS).digest


def test_promotions_of_many_machines_at_once(machines: Machines) -> None:
    """Each promotes and rolls back its own model in turn; no line is lost."""
    first = machines.share()
    stores = [machines.be(f"machine {number}") for number in range(6)]
    mistakes = []

    def promote(number: int) -> None:
        runs = Runs(stores[number])
        try:
            for turn in range(4):
                runs.promote(f"name {turn}", first.run, when="2026-01-01T00:00:00Z", why=f"{number}", who="x")
                with pytest.raises(StoreError, match="is the first champion"):
                    runs.rollback(f"name {turn}", "2026-01-01T00:00:00Z", "why", "x")
        except BaseException as error:
            mistakes.append(error)

    def append(number: int) -> None:
        for turn in range(4):
            line = f"{number} {turn}\n".encode()
            while not stores[number].replace_history("all", before := stores[number].history("all"), before + line):
                pass

    for work in (promote, append):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert mistakes == []
    assert [len(Runs(stores[0]).promotions(f"name {turn}")) for turn in range(4)] == [1] * 4
    assert sorted(stores[0].history("all").split(b"\n")) == sorted(
        [b"", *(f"{number} {turn}".encode() for number in range(6) for turn in range(4))]
    )


def test_garbage_collection(machines: Machines, corpus_file: Path) -> None:
    recipe = tiny_recipe(corpus_file, train={"steps": 20})
    seeds = [recipe.model_copy(update={"seed": seed}) for seed in (1, 2, 7)]
    built = {found.run: found for found in (build(each, machines.be("one")) for each in seeds)}
    champion = Runs(machines.be("two")).champion("tiny")
    machines.objects.write("interrupted/train-0/files.json", b"{}")
    found = collect(machines.be("two"), 1, delete=True)
    assert found.abandoned == (), "another machine may continue it"
    assert len(found.runs) == 1
    assert found.artifacts == (), "what was used today is kept"
    (gone,) = found.runs
    found = collect(machines.be("two"), 1, delete=True, fresh_seconds=-3600)
    assert found.abandoned == ("interrupted/train-0",)
    assert not machines.objects.below("interrupted")
    assert {name.partition("/")[0] for name in found.artifacts} >= {"train", "export"}
    assert found.bytes > 1000
    there = machines.be("three")
    assert set(Runs(there).ids()) == {*built} - {gone}
    assert Runs(there).champion("tiny") == champion
    assert states(build(seeds[-1], there)) == {True}
    left = {name.split("/")[2] for name in machines.objects.below("artifacts")}
    for run, each in built.items():
        models = {artifact.digest for artifact in each.artifacts if artifact.stage in ("train", "export")}
        assert models.isdisjoint(left) == (run == gone)


class Late(Faulty):
    """A storage whose every answer takes a second."""

    KINDS = ("late",)


def test_files_are_copied_at_the_same_time(machines: Machines, tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        for number in range(8):
            (folder / f"{number}.bin").write_bytes(b"x" * 1000)

    late = Late(machines.server.port, 1)
    try:
        for name, work in (("one", lambda store: store.publish_run("r", fill)), ("two", lambda s: s.run_file("r"))):
            on(machines.patch, tmp_path / name, late.port)
            since = time.monotonic()
            work(ObjectStore(machines.url))
            assert time.monotonic() - since < 8, "one after the other takes more than eight seconds"
        assert len(list((ObjectStore(machines.url).root / "runs" / "r").iterdir())) == 8
    finally:
        late.close()


def test_artifacts_are_looked_up_at_the_same_time(machines: Machines, tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.txt").write_text(f"نص قصير رقم {number}\n", encoding="utf-8")
    recipe = tiny_recipe(tmp_path / "*.txt")
    stages = [Ingest.of(file) for file in resolve(recipe.corpus.sources)]
    made = InPlace(machines.be("one")).map(stages)
    late = Late(machines.server.port, 1)
    try:
        there = be(machines, "two", late)
        since = time.monotonic()
        assert [found.digest for found in Reuse(there).map(stages)] == [each.digest for each in made]
        assert time.monotonic() - since < 8, "an answer takes a second, and there are three of each"
    finally:
        late.close()


def test_copies_have_a_limit(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = machines.built.recipe
    machines.share()
    monkeypatch.setenv("QALAM_CACHE_GB", "0.000001")
    monkeypatch.setattr(object_store, "FRESH_SECONDS", -1.0)
    there = machines.be("two")
    build(recipe, there)
    for name in there.artifacts():
        there.reference(*name.split("/"))
    assert len(files_below(there.root / "artifacts")) < 10
    assert states(build(recipe, machines.be("one"))) == {True}


# -- copies of single files -------------------------------------------------------------------------


class Noting(InPlace):
    """Notes the stages that it runs."""

    ran: ClassVar[list[Stage]] = []

    def run(self, stage: Stage) -> Artifact:
        self.ran.append(stage)
        return super().run(stage)


def stages_of(recipe: Recipe, store: Store) -> list[Stage]:
    Noting.ran.clear()
    stages_in_order(recipe, resolve(recipe.corpus.sources), History(Runs(store)), Noting(store))
    return list(Noting.ran)


@pytest.fixture
def observed(machines: Machines) -> Iterator[Faulty]:
    """A proxy that spoils nothing, and counts what is requested."""
    proxy = Faulty(machines.server.port, 10**9)
    yield proxy
    proxy.close()


def be(machines: Machines, name: str, proxy: Faulty) -> ObjectStore:
    """A machine behind a proxy, which counts from here on."""
    proxy.read.clear()
    on(machines.patch, machines.folder / name, proxy.port)
    return ObjectStore(machines.url)


def requested(proxy: Faulty) -> list[tuple[str, str, str]]:
    """(stage, digest, file) of each request for a file of an artifact, without the manifests."""
    places = (path.partition("/artifacts/")[2].split("/", 3) for path in proxy.read.elements())
    return sorted((place[0], place[1], place[3]) for place in places if len(place) == 4)


def unshare(machines: Machines, stage: Stage) -> None:
    """Delete its result from the storage."""
    machines.objects.delete(*machines.objects.below(f"artifacts/{stage.name}/{stage.identity.digest}"))


def stage_that_matches(machines: Machines) -> Match:
    """Of a shared build, without its result."""
    machines.share()
    (stage,) = (each for each in stages_of(machines.built.recipe, machines.be("one")) if isinstance(each, Match))
    unshare(machines, stage)
    return stage


TRAIN, VALIDATION, TEST = (f"{split}-00000.arrow" for split in ("train", "validation", "test"))
READ: dict[str, dict[str, set[str]]] = {
    "filter": {"ingest": {"documents.arrow"}},
    "match": {"filter": {"keys.arrow"}},
    "fold": {"filter": {"texts.arrow", "digests.arrow"}},
    "prepare": {"filter": {"texts.arrow", "digests.arrow", "rejects.arrow"}, "match": {"matches.arrow"}},
    "vocab": {"prepare": {TRAIN, VALIDATION}},
    "train": {"vocab": {"tokenizer.json"}, "tokenize": {"tokens.arrow"}},
    "fingerprint": {"prepare": {TRAIN}},
    "export": {"vocab": {"tokenizer.json"}, "train": {WEIGHTS}},
    "evaluate": {"prepare": {TRAIN, TEST}, "tokenize": {"tokens.arrow"}, "train": {WEIGHTS}},
    "gate": {"prepare": {TEST}, "evaluate": {"report.json", "budgets.json"}},
}
"""What a stage reads; besides, fingerprints of what was read, and packages, are read whole."""
WHOLE = {"fold", "fingerprint", "seen", "export"}
CONTINUED = {"prepare": {TRAIN}, "train": {WEIGHTS, STATE}}
"""What a training reads besides, that continues another one."""


@pytest.mark.parametrize("start", ["scratch", "continue"])
def test_a_machine_copies_the_files_that_its_stage_reads(machines: Machines, observed: Faulty, start: str) -> None:
    """A machine for each stage, with the result that one machine has."""
    machines.share()
    values = machines.built.recipe.canonical()
    values["train"] |= {"start": start, "steps": 7 if start == "continue" else values["train"]["steps"]}
    one = machines.be("one")
    for number, stage in enumerate(stages_of(Recipe.parse(values), one)):
        machines.be("one")
        made = one.artifact(stage.name, stage.identity.digest)
        unshare(machines, stage)
        again = be(machines, f"machine {number}", observed).build(stage)
        assert not again.cached
        with_times = {"budgets.json", "verdict.json", METRICS}
        assert all(
            again.manifest.files[name] == made.manifest.files[name] for name in {*made.manifest.files} - with_times
        )
        found: dict[str, set[str]] = {}
        for of, _, name in requested(observed):
            found.setdefault(of, set()).add(name)
        expected = READ.get(stage.name, {})
        if isinstance(stage, Tokenize):
            expected = {"prepare": {stage.shard.name}, "vocab": {"tokenizer.json"}}
        if isinstance(stage, Train) and start == "continue":
            expected = expected | CONTINUED
        if isinstance(stage, Seen):
            expected = {"prepare": {TRAIN, HELD_OUT} if start == "continue" else {TRAIN}}
        assert {of: names for of, names in found.items() if of not in WHOLE} == expected, stage.name


def test_who_matches_downloads_no_text(machines: Machines, observed: Faulty) -> None:
    """The next stage on the same machine downloads what it reads besides, and who asks for all files gets them."""
    match = stage_that_matches(machines)
    (prepare,) = (each for each in stages_of(machines.built.recipe, machines.be("one")) if isinstance(each, Prepare))
    unshare(machines, match)
    unshare(machines, prepare)
    there, key = be(machines, "two", observed), match.documents[0].digest
    for _ in range(2):
        there.build(match)
        assert requested(observed) == [("filter", key, "keys.arrow")]
    assert not any("/artifacts/prepare" in path or "/artifacts/ingest" in path for path in observed.read)
    assert there.manifests().find(match.identity), "it is shared"
    observed.read.clear()
    assert there.manifest("filter", key) == match.documents[0].manifest
    assert not observed.read, "the manifest is here"
    for _ in range(2):
        there.build(prepare)
        own = [("filter", key, name) for name in ("digests.arrow", "rejects.arrow", "texts.arrow")]
        assert requested(observed) == own, "and not the keys again"
    assert not (there.root / "artifacts" / "filter").exists()
    whole = there.here(match.documents[0])
    assert content(whole.path) == content(match.documents[0].path)
    assert there.here(match).documents == (whole,), "of two copies the whole one"


@pytest.mark.parametrize("damage", [b"", b"damaged", None])
def test_a_damaged_file_is_found(machines: Machines, damage: bytes | None, observed: Faulty) -> None:
    """In the storage, and on the machine."""
    match, there = stage_that_matches(machines), machines.be("two")
    key = match.documents[0].digest
    (name,) = (name for name in machines.objects.below(f"artifacts/filter/{key}") if name.endswith("/keys.arrow"))
    right = machines.objects.read(name)[0]
    for wrong in (damage, right[:-1] + bytes([right[-1] ^ 1]) if damage is not None else None):
        machines.objects.delete(name) if wrong is None else machines.objects.write(name, wrong)
        with pytest.raises(DamagedError, match=f"filter {key[:12]} is missing or damaged in {machines.url}"):
            there.build(match)
        assert not files_below(there.root / "parts" / "artifacts")
        machines.be("one").artifact("filter", key)
        assert machines.objects.read(name)[0] == right, "a machine that has a copy mends it"
        there = machines.be("two")
    there.build(match)
    (copy,) = there.root.glob("parts/artifacts/filter/*/keys.arrow")
    shutil.rmtree(there.artifact_folder("match", match.identity.digest))
    unshare(machines, match)
    copy.unlink() if damage is None else copy.write_bytes(damage)
    there = be(machines, "two", observed)
    there.build(match)
    assert requested(observed) == [("filter", key, "keys.arrow")]
    assert copy.read_bytes() == right


def test_a_manifest_in_part_that_was_damaged_is_replaced(machines: Machines) -> None:
    match, there = stage_that_matches(machines), machines.be("two")
    (document,) = there.here(match).documents
    manifest = document.path / "manifest.json"
    before = manifest.read_bytes()
    for wrong in (b"", b"{}", b"[]", before.replace(b"keys.arrow", b"other.arrow")):
        manifest.write_bytes(wrong)
        there.here(match)
        assert manifest.read_bytes() == before


def test_several_at_once_copy_a_file_once(machines: Machines, observed: Faulty) -> None:
    """Threads of one process, and stores as of several."""
    match = stage_that_matches(machines)
    stores = [be(machines, "two", observed) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda store: store.here(match), stores * 2))
    assert len(set(found)) == 1
    assert requested(observed) == [("filter", match.documents[0].digest, "keys.arrow")]
    assert not stores[0].abandoned(time.time() + 1)


def test_a_killed_copy_is_made_again(machines: Machines) -> None:
    match, late = stage_that_matches(machines), Late(machines.server.port, 1)
    (machines.folder / "stage").write_bytes(pickle.dumps(match))
    code = "import pickle, sys; sys.modules['x'] = x = __import__('qalam_core.object_store').object_store; "
    code += "x.ObjectStore(sys.argv[1]).here(pickle.loads(open(sys.argv[2], 'rb').read()))"
    try:
        there = be(machines, "two", late)
        child = subprocess.Popen([sys.executable, "-c", code, machines.url, machines.folder / "stage"])
        until = time.monotonic() + 60
        while not (left := [*there.root.glob("parts/artifacts/filter/.*")]) and child.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        child.kill()
        assert child.wait() == -signal.SIGKILL
    finally:
        late.close()
    there = machines.be("two")
    assert there.abandoned(time.time() + 1) == [str(path.relative_to(there.root)) for path in left]
    assert [path.name for path in there.here(match).documents[0].path.iterdir()] == ["keys.arrow", "manifest.json"]
    for name in there.abandoned(time.time() + 1):
        there.delete_abandoned(name)
    assert not [*there.root.glob("parts/artifacts/filter/.*")]


def test_copies_in_part_are_deleted_as_others(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    match, name = stage_that_matches(machines), ""
    monkeypatch.setenv("QALAM_CACHE_GB", "0.000001")
    monkeypatch.setattr(digests, "SETTLED_SECONDS", -1.0)  # what was read is remembered at once
    there = machines.be("two")

    def copied() -> list[str]:
        return files_below(there.root / "parts" / "artifacts")

    def not_used_for_long() -> None:
        for file in copied():
            os.utime(there.root / "parts" / "artifacts" / file, (0, 0))
        os.utime(there.root / "parts" / "artifacts" / name, (0, 0))

    name = f"filter/{there.here(match).documents[0].digest}"
    not_used_for_long()
    there.here(match)
    there._make_room(1000)
    assert copied() == [f"{name}/keys.arrow", f"{name}/manifest.json"], "it was just used again"
    not_used_for_long()
    (key,) = match.documents[0].manifest.inputs.values()
    there.here(ArtifactFile(Artifact("ingest", key, Path()), "documents.arrow", ""))
    assert copied() == [f"ingest/{key}/documents.arrow", f"ingest/{key}/manifest.json"]
    assert there.delete_artifact(f"ingest/{key}", time.time() + 60)
    for _ in range(2):
        there.here(match)
    assert there.size(f"artifacts/{name}") > 1000
    assert not there.delete_artifact(name, time.time() - 60)
    assert copied(), "it was just used"
    assert there.delete_artifact(name, time.time() + 60)
    assert copied() == []
    assert there.abandoned(time.time() + 60) == [f"digests/parts/{name.replace('/', '-')}"]


def continuing(machines: Machines, start: str) -> Recipe:
    """The tiny recipe, or one that begins with its champion and keeps the tokenizer."""
    values = machines.built.recipe.canonical()
    if start != "scratch":
        values["train"] |= {"start": start, "steps": 7}
        values["tokenizer"]["keep"] = "champion"
    return Recipe.parse(values)


@pytest.mark.parametrize("start", ["scratch", "champion", "continue"])
def test_a_new_machine_copies_nothing_of_what_it_reuses(machines: Machines, observed: Faulty, start: str) -> None:
    machines.share()
    recipe = continuing(machines, start)
    build(recipe, machines.be("one"))
    there = be(machines, "two", observed)
    assert states(build(recipe, there)) == {True}
    assert (requested(observed), copies(there)) == ([], [])


def test_a_new_machine_copies_what_it_builds_from(machines: Machines, observed: Faulty) -> None:
    first = machines.share()
    values = machines.built.recipe.canonical()
    values["gate"]["tolerance"] = 0.5
    second = build(Recipe.parse(values), be(machines, "two", observed))
    assert [artifact.stage for artifact in second.artifacts if not artifact.cached] == ["gate"]
    read = {(stage, name.partition("/")[0]) for stage, _, name in requested(observed)}
    expected = {("prepare", TEST), ("evaluate", "report.json"), ("evaluate", "budgets.json"), ("train", METRICS)}
    assert read - expected == {("export", "model"), *((each, name) for each, name in read if each == "seen")}
    assert content(second.folder / "model") == content(first.folder / "model")


@pytest.mark.parametrize("start", ["scratch", "continue"])
def test_a_run_is_reproduced_on_a_new_machine(machines: Machines, start: str, tmp_path: Path) -> None:
    machines.share()
    run = build(continuing(machines, start), machines.be("one")).run
    found = reproduce(machines.be("two"), run, Store(tmp_path / "fresh"))
    assert found.matches, found.rows


def test_a_proposal_is_measured_on_a_new_machine(machines: Machines, tmp_path: Path) -> None:
    """And measured again on yet another one."""
    parent = machines.share()
    edited = tmp_path / "edited"
    shutil.copytree(parent.folder / "model", edited)
    scale_row(edited, "embedding.weight", 300, 1.01)
    seal(edited, "scaled")
    runs = Runs(machines.be("two"))
    found = propose(candidate(runs, edited, "a try", "somebody"), runs.store)
    assert found.verdict.checks
    again = reproduce(machines.be("three"), found.run, Store(tmp_path / "fresh"))
    assert again.matches, again.rows


@pytest.mark.parametrize("damage", [b"", b"damaged", None])
def test_a_file_that_is_lost_is_found_when_its_artifact_is_reused(machines: Machines, damage: bytes | None) -> None:
    """Also where nothing is built of it."""
    shared = machines.share()
    (tokens,) = (
        made for made in shared.artifacts if made.stage == "tokenize" and made.facts(TokenizeFacts).split == "train"
    )
    place = f"artifacts/tokenize/{tokens.digest}"
    (name,) = (name for name in machines.objects.below(place) if name.endswith("/tokens.arrow"))
    right = machines.objects.read(name)[0]
    machines.objects.delete(name) if damage is None else machines.objects.write(name, damage)
    again = build(machines.built.recipe, machines.be("two"))
    assert [artifact.digest for artifact in again.artifacts if not artifact.cached] == [tokens.digest]
    assert machines.objects.read(name)[0] == right
    assert states(build(machines.built.recipe, machines.be("three"))) == {True}


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_damaged_is_not_reused_twice(machines: Machines, whole: bool, observed: Faulty) -> None:
    """Bytes of the right number are looked at when they are read; the next build makes them again."""
    machines.share()
    recipe = machines.built.recipe
    stages = stages_of(recipe, machines.be("one"))
    (damaged,) = (each for each in stages if each.name == ("export" if whole else "filter"))
    (reads,) = (each for each in stages if each.name == ("evaluate" if whole else "prepare"))
    place = f"artifacts/{damaged.name}/{damaged.identity.digest}"
    (name,) = (name for name in machines.objects.below(place) if name.endswith(("/weights.py", "/texts.arrow")))
    right = machines.objects.read(name)[0]
    machines.objects.write(name, right[:-1] + bytes([right[-1] ^ 1]))
    unshare(machines, reads)
    there = be(machines, "two", observed)
    with pytest.raises(DamagedError, match=f"{damaged.name} {damaged.identity.digest[:12]} is missing or damaged"):
        build(recipe, there)
    assert [found for *_, found in requested(observed)].count(name.rpartition("/")[2]) <= 2
    again = build(recipe, there)
    assert {artifact.stage for artifact in again.artifacts if not artifact.cached} == {damaged.name, reads.name}
    assert machines.objects.read(name)[0] == right
    assert states(build(recipe, machines.be("three"))) == {True}


def test_after_doubt_everything_is_read_once(machines: Machines, observed: Faulty) -> None:
    machines.share()
    recipe, there = machines.built.recipe, be(machines, "two", observed)
    there.doubt()
    assert states(build(recipe, be(machines, "two", observed))) == {True}
    files = [name for name in machines.objects.below("artifacts") if name.count("/") > 3]
    assert len(requested(observed)) == len(files)
    shutil.rmtree(there.root / "artifacts")
    assert states(build(recipe, be(machines, "two", observed))) == {True}
    assert requested(observed) == []
    later = be(machines, "three", observed)
    later.doubt()
    os.utime(later.root / "digests" / "doubted", (0, 0))
    assert states(build(recipe, be(machines, "three", observed))) == {True}
    assert requested(observed) == [], "they are newer than the doubt"
    be(machines, "two", observed)
    (name,) = (name for name in files if name.endswith("/tokenizer.json") and "/vocab/" in name)
    right = machines.objects.read(name)[0]
    machines.objects.write(name, right[:-1] + bytes([right[-1] ^ 1]))
    there.doubt()
    again = build(recipe, be(machines, "two", observed))
    assert [artifact.stage for artifact in again.artifacts if not artifact.cached] == ["vocab"]
    assert machines.objects.read(name)[0] == right


# -- mistakes and failures --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3://user:a-secret-key-that-must-not-be-found@bucket/x", "has a user, a password or a query"),
        ("s3://bucket/x?token=a-secret-key-that-must-not-be-found", "has a user, a password or a query"),
        ("ftp://bucket/x", r"no store is at ftp://; s3://, gs://, az://, abfs:// and paths are known"),
        ("https://bucket/x", "no store is at https://"),
        ("s3://", "names no bucket; write s3://BUCKET/PREFIX"),
        ("s3:///x", "names no bucket"),
        ("S3://bucket/x?a", r"store s3://bucket/x: has a user"),
    ],
)
def test_a_url_that_is_no_stores(url: str, why: str) -> None:
    with pytest.raises(StoreError, match=why) as refused:
        store_at(url)
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("each", [11, 4])
def test_a_storage_that_often_fails(machines: Machines, each: int, corpus_file: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(corpus_file, train={"steps": 20})
    faulty = Faulty(machines.server.port, each)
    try:
        on(machines.patch, tmp_path / "far", faulty.port)
        one = build(recipe, ObjectStore(machines.url))
        assert states(one) == {False}
        assert states(build(recipe, ObjectStore(machines.url))) == {True}
    finally:
        faulty.close()
    assert all(faulty.spoiled[kind] for kind in Faulty.KINDS)
    two = build(recipe, machines.be("two"))
    assert states(two) == {True}
    assert content(two.folder) == content(one.folder)
    assert len(Runs(machines.be("two")).promotions("tiny")) == 1


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    assert store_at(f"file://{tmp_path}/a%20b").root == tmp_path / "a b"
    assert store_at(tmp_path / "s3:").root == tmp_path / "s3:"
    with pytest.raises(StoreError, match="no store is at file://"):
        store_at("file://host/path")


def test_failures_are_one_line_without_secrets(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, corpus_file: Path
) -> None:
    store = machines.be("one")
    store.ensure_writable()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{SECRET}-wrong")
    with pytest.raises(StoreError, match="access is denied") as denied:
        ObjectStore(machines.url).ensure_writable()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(StoreError, match="no such bucket") as missing:
        build(tiny_recipe(corpus_file), ObjectStore("s3://no-such-bucket/x"))
    with pytest.raises(StoreError, match="no such bucket") as empty:
        Runs(ObjectStore("s3://no-such-bucket/x")).summaries()
    with pytest.raises(StoreError, match="refuses this with status 400") as short:
        ObjectStore("s3://b").ensure_writable()
    with pytest.raises(StoreError, match="no setting for Account") as account:
        ObjectStore("az://container/x").ensure_writable()
    monkeypatch.setenv("QALAM_CACHE_GB", "much")
    with pytest.raises(StoreError, match="QALAM_CACHE_GB='much'") as room:
        ObjectStore(machines.url)
    monkeypatch.delenv("QALAM_CACHE_GB")
    monkeypatch.setenv("QALAM_LEASE_SECONDS", "nan")
    with pytest.raises(StoreError, match="QALAM_LEASE_SECONDS='nan'"):
        ObjectStore(machines.url)
    for error in (denied, missing, empty, short, account, room):
        assert "\n" not in str(error.value)
        assert SECRET not in str(error.value)


def test_secrets_are_not_recorded(machines: Machines) -> None:
    machines.share()
    store = machines.be("one")
    for name in files_below(store.root):
        assert SECRET.encode() not in (store.root / name).read_bytes(), name
    for name in machines.objects.below(""):
        assert SECRET.encode() not in machines.objects.read(name)[0], name


def test_without_obstore_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(StoreError, match=r"pip install 'al-qalam\[cloud\]'"):
        Objects("s3://bucket/x")
