"""Text from a package that was read, not imported: the released runtime over the package's values.
Takes a `Package` and a prompt, gives the continuation.
It does not know files, and runs no code that came with the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qalam_core.package.read import Package
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.package.runtime.tokenizer import Tokenizer

__all__ = ["config_of", "generate"]

START = 2


def config_of(model: Mapping[str, Any], vocab_size: int) -> dict[str, int | str | bool]:
    """The constants of config.py for a model's settings; dropout is training's affair."""
    return {
        "VOCAB_SIZE": vocab_size, "DIM": model["dim"], "NUM_HEADS": model["num_heads"],
        "NUM_LAYERS": model["num_layers"], "MAX_SEQ_LEN": model["max_seq_len"], "TIED": model["tied"],
        "ACTIVATION": model.get("activation", "gelu"),
    }  # fmt: skip


def generate(
    package: Package,
    prompt: str,
    max_new_tokens: int = 60,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int | None = None,
    top_p: float = 1.0,
) -> str:
    """`prompt` and its continuation; an empty prompt starts a document."""
    words = package.vocabulary
    tokenizer = Tokenizer(words.algorithm, words.words, words.merges, words.rules)
    model = NumpyTransformer(package.config, package.weights)
    ids = np.array([[START, *tokenizer.encode(prompt)]])
    generated = model.generate(ids, max_new_tokens, temperature, top_k, seed, top_p)
    return tokenizer.decode(generated[0].tolist())
