from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from al_qalam.flows.serving.prefect_env import LOCAL_SERVER
from qalam_core.runs import Runs
from qalam_core.store import Store
from tests import GOLDEN, ROOT
from tests.conftest import COLD
from tests.flows.processes import (
    call,
    clean_environment,
    own_signals,
    prepared,
    qalam,
    said_once,
    users_packages,
    write_recipe,
)
from tests.flows.stack import last_step, until

DAG = GOLDEN / "dag.txt"


def flow_run(api: str, recipe_name: str, number: int) -> dict[str, Any]:
    """The `number`-th run of a recipe's build, oldest first."""
    found: list[dict[str, Any]] = call(api, "flow_runs/filter", {
        "flow_runs": {"name": {"any_": [f"build {recipe_name}"]}}, "sort": "START_TIME_ASC"})  # fmt: skip
    return found[number]


def task_runs(api: str, run: dict[str, Any], expected: int) -> list[dict[str, Any]]:
    """The task runs of a flow run, once all are recorded, which the server does with a delay."""
    for _ in range(60):
        found: list[dict[str, Any]] = call(
            api, "task_runs/filter", {"task_runs": {"flow_run_id": {"any_": [run["id"]]}}, "limit": 200}
        )
        if len(found) >= expected and all(task["end_time"] for task in found):
            return found
        time.sleep(0.5)
    raise AssertionError([(task["name"], task["state_name"]) for task in found])


@pytest.fixture(scope="module")
def on_server(api: str, corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe, and the store in which it was built with the server."""
    folder = tmp_path_factory.mktemp("built")
    recipe = write_recipe(folder / "shared.toml", corpus_file)
    done = qalam("build", recipe, "--store", folder / "store", PREFECT_API_URL=api)
    assert done.returncode == 0, done.stderr
    return recipe, folder / "store"


TASKS = 16  # resolve, the stages (tokenize twice), publish


def test_a_build_is_seen_on_the_server(on_server: tuple[Path, Path], api: str) -> None:
    run = flow_run(api, "shared", 0)
    assert run["state_type"] == "COMPLETED"
    assert run["parameters"]["recipe"]["name"] == "shared"
    tasks = task_runs(api, run, TASKS - 1)
    assert {task["state_name"] for task in tasks} == {"Completed"}
    artifacts = call(api, "artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
    report = next(artifact for artifact in artifacts if artifact["key"] == "report")
    assert "bits per byte" in report["data"]


def edges(tasks: list[dict[str, Any]]) -> set[str]:
    """The edges of the server's graph, as `stage -> stage`."""
    names = {task["id"]: re.sub(r"[ -].*", "", task["name"]) for task in tasks}
    return {
        f"{names[source['id']]} -> {names[task['id']]}"
        for task in tasks for sources in task["task_inputs"].values() for source in sources
        if source["input_type"] == "task_run"
    }  # fmt: skip


BESIDES = {"resolve -> ingest", "match -> prepare", *(f"{stage.name} -> publish" for stage in COLD)}
"""Edges of tasks that are no stages, and of an input that is not hashed, as it follows from the others."""


def test_the_servers_graph_is_the_lineage(on_server: tuple[Path, Path], api: str) -> None:
    """The edges are those of the store's lineage, and a few besides."""
    drawn = edges(task_runs(api, flow_run(api, "shared", 0), TASKS - 1))
    assert drawn == {*DAG.read_text(encoding="utf-8").splitlines(), *BESIDES}


def test_a_second_build_shows_every_stage_cached(on_server: tuple[Path, Path], api: str) -> None:
    recipe, store = on_server
    again = qalam("build", recipe, "--store", store, PREFECT_API_URL=api)
    assert again.returncode == 0, again.stderr
    assert "every stage was cached" in again.stdout
    tasks = task_runs(api, flow_run(api, "shared", 1), TASKS - 1)
    states = {task["name"].split("-")[0]: task["state_name"] for task in tasks}
    assert {name for name, state in states.items() if state != "Cached"} == {"resolve", "publish"}
    assert edges(tasks) == {*DAG.read_text(encoding="utf-8").splitlines(), *BESIDES}


@pytest.fixture(scope="module")
def wheel(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from a copy of its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("qalam_core", "al_qalam", "flows", "tasks", "deployments"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "source" / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    # without build isolation: torch requires setuptools, so that it is installed
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "source")
    (built,) = folder.glob("*.whl")
    return built


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *map(str, arguments)]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_wheel_contains_the_two_packages(wheel: Path) -> None:
    """The linked folders of al_qalam are in it as regular files."""
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
    names = {entry.filename for entry in entries}
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"qalam_core", "al_qalam", next(top for top in tops if top.endswith(".dist-info"))}
    assert not any(stat.S_ISLNK(entry.external_attr >> 16) for entry in entries)
    for folder, package in (("flows", "al_qalam/flows"), ("tasks", "al_qalam/tasks"), ("qalam_core", "qalam_core"),
                            ("deployments", "al_qalam/deployments")):  # fmt: skip
        files = [path for pattern in ("*.py", "*.toml", "*.yaml") for path in (ROOT / folder).rglob(pattern)]
        assert files
        assert {f"{package}/{path.relative_to(ROOT / folder).as_posix()}" for path in files} <= names


def test_an_installed_build_without_a_server_makes_the_same_package(
    on_server: tuple[Path, Path], wheel: Path, tmp_path: Path
) -> None:
    """Installed from the wheel, used in a folder where the user has packages flows, tasks and deployments, and with a
    damaged database in the store."""
    recipe, store = on_server
    site, work = tmp_path / "site", tmp_path / "work"
    pip("install", "--no-deps", "--target", site, wheel)
    work.mkdir()
    users_packages(work)
    code = "import al_qalam.flows.cli.main, qalam_core; print(al_qalam.__file__, qalam_core.__file__); import flows"
    imported = subprocess.run(
        [sys.executable, "-c", code], cwd=work, env=clean_environment(PYTHONPATH=str(site)), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert imported.stdout.split() == [str(site / name / "__init__.py") for name in ("al_qalam", "qalam_core")]
    assert "ImportError: the package flows of the user" in imported.stderr
    where = ["--store", tmp_path / "store"]
    plan = qalam("plan", "demo", *where, cwd=work, PYTHONPATH=str(site))  # a recipe that is included in the wheel
    assert plan.returncode == 0, plan.stderr
    damaged = tmp_path / "store" / "prefect" / "prefect.db"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"not a database" * 1000)
    embedded = qalam("build", recipe, *where, cwd=work, PYTHONPATH=str(site))
    assert embedded.returncode == 0, embedded.stderr
    assert "Traceback" not in embedded.stdout + embedded.stderr
    assert embedded.stderr.count(f"{damaged}: damaged; it was renamed to prefect.db.damaged") == 1
    assert damaged.read_bytes()[:6] == b"SQLite"
    assert not (tmp_path / "store" / "outbox").exists(), "an event for no server"
    assert re.search(r"^  built +train .* first build$", embedded.stderr, re.MULTILINE), "the reason"
    (two,) = (tmp_path / "store" / "runs").glob("shared-*")
    one = store / "runs" / two.name
    files = sorted(path.name for path in (one / "model").iterdir())
    assert files == sorted(path.name for path in (two / "model").iterdir())
    for name in files:
        assert (one / "model" / name).read_bytes() == (two / "model" / name).read_bytes(), name


def test_a_refused_model_fails_the_run_and_keeps_it(
    on_server: tuple[Path, Path], api: str, corpus_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(on_server[1], tmp_path / "store")  # all stages but the gate are cached
    unreadable = tmp_path / "store" / "outbox" / "unreadable.json"  # where the build left its event, and sent it
    assert list(unreadable.parent.iterdir()) == []
    unreadable.touch()
    strict = write_recipe(tmp_path / "strict.toml", corpus_file, gate={"beat_unigram": 0.99})
    refused = qalam("build", strict, "--store", tmp_path / "store", PREFECT_API_URL=api)
    assert refused.returncode == 1, refused.stderr
    assert "refused" in refused.stdout
    assert "Traceback" not in refused.stdout + refused.stderr
    assert Runs(Store(tmp_path / "store")).champion("strict") is None
    assert len(list((tmp_path / "store" / "runs").glob("strict-*"))) == 1
    run = flow_run(api, "strict", 0)
    assert run["state_type"] == "FAILED"
    assert run["state"]["message"].startswith("the gate refused")
    assert run["state"]["message"].endswith(f"; {unreadable} is not a readable event; delete it")
    assert f"note   {unreadable}" in refused.stderr
    assert said_once(api, run["id"], "the gate refused")
    assert [path.name for path in unreadable.parent.iterdir()] == [unreadable.name], "the refusal was sent"


def test_a_users_error_in_a_task_is_one_line(api: str, tmp_path: Path) -> None:
    (tmp_path / "junk.txt").write_bytes(b"\x00\x01\x02" * 100)
    recipe = write_recipe(tmp_path / "junk.toml", tmp_path / "junk.txt")
    done = qalam("build", recipe, "--store", tmp_path / "store", PREFECT_API_URL=api)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "junk.txt" in done.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_build_can_be_resumed(how: signal.Signals, api: str, corpus_file: Path, tmp_path: Path) -> None:
    """SIGINT and SIGTERM to the flow's process only, during training."""
    recipe = write_recipe(tmp_path / "long.toml", corpus_file, train={"steps": 2000})
    command = ["build", str(recipe), "--store", str(tmp_path / "store")]
    with subprocess.Popen(
        [sys.executable, "-c", "from al_qalam.flows.cli.main import main; main()", *command],
        env=clean_environment(PREFECT_API_URL=api, **LOCAL_SERVER),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=own_signals,
    ) as build:  # fmt: skip
        for _ in range(600):
            if list((tmp_path / "store").glob("artifacts/train/*.partial/checkpoint-*")):
                break
            time.sleep(0.1)
        build.send_signal(how)
        since = time.monotonic()
        _, errors = build.communicate(timeout=60)
    assert time.monotonic() - since < 20
    assert build.returncode == 128 + how, errors
    assert "the same command resumes the build" in errors
    assert "Traceback" not in errors
    (partial,) = (tmp_path / "store").glob("artifacts/train/*.partial")
    stopped_at = max(int(path.stem.rpartition("-")[2]) for path in partial.glob("checkpoint-*"))
    assert 0 < stopped_at < 2000
    metrics = (partial / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(metrics[-1])["step"] == stopped_at


def test_a_server_that_does_not_start_is_one_line(processes: None, corpus_file: Path, tmp_path: Path) -> None:
    recipe, database = write_recipe(tmp_path / "a.toml", corpus_file), f"sqlite+aiosqlite:///{tmp_path}/none/prefect.db"
    done = qalam("build", recipe, "--store", tmp_path / "store", PREFECT_API_DATABASE_CONNECTION_URL=database)
    assert (done.returncode, done.stderr.count("error: ")) == (2, 1), done.stderr
    assert re.search("it did not start: .*unable to open database file; delete .*/prefect, then", done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_a_build_without_a_server_leaves_nothing_but_its_checkpoint(
    how: signal.Signals, database: Path, corpus_file: Path, tmp_path: Path
) -> None:
    """Ctrl-C, `timeout` and a closed terminal go to the build, its trainer and all else in its group, but not to its
    server; SIGKILL here to the build alone."""
    prepared(tmp_path / "store" / "prefect", database)
    recipe = write_recipe(tmp_path / "long.toml", corpus_file, train={"steps": 2000})
    command = ["build", str(recipe), "--store", str(tmp_path / "store")]
    with subprocess.Popen(
        [sys.executable, "-c", "from al_qalam.flows.cli.main import main; main()", *command], env=clean_environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=own_signals, process_group=0,
    ) as build:  # fmt: skip
        for _ in range(600):
            if list((tmp_path / "store").glob("artifacts/train/*.partial/checkpoint-*")):
                break
            time.sleep(0.1)
        of_build = psutil.Process(build.pid).children(recursive=True)
        assert any("al_qalam.flows.serving.private_server" in each.cmdline() for each in of_build)
        (os.kill if how is signal.SIGKILL else os.killpg)(build.pid, how)
        try:
            _, errors = build.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(build.pid, signal.SIGKILL)
            raise
        finally:
            _, left = psutil.wait_procs(of_build, timeout=20)
            for each in left:
                each.kill()
    assert not left
    assert "Traceback" not in errors
    if how is not signal.SIGKILL:
        assert build.returncode == 128 + how, errors
        assert errors.count("the same command resumes the build") == 1
    (partial,) = (tmp_path / "store").glob("artifacts/train/*.partial")
    metrics = (partial / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(metrics[-1])["step"] == last_step(partial) > 0


def test_a_build_outlives_its_own_server(database: Path, corpus_file: Path, tmp_path: Path) -> None:
    """A system that is short of memory kills one of the largest processes."""
    prepared(tmp_path / "store" / "prefect", database)
    recipe = write_recipe(tmp_path / "long.toml", corpus_file, train={"steps": 150})
    command = ["build", str(recipe), "--store", str(tmp_path / "store")]
    with subprocess.Popen(
        [sys.executable, "-c", "from al_qalam.flows.cli.main import main; main()", *command], env=clean_environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=own_signals,
    ) as build:  # fmt: skip
        until(lambda: [*(tmp_path / "store").glob("artifacts/train/*.partial/checkpoint-*")], 60, "the training began")
        of_build = psutil.Process(build.pid).children(recursive=True)
        (server,) = (one for one in of_build if "al_qalam.flows.serving.private_server" in one.cmdline())
        server.kill()
        _, errors = build.communicate(timeout=120)
    assert build.returncode == 0, errors
    assert "Traceback" not in errors
    assert Runs(Store(tmp_path / "store")).champion("long")


def test_two_builds_of_one_recipe_on_one_store_both_succeed(api: str, corpus_file: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "twice.toml", corpus_file, train={"steps": 200})
    command = [sys.executable, "-c", "from al_qalam.flows.cli.main import main; main()", "build", str(recipe)]
    both = [
        subprocess.Popen(
            [*command, "--store", str(tmp_path / "store")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=clean_environment(PREFECT_API_URL=api, QALAM_PROGRESS_SECONDS="0.3", **LOCAL_SERVER),
        )
        for _ in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert len(list((tmp_path / "store" / "runs").glob("twice-*"))) == 1
    (builder,) = (text for text in errors if re.search("^  built +train ", text, re.MULTILINE))
    (other,) = (text for text in errors if text is not builder)
    moving = r"^  running train +[\d,]+ of 200 steps \(\d+%\), loss [\d.]+, [\d,]+ tokens/s, \d+:\d\d:\d\d left$"
    assert re.search(moving, builder, re.MULTILINE), builder
    assert "  note   waiting for another build, which works on train-" in other
    waited = re.search(r"^  cached  train +(\d+\.\d) s .* waited (\d+) s for another build$", other, re.MULTILINE)
    assert waited, other
    assert float(waited[1]) < int(waited[2])
    assert "running train" not in other
