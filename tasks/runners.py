"""Where mapped tasks run: in threads of the flow's process, in processes on its machine, or on a Dask cluster.
The artifacts have the same bytes in each case.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from prefect import Task, unmapped
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from al_qalam.tasks.progress import tracked, watchers
from al_qalam.tasks.stages import stopped
from qalam_core.errors import DamagedError, RecipeError, StoreError
from qalam_core.object_store import store_at
from qalam_core.pipeline.stage import Stage
from qalam_core.store import Artifact, Store

THREADS = 4  # a thread that tokenizes needs about 150 MB, and its native code uses more cores by itself
TASKS = 500  # of a kind of stage at most: each is a run in Prefect's database
CONNECT_SECONDS = 10
WORKER_SECONDS = 30  # how long to wait for a cluster's first worker


@dataclass(frozen=True)
class Workers:
    """Started workers; `elsewhere` when they are not in the flow's process."""

    runner: TaskRunner[Any]
    elsewhere: bool
    # what tasks returned: Prefect finds the edges of its graph by the addresses of results, and the address of one that
    # was freed could be that of another task's parameter
    returned: list[Any] = field(default_factory=list, compare=False)

    def map(self, task: Task[..., Any], store: str, stages: Sequence[Stage]) -> list[Artifact]:
        """Run `task` for the stages, each alone or, of more than TASKS, several in a row; the first error is raised
        unchanged.

        Raises StoreError when a worker's artifacts are not visible here, or when its process was killed.
        """
        stopped.clear()
        try:
            batches = batched(stages)
            futures = self.runner.map(task, {"store": unmapped(store), "stages": batches})
            if not self.elsewhere:
                self.returned.append(made_here := futures.result())
                return list(chain.from_iterable(made_here))
            home, results = store_at(store), list[Artifact]()
            with tracked(stages[0].name, "stages") as progress:
                # in order, because Prefect's as_completed waits forever for the tasks of a broken pool
                for batch, future in zip(batches, futures, strict=True):
                    progress(len(results), len(stages))
                    self.returned.append(made := future.result())
                    pairs = zip(batch, made, strict=True)
                    results += [_reported(stage, artifact, home) for stage, artifact in pairs]
        except BrokenProcessPool:
            raise StoreError(
                "a worker process was killed, most likely for memory; what is finished is kept: run the same command "
                "again, with runner=threads or fewer PREFECT_TASKS_RUNNER_PROCESS_POOL_MAX_WORKERS"
            ) from None
        except BaseException:
            stopped.set()
            raise
        return results


@contextmanager
def workers(requested: str) -> Iterator[Workers]:
    """Context manager that starts the workers of the recipe's `runner`, or of $QALAM_RUNNER, which overrides it.

    At the end they are stopped, except an existing Dask cluster. Raises RecipeError for an unknown name, a missing
    extra, or a scheduler that does not respond.
    """
    environment = os.environ.get("QALAM_RUNNER", "")
    chosen, source = environment or requested, "QALAM_RUNNER" if environment else "runner"
    if chosen == "threads":  # mapped stages run native code that releases the interpreter lock
        threads: ThreadPoolTaskRunner[Any]
        with ThreadPoolTaskRunner(max_workers=min(os.cpu_count() or 1, THREADS)) as threads:
            yield Workers(threads, elsewhere=False)
    elif chosen == "processes":
        with ProcessPoolTaskRunner() as processes:
            yield Workers(processes, elsewhere=True)
    elif chosen == "dask" or chosen.startswith(("tcp://", "tls://")):
        with _dask("" if chosen == "dask" else chosen, source) as runner:
            yield Workers(runner, elsewhere=True)
    else:
        raise RecipeError(
            f'{source}: {chosen!r} is not "threads", "processes", "dask", or a Dask scheduler\'s address such as '
            '"tcp://host:8786"'
        )


@contextmanager
def _dask(address: str, source: str) -> Iterator[TaskRunner[Any]]:
    try:
        from distributed import KilledWorker
        from distributed.comm.core import CommClosedError
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError:
        raise RecipeError(f'{source}: Dask is not installed; run: pip install "al-qalam[dask]"') from None
    if address:
        runner = DaskTaskRunner(address=address, client_kwargs={"timeout": CONNECT_SECONDS})
    else:
        runner = DaskTaskRunner(cluster_kwargs={"threads_per_worker": 1, "dashboard_address": None})
    with runner:
        try:
            client = runner.client  # connects
        except (OSError, ValueError) as error:  # OSError: a timeout; ValueError: not an address
            raise RecipeError(
                f"{source}: no Dask scheduler responds at {address} ({type(error).__name__}); start one with "
                "`dask scheduler`, or correct the address"
            ) from None
        try:
            client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except TimeoutError:
            raise RecipeError(
                f"{source}: the Dask cluster at {address} has no workers; start some with `dask worker {address}`"
            ) from None
        try:
            yield runner
        except KilledWorker:
            raise StoreError(
                "several Dask workers were killed on the same file, most likely for memory; what is finished is kept: "
                "give the workers more memory or fewer threads, and run the same command again"
            ) from None
        except (CancelledError, CommClosedError):
            raise StoreError(
                f"the Dask scheduler {f'at {address}' if address else 'on this machine'} is gone; what is finished is "
                "kept: start it, and run the same command again"
            ) from None


def batched(stages: Sequence[Stage]) -> list[Sequence[Stage]]:
    """The stages of each task, in order: one of few stages, several of thousands."""
    size = max(1, -(-len(stages) // TASKS))
    return [stages[start : start + size] for start in range(0, len(stages), size)]


def _reported(stage: Stage, made: Artifact, home: Store) -> Artifact:
    """Report a stage that another process has finished to the watchers here. Raises StoreError when its artifact is
    not visible here."""
    path = home.artifact_folder(made.stage, made.digest)
    try:
        artifact = replace(made, path=path).with_manifest(home.manifest(made.stage, made.digest))
    except DamagedError:
        raise StoreError(
            f"{path}: a worker built this, but it is not visible here; the flow and all workers need the same store at "
            "the same path"
        ) from None
    for watcher in watchers:
        watcher.finished(stage, artifact)
    return artifact
