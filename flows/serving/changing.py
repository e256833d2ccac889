"""Changed copies of the served model, each for one page: what is tried in memory, and kept as an edited package."""

from __future__ import annotations

import re
import secrets
import shlex
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from al_qalam.flows.serving.engine import Engine
from al_qalam.flows.serving.errors import ApiError
from al_qalam.flows.serving.models import Served
from qalam_core.display import printable
from qalam_core.errors import PackageError
from qalam_core.files import try_lock
from qalam_core.package import read
from qalam_core.package.comments import TOKEN_TENSORS
from qalam_core.package.editing import rows as edits
from qalam_core.package.editing.seal import seal
from qalam_core.package.inside import with_rows
from qalam_core.package.runtime.numpy_model import Floats
from qalam_core.package.runtime.tokenizer import Vocabulary

MOST_SESSIONS = 4
"""Changed copies at a time, each with rows of its own; a further one ends that which was used longest ago."""

MOST_VALUE = 10_000
"""Of a changed row: the logits of a model with larger ones may not be finite."""

_TENSOR = "embedding.weight"
_NAME = re.compile(r"\w[\w.-]{0,99}")
_SCRATCH = ".qalam-keep-"

Word = Annotated[str, Field(max_length=200)]


class Edit(BaseModel):
    """One change of a word's row: times `factor`, a copy of the row of `source`, or `values`; or a new word, whose row
    is the mean of those of `like`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["scale", "copy", "set", "add"]
    word: Word
    factor: float = 1.0
    source: Word = ""
    values: list[float] = []
    like: Annotated[list[Word], Field(max_length=100)] = []

    def __str__(self) -> str:
        added = f"added, like {', '.join(self.like)}" if self.like else "added"
        given = {"scale": f"times {self.factor:g}", "copy": f"as {self.source}", "set": "set", "add": added}
        return f"{self.word} {given[self.kind]}"


class Sessions:
    """The changed copies by their names, which only the page that asked for one knows."""

    def __init__(self) -> None:
        self._served: OrderedDict[str, Served] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, name: str) -> Served | None:
        """The copy with this name, while there is one."""
        with self._lock:
            if name in self._served:
                self._served.move_to_end(name)
            return self._served.get(name)

    def change(self, served: Served, changes: Sequence[Edit], name: str) -> str:
        """Make a copy of `served` with these changes, in place of the one that was called `name`; -> its new name.
        Raises ApiError."""
        new = f"page-{secrets.token_hex(16)}"
        changed = replace(served, run=new, engine=_changed(served.engine, changes))
        with self._lock:
            ended = [self._served.pop(name)] if name in self._served else []
            self._served[new] = changed
            while len(self._served) > MOST_SESSIONS:
                ended.append(self._served.popitem(last=False)[1])
        for each in ended:
            each.engine.close()
        return new


def _changed(engine: Engine, changes: Sequence[Edit]) -> Engine:
    vocabulary, rows = _rows(engine.vocabulary, engine.model.weights, changes)
    return Engine(with_rows(engine.model, rows), vocabulary, places=2, waiting=2)


def _rows(
    vocabulary: Vocabulary, weights: Mapping[str, Floats], changes: Sequence[Edit]
) -> tuple[Vocabulary, dict[str, Floats]]:
    """The vocabulary, and the tensors of a row per token, as the functions of `editing` change those of a package, but
    before its storage type rounds. Raises ApiError."""
    rows = {name: weights[name] for name in TOKEN_TENSORS if name in weights} | {_TENSOR: weights[_TENSOR].copy()}
    for change in changes:
        try:
            if change.kind == "add":
                vocabulary, like = edits.with_token(vocabulary, rows, change.word, change.like)
                rows = {name: np.vstack([rows[name], edits.mean_row(rows, name, like)]) for name in rows}
                continue
            embedding_VC = rows[_TENSOR]
            row = edits.checked_row(vocabulary, rows, _TENSOR, change.word)
            wanted = embedding_VC[row].astype(np.float64) * change.factor
            if change.kind == "copy":
                source = edits.checked_row(vocabulary, rows, _TENSOR, change.source)
                wanted = embedding_VC[source].astype(np.float64)
            if change.kind == "set":
                wanted = np.array(change.values, np.float64)
        except PackageError as error:
            raise ApiError(400, str(error), "word") from None
        if len(wanted) != embedding_VC.shape[1]:
            raise ApiError(400, f"{len(wanted)} numbers for a row of {embedding_VC.shape[1]}; give one per value")
        with np.errstate(over="ignore"):
            embedding_VC[row] = wanted.astype(np.float32)
        if not np.abs(embedding_VC[row]).max() <= MOST_VALUE:  # NaN is not either
            raise ApiError(400, f"{printable(str(change))}: only values of at most {MOST_VALUE:,} are tried here")
    return vocabulary, rows


def keep(served: Served, changes: Sequence[Edit], name: str) -> str:
    """Write `served` with these changes as the sealed package `name` in the present folder; -> the command that
    proposes it. Raises ApiError."""
    folder = Path(name)
    if not _NAME.fullmatch(name) or not name.isprintable():
        raise ApiError(400, "folder: give a name of letters, digits, '-', '_' and '.', and no path", "folder")
    if folder.exists():
        raise ApiError(400, f"folder: {name} exists; choose another name", "folder")
    note = printable(f"on the page of qalam serve: {'; '.join(map(str, changes))}")
    try:
        with _scratch() as scratch:
            copied = scratch / "package"
            shutil.copytree(served.folder, copied, ignore=shutil.ignore_patterns("__pycache__", ".git"))
            if not _is_tried(served, copied, changes):
                raise ApiError(400, f"{served.folder}: no longer what was read here; start the server again")
            for change in changes:
                if change.kind == "scale":
                    edits.scale_row(copied, _TENSOR, change.word, change.factor)
                elif change.kind == "copy":
                    edits.copy_row(copied, _TENSOR, change.word, change.source)
                elif change.kind == "set":
                    edits.set_row(copied, _TENSOR, change.word, change.values)
                else:
                    edits.add_token(copied, change.word, change.like)
            seal(copied, note)
            copied.rename(folder)
    except PackageError as error:
        raise ApiError(400, str(error).replace(str(scratch), name)) from None
    except OSError as error:
        if not served.folder.is_dir():
            raise ApiError(400, f"{served.folder}: the model's package was deleted since it was read") from None
        raise ApiError(400, f"folder: {name} cannot be written ({error.strerror})", "folder") from None
    return f"qalam propose {shlex.quote(name)} --why REASON"


def _is_tried(served: Served, folder: Path, changes: Sequence[Edit]) -> bool:
    """Whether the package in `folder`, with these changes, is the copy that was tried."""
    package, tried = read(folder), served.engine.model.weights
    vocabulary, rows = _rows(package.vocabulary, package.weights, changes)
    wanted = package.weights | rows
    return vocabulary == served.engine.vocabulary and all(np.array_equal(wanted[name], tried[name]) for name in tried)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder in the present one, with a lock while it is in use."""
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=".") as name, (Path(name) / "lock").open("w") as lock:
        try_lock(lock)
        yield Path(name)


def clean() -> None:
    """Delete what servers that were killed while they kept a package left in the present folder."""
    for path in Path().glob(f"{_SCRATCH}*/lock"):
        with suppress(OSError), path.open("a") as lock:
            if try_lock(lock):
                shutil.rmtree(path.parent)
