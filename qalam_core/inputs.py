"""Which files of artifacts a stage reads: a machine copies them from a store on object storage, and no others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

from qalam_core.store import Artifact, ArtifactFile, Value

_READS = "reads"


def reads(*names: str) -> dict[str, tuple[str, ...]]:
    """Metadata of a stage's field with artifacts of which `run` reads these files, or none, and their manifests.

    Without it, all files count as read; of an `ArtifactFile` that one, besides these.
    """
    return {_READS: names}


def read_by(value: object, names: Set[str] | None = None) -> Iterator[tuple[Artifact, Set[str] | None]]:
    """The artifacts that a stage, an artifact or a tuple reads, and the names of the files; None: all."""
    if isinstance(value, Artifact):
        yield value, names
    elif isinstance(value, ArtifactFile):
        yield value.artifact, {value.name} | (names or set())
    elif type(value) is tuple:
        for one in value:
            yield from read_by(one, names)
    elif is_dataclass(value) and not isinstance(value, type):
        for part in fields(value):
            chosen = part.metadata.get(_READS)
            yield from read_by(getattr(value, part.name), None if chosen is None else frozenset(chosen))


def moved(value: Value, folders: Mapping[tuple[str, str], Path]) -> Value:
    """The same stage, artifact or tuple, with artifacts in these folders, and others where they are."""
    new: Any = value
    if isinstance(value, Artifact):
        home = folders.get((value.stage, value.digest), value.path)
        new = value if value.path == home else replace(value, path=home)
    elif type(value) is tuple:
        parts = tuple(moved(one, folders) for one in new)
        new = parts if any(one is not part for one, part in zip(new, parts, strict=True)) else value
    elif is_dataclass(value) and not isinstance(value, type):
        found = {part.name: getattr(value, part.name) for part in fields(value) if part.init}
        changed = {name: here for name, one in found.items() if (here := moved(one, folders)) is not one}
        new = replace(value, **changed) if changed else value
    return cast("Value", new)
