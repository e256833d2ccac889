"""The base class of stages: what a result depends on and how to make it, as one frozen value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Protocol

from qalam_core.progress import Progress
from qalam_core.recipe import Frozen
from qalam_core.store import Artifact, Identity


class Input(Protocol):
    """What a stage reads: an artifact, a file of one, or a source file."""

    @property
    def digest(self) -> str:
        """Of its content, or of everything that it was made from."""


UNHASHED = {"hashed": False}
"""Metadata of a stage's field that its result does not depend on, such as how often to log."""


@dataclass(frozen=True)
class Stage(ABC):
    """One step of the pipeline: (settings, inputs) -> files and facts.

    A subclass is a frozen dataclass with the field `settings` and one field for each input: an `Input`, a tuple of
    them, or None. All fields are hashed, and `run` reads nothing else, so that the artifact's digest covers everything
    that the result depends on. The exception is a field with the metadata UNHASHED.

    With a store on object storage, a machine copies the files that `run` reads: all of an artifact, unless the metadata
    `reads` of its field names them.

    Raise `version` when the output changes for the same settings and inputs; a golden test detects that.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    unit: ClassVar[str] = "bytes"  # of its progress
    # patterns of the files in its folder from which `run` continues when it was interrupted
    resumable: ClassVar[tuple[str, ...]] = ()

    settings: Frozen

    @property
    def label(self) -> str:
        """Its name for people, distinct among stages of one kind."""
        return self.name

    @property
    def inputs(self) -> dict[str, Input]:
        """Everything that it reads, by name; the elements of a tuple are numbered."""
        found: dict[str, Input] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if part.name == "settings" or not part.metadata.get("hashed", True) or value is None:
                continue
            if isinstance(value, tuple):
                found |= {f"{part.name}-{number:05d}": each for number, each in enumerate(value)}
            else:
                found[part.name] = value
        return found

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


def throughput(artifacts: Sequence[Artifact]) -> str:
    """Megabytes of text per second of one worker on artifacts of one stage, as "12.3 MB/s".

    Empty when nothing was built, or less than 0.1 MB of text was read.
    """
    built = [(text_bytes(artifact), artifact.seconds) for artifact in artifacts if not artifact.cached]
    size, seconds = (sum(column) for column in zip(*built, strict=True)) if built else (0, 0.0)
    return f"{size / 1e6 / seconds:.1f} MB/s" if size >= 100_000 and seconds else ""


_WAITED = {"lock": "another build", "slot": "a training slot"}


def waits(artifact: Artifact) -> str:
    """What its build waited for, as "waited 40 s for another build"; empty below a second."""
    found = [f"{seconds:,.0f} s for {_WAITED[what]}" for what, seconds in artifact.waited.items() if seconds >= 1]
    return f"waited {', '.join(found)}" if found else ""


def text_bytes(artifact: Artifact) -> int:
    """Bytes of text that a data stage read or wrote; 0 for other stages."""
    facts = artifact.manifest.facts
    if "splits" in facts:
        return sum(split["bytes"] for split in facts["splits"].values())
    return int(facts.get("bytes", 0)) if "documents" in facts or "entries" in facts else 0
