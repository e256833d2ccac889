"""Weights to start from: those of an earlier package, fitted to a vocabulary that has grown or shrunk.
Takes a package as read (nothing of it was executed), the new vocabulary and the recipe's model; gives float32
tensors by name.
It does not know which package to take, nor how training goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qalam_core.errors import TrainingError
from qalam_core.package import Package
from qalam_core.package.runtime.tokenizer import Tokenizer
from qalam_core.recipe import Model

__all__ = ["initial_weights"]


def initial_weights(
    package: Package, algorithm: str, words: Sequence[str], model: Model
) -> dict[str, NDArray[np.float32]]:
    """The package's tensors with one row a token of `words`, which are in readable form and in id order.

    A token that the package knows keeps its row; a new one starts at the mean of the rows of the pieces that the
    package's tokenizer spells it with (for whole words: at the row of <UNK>, which stood in its place). Raises
    TrainingError when the package's model has another shape than `model`.
    """
    _refuse_other_shapes(package, algorithm, model)
    old = package.vocabulary
    tokenizer = Tokenizer(old.algorithm, old.words, old.merges, old.rules)
    known = {word: index for index, word in enumerate(old.words)}
    pieces = [[known[word]] if word in known else tokenizer.spell(word) for word in words]

    def rows(table_VC: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.stack([table_VC[ids].mean(0, dtype=np.float64) for ids in pieces]).astype(np.float32)

    tables = ("embedding.weight", "lm_head.weight")
    return {name: rows(tensor) if name in tables else tensor for name, tensor in package.weights.items()}


def _refuse_other_shapes(package: Package, algorithm: str, model: Model) -> None:
    config = package.config
    wanted: dict[str, object] = {name.upper(): value for name, value in model.model_dump().items() if name != "dropout"}
    wanted["ACTIVATION"] = "gelu"
    differing = [f"{name} {config[name]} and not {value}" for name, value in wanted.items() if config[name] != value]
    if package.vocabulary.algorithm != algorithm:
        differing.append(f"a {package.vocabulary.algorithm} vocabulary and not {algorithm}")
    if differing:
        raise TrainingError(
            f"train.warm_start: the package in {package.path} has {', '.join(differing)}; only the vocabulary may "
            'differ: give the recipe the same [model], or set train.warm_start to ""'
        )
