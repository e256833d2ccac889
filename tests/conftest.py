"""Common fixtures: a small Arabic corpus, a recipe for it, a finished build; which tests are quick, and their order."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import settings

from qalam_core.evaluation.results import Check, Comparison, Verdict
from qalam_core.files import try_lock
from qalam_core.pipeline.build import STAGES, build
from qalam_core.pipeline.fold import Fold
from qalam_core.pipeline.publish import Published
from qalam_core.recipe import Recipe
from qalam_core.runs import Runs
from qalam_core.store import Store
from qalam_core.training import process
from tests.forks import Trainer, run_import

COLD = tuple(kind for kind in STAGES if kind is not Fold)
"""The stages of a build that begins with random weights, in order."""

# Tests run in parallel, so one thread each. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tables must not depend on the width of the terminal.
os.environ["COLUMNS"] = "160"

# No deadlines, which fail at random on a busy machine; the same examples each time, so that failures are reproducible.
EXAMPLES = int(os.environ.get("QALAM_EXAMPLES", "25"))  # of each property


def examples(most: int) -> int:
    """How many examples of a property that needs no more than `most`: all in `make test`, a quarter in `make check`."""
    return max(3, most * EXAMPLES // 100)


settings.register_profile("qalam", deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("qalam")

QUICK_SECONDS = float(os.environ.get("QALAM_QUICK_SECONDS", "2"))  # of CPU time


@pytest.fixture(scope="session")
def processes() -> Iterator[None]:
    """A test that requests this, directly or through another fixture, may start processes and has no time limit.
    Builds in the test's own process fork their processes from one that has imported torch."""
    from qalam_core.evaluation import integrity  # imports torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "subprocess", SimpleNamespace(Popen=Trainer, PIPE=subprocess.PIPE))
        patch.setattr(integrity, "subprocess", SimpleNamespace(run=run_import))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that may start processes. Sort by the time that files take: those that mostly wait come first, so
    that others run beside them, and quick tests last."""
    slowest_first = ("stack", "postgres", "api", "uninterrupted", "sound", "processes")  # fixtures

    def rank(item: pytest.Item) -> int:
        fixtures = item.fixturenames  # type: ignore[attr-defined]
        return next((place for place, name in enumerate(slowest_first) if name in fixtures), len(slowest_first))

    for item in items:
        if "processes" in item.fixturenames:  # type: ignore[attr-defined]
            item.add_marker("processes")
    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """What was imported stays: it need not be traversed by each full collection."""
    gc.collect()
    gc.freeze()


_quick: list[str] = []


def _no_process(event: str, arguments: tuple[object, ...]) -> None:
    starts = ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.system")
    if _quick and event in starts and "lscpu" not in arguments:  # which numpy.testing asks, in 2.0
        raise RuntimeError(f"{_quick[-1]} starts a process: request the fixture `processes`")


sys.addaudithook(_no_process)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """From here on a quick test may not start a process."""
    if not item.get_closest_marker("processes"):
        _quick.append(item.nodeid)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """The teardown of fixtures may start processes."""
    _quick.clear()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Limit the CPU time of a quick test; not its duration, because other tests run beside it.

    A test that is the first to import a module pays for all later ones, and has no limit; the order is random.
    """
    since, modules = time.process_time(), len(sys.modules)
    result = yield
    spent = time.process_time() - since
    if _quick and spent > QUICK_SECONDS and len(sys.modules) == modules:
        pytest.fail(f"{spent:.1f} s of CPU time; a test without processes may use {QUICK_SECONDS:g}", pytrace=False)
    return result


SUBJECTS = ["القط", "الولد", "المعلم", "الطبيب", "الفلاح", "القاضي", "الطالب", "التاجر", "الكاتب", "النجار"]
VERBS = ["يقرأ", "يكتب", "يحمل", "يرى", "يبيع", "يشتري", "يحب", "يصنع", "يفتح", "يغلق"]
OBJECTS = ["الكتاب", "الباب", "الدفتر", "القلم", "السمك", "الخبز", "الشجرة", "المدينة", "الرسالة", "الكرسي"]
PLACES = [
    "في البيت",
    "في السوق",
    "قرب النهر",
    "أمام المدرسة",
    "تحت الشجرة",
    "على الجبل",
    "بعد الظهر",
    "قبل الفجر",
]


def judged(*failed: str, comparison: Comparison | None = None) -> Verdict:
    """A verdict in which these checks failed; with none of them it passed."""
    checks = [Check(name=name, value=1.0, limit=0.0, passed=False, message=f"{name}.") for name in failed]
    passed = Check(name="unigram", value=0.0, limit=1.0, passed=True, message="unigram.")
    return Verdict(passed=not failed, checks=tuple(checks) or (passed,), comparison=comparison)


def sentences(count: int, seed: int = 0) -> list[str]:
    """`count` distinct short documents of plain Arabic, always the same for a seed."""
    choice = random.Random(seed).choice
    found: dict[str, None] = {}
    while len(found) < count:
        parts = [f"{choice(VERBS)} {choice(SUBJECTS)} {choice(OBJECTS)} {choice(PLACES)}" for _ in range(3)]
        found["، ثم ".join(parts) + "."] = None
    return list(found)


def write_corpus(path: Path, count: int, seed: int = 0) -> Path:
    """Write `count` sentences as JSON Lines; -> `path`."""
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in sentences(count, seed))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One folder for all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def corpus_file(shared_folder: Path) -> Path:
    with (shared_folder / "corpus.lock").open("w") as lock:
        try_lock(lock, blocking=True)
        path = shared_folder / "stories.jsonl"
        return path if path.exists() else write_corpus(path, 400)


def tiny_recipe(corpus: Path, /, **parts: dict[str, Any]) -> Recipe:
    """A recipe that builds in seconds; `parts` replace single values of its sections."""
    data: dict[str, Any] = {
        "name": "tiny",
        "seed": 7,
        "corpus": {"sources": [{"path": str(corpus), "name": "stories"}], "test": 0.1, "validation": 0.1},
        "tokenizer": {"vocab_size": 320},
        "model": {"dim": 32, "num_heads": 2, "num_layers": 2, "max_seq_len": 32},
        "train": {"steps": 60, "batch_size": 8, "learning_rate": 0.01, "threads": 1, "log_every": 10,
                  "checkpoint_every": 20, "validate_every": 30},
    }  # fmt: skip
    for section, values in parts.items():
        data[section] = {**data[section], **values} if section in data else values
    return Recipe.parse(data)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


class Built(NamedTuple):
    """A finished build, for tests that read it."""

    recipe: Recipe
    store: Store
    published: Published

    @property
    def runs(self) -> Runs:
        return Runs(self.store)


@pytest.fixture(scope="session")
def built(processes: None, corpus_file: Path, shared_folder: Path) -> Built:
    """The tiny recipe, built once for all workers; must not be written to."""
    recipe, store = tiny_recipe(corpus_file), Store(shared_folder / "built")
    with (shared_folder / "built.lock").open("w") as lock:
        try_lock(lock, blocking=True)
        return Built(recipe, store, build(recipe, store))


@pytest.fixture
def mine(built: Built, tmp_path: Path) -> Built:
    """A copy that a test may change."""
    shutil.copytree(built.store.root, tmp_path / "store")
    store = Store(tmp_path / "store")
    return Built(built.recipe, store, build(built.recipe, store))
