"""Reads a whole package without executing any of it, and says what changed in it since export.
Takes a folder, gives a `Package`, or a list of sentences; raises PackageError, one line with file and line.
It does not know torch, nor how to run the model.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from qalam_core.errors import PackageError
from qalam_core.package.bytecode import is_own_cache
from qalam_core.package.runtime import data_reader as settings
from qalam_core.package.runtime import weights_reader as reader
from qalam_core.package.runtime.rows import MATRIX_TYPES
from qalam_core.package.runtime.tokenizer import Tokenizer
from qalam_core.package.seek import read_row, read_rows
from qalam_core.package.write import CODE, FORMAT, Vocabulary, code_digests, row_checksums, tensor_digest

__all__ = ["Package", "read", "read_tensor", "read_tensor_row", "read_tensor_rows", "verify"]

_DATA = (".gitattributes", "MODEL_CARD.md", "config.py", "knowledge_map.py", "rows.json", "tokenizer.json",
         "vocab.py", "weights.py")  # fmt: skip
_SHARD = re.compile(r"weights_([0-9]{3})\.py")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_IGNORED = (".git", "__pycache__")  # neither is read; what lies in __pycache__ is verify's to judge
_FILE_LIMIT = 64 << 20
_RELEASES = Path(__file__).with_name("releases.json")  # release -> file -> sha256 of what its packages carry
_SHOWN = 8


@dataclass(frozen=True)
class Package:
    """A package as plain values. `edited` names the tensors whose values differ from the manifest's."""

    path: Path
    config: dict[str, int | float | str | bool]
    vocabulary: Vocabulary
    weights: dict[str, NDArray[np.float32]]
    manifest: dict[str, Any]
    edited: tuple[str, ...]


def read(folder: Path, *, strict: bool = False) -> Package:
    """Everything in a package; executes nothing. `strict` also refuses whatever was edited since export."""
    folder = Path(folder)
    manifest = _manifest(folder)
    _check_folder(folder, manifest)
    config, vocabulary, weights = _contents(folder)
    if set(manifest["tensors"]) != set(weights):
        raise PackageError("manifest.json:0: lists other tensors than config.py demands; export again")
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        digests = dict(zip(weights, pool.map(tensor_digest, weights.values()), strict=True))
    edited = tuple(name for name in weights if digests[name] != manifest["tensors"][name])
    if strict:
        if edited:
            raise PackageError(f'{folder}: tensor "{edited[0]}" changed since export; verify says where')
        for name in _changed_files(folder, manifest):
            raise PackageError(f"{name}:0: changed since export; restore it, or read without strict")
    return Package(folder, config, vocabulary, weights, manifest, edited)


def verify(folder: Path) -> list[str]:
    """One sentence for each thing that changed since export; empty when all is as it was.

    Raises PackageError when the folder is no package, or holds anything that could run when imported
    and is not this release's code.
    """
    package = read(folder)
    folder, manifest = package.path, package.manifest
    changed = _changed_files(folder, manifest)
    _check_caches(folder, manifest, changed)
    sentences = []
    for name in changed:
        if (name == "weights.py" or _SHARD.fullmatch(name)):
            if not package.edited:
                sentences.append(f"{name}: the text changed, every value is as exported")
        else:
            sentences.append(f"{name}: changed since export")
    checksums = _row_checksums(folder, changed)
    for name in package.edited:
        rows = _changed_rows(package.weights[name], checksums.get(name))
        words = package.vocabulary.words if name in ("embedding.weight", "lm_head.weight") else ()
        sentences.append(_tensor_sentence(name, rows, len(package.weights[name]), words))
    return sentences


def read_tensor_row(folder: Path, name: str, row: int) -> NDArray[np.float32]:
    """One row (for one dimension, one value) of a tensor, by seek and not by reading what precedes it."""
    folder = Path(folder)
    with _one_line_errors():
        shapes = reader.tensor_shapes(settings.read_config(folder / "config.py"))
        return read_row(folder, shapes, name, row)


def read_tensor_rows(folder: Path, name: str, start: int, stop: int) -> NDArray[np.float32]:
    """The rows `start` to `stop` (without it) of a tensor, from the files and bytes that hold them."""
    folder = Path(folder)
    with _one_line_errors():
        shapes = reader.tensor_shapes(settings.read_config(folder / "config.py"))
        return read_rows(folder, shapes, name, start, stop)


def read_tensor(folder: Path, name: str) -> NDArray[np.float32]:
    """One whole tensor, from the files and bytes that hold it."""
    folder = Path(folder)
    with _one_line_errors():
        shapes = reader.tensor_shapes(settings.read_config(folder / "config.py"))
        return read_rows(folder, shapes, name, 0, shapes.get(name, (0,))[0])


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except reader.FormatError as error:
        raise PackageError(str(error)) from None


def _refuse(file: str, reason: str) -> NoReturn:
    raise PackageError(f"{file}:0: {reason}")


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(_FILE_LIMIT + 1)
    except OSError as error:
        _refuse(path.name, f"cannot be read ({error.strerror}); export again")
    if len(raw) > _FILE_LIMIT:
        _refuse(path.name, f"larger than {_FILE_LIMIT} bytes; a package's files are small")
    return raw


def _regular(path: Path) -> None:
    """Refuse whatever is not a plain file of its own: it could lead out of the package."""
    try:
        status = path.lstat()
    except OSError as error:
        _refuse(path.name, f"cannot be read ({error.strerror}); export again")
    if not stat.S_ISREG(status.st_mode):
        _refuse(path.name, "not a plain file; put the file itself here, not a link to it")
    if status.st_nlink != 1:
        _refuse(path.name, "has other names (hard links), so it can change from outside; copy the package")


def _manifest(folder: Path) -> dict[str, Any]:
    if folder.is_symlink() or not folder.is_dir():
        raise PackageError(f"{folder}: not a folder; a package is one")
    if not (folder / "manifest.json").exists() and not (folder / "manifest.json").is_symlink():
        raise PackageError(f"{folder}: no manifest.json; this is not a package of Al-Qalam, or half of one")
    _regular(folder / "manifest.json")
    manifest = _json_object(folder / "manifest.json")
    if manifest.get("format") != FORMAT:
        _refuse("manifest.json", f"format {manifest.get('format')!r}; this release reads format {FORMAT}")
    if set(manifest) != {"dtype", "files", "format", "provenance", "tensors"}:
        _refuse("manifest.json", "must hold dtype, files, format, provenance, tensors and nothing else")
    for part in ("files", "tensors", "provenance"):
        if not isinstance(manifest[part], dict) or not all(isinstance(v, str) for v in manifest[part].values()):
            _refuse("manifest.json", f'"{part}" must map names to text')
    for part in ("files", "tensors"):
        for name, digest in manifest[part].items():
            if not _DIGEST.fullmatch(digest):
                _refuse("manifest.json", f'"{name[:80]}" needs a sha256 of 64 hexadecimal digits')
    if manifest["dtype"] not in MATRIX_TYPES:
        _refuse("manifest.json", f"dtype is one of {', '.join(MATRIX_TYPES)}")
    return manifest


def _json_object(path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            _refuse(path.name, "holds a key twice; parsers disagree about which counts")
        return dict(pairs)

    try:
        value = json.loads(_bytes(path).decode(), object_pairs_hook=once)
    except (ValueError, RecursionError):
        _refuse(path.name, "not valid JSON")
    if not isinstance(value, dict):
        _refuse(path.name, "must be a JSON object")
    return value


def _check_folder(folder: Path, manifest: dict[str, Any]) -> None:
    """Exactly the listed files, each a plain file, and the code among them byte for byte ours."""
    listed = set(manifest["files"])
    shards = sorted(name for name in listed if _SHARD.fullmatch(name))
    if shards != [f"weights_{number + 1:03d}.py" for number in range(len(shards))]:
        _refuse("manifest.json", "weights files must be numbered without a gap")
    for name in sorted({*CODE, *_DATA} - listed):
        _refuse("manifest.json", f"{name} is not listed; export again")
    for name in sorted(listed - {*CODE, *_DATA, *shards}):
        _refuse("manifest.json", f"{name[:80]!r} is no file of a package; packages hold a fixed set of files")
    for path in sorted(folder.iterdir()):
        if path.name in _IGNORED:
            if path.is_symlink():
                _refuse(path.name, "a link; delete it")
        elif path.name not in listed and path.name != "manifest.json":
            _refuse(ascii(path.name)[1:-1][:80], "not listed in manifest.json; delete it or move it elsewhere")
    for name in sorted(listed):
        _regular(folder / name)
    known = [code_digests(), *json.loads(_RELEASES.read_text(encoding="utf-8")).values()]
    found = {name: hashlib.sha256(_bytes(folder / name)).hexdigest() for name in CODE}
    if found not in known:
        nearest = min(known, key=lambda release: sum(release.get(name) != found[name] for name in CODE))
        changed = next(name for name in CODE if nearest.get(name) != found[name])
        _refuse(changed, "not the code of a release known here; restore it (weights, config and words may be edited)")


def _contents(folder: Path) -> tuple[dict[str, Any], Vocabulary, dict[str, NDArray[np.float32]]]:
    with _one_line_errors():
        config = settings.read_config(folder / "config.py")
        words = settings.read_vocabulary(folder / "vocab.py", int(config["VOCAB_SIZE"]))
        settings.check_knowledge(folder / "knowledge_map.py")
        shapes = reader.tensor_shapes(config)
        if config["PARAMETERS"] != sum(math.prod(shape) for shape in shapes.values()):
            _refuse("config.py", "PARAMETERS does not follow from the other settings")
        try:
            Tokenizer(*words)
            tokenizer_json = _bytes(folder / "tokenizer.json").decode()
            _bytes(folder / "MODEL_CARD.md").decode()
        except UnicodeDecodeError:
            _refuse("tokenizer.json", "it and MODEL_CARD.md must be UTF-8")
        except ValueError as error:
            _refuse("vocab.py", f"{error}; restore MERGES")
        return config, Vocabulary(*words, tokenizer_json), reader.read_weights(folder, shapes)


def _changed_files(folder: Path, manifest: dict[str, Any]) -> list[str]:
    def digest(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    names = sorted(manifest["files"])
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(digest, names))
    return [name for name, found in zip(names, digests, strict=True) if found != manifest["files"][name]]


def _row_checksums(folder: Path, changed: list[str]) -> dict[str, NDArray[np.uint32]]:
    """Tensor -> its rows' checksums as exported; empty when that file itself was changed."""
    if "rows.json" in changed:
        return {}
    packed = _json_object(folder / "rows.json")
    try:
        return {name: np.frombuffer(base64.b64decode(text, validate=True), "<u4") for name, text in packed.items()}
    except (ValueError, TypeError):
        _refuse("rows.json", "must map tensor names to base64; export again")


def _changed_rows(tensor: NDArray[np.float32], exported: NDArray[np.uint32] | None) -> list[int]:
    if exported is None or len(exported) != len(tensor):
        return []
    return [int(row) for row in np.flatnonzero(row_checksums(tensor) != exported)]


def _tensor_sentence(name: str, rows: list[int], total: int, words: tuple[str, ...]) -> str:
    if not rows:
        return f"{name}: values changed since export"
    shown = [f"{row} ({settings.quote(words[row])})" if words else str(row) for row in rows[:_SHOWN]]
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f"{name}: {len(rows)} of {total} rows changed since export: {', '.join(shown)}{more}"


def _check_caches(folder: Path, manifest: dict[str, Any], changed: list[str]) -> None:
    """Plain import runs what lies in __pycache__, so only true compilations of unchanged files may."""
    caches = folder / "__pycache__"
    if not caches.exists():
        return
    if not caches.is_dir():
        _refuse(caches.name, "not a folder; delete it")
    for path in sorted(caches.iterdir()):
        _regular(path)
        source = f"{path.name.partition('.')[0]}.py"
        if source not in manifest["files"] or source in changed or not is_own_cache(path, folder / source):
            shown = ascii(path.name)[1:-1][:80]
            _refuse(f"__pycache__/{shown}", "not this interpreter's compilation of a file as exported; delete it")
