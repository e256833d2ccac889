"""A small package, and the inputs of its evaluation."""

from __future__ import annotations

import dataclasses
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file

from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.evaluation.evaluate import evaluate
from qalam_core.evaluation.results import Budgets, Report
from qalam_core.model import PureDynamicTransformer
from qalam_core.package import ModelConfig, write
from qalam_core.package.runtime.architecture import END, START
from qalam_core.package.runtime.tokenizer import Vocabulary
from qalam_core.tokens.tokenizer import Algorithm, ArabicTokenizer

CONTEXT = 16
PROMPTS = ("قال", "")


@dataclasses.dataclass(frozen=True)
class Exported:
    """A package, and what it was made from."""

    package: Path
    checkpoint: Path
    tokenizer: ArabicTokenizer
    model: PureDynamicTransformer
    train: list[np.ndarray]
    test: list[tuple[str, str]]
    texts: list[str]  # of the training documents

    def measure(self, **changes: Any) -> tuple[Report, Budgets]:
        given = {
            "package_folder": self.package,
            "checkpoint": self.checkpoint,
            "test": self.test,
            "train_tokens": self.train,
            "train_texts": [batch_of(self.texts)],
            "seen": Fingerprints.of([]),
            "seed": 1,
            "prompts": PROMPTS,
            "confidence": 0.95,
            "storage": "f32",
            "normalisation": self.tokenizer.vocabulary.rules,
        }
        return evaluate(**{**given, **changes})

    def evaluate(self, **changes: Any) -> Report:
        return self.measure(**changes)[0]


def batch_of(texts: list[str]) -> pa.RecordBatch:
    """Training documents as in a shard."""
    ids = [f"{random.Random(text).getrandbits(64):016x}" for text in texts]
    return pa.record_batch({"id": ids, "text": pa.array(texts, pa.large_string())})


def texts(count: int, seed: int) -> list[str]:
    letters = random.Random(0)
    words = ["".join(letters.choices("ابتثجحدرسعفقلمنهوي", k=letters.randint(2, 6))) for _ in range(120)]
    chosen = random.Random(seed)
    return [" ".join(chosen.choices(words, k=chosen.randint(2, 40))) for _ in range(count)]


def build(
    folder: Path, algorithm: Algorithm = "bpe", dtype: str = "f32", scale: float = 1.0, tied: bool = True
) -> Exported:
    train, test = texts(60, 1), texts(12, 2)
    if algorithm == "word":
        test += ["كلمةغريبة ظظظ xyz"]
    tokenizer = ArabicTokenizer(300, algorithm)
    tokenizer.build_vocab(train)
    torch.manual_seed(3)
    model = PureDynamicTransformer(len(tokenizer), 16, 2, 2, CONTEXT, 0.0, tied=tied)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.mul_(scale)
    weights = {
        name: tensor.clone() for name, tensor in model.state_dict().items() if not (tied and name == "lm_head.weight")
    }
    save_file(weights, folder / "model.safetensors")
    write_package(folder / "model", tokenizer.vocabulary, weights, dtype, tied)
    ids = [np.array([i for text in train for i in (START, *tokenizer.encode(text), END)], np.uint16)]
    sources = [("news" if place % 3 else "books", text) for place, text in enumerate(test)]
    return Exported(folder / "model", folder / "model.safetensors", tokenizer, model.eval(), ids, sources, train)


def write_package(
    folder: Path, vocabulary: Vocabulary, weights: dict[str, torch.Tensor], dtype: str, tied: bool
) -> None:
    write(
        folder,
        config=ModelConfig(len(vocabulary.words), dim=16, num_heads=2, num_layers=2, max_seq_len=CONTEXT, tied=tied),
        vocabulary=vocabulary,
        weights={name: tensor.numpy() for name, tensor in weights.items()},
        card="# test\n",
        provenance={},
        dtype=dtype,
    )


def copy_of(exported: Exported, folder: Path) -> Exported:
    return dataclasses.replace(exported, package=Path(shutil.copytree(exported.package, folder / "copy")))
