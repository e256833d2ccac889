"""Text generation from a package's values with this release's runtime; code of the package is not executed."""

from __future__ import annotations

import numpy as np

from qalam_core.package.read import Package
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.package.runtime.tokenizer import Tokenizer


def generate(
    package: Package,
    prompt: str,
    max_new_tokens: int = 60,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int | None = None,
    top_p: float = 1.0,
) -> str:
    """Return `prompt` and its continuation; an empty prompt starts a document."""
    tokenizer = Tokenizer(package.vocabulary)
    model = NumpyTransformer(package.config, package.weights, tokenizer.specials)
    ids = np.array([[tokenizer.specials.start, *tokenizer.encode(prompt)]])
    generated = model.generate(ids, max_new_tokens, temperature, top_k, seed, top_p)
    return tokenizer.decode(generated[0].tolist())
