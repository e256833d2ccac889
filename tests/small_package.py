"""A tiny model and its package, for tests of the format and of its runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qalam_core.arabic import PROFILES
from qalam_core.package import Vocabulary, write
from qalam_core.package.runtime.reader import tensor_shapes

CONFIG: dict[str, Any] = {
    "VOCAB_SIZE": 12, "DIM": 8, "NUM_HEADS": 2, "NUM_LAYERS": 2, "MAX_SEQ_LEN": 10, "TIED": True,
    "ACTIVATION": "gelu",
}  # fmt: skip
WORDS = ("<PAD>", "<UNK>", "<START>", "<END>", "القط", "يأكل", "السمك", '"', "\\", "تشكيلٌ", "😀", "في")


def vocabulary(**changes: Any) -> Vocabulary:
    parts = {
        "algorithm": "word",
        "words": WORDS,
        "merges": (),
        "rules": PROFILES["vocalised"],
        "tokenizer_json": "{}\n",
    }
    return Vocabulary(**{**parts, **changes})


def weights(config: dict[str, Any] = CONFIG, seed: int = 0, scale: float = 0.3) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        name: random.normal(1.0 if "ln" in name and name.endswith("weight") else 0.0, scale, shape).astype(np.float32)
        for name, shape in tensor_shapes(config).items()
    }


def export(folder: Path, **changes: Any) -> Path:
    config = changes.pop("config", CONFIG)
    arguments: dict[str, Any] = {
        "config": config, "vocabulary": vocabulary(), "weights": weights(config), "card": "# بطاقة",
        "provenance": {"recipe": "0" * 64},
    }  # fmt: skip
    write(folder, **{**arguments, **changes})
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
