"""Beginning with an earlier training: its weights or its whole state, adapted to another vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qalam_core.errors import TrainingError
from qalam_core.package.comments import TOKEN_TENSORS
from qalam_core.package.read import Package
from qalam_core.package.runtime.architecture import ModelConfig
from qalam_core.package.runtime.tokenizer import Tokenizer, Vocabulary

Tensors = Mapping[str, NDArray[np.float32]]


def adapted(
    package: Package, vocabulary: Vocabulary, config: ModelConfig, tensors: Tensors | None = None
) -> dict[str, NDArray[np.float32]]:
    """The package's weights, with one row for each token of `vocabulary`; or `tensors` of its training, such as STATE.

    A token that the package has keeps its row; a new one starts at the mean row of the pieces into which the package's
    tokenizer splits it (in word vocabularies at the row of <UNK>, which the model saw in its place). So do the
    optimizer's averages of the rows. Raises TrainingError when the package's model differs in more than its vocabulary.
    """
    _refuse_other_models(package, vocabulary, config)
    old = package.vocabulary
    tokenizer = Tokenizer(old)
    known = {word: index for index, word in enumerate(old.words)}
    pieces = [[known[word]] if word in known else tokenizer.spell(word) for word in vocabulary.words]

    def rows(table_VC: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.stack([table_VC[ids].mean(0, dtype=np.float64) for ids in pieces]).astype(np.float32)

    return {
        name: rows(tensor) if tensor.ndim == 2 and name.endswith(TOKEN_TENSORS) else tensor
        for name, tensor in (package.weights if tensors is None else tensors).items()
    }


def _refuse_other_models(package: Package, vocabulary: Vocabulary, config: ModelConfig) -> None:
    differing = [
        f"{name} {found} and not {wanted}"
        for name, found, wanted in package.config.differences(config)
        if name not in ("VOCAB_SIZE", "PARAMETERS") and None not in (found, wanted)  # of another block, BLOCK says it
    ]
    if package.vocabulary.algorithm != vocabulary.algorithm:
        differing.append(f"a {package.vocabulary.algorithm} vocabulary and not {vocabulary.algorithm}")
    if differing:
        raise TrainingError(
            f"train.start: the package in {package.path} has {', '.join(differing)}; only the vocabulary may "
            'differ: give the recipe the same [model], or set train.start to "scratch"'
        )
