"""Mapped tasks in processes and on a Dask cluster: the same bytes, also when a worker is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.task_runners import ThreadPoolTaskRunner

from al_qalam.tasks.runners import TASKS, Workers, batched, workers
from al_qalam.tasks.stages import run_stages, stopped
from qalam_core.corpus.sources import resolve
from qalam_core.corpus.writer import IngestFacts
from qalam_core.errors import RecipeError
from qalam_core.pipeline.build import InPlace, ingested, tokenized
from qalam_core.pipeline.ingest import Ingest
from qalam_core.progress import Progress
from qalam_core.recipe import Recipe
from qalam_core.store import Store
from tests.conftest import sentences
from tests.flows.processes import call, clean_environment, free_port, own_signals, write_recipe

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


BATCHES = """
import sys
from pathlib import Path

from prefect import flow

from al_qalam.tasks import runners
from al_qalam.tasks.executor import AsTasks
from al_qalam.tasks.outcome import supervised
from qalam_core.corpus.sources import resolve
from qalam_core.errors import QalamError
from qalam_core.pipeline.ingest import Ingest
from qalam_core.recipe import Recipe

recipe, store, runner, runners.TASKS = Recipe.load(Path(sys.argv[1])), sys.argv[2], sys.argv[3], int(sys.argv[4])


@flow(name="batches", flow_run_name=sys.argv[5], persist_result=False)
@supervised
def batches():
    with runners.workers(runner) as pool:
        return AsTasks(store, pool, recipe).map([Ingest.of(file) for file in resolve(recipe.corpus.sources)])


if __name__ == "__main__":
    try:
        for made in batches():
            print(made.digest, made.cached)
    except QalamError as error:
        sys.exit(str(error))
"""


def in_batches(
    recipe: Path, store: Path, runner: str, tasks: int, name: str, api: str
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """Ingest the files of a recipe, with `tasks` tasks at most; -> the process, and the task runs by name."""
    script = store.with_name("batches.py")
    script.write_text(BATCHES, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(recipe), str(store), runner, str(tasks), name], capture_output=True,
        text=True, env=clean_environment(PREFECT_API_URL=api), check=False,
    )  # fmt: skip
    (run,) = call(api, "flow_runs/filter", {"flow_runs": {"name": {"any_": [name]}}})
    of_run = {"task_runs": {"flow_run_id": {"any_": [run["id"]]}}, "limit": 200}
    for _ in range(60):  # recorded with a delay
        found = call(api, "task_runs/filter", of_run)
        states = [task["state_name"] for task in found]
        if (len(found) == tasks or "Failed" in states) and all(task["end_time"] for task in found):
            break
        time.sleep(0.5)
    return done, sorted(found, key=lambda task: str(task["start_time"]))


@pytest.mark.parametrize("runner", ["threads", "processes", "dask"])
def test_a_task_builds_several_of_many_stages(recipe: Path, tmp_path: Path, api: str, runner: str) -> None:
    """16 stages in tasks of 3: the same artifacts, in order; a task is Cached when all of its stages are."""
    store, plain, parsed = tmp_path / "store", Store(tmp_path / "plain"), Recipe.load(recipe)
    expected = [plain.build(Ingest.of(file)) for file in resolve(parsed.corpus.sources)]
    name = f"batches {runner}"
    done, tasks = in_batches(recipe, store, runner, 6, name, api)
    assert done.stdout.split() == [word for made in expected for word in (made.digest, "False")], done.stderr
    assert Counter(task["name"] for task in tasks) == {"ingest stories and 2 more": 5, "ingest stories": 1}
    assert {task["state_name"] for task in tasks} == {"Completed"}
    for made in expected:
        again = Store(store).artifact("ingest", made.digest)
        assert again.manifest.files == made.manifest.files

    shutil.rmtree(store / "artifacts" / "ingest" / expected[4].digest)
    done, tasks = in_batches(recipe, store, runner, 6, f"{name} again", api)
    assert done.stdout.split()[1::2] == ["False" if number == 4 else "True" for number in range(FILES)], done.stderr
    assert Counter(task["state_name"] for task in tasks) == {"Cached": 5, "Completed": 1}


@pytest.mark.parametrize("runner", ["threads", "processes"])
def test_a_stage_that_fails_ends_its_task_with_one_line(recipe: Path, tmp_path: Path, api: str, runner: str) -> None:
    """What its task has finished before is kept, and reused when the file is mended."""
    texts, store = tmp_path / "texts", tmp_path / "store"
    shutil.copytree(recipe.parent / "texts", texts)
    bad = texts / "07.txt"
    good = bad.read_bytes()
    bad.write_bytes(good + b"\xff\n")
    mine = write_recipe(tmp_path / "mine.toml", texts)
    done, tasks = in_batches(mine, store, runner, 6, f"fails {runner}", api)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"{bad}: byte {len(good)} is not UTF-8")
    assert "Traceback" not in done.stderr
    assert [task["state_name"] for task in tasks].count("Failed") == 1
    bad.write_bytes(good)
    done, _ = in_batches(mine, store, runner, 6, f"mended {runner}", api)
    cached = done.stdout.split()[1::2]
    assert cached[:7] == ["True"] * 7, done.stderr  # 06 is in the task that failed
    assert cached[7:9] == ["False"] * 2


def test_an_interrupted_task_ends_with_the_stage_at_hand(
    recipe: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that fails or is stopped waits for its threads, and not for all the stages that they were given."""

    class Interrupted:
        def map(self, task: Any, parameters: Any) -> None:
            raise KeyboardInterrupt

    def ingest(self: Ingest, out: Path, progress: Progress) -> IngestFacts:
        with pytest.raises(KeyboardInterrupt):
            Workers(Interrupted(), elsewhere=False).map(run_stages, str(store.root), stages)  # type: ignore[arg-type]
        return run(self, out, progress)

    run, stages = Ingest.run, [Ingest.of(file) for file in resolve(Recipe.load(recipe).corpus.sources)]
    monkeypatch.setattr(Ingest, "run", ingest)
    try:
        state = run_stages.fn(str(store.root), stages)
        assert (state.name, state.message) == ("Cancelled", f"the build was stopped; 1 of {FILES} are finished")
    finally:
        stopped.clear()
    assert [*store.artifacts()] == [f"ingest/{stages[0].identity.digest}"]


@given(count=st.integers(0, 70_000))
def test_few_stages_have_tasks_of_their_own_and_many_share_some(count: int) -> None:
    stages: Any = range(count)
    found = batched(stages)
    assert [stage for batch in found for stage in batch] == [*range(count)]
    assert len(found) == count if count <= TASKS else TASKS / 2 <= len(found) <= TASKS
    assert len({len(batch) for batch in found[:-1]}) <= 1


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
