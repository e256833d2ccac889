"""A stage of the pipeline: what its result depends on, and how to make it, as one frozen value.
Gives the base class. It does not know which stages there are; build.py has their order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import Field, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

from qalam_core.progress import Progress
from qalam_core.recipe import Frozen
from qalam_core.store import Artifact, Identity

__all__ = ["UNHASHED", "Input", "NoFacts", "Stage", "throughput"]


class Input(Protocol):
    """What a stage reads: an artifact, a file of one, or a source file."""

    @property
    def digest(self) -> str:
        """Of its content, or of everything that it was made from."""

    @property
    def path(self) -> Path | str:
        """Where it is."""


class NoFacts(Frozen):
    """For a stage whose files say everything."""


UNHASHED = {"hashed": False}
"""Metadata of a stage's field that its result does not depend on, such as how often to log."""


@dataclass(frozen=True)
class Stage(ABC):
    """One step of the pipeline: (settings, inputs) -> files and facts.

    A subclass is a frozen dataclass with the field `settings` and one field for each input, an `Input` or a tuple of
    them. All fields are hashed, and `run` sees nothing else: what the result depends on cannot be left out of the
    artifact's digest. A field with the metadata UNHASHED is the exception, and says why.

    `version` is raised when the output changes for the same settings and inputs; a golden test detects that.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    unit: ClassVar[str] = "bytes"  # of its progress
    resumable: ClassVar[bool] = False  # whether `run` continues from what an interrupted run left in its folder

    settings: Frozen

    @property
    def label(self) -> str:
        """What people see: its name, and which of several it is."""
        return self.name

    @property
    def inputs(self) -> dict[str, Input]:
        """Everything that it reads, by name; inputs of one kind are numbered."""
        return dict(_named_inputs(self))

    @cached_property
    def identity(self) -> Identity:
        """Everything that its result depends on."""
        return Identity(
            stage=self.name, version=self.version, settings=self.settings.canonical(),
            inputs={name: found.digest for name, found in self.inputs.items()},
        )  # fmt: skip

    @abstractmethod
    def run(self, out: Path, progress: Progress) -> Frozen:
        """Write the result's files into the folder `out`; -> facts about the result."""


def _named_inputs(stage: Stage) -> Iterator[tuple[str, Input]]:
    for part in _input_fields(stage):
        value = getattr(stage, part.name)
        if isinstance(value, tuple):
            yield from ((f"{part.name}-{number:05d}", found) for number, found in enumerate(value))
        elif value is not None:
            yield part.name, value


def _input_fields(stage: Stage) -> list[Field[Any]]:
    return [part for part in fields(stage) if part.name != "settings" and part.metadata.get("hashed", True)]


def throughput(artifacts: Sequence[Artifact]) -> str:
    """Megabytes of text per second of work on artifacts of one stage, as "12.3 MB/s".

    Empty where nothing was built, or too little text was read to tell. The seconds of shards processed side by side add
    up, so this is the throughput of one worker.
    """
    built = [(_text_bytes(artifact), artifact.seconds) for artifact in artifacts if not artifact.cached]
    size, seconds = (sum(column) for column in zip(*built, strict=True)) if built else (0, 0.0)
    return f"{size / 1e6 / seconds:.1f} MB/s" if size >= 100_000 and seconds else ""


def _text_bytes(artifact: Artifact) -> int:
    """Bytes of text that a stage wrote or read, where its facts say so; else 0."""
    facts = artifact.manifest.facts
    if "splits" in facts:
        return sum(split["bytes"] for split in facts["splits"].values())
    return int(facts.get("bytes", 0)) if "documents" in facts or "entries" in facts else 0
