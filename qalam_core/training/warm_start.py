"""Warm starts: initial weights from an earlier package, adapted to another vocabulary."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qalam_core.errors import TrainingError
from qalam_core.package.read import TOKEN_TENSORS, Package
from qalam_core.package.runtime.architecture import ModelConfig
from qalam_core.package.runtime.tokenizer import Tokenizer, Vocabulary


def initial_weights(package: Package, vocabulary: Vocabulary, config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """The package's tensors, with one row for each token of `vocabulary`.

    A token that the package has keeps its row; a new one starts at the mean row of the pieces into which the package's
    tokenizer splits it (in word vocabularies at the row of <UNK>, which the model saw in its place). Raises
    TrainingError when the package's model differs in more than its vocabulary.
    """
    _refuse_other_models(package, vocabulary, config)
    old = package.vocabulary
    tokenizer = Tokenizer(old)
    known = {word: index for index, word in enumerate(old.words)}
    pieces = [[known[word]] if word in known else tokenizer.spell(word) for word in vocabulary.words]

    def rows(table_VC: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.stack([table_VC[ids].mean(0, dtype=np.float64) for ids in pieces]).astype(np.float32)

    return {name: rows(tensor) if name in TOKEN_TENSORS else tensor for name, tensor in package.weights.items()}


def _refuse_other_models(package: Package, vocabulary: Vocabulary, config: ModelConfig) -> None:
    fields = [(n, getattr(package.config, n), getattr(config, n)) for n in ModelConfig.names() if n != "vocab_size"]
    differing = [f"{name.upper()} {found} and not {wanted}" for name, found, wanted in fields if found != wanted]
    if package.vocabulary.algorithm != vocabulary.algorithm:
        differing.append(f"a {package.vocabulary.algorithm} vocabulary and not {vocabulary.algorithm}")
    if differing:
        raise TrainingError(
            f"train.warm_start: the package in {package.path} has {', '.join(differing)}; only the vocabulary may "
            'differ: give the recipe the same [model], or set train.warm_start to ""'
        )
