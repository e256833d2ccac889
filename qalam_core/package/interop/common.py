"""What every import and export has in common: careful input, and outputs that replace nothing.
Takes paths from outside, gives their text, JSON and tensors, and writes safetensors files.
It does not know whose names and shapes these are: the modules for each kind of model do.

Nothing read here is ever executed or unpickled, and nothing is allocated that the bytes of a file do not back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
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

__all__ = [
    "Tensors", "card", "drop_tied_head", "free_folder", "json_object", "model_config", "provenance", "read_tensors",
    "save_tensors", "small_text", "source_folder",
]  # fmt: skip

_FLOATS = ("F32", "F16", "BF16")
"""Types of safetensors that become float32 without a loss."""

Tensors = dict[str, NDArray[np.float32]]


def drop_tied_head(weights: Tensors, file: str) -> Tensors:
    """Without the head, which must be the embedding again."""
    if not np.array_equal(weights["lm_head.weight"], weights.get("embedding.weight", np.empty(0))):
        raise PackageError(f"{file}: a head of its own, but the config ties it to the embedding; correct one of them")
    return {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}


def read_tensors(files: Iterable[Path], wanted: Callable[[str], bool] = lambda name: True) -> Tensors:
    """Every wanted tensor of some safetensors files as float32; a name may stand in one of them only.

    Raises PackageError on what is not safetensors, and on types that float32 cannot hold exactly.
    """
    tensors: Tensors = {}
    for file in files:
        if not file.is_file():
            raise PackageError(f"{file}: no such file; a safetensors file is wanted here")
        try:
            with safe_open(file, framework="numpy") as opened:
                types = {name: opened.get_slice(name).get_dtype() for name in opened.keys() if wanted(name)}  # noqa: SIM118
            for name, kind in types.items():
                if kind not in _FLOATS:
                    raise PackageError(
                        f"{file.name}: {name[:80]!r} is of type {kind}; convert it to one of {', '.join(_FLOATS)}"
                    )
                if name in tensors:
                    raise PackageError(f"{file.name}: {name[:80]!r} stands in an earlier file too; keep one")
            with safe_open(file, framework="pt" if "BF16" in types.values() else "numpy") as opened:
                for name in types:
                    tensors[name] = _as_float32(opened.get_tensor(name))
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())
            raise PackageError(f"{file.name}: not a whole safetensors file ({reason}); fetch it again") from None
    return tensors


def _as_float32(tensor: Any) -> NDArray[np.float32]:
    """A numpy array, or torch's, which alone knows bfloat16."""
    values = tensor if isinstance(tensor, np.ndarray) else tensor.float().numpy()
    result: NDArray[np.float32] = values.astype(np.float32, copy=False)
    return result


def save_tensors(tensors: Mapping[str, NDArray[np.float32]], out: Path) -> None:
    """Write a safetensors file that depends on names and values alone; what is there is not replaced."""
    if out.exists():
        raise PackageError(f"{out}: exists; choose another name or delete it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        rows = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
        save_file(rows, out, metadata={"format": "pt"})  # without it transformers refuses the file
    except (SafetensorError, OSError) as error:
        with suppress(OSError):
            out.unlink()  # half of it may be there
        reason = " ".join(str(error).split())
        raise PackageError(f"{out}: cannot be written ({reason}); is there room on the disk?") from None


def source_folder(folder: Path, what: str) -> Path:
    """The folder, if it is one and not a package already."""
    if not folder.is_dir():
        raise PackageError(f"{folder}: no such folder; {what} is one")
    if (folder / "manifest.json").exists():
        raise PackageError(f"{folder}: a package of this project already; there is nothing to import")
    return folder


def free_folder(folder: Path) -> None:
    """Refuse a folder that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PackageError(f"{folder}: not an empty folder; choose another name or delete it")


def small_text(path: Path) -> str:
    """A text file of bounded size, as UTF-8."""
    if not path.is_file():
        raise PackageError(f"{path}: no such file; the folder is incomplete")
    try:
        raw = files.read_bytes(path)
    except OSError as error:
        raise PackageError(f"{path}: cannot be read ({error.strerror}); correct its permissions") from None
    except ValueError as error:
        raise PackageError(f"{path.name}:0: {error}; such files are small") from None
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise PackageError(f"{path.name}:{line}: not UTF-8; save the file as UTF-8") from None


def json_object(path: Path) -> dict[str, Any]:
    """A file with a JSON object of bounded size, in which no key is repeated."""
    try:
        return files.json_object(small_text(path))
    except ValueError as error:
        raise PackageError(f"{path.name}:0: {error}; fetch the file again") from None


def model_config(settings: Mapping[str, Any], file: str) -> ModelConfig:
    """The configuration of these settings; PackageError, naming `file`, where no model can have them."""
    try:
        return ModelConfig(**settings)
    except ValueError as error:
        raise PackageError(f"{file}:0: {error}") from None


def card(story: str, sources: Iterable[Path]) -> str:
    """The model card of an import: what is known, which is where it came from."""
    listed = "".join(f"- `{path.name}` sha256 `{sha256_file(path)}`\n" for path in sources)
    return (
        f"# An imported model\n\n{story}\n\nNothing is recorded here of its data, its training or its licence; "
        f"its makers may have stated them elsewhere.\n\n## Files it was made from\n\n{listed}"
    )


def provenance(sources: Iterable[Path]) -> dict[str, str]:
    """What the manifest of an import records of the files it was made from."""
    return {f"imported {path.name}": sha256_file(path) for path in sources}
