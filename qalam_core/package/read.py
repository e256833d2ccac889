"""Reads packages without executing them, and reports changes since export; raises PackageError, one line."""

from __future__ import annotations

import base64
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
from qalam_core.files import json_object, read_bytes, sha256_bytes, sha256_file
from qalam_core.package.bytecode import is_own_cache
from qalam_core.package.releases import CODE, changed_code
from qalam_core.package.runtime.architecture import ModelConfig
from qalam_core.package.runtime.data_reader import FORMAT, check_knowledge, quote, read_config, read_vocabulary
from qalam_core.package.runtime.rows import MATRIX_TYPES
from qalam_core.package.runtime.tokenizer import Tokenizer, Vocabulary
from qalam_core.package.runtime.weights_reader import FormatError, read_weights
from qalam_core.package.seek import read_rows
from qalam_core.package.write import row_checksums, tensor_digest

TOKEN_TENSORS = ("embedding.weight", "lm_head.weight")
"""Tensors with one row per token."""

_DATA = (".gitattributes", "MODEL_CARD.md", "config.py", "knowledge_map.py", "rows.json", "tokenizer.json",
         "vocab.py", "weights.py")  # fmt: skip
_SHARD = re.compile(r"weights_([0-9]{3})\.py")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_IGNORED = (".git", "__pycache__")  # not read; `verify` checks __pycache__
_SHOWN = 8


@dataclass(frozen=True)
class Package:
    """A package as plain values. `edited` names the tensors whose values differ from the manifest."""

    path: Path
    config: ModelConfig
    vocabulary: Vocabulary
    tokenizer_json: str
    weights: dict[str, NDArray[np.float32]]
    manifest: dict[str, Any]
    edited: tuple[str, ...]


def read(folder: Path, *, strict: bool = False) -> Package:
    """Read a package without executing it. `strict` also refuses any change since export."""
    folder = Path(folder)
    manifest = _manifest(folder)
    _check_folder(folder, manifest)
    config, vocabulary, tokenizer_json, weights = _contents(folder)
    if set(manifest["tensors"]) != set(weights):
        raise PackageError("manifest.json:0: lists other tensors than config.py requires; export again")
    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        digests = dict(zip(weights, pool.map(tensor_digest, weights.values()), strict=True))
    edited = tuple(name for name in weights if digests[name] != manifest["tensors"][name])
    if strict:
        if edited:
            raise PackageError(f'{folder}: tensor "{edited[0]}" changed since export; verify lists the rows')
        for name in _changed_files(folder, manifest):
            raise PackageError(f"{name}:0: changed since export; restore it, or read without strict")
    return Package(folder, config, vocabulary, tokenizer_json, weights, manifest, edited)


def verify(folder: Path) -> list[str]:
    """Read a package and return its `changes`."""
    return changes(read(folder))


def changes(package: Package) -> list[str]:
    """One message for each change since export; empty if there is none.

    Raises PackageError if `__pycache__` contains anything but this interpreter's compilations of unchanged files.
    """
    folder, manifest = package.path, package.manifest
    changed = _changed_files(folder, manifest)
    _check_caches(folder, manifest, changed)
    messages = []
    for name in changed:
        if name != "weights.py" and not _SHARD.fullmatch(name):
            messages.append(f"{name}: changed since export")
        elif not package.edited:
            messages.append(f"{name}: the text changed, every value is as exported")
    checksums = _row_checksums(folder, changed)
    return messages + [_tensor_message(package, name, checksums.get(name)) for name in package.edited]


def read_tensor_rows(folder: Path, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
    """Rows `start` to `stop` (exclusive; all by default) of a tensor, by seeking; nothing else is read or checked."""
    folder = Path(folder)
    with _one_line_errors():
        shapes = read_config(folder / "config.py").tensor_shapes()
        return read_rows(folder, shapes, name, start, shapes.get(name, (0,))[0] if stop is None else stop)


def read_vocabulary_of(folder: Path) -> Vocabulary:
    """Read only the vocabulary of a package."""
    folder = Path(folder)
    with _one_line_errors():
        return read_vocabulary(folder / "vocab.py", read_config(folder / "config.py").vocab_size)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except FormatError as error:
        raise PackageError(str(error)) from None


def _refuse(file: str, reason: str) -> NoReturn:
    raise PackageError(f"{file}:0: {reason}")


def _bytes(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        _refuse(path.name, f"cannot be read ({error.strerror}); export again")
    except ValueError as error:
        _refuse(path.name, f"{error}, the limit for such files")


def _check_regular(path: Path) -> None:
    """Refuse anything but a regular file without other hard links: it could be outside the package."""
    try:
        status = path.lstat()
    except OSError as error:
        _refuse(path.name, f"cannot be read ({error.strerror}); export again")
    if not stat.S_ISREG(status.st_mode):
        _refuse(path.name, "not a regular file; put the file itself here, not a link to it")
    if status.st_nlink != 1:
        _refuse(path.name, "has other names (hard links), so it can change from outside; copy the package")


def _manifest(folder: Path) -> dict[str, Any]:
    if folder.is_symlink() or not folder.is_dir():
        raise PackageError(f"{folder}: not a folder, so not a package")
    if not (folder / "manifest.json").exists() and not (folder / "manifest.json").is_symlink():
        raise PackageError(f"{folder}: no manifest.json, so not a package, or an incomplete one")
    _check_regular(folder / "manifest.json")
    manifest = _json_object(folder / "manifest.json")
    if manifest.get("format") != FORMAT:
        _refuse("manifest.json", f"format {manifest.get('format')!r}; this release reads format {FORMAT}")
    if set(manifest) != {"dtype", "files", "format", "provenance", "tensors"}:
        _refuse("manifest.json", "must contain dtype, files, format, provenance, tensors and nothing else")
    for part in ("files", "tensors", "provenance"):
        if not isinstance(manifest[part], dict) or not all(isinstance(v, str) for v in manifest[part].values()):
            _refuse("manifest.json", f'"{part}" must map names to text')
    for name, digest in (*manifest["files"].items(), *manifest["tensors"].items()):
        if not _DIGEST.fullmatch(digest):
            _refuse("manifest.json", f'"{name[:80]}" needs a sha256 of 64 hexadecimal digits')
    if manifest["dtype"] not in [*MATRIX_TYPES]:
        _refuse("manifest.json", f"dtype must be one of {', '.join(MATRIX_TYPES)}")
    return manifest


def _json_object(path: Path) -> dict[str, Any]:
    try:
        return json_object(_bytes(path))
    except ValueError as error:
        _refuse(path.name, str(error))


def _check_folder(folder: Path, manifest: dict[str, Any]) -> None:
    """The folder must contain exactly the listed files, all regular, and the code of a known release."""
    listed = set(manifest["files"])
    shards = sorted(name for name in listed if _SHARD.fullmatch(name))
    if shards != [f"weights_{number + 1:03d}.py" for number in range(len(shards))]:
        _refuse("manifest.json", "weights files must be numbered without a gap")
    for name in sorted({*CODE, *_DATA} - listed):
        _refuse("manifest.json", f"{name} is not listed; export again")
    for name in sorted(listed - {*CODE, *_DATA, *shards}):
        _refuse("manifest.json", f"{name[:80]!r} is not a file of a package; packages have a fixed set of files")
    for path in sorted(folder.iterdir()):
        if path.name in _IGNORED:
            if path.is_symlink():
                _refuse(path.name, "a link; delete it")
        elif path.name not in listed and path.name != "manifest.json":
            _refuse(ascii(path.name)[1:-1][:80], "not listed in manifest.json; delete it or move it elsewhere")
    for name in sorted(listed):
        _check_regular(folder / name)
    found = {name: sha256_bytes(_bytes(folder / name)) for name in CODE}
    if (changed := changed_code(found)) is not None:
        _refuse(changed, "not the code of a known release; restore it (weights, config and words may be edited)")


def _contents(folder: Path) -> tuple[ModelConfig, Vocabulary, str, dict[str, NDArray[np.float32]]]:
    with _one_line_errors():
        config = read_config(folder / "config.py")
        vocabulary = read_vocabulary(folder / "vocab.py", config.vocab_size)
        check_knowledge(folder / "knowledge_map.py")
        try:
            Tokenizer(vocabulary)
            tokenizer_json = _bytes(folder / "tokenizer.json").decode()
            _bytes(folder / "MODEL_CARD.md").decode()
        except UnicodeDecodeError:
            _refuse("tokenizer.json", "this file and MODEL_CARD.md must be UTF-8")
        except ValueError as error:
            _refuse("vocab.py", f"{error}; restore MERGES")
        return config, vocabulary, tokenizer_json, read_weights(folder, config.tensor_shapes())


def _changed_files(folder: Path, manifest: dict[str, Any]) -> list[str]:
    names = sorted(manifest["files"])
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(sha256_file, (folder / name for name in names)))
    return [name for name, found in zip(names, digests, strict=True) if found != manifest["files"][name]]


def _row_checksums(folder: Path, changed: list[str]) -> dict[str, NDArray[np.uint32]]:
    """Tensor -> its rows' checksums as exported; empty if rows.json was changed."""
    if "rows.json" in changed:
        return {}
    packed = _json_object(folder / "rows.json")
    try:
        return {name: np.frombuffer(base64.b64decode(text, validate=True), "<u4") for name, text in packed.items()}
    except (ValueError, TypeError):
        _refuse("rows.json", "must map tensor names to base64; export again")


def _tensor_message(package: Package, name: str, exported: NDArray[np.uint32] | None) -> str:
    tensor, words = package.weights[name], package.vocabulary.words if name in TOKEN_TENSORS else ()
    known = exported is not None and len(exported) == len(tensor)
    rows = np.flatnonzero(row_checksums(tensor) != exported).tolist() if known else []
    if not rows:
        return f"{name}: values changed since export"
    shown = [f"{row} ({quote(words[row])})" if words else str(row) for row in rows[:_SHOWN]]
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f"{name}: {len(rows)} of {len(tensor)} rows changed since export: {', '.join(shown)}{more}"


def _check_caches(folder: Path, manifest: dict[str, Any], changed: list[str]) -> None:
    """Plain import executes __pycache__, so it may only contain compilations of unchanged files."""
    caches = folder / "__pycache__"
    if not caches.exists():
        return
    if not caches.is_dir():
        _refuse(caches.name, "not a folder; delete it")
    for path in sorted(caches.iterdir()):
        _check_regular(path)
        source = f"{path.name.partition('.')[0]}.py"
        if source not in manifest["files"] or source in changed or not is_own_cache(path, folder / source):
            shown = ascii(path.name)[1:-1][:80]
            _refuse(f"__pycache__/{shown}", "not this interpreter's compilation of a file as exported; delete it")
