"""Stage 3: the training split -> tokenizer.json."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qalam_core.arabic import NORMALISATIONS, Rules
from qalam_core.corpus.prepare import CorpusFacts
from qalam_core.corpus.sample import sample
from qalam_core.corpus.splits import read_texts, text_bytes
from qalam_core.pipeline.prepare import shards_of
from qalam_core.pipeline.stage import Stage
from qalam_core.progress import Progress
from qalam_core.recipe import Frozen, Recipe
from qalam_core.store import Artifact, ArtifactFile
from qalam_core.tokens.tokenizer import Algorithm, ArabicTokenizer

TOKENIZER = "tokenizer.json"

SMALLEST, LARGEST = 512, 8192  # what "auto" chooses between; more entries pay off only with more compute

log = logging.getLogger(__name__)


class Sampling(Frozen):
    """How the texts of a vocabulary are drawn from a larger split."""

    bytes: int
    seed: int


class VocabSettings(Frozen):
    """Everything that a vocabulary depends on, besides the training split."""

    algorithm: Algorithm
    vocab_size: int  # at most
    min_freq: int
    normalisation: Rules
    sampling: Sampling | None  # None: the whole split is read, whatever the limit and the seed


class VocabFacts(Frozen):
    """The size of a vocabulary, and of the text that it was trained on."""

    entries: int
    bytes: int


@dataclass(frozen=True)
class Vocab(Stage):
    """Trains the tokenizer."""

    name = "vocab"
    version = 3

    settings: VocabSettings
    train: tuple[ArtifactFile, ...]  # shards

    @classmethod
    def of(cls, recipe: Recipe, corpus: Artifact) -> Vocab:
        """The stage for a prepared corpus."""
        tokenizer, limit = recipe.tokenizer, recipe.tokenizer.sample_mb * 1_000_000
        text = corpus.facts(CorpusFacts).splits["train"].bytes
        settings = VocabSettings(
            algorithm=tokenizer.algorithm,
            vocab_size=fitting(text) if tokenizer.vocab_size == "auto" else tokenizer.vocab_size,
            min_freq=tokenizer.min_freq,
            normalisation=NORMALISATIONS[recipe.corpus.normalisation],
            sampling=Sampling(bytes=limit, seed=recipe.seed) if text > limit else None,
        )
        return cls(settings, shards_of(corpus, "train"))

    def run(self, out: Path, progress: Progress) -> VocabFacts:
        """Write tokenizer.json, with fewer entries where the text supports no more. Raises CorpusError."""
        settings, sampling = self.settings, self.settings.sampling
        tokenizer = ArabicTokenizer(settings.vocab_size, settings.algorithm, settings.normalisation)
        shards = [shard.path for shard in self.train]
        size = sampling.bytes if sampling else sum(path.stat().st_size for path in shards)
        batches = (
            sample(shards, sampling.bytes, sampling.seed) if sampling
            else (batch.column("text") for shard in shards for batch in read_texts(shard))
        )  # fmt: skip
        read = 0

        def texts() -> Iterable[str]:
            nonlocal read
            for batch in batches:
                yield from batch.to_pylist()
                read += text_bytes(batch)
                progress(min(read, size), size)

        tokenizer.build_vocab(texts(), settings.min_freq, normalised=True)
        if len(tokenizer) < settings.vocab_size:
            log.warning(
                "the vocabulary has %s entries instead of %s: others occur less than tokenizer.min_freq (%s) times",
                f"{len(tokenizer):,}", f"{settings.vocab_size:,}", settings.min_freq,
            )  # fmt: skip
        tokenizer.save(out / TOKENIZER)
        return VocabFacts(entries=len(tokenizer), bytes=read)


def fitting(text: int) -> int:
    """The vocabulary's size for so many bytes of training text: the power of two next to four times their root.

    The number of distinct words grows with about the root of a text (Heaps' law). A power of two stays the same while
    a corpus grows a little, so that a warm start keeps its rows.
    """
    return min(max(1 << round(math.log2(4 * math.sqrt(max(text, 1)))), SMALLEST), LARGEST)
