"""What imports and exports share: checked input, which is never executed or unpickled, and safetensors files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qalam_core import files
from qalam_core.errors import PackageError
from qalam_core.files import sha256_file
from qalam_core.package.runtime.architecture import ModelConfig

_FLOATS = ("F32", "F16", "BF16")
"""Types of safetensors that convert to float32 exactly."""

Tensors = dict[str, NDArray[np.float32]]


_EMBEDDING, _HEAD = "embedding.weight", "lm_head.weight"


def without_tied_head(weights: Tensors, file: str) -> Tensors:
    """The tensors of a tied model, whose matrix may be there as embedding, as head, or as both if they are equal."""
    rest = dict(weights)
    head = rest.pop(_HEAD, None)
    if head is not None and not np.array_equal(head, rest.setdefault(_EMBEDDING, head)):
        raise PackageError(f"{file}: a head of its own, but the config ties it to the embedding; fix one of them")
    return rest


def without_padding(
    config: ModelConfig, weights: Tensors, words: int, file: str
) -> tuple[ModelConfig, Tensors, list[str]]:
    """The model without the rows beyond its words, which fill up to a round size; -> config, tensors, remarks.

    `file` is that of the configuration, for errors.
    """
    padding = config.vocab_size - words
    if padding < 0:
        found = f"vocab_size is {config.vocab_size}, but the tokenizer has {words} words"
        raise PackageError(f"{file}:0: {found}; use the tokenizer that the model was trained with")
    if not padding:
        return config, weights, []
    kept = dict(weights)
    for name in (_EMBEDDING, _HEAD):
        if name in weights:
            if weights[name].shape[:1] != (config.vocab_size,):
                found = f'vocab_size is {config.vocab_size}, but "{name}" is of shape {weights[name].shape}'
                raise PackageError(f"{file}:0: {found}; fix one of them")
            kept[name] = weights[name][:words]
    remark = f"{padding} of {config.vocab_size} rows of the embedding have no word and were dropped"
    return replace(config, vocab_size=words), kept, [remark]


def read_tensors(files: Iterable[Path], wanted: Callable[[str], bool] = lambda name: True) -> Tensors:
    """The wanted tensors of safetensors files as float32, each in one file only; PackageError for other types."""
    tensors: Tensors = {}
    for file in files:
        if not file.is_file():
            raise PackageError(f"{file}: no such file; give a safetensors file")
        try:
            with safe_open(file, framework="numpy") as opened:
                types = {name: opened.get_slice(name).get_dtype() for name in opened.keys() if wanted(name)}  # noqa: SIM118
            for name, kind in types.items():
                if kind not in _FLOATS:
                    raise PackageError(f"{file.name}: {name[:80]!r} is of type {kind}; convert it to F32, F16 or BF16")
                if name in tensors:
                    raise PackageError(f"{file.name}: {name[:80]!r} is also in an earlier file; keep one")
            with safe_open(file, framework="pt" if "BF16" in types.values() else "numpy") as opened:
                for name in types:
                    tensors[name] = _as_float32(opened.get_tensor(name))
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())
            raise PackageError(f"{file.name}: not a complete safetensors file ({reason}); fetch it again") from None
    return tensors


def _as_float32(tensor: Any) -> NDArray[np.float32]:
    """Convert an array of numpy or, for bfloat16, of torch."""
    return np.asarray(tensor if isinstance(tensor, np.ndarray) else tensor.float().numpy(), np.float32)


def save_tensors(tensors: Mapping[str, NDArray[np.float32]], out: Path) -> None:
    """Write a new safetensors file, whose bytes depend only on names and values."""
    if out.exists():
        raise PackageError(f"{out}: exists; choose another name or delete it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        rows = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
        save_file(rows, out, metadata={"format": "pt"})  # without it transformers refuses the file
    except (SafetensorError, OSError) as error:
        with suppress(OSError):
            out.unlink()  # it may be incomplete
        reason = " ".join(str(error).split())
        raise PackageError(f"{out}: cannot be written ({reason}); is the disk full?") from None


def source_folder(folder: Path, what: str) -> Path:
    """Check that a folder exists and is not a package."""
    if not folder.is_dir():
        raise PackageError(f"{folder}: no such folder; give that of {what}")
    if (folder / "manifest.json").exists():
        raise PackageError(f"{folder}: already a package of this project; there is nothing to import")
    return folder


def free_folder(folder: Path) -> None:
    """Refuse a folder that is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PackageError(f"{folder}: not an empty folder; choose another name or delete it")


def small_text(path: Path) -> str:
    """A text file of bounded size, as UTF-8."""
    if not path.is_file():
        raise PackageError(f"{path}: no such file; the folder is incomplete")
    try:
        raw = files.read_bytes(path)
    except OSError as error:
        raise PackageError(f"{path}: cannot be read ({error.strerror}); fix its permissions") from None
    except ValueError as error:
        raise PackageError(f"{path.name}:0: {error}, the limit for such files") from None
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise PackageError(f"{path.name}:{line}: not UTF-8; save the file as UTF-8") from None


def json_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size; repeated keys are refused."""
    try:
        return files.json_object(small_text(path))
    except ValueError as error:
        raise PackageError(f"{path.name}:0: {error}; fetch the file again") from None


def model_config(settings: Mapping[str, Any], file: str) -> ModelConfig:
    """The configuration with these settings; PackageError, naming `file`, if they are invalid."""
    try:
        return ModelConfig(**settings)
    except ValueError as error:
        raise PackageError(f"{file}:0: {error}") from None


def provenance(sources: Iterable[Path]) -> dict[str, str]:
    """The manifest's record of the source files of an import."""
    return {f"imported {path.name}": sha256_file(path) for path in sources}


def card(story: str, recorded: Mapping[str, str]) -> str:
    """The model card of an import, which lists the source files recorded by `provenance`."""
    listed = "".join(f"- `{name.removeprefix('imported ')}` sha256 `{digest}`\n" for name, digest in recorded.items())
    return (
        f"# An imported model\n\n{story}\n\nIts data, training and licence are not recorded here; "
        f"see its publisher.\n\n## Source files\n\n{listed}"
    )
