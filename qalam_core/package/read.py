"""Reads packages without executing them, and reports changes since export; raises PackageError, one line."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from qalam_core.errors import PackageError
from qalam_core.files import TEXT_LIMIT, json_object, read_bytes, sha256_bytes, sha256_file
from qalam_core.package.bytecode import is_own_cache
from qalam_core.package.comments import TOKEN_TENSORS, restated
from qalam_core.package.releases import CODE, changed_code
from qalam_core.package.runtime.architecture import ModelConfig
from qalam_core.package.runtime.data_reader import FORMAT, quote, read_config, read_knowledge, read_vocabulary
from qalam_core.package.runtime.rows import MATRIX_TYPES
from qalam_core.package.runtime.tokenizer import Tokenizer, Vocabulary
from qalam_core.package.runtime.weights_reader import (
    WINDOWS,
    FormatError,
    Threads,
    read_weights,
    weight_file,
    weight_files,
)
from qalam_core.package.seek import check_regular, read_rows
from qalam_core.package.statistics import Measured, are_neighbours, are_of, statistics
from qalam_core.package.vocabulary import says_the_same, tokenizer_json
from qalam_core.package.write import GITATTRIBUTES, card_error, provenance_error, row_checksums, tensor_digest

_DATA = (".gitattributes", "MODEL_CARD.md", "config.py", "knowledge_map.py", "rows.json", "tokenizer.json",
         "vocab.py", "weights.py")  # fmt: skip
_SHARD = re.compile(r"weights_[0-9]{3,9}\.py")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_IGNORED = (".git", "__pycache__")  # not read; `verify` checks __pycache__, and `git_remark` warns of .git
_IMPORTED = (".dll", ".dylib", ".pth", ".py", ".pyc", ".pyd", ".pyo", ".pyw", ".so")
_NESTED = 1000
_SHOWN = 8


@dataclass(frozen=True)
class Package:
    """A package as plain values. `edited` names the tensors whose values differ from the manifest.

    `tokenizer_json` is that of the vocabulary, also where words were edited and the file was not written again yet.
    `unlisted` names what is in the folder without being part of the package, such as .DS_Store and weights.py~.
    """

    path: Path
    config: ModelConfig
    vocabulary: Vocabulary
    tokenizer_json: str
    weights: dict[str, NDArray[np.float32]]
    manifest: dict[str, Any]
    edited: tuple[str, ...]
    unlisted: tuple[str, ...] = ()


def read(folder: Path, *, strict: bool = False) -> Package:
    """Read a package without executing it. `strict` also refuses any change since export and any unlisted file."""
    folder = Path(folder)
    manifest = _manifest(folder)
    unlisted = _check_folder(folder, manifest)
    config, vocabulary, tokenizer, weights = _contents(folder, manifest)
    if set(manifest["tensors"]) != set(weights):
        raise PackageError("manifest.json:0: lists other tensors than config.py requires; export again")
    with Threads(os.cpu_count()) as pool:  # hashing releases the GIL
        digests = dict(zip(weights, pool.map(tensor_digest, weights.values()), strict=True))
    edited = tuple(name for name in weights if digests[name] != manifest["tensors"][name])
    package = Package(folder, config, vocabulary, tokenizer, weights, manifest, edited, unlisted)
    if strict:
        if unlisted:
            _refuse(unlisted[0], "not listed in manifest.json; delete it, or read without strict")
        if edited:
            raise PackageError(f'{folder}: tensor "{edited[0]}" changed since export; verify lists the rows')
        for name in _changed_files(package):
            raise PackageError(f"{name}:0: changed since export; restore it, or read without strict")
    return package


def verify(folder: Path) -> list[str]:
    """Read a package and return its `changes`."""
    return changes(read(folder))


def changes(package: Package) -> list[str]:
    """One message for each change since export; empty if there is none.

    Raises PackageError if `__pycache__` contains anything but this interpreter's compilations of the files, or if what
    a file says of the others, as exported, is not so: rows.json of the rows, knowledge_map.py and the comments of
    weights files of the values and words.
    """
    folder, manifest = package.path, package.manifest
    measured = _measured(package)
    changed = _changed_files(package, measured)
    _check_caches(folder, manifest)
    messages = []
    for name in changed:
        if name != "weights.py" and not _SHARD.fullmatch(name):
            messages.append(f"{name}: changed since export")
        elif not package.edited:
            messages.append(f"{name}: the text changed, every value is as exported")
    checksums = _row_checksums(package, changed)
    _check_knowledge(package, changed, measured)
    return messages + [_tensor_message(package, name, checksums.get(name)) for name in package.edited]


def git_remark(folder: Path) -> str:
    """A warning if there is a `.git` in the folder, which is neither read nor checked; else ""."""
    if not (Path(folder) / ".git").exists():
        return ""
    return (
        f"{folder}/.git is not checked: git commands in this folder, even git status, run the programs that its "
        "config and hooks name; delete it unless you cloned or created it yourself"
    )


def read_tensor_rows(folder: Path, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
    """Rows `start` to `stop` (exclusive; all by default) of a tensor, by seeking; nothing else is read or checked."""
    folder = Path(folder)
    check_regular(folder / "config.py")
    with _one_line_errors():
        shapes = read_config(folder / "config.py").tensor_shapes()
        return read_rows(folder, shapes, name, start, shapes.get(name, (0,))[0] if stop is None else stop)


def read_vocabulary_of(folder: Path) -> Vocabulary:
    """Read only the vocabulary of a package."""
    folder = Path(folder)
    for name in ("config.py", "vocab.py"):
        check_regular(folder / name)
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


def _shown(name: str) -> str:
    """A name from a package, which could contain anything."""
    return ascii(name)[1:-1][:80]


def _bytes(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        _refuse(path.name, f"cannot be read ({error.strerror}); export again")
    except ValueError as error:
        _refuse(path.name, f"{error}, the limit for such files")


def _manifest(folder: Path) -> dict[str, Any]:
    if folder.is_symlink() or not folder.is_dir():
        raise PackageError(f"{folder}: not a folder, so not a package")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise PackageError(f"{folder}: no permission to read it; allow it with chmod u+rx")
    if not (folder / "manifest.json").exists() and not (folder / "manifest.json").is_symlink():
        raise PackageError(f"{folder}: no manifest.json, so not a package, or an incomplete one")
    check_regular(folder / "manifest.json")
    manifest = _json_object(folder / "manifest.json")
    version = manifest.get("format")
    if type(version) is not int or version != FORMAT:  # True and 1.0 equal 1
        _refuse("manifest.json", f"format {str(version)[:20]!a}; this release reads format {FORMAT}")
    if set(manifest) != {"dtype", "files", "format", "provenance", "tensors"}:
        _refuse("manifest.json", "must contain dtype, files, format, provenance, tensors and nothing else")
    for part in ("files", "tensors", "provenance"):
        if not isinstance(manifest[part], dict) or not all(isinstance(v, str) for v in manifest[part].values()):
            _refuse("manifest.json", f'"{part}" must map names to text')
    for name, digest in (*manifest["files"].items(), *manifest["tensors"].items()):
        if not _DIGEST.fullmatch(digest):
            _refuse("manifest.json", f'"{_shown(name)}" needs a sha256 of 64 hexadecimal digits')
    if reason := provenance_error(manifest["provenance"]):
        _refuse("manifest.json", reason)
    if manifest["dtype"] not in [*MATRIX_TYPES]:
        _refuse("manifest.json", f"dtype must be one of {', '.join(MATRIX_TYPES)}")
    return manifest


def _json_object(path: Path) -> dict[str, Any]:
    """manifest.json or rows.json. Many nested values would take twenty times the file's size in memory."""
    content = _bytes(path)
    if content.count(b"[") + content.count(b"{") > _NESTED:
        _refuse(path.name, f"more than {_NESTED} lists and objects; export again")
    try:
        return json_object(content)
    except ValueError as error:
        _refuse(path.name, str(error))


def _check_folder(folder: Path, manifest: dict[str, Any]) -> tuple[str, ...]:
    """The folder must contain the listed files, all regular, and the code of a known release; -> unlisted names.

    An unlisted file is refused if Python could import it.
    """
    listed = set(manifest["files"])
    shards = {name for name in listed if _SHARD.fullmatch(name)}
    if shards != {weight_file(number + 1) for number in range(len(shards))}:
        _refuse("manifest.json", "weights files must be numbered without a gap")
    for name in sorted({*CODE, *_DATA} - listed):
        _refuse("manifest.json", f"{name} is not listed; export again")
    for name in sorted(listed - {*CODE, *_DATA, *shards}):
        _refuse("manifest.json", f"{_shown(name)} is not a file of a package; packages have a fixed set of files")
    unlisted = []
    for path in sorted(folder.iterdir()):
        if path.name in _IGNORED:
            if path.is_symlink():
                _refuse(path.name, "a link; delete it")
        elif path.name not in listed and path.name != "manifest.json":
            if _is_importable(path):
                _refuse(_shown(path.name), "not listed in manifest.json; delete it or move it elsewhere")
            unlisted.append(_shown(path.name))
    code = {name: sha256_bytes(_code(folder / name)) for name in CODE}
    for name in sorted(listed):
        check_regular(folder / name)
        if name not in shards and (folder / name).stat().st_size > TEXT_LIMIT:
            _refuse(name, f"larger than {TEXT_LIMIT} bytes, the limit for such files")
    if (changed := changed_code(code)) is not None:
        reason = "not the code of a known release; restore it, and exclude this folder from formatters"
        _refuse(changed, f"{reason} (weights, config and words may be edited)")
    _check_attributes(folder / ".gitattributes")
    return tuple(unlisted)


def _check_attributes(path: Path) -> None:
    attributes = _bytes(path)
    if attributes not in GITATTRIBUTES:
        other = "other rules than the exporter's, which could hide edits from git diff; restore it"
        _refuse(path.name, WINDOWS if attributes.replace(b"\r\n", b"\n") in GITATTRIBUTES else other)


def _code(path: Path) -> bytes:
    """A code file, which nobody edits: if it has Windows line ends, git made them in every file."""
    check_regular(path)
    if b"\r\n" in (text := _bytes(path)):
        _refuse(path.name, WINDOWS)
    return text


def _is_importable(path: Path) -> bool:
    """Whether Python could import a file or folder, also on other systems; not what editors and file managers write."""
    if path.name.startswith(".") or path.name == "__MACOSX":
        return False
    return path.suffix.lower() in _IMPORTED or (path.name.isidentifier() and not path.is_file())


def _contents(
    folder: Path, manifest: dict[str, Any]
) -> tuple[ModelConfig, Vocabulary, str, dict[str, NDArray[np.float32]]]:
    with _one_line_errors(), Threads(1) as pool:
        config = read_config(folder / "config.py")
        stored = manifest["dtype"]
        weights = pool.submit(read_weights, folder, config.tensor_shapes(), stored=stored)  # decoding releases the GIL
        vocabulary = read_vocabulary(folder / "vocab.py", config.vocab_size)
        read_knowledge(folder / "knowledge_map.py")
        try:
            Tokenizer(vocabulary)
        except ValueError as error:
            _refuse("vocab.py", f"{error}; restore the file")
        _card(folder / "MODEL_CARD.md")
        tokenizer = tokenizer_json(vocabulary)
        if _text(folder / "tokenizer.json") != tokenizer:
            _check_tokenizer(folder, vocabulary, manifest)
        return config, vocabulary, tokenizer, weights.result()


def _text(path: Path) -> str:
    try:
        return _bytes(path).decode()
    except UnicodeDecodeError:
        _refuse(path.name, "not UTF-8; save the file as UTF-8")


def _card(path: Path) -> str:
    text = _text(path)
    if reason := card_error(text):
        _refuse(path.name, reason)
    return text


def _check_tokenizer(folder: Path, vocabulary: Vocabulary, manifest: dict[str, Any]) -> None:
    """Refuse a tokenizer.json that says anything else than vocab.py.

    If only vocab.py was edited since export, `verify` reports that, and `seal` writes tokenizer.json again.
    """
    try:
        if says_the_same(_text(folder / "tokenizer.json"), vocabulary):
            return
    except (ValueError, RecursionError) as error:
        _refuse("tokenizer.json", str(error))
    changed = [sha256_file(folder / name) != manifest["files"][name] for name in ("vocab.py", "tokenizer.json")]
    if changed != [True, False]:
        _refuse("tokenizer.json", "differs from the tokenizer in vocab.py; restore both (edit only vocab.py, and seal)")


def _measured(package: Package) -> Measured:
    """The figures of the tensors that were not edited."""
    tensors = {name: values for name, values in package.weights.items() if name not in package.edited}
    with Threads(os.cpu_count()) as pool:
        return dict(zip(tensors, pool.map(statistics, tensors.values()), strict=True))


def _changed_files(package: Package, measured: Measured | None = None) -> list[str]:
    """The files that are not as exported. With `measured`, refuses weights files that are, and whose comments say other
    figures, or other words; each is read once."""
    folder, digests = package.path, package.manifest["files"]
    weights = [path.name for path in weight_files(folder)]
    words: Sequence[str] = ()

    def differs(name: str) -> bool:
        if name not in weights:
            return bool(sha256_file(folder / name) != digests[name])
        text = (folder / name).read_bytes()
        if sha256_bytes(text) != digests.get(name):
            return True
        if measured is not None and restated(text, measured, words) != text:
            _refuse(name, "a comment as exported says other figures or words than are there; export again")
        return False

    with Threads(os.cpu_count()) as pool:
        others = sorted(digests.keys() - {*weights})
        changed = [name for name, so in zip(others, pool.map(differs, others), strict=True) if so]
        words = () if "vocab.py" in changed else package.vocabulary.words
        changed += [name for name, so in zip(weights, pool.map(differs, weights), strict=True) if so]
    return sorted(changed)


def _row_checksums(package: Package, changed: list[str]) -> dict[str, NDArray[np.uint32]]:
    """Tensor -> its rows' checksums as exported; empty if rows.json was changed."""
    if "rows.json" in changed:
        return {}
    checksums = read_checksums(package.path / "rows.json")
    exported = package.weights.keys() - package.edited
    if checksums.keys() != package.weights.keys() or not all(
        np.array_equal(checksums[name], row_checksums(package.weights[name])) for name in exported
    ):
        _refuse("rows.json", "not the checksums of the exported rows; export again")
    return checksums


def _check_knowledge(package: Package, changed: list[str], measured: Measured) -> None:
    """Refuse facts that were not edited and are not those of the values and words, where these were not either."""
    if "knowledge_map.py" in changed:
        return
    facts, embedding = read_knowledge(package.path / "knowledge_map.py"), "embedding.weight"
    agree = facts.statistics.keys() == package.weights.keys() and all(
        are_of(facts.statistics[name], four, digits=7) for name, four in measured.items()
    )
    if "vocab.py" not in changed and embedding in measured:
        agree = agree and are_neighbours(facts.neighbours, package.weights[embedding], package.vocabulary)
    if not agree:
        _refuse("knowledge_map.py", "not the facts of the exported weights and words; export again")


def read_checksums(path: Path) -> dict[str, NDArray[np.uint32]]:
    """Read rows.json: tensor -> CRC-32 of each row."""
    packed = _json_object(path)
    try:
        decoded = {name: base64.b64decode(text, validate=True) for name, text in packed.items()}
        if {name: base64.b64encode(raw).decode() for name, raw in decoded.items()} != packed:
            raise ValueError("not canonical")
        return {name: np.frombuffer(raw, "<u4") for name, raw in decoded.items()}
    except (ValueError, TypeError):
        _refuse(path.name, "must map tensor names to base64; export again")


def _tensor_message(package: Package, name: str, exported: NDArray[np.uint32] | None) -> str:
    tensor, words = package.weights[name], package.vocabulary.words if name in TOKEN_TENSORS else ()
    known = exported is not None and len(exported) == len(tensor)
    rows = np.flatnonzero(row_checksums(tensor) != exported).tolist() if known else []
    if not rows:
        return f"{name}: values changed since export"
    shown = [f"{row} ({quote(words[row])})" if words else str(row) for row in rows[:_SHOWN]]
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f"{name}: {len(rows)} of {len(tensor)} rows changed since export: {', '.join(shown)}{more}"


def _check_caches(folder: Path, manifest: dict[str, Any]) -> None:
    """Plain import executes __pycache__, so it may only contain compilations of the files that were read."""
    caches = folder / "__pycache__"
    if not caches.exists():
        return
    if not caches.is_dir():
        _refuse(caches.name, "not a folder; delete it")
    for path in sorted(caches.iterdir()):
        check_regular(path)
        source = f"{path.name.partition('.')[0]}.py"
        if source not in manifest["files"] or not is_own_cache(path, folder / source):
            reason = "not this interpreter's compilation of a file as it is; delete it"
            _refuse(f"__pycache__/{_shown(path.name)}", reason)
