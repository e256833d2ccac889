"""Real processes and a real Dask cluster: the same bytes from each, also when a worker is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.task_runners import ThreadPoolTaskRunner

from qalam_core import stages
from qalam_core.errors import RecipeError
from qalam_core.recipe import Recipe
from qalam_core.store import Store
from tasks.runners import workers
from tests.conftest import sentences
from tests.flows.conftest import clean_environment, free_port, own_signals, qalam, write_recipe

FILES = 24


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of many files and several shards."""
    folder = tmp_path_factory.mktemp("many")
    texts = sentences(FILES * 600)
    (folder / "texts").mkdir()
    for number in range(FILES):
        text = "\n".join(texts[number::FILES])
        (folder / "texts" / f"{number:02}.txt").write_text(text, encoding="utf-8")
    small = {"shard_mb": 1, "test": 0.01, "validation": 0.01}
    return write_recipe(folder / "many.toml", folder / "texts", train={"steps": 2}, corpus=small)


def mapped(store: Path) -> dict[str, str]:
    """Name of every file that the mapped stages left -> its sha256; no locks, and nothing half done."""
    found = {}
    for stage in ("ingest", "tokenize"):
        for folder in sorted((store / "artifacts" / stage).iterdir()):
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            for name, entry in manifest["files"].items():
                found[f"{stage}/{folder.name}/{name}"] = entry["sha256"]
    return found


@pytest.fixture(scope="module")
def expected(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What comes out without Prefect, in this process."""
    store, parsed = Store(tmp_path_factory.mktemp("plain")), Recipe.load(recipe)
    corpus = stages.prepare(store, parsed, [stages.ingest(store, file) for file in stages.resolve(parsed.corpus)])
    tokenizer = stages.vocab(store, parsed, corpus)
    shards = stages.shards(corpus)
    assert len(shards) > 2
    for shard in shards:
        stages.tokenize(store, corpus, shard, tokenizer)
    return mapped(store.root)


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A Dask scheduler and two workers of one thread, each a process of its own; gives the address."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> None:
        with (folder / f"{len(started)}.log").open("w") as log:
            started.append(subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments], env=clean_environment(), cwd=folder, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=own_signals,
            ))  # fmt: skip

    try:
        start("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
        for _ in range(2):
            start("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard")
        yield address, started[1:]
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
def test_processes_make_the_same_bytes(recipe: Path, expected: dict[str, str], tmp_path: Path) -> None:
    done = qalam("build", recipe, "--store", tmp_path / "store", QALAM_RUNNER="processes")
    assert done.returncode in (0, 1), done.stderr  # 1: two steps may not pass the gate
    assert mapped(tmp_path / "store") == expected
    assert done.stderr.count("ingest") == FILES  # whoever watches is told, though the work was elsewhere


@pytest.mark.slow
def test_a_dask_cluster_makes_the_same_bytes_and_redoes_a_lost_workers_files(
    recipe: Path, expected: dict[str, str], tmp_path: Path, api: str
) -> None:
    with cluster(tmp_path) as (address, dask_workers):
        command = [sys.executable, "-c", "from flows.cli import main; main()", "build", str(recipe), "--store"]
        build = subprocess.Popen(
            [*command, str(tmp_path / "s")],
            env=clean_environment(QALAM_RUNNER=address, PREFECT_API_URL=api), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, preexec_fn=own_signals,
        )  # fmt: skip
        for _ in range(1200):
            if len(list((tmp_path / "s" / "artifacts" / "ingest").glob("*/manifest.json"))) >= 2:
                break
            assert build.poll() is None, build.communicate()
            time.sleep(0.05)
        done = len(list((tmp_path / "s" / "artifacts" / "ingest").glob("*/manifest.json")))
        dask_workers[0].kill()
        out, errors = build.communicate(timeout=200)
        assert done < FILES, "the worker was killed too late for the test to mean anything"
        assert build.returncode in (0, 1), errors
        assert "run " in out
        assert mapped(tmp_path / "s") == expected


def test_threads_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QALAM_RUNNER", raising=False)
    with workers("threads") as pool:
        assert isinstance(pool.runner, ThreadPoolTaskRunner)


def test_the_environment_wins_and_a_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"^runner: 'ray' is none of") as error, workers("ray"):
        pass
    assert "\n" not in str(error.value)
    monkeypatch.setenv("QALAM_RUNNER", "ray")
    with pytest.raises(RecipeError, match=r"^QALAM_RUNNER: 'ray' is none of"), workers("threads"):
        pass


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_dask.task_runners", None)
    with pytest.raises(RecipeError, match=r'pip install "al-qalam\[dask\]"'), workers("dask"):
        pass


def test_a_scheduler_that_does_not_answer_is_one_line_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.runners.CONNECT_SECONDS", 1)
    since = time.monotonic()
    with (
        pytest.raises(RecipeError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9 "),
        workers("tcp://127.0.0.1:9"),
    ):
        pass
    assert time.monotonic() - since < 20
