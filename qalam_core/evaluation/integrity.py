"""Integrity: whether a package is the model that was trained, however it is loaded.

Shapes: B batch, T time.
"""

from __future__ import annotations

import io
import json
import math
import signal
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from qalam_core.errors import PackageError
from qalam_core.evaluation.results import Integrity
from qalam_core.model import BLOCKS, Transformer
from qalam_core.package import Package, changes
from qalam_core.package.runtime.architecture import ModelConfig
from qalam_core.package.runtime.rows import MATRIX_TYPES

PROBES = 4  # logits are compared for at most so many sequences of a full context
BACKENDS_AGREE = 1e-4  # relative to the largest logit, or to 1: reordered float32 sums differ by less

Logits = NDArray[np.float32]
NONE: Logits = np.empty(0, np.float32)


@torch.inference_mode()
def check(
    package: Package,
    checkpoint: Path | None,
    model: Transformer,
    stream: NDArray[np.int64],
    tokenized: Mapping[str, Sequence[int]],
    trained_ids_agree: bool,
    storage: str,
    normalisation_agrees: bool,
) -> Integrity:
    """Compare a package with its checkpoint, and with the model that a plain import of it gives.

    `model` is `transformer` of the package; logits are compared on the beginning of `stream`; `tokenized` are texts
    with their ids by tokenizer.json; `storage` is the recipe's storage type of matrices. The package's matrices must be
    the checkpoint's, rounded to the storage type, and its logits may differ by what that rounding changes: nothing for
    f32. Without a checkpoint (an edited or imported package) that comparison does not apply.
    """
    # the beginning of the stream, repeated when it does not fill one context
    rows = max(1, min(PROBES, len(stream) // model.max_seq_len))
    probe_BT = torch.from_numpy(np.resize(stream, (rows, model.max_seq_len)))
    logits = model(probe_BT)[0].numpy()
    agree, difference, limit = _against(checkpoint, package, logits, probe_BT) if checkpoint else (None, None, 0.0)
    changed = _changes(package)
    imported = _import(package.path, probe_BT, list(tokenized))
    numpy_difference = _difference(imported.numpy, imported.torch)
    largest = float(np.abs(logits).max())
    return Integrity(
        verifies=not changed,
        loads_without_execution=True,
        tensors_agree=agree,
        loads_by_import=not imported.problem,
        checkpoint_difference=difference,
        checkpoint_limit=limit,
        import_difference=_difference(imported.torch, logits),
        # to one digit: the order of numpy's sums depends on the processor, and a report should not
        numpy_difference=float(f"{numpy_difference:.0e}"),
        numpy_backend_agrees=numpy_difference <= BACKENDS_AGREE * max(1.0, largest),
        tokenizer_agrees=imported.ids == [list(ids) for ids in tokenized.values()],
        trained_ids_agree=trained_ids_agree,
        storage_agrees=package.manifest["dtype"] == storage,
        normalisation_agrees=normalisation_agrees,
        problem="; ".join([*changed[:1], *([imported.problem] if imported.problem else [])]),
    )


def _against(checkpoint: Path, package: Package, logits: Logits, probe_BT: Tensor) -> tuple[bool, float, float]:
    """Whether the package's tensors are the checkpoint's, by how much its logits differ, and by how much they may."""
    stored = load_file(checkpoint)
    if package.config.tied:
        stored.pop("lm_head.weight", None)
    stored_as = MATRIX_TYPES[package.manifest["dtype"]]
    rounded = {
        name: torch.from_numpy(stored_as.rounded(tensor.numpy())) if tensor.dim() > 1 else tensor
        for name, tensor in stored.items()
    }
    agree = package.weights.keys() == rounded.keys() and all(
        np.array_equal(values, rounded[name].numpy()) for name, values in package.weights.items()
    )
    trained = _logits(package.config, stored, probe_BT)
    limit = _difference(_logits(package.config, rounded, probe_BT), trained)
    return agree, _difference(logits, trained), limit


_MARKS = "\u064e\u064b\u0650\u0652\u0651\u064f\u0670\u0653\u064c\u064d"  # vowel marks, shadda, dagger alef, madda
_HAMZA = "\u0654\u0655"
_ISOLATED = "\ufc5e\ufc5f\ufc60\ufc61\ufc62\ufc63\ufe70\ufe72\ufe74\ufe76\ufe78\ufe7a\ufe7c\ufe7e"
_UNSEEN = "\u200c\u200b\ufeff\u00ad\u200f\u2060"  # zero-width and directional
_HOSTILE = (
    "", "  \t\r\n\u2028\u3000\u0642   \u0627\u0644  ", "\u064e\u0651", "\u0300x\u0301",
    "<PAD><UNK> <START>\u0642\u0627\u0644<END>",
    "\u202b\u0642\u0627\u0644 abc\u202c \u2067\u0645\u0646\u2066 123\u2069\u2069\u061c",
    "\u0660\u0661\u0662\u0663 \u06f4\u06f5 0123456789 \u00bd \u00b2 1.5e-3",
    "\ufdfa \ufefb\ufe8e\u0640\u0640\u0640 \u0623\u0625\u0622\u0671\u0649\u0629",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1ea\U0001f1ec \U0001f44d\U0001f3fd \u263a\ufe0f",
    "e\u0301\u1100\u1161\u11a8\uff21\uff41\u2460\u2126", "\u0642" * 10_000, "\u0628\u064e" * 2_000,
    "\\x00\\d8 \\\\ \0\x7f\x85",
    "\u0627\ufdfa \ufe8d\ufdf2\ufdfb ( \u0635\u0644\u0649 \u0627\u0644\u0644\u0647 \u0639\u0644\u064a\u0647"
    " \u0648\u0633\u0644\u0645) ( \u062c\u0644 \u062c\u0644\u0627\u0644\u0647)",
    " ".join(f"\u0642{mark}\u0644" for mark in _ISOLATED) + " \u00a8\u00af\u02da\u02dc\u037a",
    " ".join(f"\u0634\u0640{vowel}{hamza}\u0627" for vowel in ("", *_MARKS) for hamza in _HAMZA),
    " ".join(f"\u0634\u0640{vowels}\u0654" for vowels in ("\u0610\u0611", "\u0610\u0611\u0612")),
    "\u0627\u0640\u0653 \u0627\u064e\u0640\u0653 \u0627\u0640\u064e\u0653 \u0627\u064e\u0640\u064e\u0653 \u0627\u0653",
)  # fmt: skip
"""Texts that tokenizers disagree on: white space, lone and stacked marks, special tokens as text, directional controls,
digits of several scripts, ligatures, emoji, compatibility forms, words without an end, escapes, control characters,
isolated forms of marks, a hamza on a tatweel, ligatures of phrases."""


def hostile(texts: Sequence[str]) -> list[str]:
    """Texts as they come before normalisation: vocalised, stretched, with invisible characters and decomposed."""

    def between(text: str, marks: str) -> str:
        return "".join(letter + marks[n % len(marks)] for n, letter in enumerate(text))

    some = [text[:500] for text in texts]
    made = [between(text, marks) for text in some for marks in (_MARKS, "\u0640", _UNSEEN)]
    return [*made, *(unicodedata.normalize("NFD", text) for text in some), *_HOSTILE]


def transformer(config: ModelConfig, weights: Mapping[str, Tensor]) -> Transformer:
    """The model of a configuration and tensors, in evaluation mode."""
    model = BLOCKS[config.block](**config.arguments(), dropout=0.0)
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
out = io.BytesIO()  # not a file: a full disk is not a fault of the package
np.savez(out, **answers)
sys.stdout.buffer.write(out.getvalue())
"""
"""Run in a fresh interpreter: imports the package, evaluates the probe, tokenizes."""


@dataclass(frozen=True)
class _Imported:
    """Results of the imported package; empty, with a problem, when the import failed."""

    torch: Logits
    numpy: Logits
    ids: list[list[int]]
    problem: str = ""


def _import(folder: Path, probe_BT: Tensor, texts: Sequence[str]) -> _Imported:
    """Import the package where this project and the environment's settings are not visible."""
    with tempfile.TemporaryDirectory() as scratch:
        linked = Path(scratch, "measured")  # a name that can be imported; linked, as weights may be gigabytes
        linked.mkdir()
        for file in folder.iterdir():
            if file.is_file():
                (linked / file.name).symlink_to(file.resolve())
        task = {"threads": torch.get_num_threads(), "probe": probe_BT.tolist(), "texts": list(texts)}
        child = subprocess.run(
            [sys.executable, "-I", "-c", _IMPORTED, scratch],
            input=json.dumps(task).encode(), capture_output=True, check=False,
        )  # fmt: skip
        if child.returncode == -signal.SIGKILL:  # not a property of the package, and not to be recorded as one
            raise PackageError("importing the package was killed, most likely for memory; run the same command again")
        if child.returncode:
            errors = child.stderr.decode(errors="replace").strip().splitlines()
            last = (errors or [f"ended with status {child.returncode}"])[-1]
            return _Imported(NONE, NONE, [], last.replace(f"{linked}/", ""))
        with np.load(io.BytesIO(child.stdout)) as answers:
            return _Imported(answers["torch"], answers["numpy"], json.loads(str(answers["ids"])))


def _changes(package: Package) -> list[str]:
    """What changed since export; for a folder that cannot be verified, the reason."""
    try:
        return changes(package)
    except PackageError as error:
        return [one_line(error, package.path)]


def one_line(error: PackageError, folder: Path) -> str:
    """The error's message without the package's path, on which a report must not depend."""
    return str(error).replace(f"{folder}/", "").replace(str(folder), "the package")


def _logits(config: ModelConfig, weights: Mapping[str, Tensor], probe_BT: Tensor) -> Logits:
    """The logits of the model with these tensors; empty when their names or shapes do not fit."""
    try:
        logits: Logits = transformer(config, weights)(probe_BT)[0].numpy()
    except (RuntimeError, KeyError):  # `tensors_agree` is false then
        return NONE
    return logits


def _difference(some: NDArray[Any], others: NDArray[Any]) -> float:
    """The largest absolute difference; NaN for different shapes and for empty arrays."""
    return float(np.abs(some - others).max()) if some.shape == others.shape and some.size else math.nan
