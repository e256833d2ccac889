"""Which model a server has: a package, a run, or the champion of a name, whose promotions it follows."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from al_qalam.flows.serving.engine import Engine
from qalam_core import package as packages
from qalam_core.errors import QalamError, StoreError
from qalam_core.object_store import store_at
from qalam_core.objects import UnansweredError
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.progress import every
from qalam_core.runs import Runs

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often the history of a name's champions is looked at."""


class Backend(StrEnum):
    """What computes a model."""

    NUMPY = "numpy"
    TORCH = "torch"  # on the CPU
    CUDA = "cuda"  # torch on a GPU


@dataclass(frozen=True)
class Served:
    """A model that answers."""

    run: str  # the name of a package's folder, where it is of no run
    created: int  # Unix time
    engine: Engine
    folder: Path  # of the package


class Models:
    """The model of a server. Requests keep the one that they began with; a new champion answers those that follow."""

    def __init__(self, model: str, store: str, places: int, waiting: int, backend: Backend = Backend.NUMPY) -> None:
        self._places, self._waiting, self._backend = places, waiting, backend
        self._runs: Runs | None = None
        self._folder = Path(model)
        self.name = self._folder.resolve().name if self._folder.is_dir() else model
        if not self._folder.is_dir():
            self._runs = Runs(store_at(store))
            if model in self._runs:
                self._folder, self._runs = self._runs.package_folder(model), None
            elif self._runs.champion(model) is None:
                place = self._runs.store.place
                raise StoreError(
                    f"{model}: neither a package folder, nor a run or a name with a champion in {place}; `qalam runs` "
                    "lists them"
                )
        self._served, self._problem = self._load(), ""
        self._former: Engine | None = None

    def current(self) -> Served:
        """The model for a request that begins now. Raises QalamError while a new champion cannot be read."""
        if self._problem:
            raise QalamError(self._problem)
        return self._served

    @property
    def run(self) -> str:
        """What `current` was when it could last be read."""
        return self._served.run

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Context manager in which a name's promotions are picked up; requests go on while a model is read."""
        with every(LOOK_SECONDS, self.look) if self._runs else nullcontext():
            yield

    def look(self) -> None:
        """Read the champion of a name if it is another one now."""
        before = self._served
        if self._former:  # what began with it is submitted by now
            self._former.close()
        self._former = None
        try:
            self._served, self._problem = self._load(), ""
        except UnansweredError as error:  # the next time it may answer
            log.warning("%s; %s goes on", error, self._served.run)
        except QalamError as error:
            self._problem = str(error)
        except Exception:  # the thread must not end
            log.exception("the champion of %s cannot be read", self.name)
            self._problem = f"the champion of {self.name} cannot be read; the server's log says why"
        if self._served is not before:
            self._former = before.engine

    def active(self) -> float:
        """Texts that the present model generates now."""
        return self._served.engine.active

    def waiting(self) -> float:
        """Texts that wait for a place."""
        return self._served.engine.waiting

    def _load(self) -> Served:
        before: Served | None = getattr(self, "_served", None)
        run, folder = self.name, self._folder
        if self._runs:
            champion = self._runs.champion(self.name)
            if champion is None:
                raise QalamError(f"{self.name} has no champion any more")
            run = champion
            if before and before.run == run:
                return before
            folder = self._runs.package_folder(run)
        package = packages.read(folder)
        model = NumpyTransformer(package.config, package.weights, package.vocabulary.specials)
        batch = None
        if self._backend != Backend.NUMPY:
            from al_qalam.flows.serving.torch_batching import torch_batch  # torch takes a second

            batch = torch_batch(model, self._places, cuda=self._backend == Backend.CUDA)
        engine = Engine(model, package.vocabulary, self._places, self._waiting, batch)
        return Served(run, int(time.time()), engine, folder)
