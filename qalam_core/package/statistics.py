"""Statistics of a model's weights, and knowledge_map.py."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from qalam_core.package.runtime.data_reader import KNOWLEDGE_MAGIC, quote
from qalam_core.package.runtime.tokenizer import Vocabulary

PREAMBLE = "# fmt: off\n# ruff: noqa\n"
"""At the top of every file of Python, after its magic line if any, so that black, ruff and isort leave it as it is."""

NEIGHBOUR_WORDS, NEIGHBOURS = 32, 8
NEIGHBOUR_RANGE = 8192  # rarer tokens have little meaning, and comparing with all took half of an export
_BLOCK = 1 << 18

Measured = Mapping[str, tuple[float, float, float, float]]


def statistics(tensor: NDArray[np.float32]) -> tuple[float, float, float, float]:
    """(mean, standard deviation, minimum, maximum) in float64, block by block."""
    flat = tensor.reshape(-1)
    blocks = [flat[start : start + _BLOCK] for start in range(0, len(flat), _BLOCK)]
    mean = sum(float(block.sum(dtype=np.float64)) for block in blocks) / len(flat)
    squares = sum(float(np.square(block - np.float64(mean)).sum()) for block in blocks)
    return mean, float(np.sqrt(squares / len(flat))), float(flat.min()), float(flat.max())


def are_of(stated: Sequence[float], measured: Sequence[float], digits: int) -> bool:
    """Whether figures that were written with so many digits are these; the last bits of sums differ by machine."""
    least = 1e-12 * max(map(abs, measured))
    return bool(np.allclose(stated, measured, rtol=10.0 ** (1 - digits), atol=least))


def knowledge_text(measured: Measured, embedding_VC: NDArray[np.float32], vocabulary: Vocabulary) -> str:
    """The text of knowledge_map.py."""
    facts = [f"    {quote(name)}: ({', '.join(f'{value:.6e}' for value in four)})," for name, four in measured.items()]
    near = [
        f"    {quote(word)}: ({' '.join(f'({quote(other)}, {cosine:.3f}),' for other, cosine in nearest)}),"
        for word, nearest in neighbours(embedding_VC, vocabulary)
    ]
    lines = [
        "# statistics of the weights, as exported",
        "# tensor: (mean, standard deviation, minimum, maximum)",
        *("STATISTICS = {", *facts, "}"),
        "# frequent word: the frequent tokens with the most similar embeddings, by cosine similarity",
        *("NEIGHBOURS = {", *near, "}", ""),
    ]
    return f"{KNOWLEDGE_MAGIC}\n{PREAMBLE}" + "\n".join(lines)


def neighbours(
    embedding_VC: NDArray[np.float32], vocabulary: Vocabulary
) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """For the first NEIGHBOUR_WORDS words of letters, the words of the most similar rows and their cosine similarity.

    Words are in order of frequency; only the first NEIGHBOUR_RANGE are compared.
    """
    embedding_VC, words = embedding_VC[:NEIGHBOUR_RANGE], vocabulary.words[:NEIGHBOUR_RANGE]
    special = [index for index in vocabulary.specials.ids() if index < len(words)]
    ordinary = (index for index, word in enumerate(words) if index not in special and _ordinary(word))
    return nearest_tokens(embedding_VC, words, list(islice(ordinary, NEIGHBOUR_WORDS)), special)


def are_neighbours(
    stated: Mapping[str, Sequence[tuple[str, float]]], embedding_VC: NDArray[np.float32], vocabulary: Vocabulary
) -> bool:
    """Whether these are the `neighbours`; of equally similar words any, because the last bits differ by machine."""
    expected, place = dict(neighbours(embedding_VC, vocabulary)), {word: at for at, word in enumerate(vocabulary.words)}
    if stated.keys() != expected.keys():
        return False
    for word, near in stated.items():
        rows = [place.get(other, -1) for other, _ in near]
        if len({*rows, place[word]}) != 1 + len(expected[word]) or min(rows, default=0) < 0:
            return False
        found_NC = embedding_VC[[place[word], *rows]].astype(np.float64)
        found_NC /= np.maximum(np.linalg.norm(found_NC, axis=1, keepdims=True), 1e-30)
        cosines = [cosine for _, cosine in near]
        for actual in (found_NC[1:] @ found_NC[0], [cosine for _, cosine in expected[word]]):
            if not np.allclose(cosines, actual, rtol=0, atol=0.0011):
                return False
    return True


def nearest_tokens(
    embedding_VC: NDArray[np.float32], words: tuple[str, ...], chosen: list[int], special: list[int]
) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """For each chosen id its word, and the words of the most similar rows but for special ones, with their cosine
    similarity.
    """
    length_V = np.maximum(np.sqrt(np.einsum("vc,vc->v", embedding_VC, embedding_VC, dtype=np.float64)), 1e-30)
    cosines_NV = np.empty((len(chosen), len(words)))
    query_NC = embedding_VC[chosen].astype(np.float64) / length_V[chosen, None]
    for start in range(0, len(words), 4096):
        block = embedding_VC[start : start + 4096].astype(np.float64)
        cosines_NV[:, start : start + 4096] = query_NC @ block.T / length_V[start : start + 4096]
    for index, row in zip(chosen, np.round(cosines_NV, 3), strict=True):
        row[[*special, index]] = -2
        least = np.partition(row, max(0, len(row) - NEIGHBOURS))[max(0, len(row) - NEIGHBOURS)]
        near_N = np.flatnonzero(row >= max(least, -1.5))
        order = near_N[np.argsort(-row[near_N], kind="stable")][:NEIGHBOURS]  # ties: lower id first
        yield words[index], [(words[other], float(row[other]) + 0.0) for other in order]


def _ordinary(word: str) -> bool:
    letters = word.strip()
    return len(letters) > 1 and all(unicodedata.category(char)[0] in "LM" for char in letters)
