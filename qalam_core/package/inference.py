"""Text generation from a package's values with this release's runtime, and the probabilities of its logits; code of the
package is not executed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qalam_core.errors import PackageError, QalamError
from qalam_core.package.read import Package
from qalam_core.package.runtime.numpy_model import Floats, NumpyTransformer
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
    """Return `prompt` and its continuation; an empty prompt starts a document.

    Temperature 0 takes the most probable token; `top_k` 0 and `top_p` 1 draw from all. Raises PackageError where logits
    are not finite, and QalamError for an option out of its range.
    """
    tokenizer = Tokenizer(package.vocabulary)
    model = NumpyTransformer(package.config, package.weights, tokenizer.specials)
    ids = np.array([[tokenizer.specials.start, *tokenizer.encode(prompt)]])
    try:
        generated = model.generate(ids, max_new_tokens, temperature, top_k, seed, top_p)
    except FloatingPointError as error:
        raise PackageError(f"{package.path}: {error}; scale them down, or train again") from None
    except ValueError as error:
        raise QalamError(str(error)) from None
    return tokenizer.decode(generated[0].tolist())


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Natural logarithms of probabilities, along the last axis of (..., V) logits."""
    shifted: NDArray[np.float64] = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted
