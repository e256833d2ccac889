"""Small models over one vocabulary of words, and texts of those words, for tests of what changed between two models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from qalam_core.arabic import NORMALISATIONS
from qalam_core.package import ModelConfig, Vocabulary
from qalam_core.package.read import Package
from qalam_core.package.runtime.architecture import SPECIALS
from qalam_core.package.vocabulary import tokenizer_json
from tests.small_package import random_tensors

LETTERS = "بتثجحخدذرزسشصضطظعغفقكلمنهوي"
WORDS = (*SPECIALS, *(f"{a}{b}ا" for a in LETTERS[:16] for b in LETTERS[:16]))
CONFIG = ModelConfig(vocab_size=len(WORDS), dim=32, num_heads=4, num_layers=2, max_seq_len=40)
VOCABULARY = Vocabulary("word", WORDS, (), NORMALISATIONS["standard"])


def package(
    seed: int = 0,
    vocabulary: Vocabulary = VOCABULARY,
    config: ModelConfig = CONFIG,
    tensors: Mapping[str, np.ndarray] | None = None,
) -> Package:
    """A model of random weights, with other values of some tensors."""
    config = replace(config, vocab_size=len(vocabulary.words))
    weights = random_tensors(config.tensor_shapes(), seed, 0.15)
    weights |= tensors or {}
    return Package(Path("model"), config, vocabulary, tokenizer_json(vocabulary), weights, {"dtype": "f32"}, ())


def texts(count: int = 40, words: tuple[str, ...] = WORDS[4:], seed: int = 0, length: int = 30) -> list[str]:
    """Texts of random words."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(words, length)) for _ in range(count)]


def pairs(**slices: list[str]) -> list[tuple[str, str]]:
    """(slice, text) pairs."""
    return [(name, text) for name, some in slices.items() for text in some]
