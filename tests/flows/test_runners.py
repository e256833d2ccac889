"""Mapped tasks in processes and on a Dask cluster: the same bytes, also when a worker is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.task_runners import ThreadPoolTaskRunner

from al_qalam.tasks.runners import workers
from qalam_core.corpus.sources import resolve
from qalam_core.errors import RecipeError
from qalam_core.pipeline.build import InPlace, ingested, tokenized
from qalam_core.recipe import Recipe
from qalam_core.store import Store
from tests.conftest import sentences
from tests.flows.processes import clean_environment, free_port, own_signals, write_recipe

FILES = 16


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of many files and several shards."""
    folder = tmp_path_factory.mktemp("many")
    texts = sentences(FILES * 900)
    (folder / "texts").mkdir()
    for number in range(FILES):
        text = "\n".join(texts[number::FILES])
        (folder / "texts" / f"{number:02}.txt").write_text(text, encoding="utf-8")
    small = {"shard_mb": 1, "test": 0.01, "validation": 0.01}
    return write_recipe(folder / "many.toml", folder / "texts", train={"steps": 2}, corpus=small)


def mapped(store: Path) -> dict[str, str]:
    """Name of every file of the mapped stages' artifacts -> its sha256. Fails when an artifact is incomplete."""
    found = {}
    for stage in ("ingest", "filter", "match", "tokenize"):
        for folder in sorted((store / "artifacts" / stage).iterdir()):
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            for name, entry in manifest["files"].items():
                found[f"{stage}/{folder.name}/{name}"] = entry["sha256"]
    return found


@pytest.fixture(scope="module")
def expected(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a build without Prefect, in this process."""
    store, parsed = Store(tmp_path_factory.mktemp("plain")), Recipe.load(recipe)
    documents = ingested(parsed, resolve(parsed.corpus.sources), InPlace(store))
    text = tokenized(parsed, documents, InPlace(store))
    assert len(text.tokens) > 2
    return mapped(store.root)


@contextmanager
def cluster(
    folder: Path, environments: Sequence[dict[str, str]] = ({}, {})
) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Context manager that runs a Dask scheduler and workers with one thread each; yields its address and them."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **environment: str) -> None:
        with (folder / f"{len(started)}.log").open("w") as log:
            started.append(subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments], env=clean_environment(**environment), cwd=folder,
                stdout=log, stderr=log,
                start_new_session=True, preexec_fn=own_signals,
            ))  # fmt: skip

    try:
        start("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
        for environment in environments:
            start("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", **environment)
        yield address, started[1:]
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def building(recipe: Path, store: Path, api: str, runner: str) -> Iterator[subprocess.Popen[str]]:
    """Context manager that runs `qalam build`."""
    code = "from al_qalam.flows.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "build", str(recipe), "--store", str(store)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, preexec_fn=own_signals,
        env=clean_environment(QALAM_RUNNER=runner, PREFECT_API_URL=api),
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(store: Path, pattern: str, count: int, process: subprocess.Popen[str]) -> int:
    """Wait until `count` paths of the store match, or the process has exited; -> how many match."""
    for _ in range(2400):
        found = len(list((store / "artifacts").glob(pattern)))
        if found >= count or process.poll() is not None:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{pattern} did not come in two minutes")


def test_processes_make_the_same_bytes(recipe: Path, expected: dict[str, str], tmp_path: Path, api: str) -> None:
    with building(recipe, tmp_path, api, "processes") as process:
        wait_for(tmp_path, "train/*", 1, process)
        process.terminate()  # later stages do not use the runner
        _, errors = process.communicate(timeout=60)
    assert mapped(tmp_path) == expected, errors
    assert errors.count("built   ingest stories") == FILES  # reported, although other processes built them
    assert "built   tokenize train-00000" in errors


def test_files_of_a_killed_dask_worker_are_redone(
    recipe: Path, expected: dict[str, str], tmp_path: Path, api: str
) -> None:
    store = tmp_path / "store"
    with cluster(tmp_path) as (address, dask_workers), building(recipe, store, api, address) as process:
        finished = wait_for(store, "ingest/*/manifest.json", 2, process)
        dask_workers[0].kill()
        assert finished < FILES, "the worker was killed too late: all files are finished"
        wait_for(store, "train/*", 1, process)
        process.terminate()  # later stages do not use the runner
        _, errors = process.communicate(timeout=60)
        assert mapped(store) == expected, errors
        assert dask_workers[1].poll() is None


def test_threads_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QALAM_RUNNER", raising=False)
    with workers("threads") as pool:
        assert isinstance(pool.runner, ThreadPoolTaskRunner)


def test_the_environment_overrides_the_recipe_and_an_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"^runner: 'ray' is not ") as error, workers("ray"):
        pass
    assert "\n" not in str(error.value)
    monkeypatch.setenv("QALAM_RUNNER", "ray")
    with pytest.raises(RecipeError, match=r"^QALAM_RUNNER: 'ray' is not "), workers("threads"):
        pass


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_dask.task_runners", None)
    with pytest.raises(RecipeError, match=r'pip install "al-qalam\[dask\]"'), workers("dask"):
        pass


def test_an_unreachable_scheduler_is_one_line_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("al_qalam.tasks.runners.CONNECT_SECONDS", 1)
    since = time.monotonic()
    with (
        pytest.raises(RecipeError, match=r"no Dask scheduler responds at tcp://127\.0\.0\.1:9 "),
        workers("tcp://127.0.0.1:9"),
    ):
        pass
    assert time.monotonic() - since < 20
