"""Stage 3: the training split -> tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qalam_core.arabic import NORMALISATIONS, Rules
from qalam_core.corpus.prepare import CorpusFacts
from qalam_core.corpus.sample import sample
from qalam_core.corpus.splits import read_texts, text_bytes
from qalam_core.errors import RecipeError
from qalam_core.pipeline.prepare import shards_of
from qalam_core.pipeline.stage import Stage
from qalam_core.progress import Progress
from qalam_core.recipe import Frozen, Recipe
from qalam_core.store import Artifact, ArtifactFile
from qalam_core.tokens.tokenizer import Algorithm, ArabicTokenizer

TOKENIZER = "tokenizer.json"


class Sampling(Frozen):
    """How the texts of a vocabulary are drawn from a larger split."""

    bytes: int
    seed: int


class VocabSettings(Frozen):
    """Everything that a vocabulary depends on, besides the training split."""

    algorithm: Algorithm
    vocab_size: int
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
    version = 2

    settings: VocabSettings
    train: tuple[ArtifactFile, ...]  # shards

    @classmethod
    def of(cls, recipe: Recipe, corpus: Artifact) -> Vocab:
        """The stage for a prepared corpus."""
        tokenizer, limit = recipe.tokenizer, recipe.tokenizer.sample_mb * 1_000_000
        sampled = corpus.facts(CorpusFacts).splits["train"].bytes > limit
        settings = VocabSettings(
            algorithm=tokenizer.algorithm,
            vocab_size=tokenizer.vocab_size,
            min_freq=tokenizer.min_freq,
            normalisation=NORMALISATIONS[recipe.corpus.normalisation],
            sampling=Sampling(bytes=limit, seed=recipe.seed) if sampled else None,
        )
        return cls(settings, shards_of(corpus, "train"))

    def run(self, out: Path, progress: Progress) -> VocabFacts:
        """Write tokenizer.json. Raises RecipeError when the corpus does not support the vocabulary's size."""
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
            raise RecipeError(
                f"tokenizer.vocab_size is {settings.vocab_size}, but with min_freq {settings.min_freq} the corpus "
                f"supports {len(tokenizer)}; set it to {len(tokenizer)} or less, or add text"
            )
        tokenizer.save(out / TOKENIZER)
        return VocabFacts(entries=len(tokenizer), bytes=read)
