"""Integrity: whether a package is the model that was trained, however it is loaded.
Takes the package as read, the checkpoint that it was written from, and some tokens to probe it with; gives an
`Integrity` of booleans and differences.
It does not know how good the model is, nor what the gate allows.

Shapes: B batch, T time.
"""

from __future__ import annotations

import io
import json
import math
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from qalam_core.errors import PackageError
from qalam_core.evaluation.results import Integrity
from qalam_core.model import PureDynamicTransformer
from qalam_core.package import Package, changes
from qalam_core.package.runtime.architecture import ModelConfig
from qalam_core.package.runtime.rows import MATRIX_TYPES

__all__ = ["check", "one_line", "transformer"]

PROBES = 4  # sequences of a full context on which logits are compared
BACKENDS_AGREE = 1e-4  # of the largest logit (or of 1): float32 sums in another order differ by less

Logits = NDArray[np.float32]
NONE: Logits = np.empty(0, np.float32)


@torch.inference_mode()
def check(
    package: Package,
    checkpoint: Path,
    model: PureDynamicTransformer,
    stream: NDArray[np.int64],
    tokenized: Mapping[str, Sequence[int]],
    trained_ids_agree: bool,
    storage: str,
) -> Integrity:
    """Compare a package with its checkpoint, and with what a plain import of it gives.

    `model` is `transformer` of the package; the probe is the beginning of `stream`; `tokenized` are texts with the ids
    that tokenizer.json gives them; `storage` is how the recipe wants matrices stored. The package's matrices must be
    the checkpoint's, rounded to the storage type, and its logits may differ by what that rounding changes: nothing for
    f32.
    """
    stored = load_file(checkpoint)
    if package.config.tied:
        stored.pop("lm_head.weight", None)
    stored_as = MATRIX_TYPES[package.manifest["dtype"]]
    rounded = {
        name: torch.from_numpy(stored_as.rounded(tensor.numpy())) if tensor.dim() > 1 else tensor
        for name, tensor in stored.items()
    }
    probe_BT = _probe(stream, model.max_seq_len)
    logits = model(probe_BT)[0].numpy()
    trained = _logits(package.config, stored, probe_BT)
    limit = _difference(_logits(package.config, rounded, probe_BT), trained)
    changed = _changes(package)
    imported = _import(package.path, probe_BT, list(tokenized))
    numpy_difference = _difference(imported.numpy, imported.torch)
    largest = float(np.abs(logits).max())
    return Integrity(
        verifies=not changed,
        loads_without_execution=True,
        tensors_agree=_same(package.weights, rounded),
        loads_by_import=not imported.problem,
        checkpoint_difference=_difference(logits, trained),
        checkpoint_limit=limit,
        import_difference=_difference(imported.torch, logits),
        # to one digit: sums in numpy follow the processor, and a report is the same everywhere
        numpy_difference=float(f"{numpy_difference:.0e}"),
        numpy_backend_agrees=numpy_difference <= BACKENDS_AGREE * max(1.0, largest),
        tokenizer_agrees=imported.ids == [list(ids) for ids in tokenized.values()],
        trained_ids_agree=trained_ids_agree,
        storage_agrees=package.manifest["dtype"] == storage,
        problem="; ".join([*changed[:1], *([imported.problem] if imported.problem else [])]),
    )


def transformer(config: ModelConfig, weights: Mapping[str, Tensor]) -> PureDynamicTransformer:
    """The model of a configuration and tensors, in evaluation mode."""
    model = PureDynamicTransformer(**asdict(config), dropout=0.0)
    shared = {"lm_head.weight": weights["embedding.weight"]} if config.tied else {}
    model.load_state_dict({**weights, **shared})
    return model.eval()


_IMPORTED = """
import importlib, io, json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "qalam_core":
            raise ImportError("a package must not need the project that wrote it")

sys.dont_write_bytecode = True
sys.meta_path.insert(0, Absent())
sys.path.insert(0, sys.argv[1])
import numpy as np
import torch

task = json.load(sys.stdin)
torch.set_num_threads(task["threads"])
package = importlib.import_module("measured")
answers = {}
for backend in ("torch", "numpy"):
    model, word2idx, idx2word = package.load_model(backend=backend)
    ids = torch.tensor(task["probe"]) if backend == "torch" else np.array(task["probe"])
    with torch.inference_mode():
        answers[backend] = np.asarray(model(ids)[0])
tokenizer = package.load_tokenizer()
answers["ids"] = np.array(json.dumps([tokenizer.encode(text) for text in task["texts"]]))
out = io.BytesIO()  # not a file: a full disk is no fault of the package's
np.savez(out, **answers)
sys.stdout.buffer.write(out.getvalue())
"""
"""What a fresh interpreter does with a copy of the package: load it, evaluate the probe, tokenize."""


@dataclass(frozen=True)
class _Imported:
    """What the imported package gave; empty, with a problem, when it gave nothing."""

    torch: Logits
    numpy: Logits
    ids: list[list[int]]
    problem: str = ""


def _import(folder: Path, probe_BT: Tensor, texts: Sequence[str]) -> _Imported:
    """Import a copy of the package where neither this project nor the environment's settings are visible."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "measured")
        copy.mkdir()
        for file in folder.iterdir():
            if file.is_file():
                shutil.copy(file, copy)
        task = {"threads": torch.get_num_threads(), "probe": probe_BT.tolist(), "texts": list(texts)}
        child = subprocess.run(
            [sys.executable, "-I", "-c", _IMPORTED, scratch],
            input=json.dumps(task).encode(), capture_output=True, check=False,
        )  # fmt: skip
        if child.returncode == -signal.SIGKILL:  # says nothing about the package, and must not be recorded as if it did
            raise PackageError("importing the package was killed, most likely for memory; run the same command again")
        if child.returncode:
            errors = child.stderr.decode(errors="replace").strip().splitlines()
            last = (errors or [f"ended with status {child.returncode}"])[-1]
            return _Imported(NONE, NONE, [], last.replace(f"{copy}/", ""))
        with np.load(io.BytesIO(child.stdout)) as answers:
            return _Imported(answers["torch"], answers["numpy"], json.loads(str(answers["ids"])))


def _probe(stream: NDArray[np.int64], context: int) -> Tensor:
    """The stream's beginning as at most PROBES full contexts; a short stream is repeated to fill one."""
    rows = max(1, min(PROBES, len(stream) // context))
    return torch.from_numpy(np.resize(stream, (rows, context)))


def _changes(package: Package) -> list[str]:
    """What changed since export; a folder that verification refuses is one sentence."""
    try:
        return changes(package)
    except PackageError as error:
        return [one_line(error, package.path)]


def one_line(error: PackageError, folder: Path) -> str:
    """The error without the package's path, which a report must not depend on."""
    return str(error).replace(f"{folder}/", "").replace(str(folder), "the package")


def _same(weights: Mapping[str, NDArray[Any]], tensors: Mapping[str, Tensor]) -> bool:
    return weights.keys() == tensors.keys() and all(
        np.array_equal(values, tensors[name].numpy()) for name, values in weights.items()
    )


def _logits(config: ModelConfig, weights: Mapping[str, Tensor], probe_BT: Tensor) -> Logits:
    """The logits of the model with these tensors; none when they do not fit its shape."""
    try:
        model = transformer(config, weights)
    except (RuntimeError, KeyError):  # other names or shapes: `tensors_agree` says so
        return NONE
    logits: Logits = model(probe_BT)[0].numpy()
    return logits


def _difference(some: NDArray[Any], others: NDArray[Any]) -> float:
    """The largest absolute difference; NaN when there is nothing to compare."""
    return float(np.abs(some - others).max()) if some.shape == others.shape and some.size else math.nan
