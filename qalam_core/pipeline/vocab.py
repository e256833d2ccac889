"""Stage 5: the training split, and perhaps the champion's tokenizer -> tokenizer.json."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from qalam_core.arabic import NORMALISATIONS, Rules
from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.corpus.prepare import CorpusFacts
from qalam_core.corpus.sample import sample
from qalam_core.corpus.splits import read_texts, text_bytes
from qalam_core.errors import StoreError
from qalam_core.package.runtime.architecture import UNK
from qalam_core.package.runtime.tokenizer import token_bytes
from qalam_core.pipeline.prepare import shards_of
from qalam_core.pipeline.stage import UNHASHED, Stage
from qalam_core.progress import Progress
from qalam_core.recipe import Frozen, Recipe
from qalam_core.store import Artifact, ArtifactFile
from qalam_core.tokens.fit import Fit, Judged, fits
from qalam_core.tokens.tokenizer import Algorithm, ArabicTokenizer

TOKENIZER = "tokenizer.json"

_MEASURED_BYTES = 4_000_000  # of held-out text, for the tokens per byte of a new tokenizer

SMALLEST, LARGEST = 512, 8192  # what "auto" chooses between; more entries pay off only with more compute

log = logging.getLogger(__name__)


class Sampling(Frozen):
    """How the texts of a vocabulary are drawn from a larger split."""

    bytes: int
    seed: int


class Keeping(Frozen):
    """How well an earlier tokenizer must fit new text to be kept."""

    before: Fit  # on held-out text of the corpus that it was trained on
    limit: float  # see fits


class VocabSettings(Frozen):
    """Everything that a vocabulary depends on, besides the training split."""

    algorithm: Algorithm
    vocab_size: int  # at most
    min_freq: int
    normalisation: Rules
    sampling: Sampling | None  # None: the whole split is read, whatever the limit and the seed
    keep: Keeping | None  # None: one is trained in any case


class VocabFacts(Frozen):
    """The size of a vocabulary, and of the text that it was trained on."""

    entries: int
    bytes: int  # where an earlier one was kept, of the new text that it was measured on
    fit: Fit  # on held-out text of the corpus that it was trained on; on training text where none is held out
    judged: Judged | None  # the earlier tokenizer, kept or not


@dataclass(frozen=True)
class EarlierTokenizer:
    """The tokenizer of an earlier run, to be kept while it fits the text that the run has not read."""

    run: str
    file: ArtifactFile
    seen: Artifact  # what the run, and those before it, have read
    keeping: Keeping
    shards: frozenset[str] = frozenset()  # digests of shards that the run was trained on, as far as they are known


@dataclass(frozen=True)
class Vocab(Stage):
    """Trains the tokenizer, or keeps an earlier one."""

    name = "vocab"
    version = 4

    settings: VocabSettings
    train: tuple[ArtifactFile, ...]  # shards
    held_out: tuple[ArtifactFile, ...]  # of validation
    earlier: ArtifactFile | None = None  # its tokenizer.json
    seen: Artifact | None = None  # what the run that it is of has read
    run_of_earlier: str = field(default="", compare=False, metadata=UNHASHED)
    # all their documents are in `seen`, so that they need not be searched for new ones
    read_shards: frozenset[str] = field(default=frozenset(), compare=False, metadata=UNHASHED)

    @classmethod
    def of(cls, recipe: Recipe, corpus: Artifact, earlier: EarlierTokenizer | None = None) -> Vocab:
        """The stage for a prepared corpus, which keeps an earlier tokenizer if that fits."""
        tokenizer, limit = recipe.tokenizer, recipe.tokenizer.sample_mb * 1_000_000
        text = corpus.facts(CorpusFacts).splits["train"].bytes
        settings = VocabSettings(
            algorithm=tokenizer.algorithm,
            vocab_size=fitting(text) if tokenizer.vocab_size == "auto" else tokenizer.vocab_size,
            min_freq=tokenizer.min_freq,
            normalisation=NORMALISATIONS[recipe.corpus.normalisation],
            sampling=Sampling(bytes=limit, seed=recipe.seed) if text > limit else None,
            keep=earlier.keeping if earlier else None,
        )
        shards = shards_of(corpus, "train"), shards_of(corpus, "validation")
        if earlier is None:
            return cls(settings, *shards)
        return cls(settings, *shards, earlier.file, earlier.seen, earlier.run, earlier.shards)

    def run(self, out: Path, progress: Progress) -> VocabFacts:
        """Write tokenizer.json, with fewer entries where the text supports no more. Raises CorpusError, StoreError."""
        keep, earlier, seen = self.settings.keep, self.earlier, self.seen
        if not keep or not earlier or not seen:
            tokenizer, size = self._trained(out, progress)
            return VocabFacts(entries=len(tokenizer), bytes=size, fit=self._fit(tokenizer), judged=None)
        if not earlier.is_as_recorded():
            raise StoreError(
                f"{earlier.path}: missing or damaged, and the tokenizer of run {self.run_of_earlier} was to be kept; "
                'set tokenizer.keep to "" to train a new one'
            )
        before, read = ArabicTokenizer.from_file(earlier.path), Fingerprints.load(seen.path)
        new = fit(before, self._new_texts(read, progress))
        judged = Judged(
            before=keep.before, new=new, limit=keep.limit, kept=fits(new, keep.before, keep.limit), regrown=None,
            shared=len(before),
        )  # fmt: skip
        if judged.kept:
            shutil.copyfile(earlier.path, out / TOKENIZER)
            return VocabFacts(entries=len(before), bytes=new.bytes, fit=keep.before, judged=judged)
        tokenizer, size = self._trained(out, progress)
        regrown = fit(tokenizer, self._new_texts(read, progress))
        shared = len({*tokenizer.words} & {*before.words})
        return VocabFacts(
            entries=len(tokenizer), bytes=size, fit=self._fit(tokenizer),
            judged=judged.model_copy(update={"regrown": regrown, "shared": shared}),
        )  # fmt: skip

    def _new_texts(self, read: Fingerprints, progress: Progress) -> Iterator[pa.LargeStringArray]:
        """The training documents that are not in `read`, in batches."""
        shards = [shard for shard in self.train if shard.digest not in self.read_shards]
        size, done = sum(shard.path.stat().st_size for shard in shards), 0
        for shard in shards:
            for batch in read_texts(shard.path):
                texts = batch.column("text")
                yield texts.filter(pa.array(read.unread(batch)))
                done += text_bytes(texts)
                progress(min(done, size), size)

    def _fit(self, tokenizer: ArabicTokenizer) -> Fit:
        """How a new tokenizer fits text of the same corpus that it has not read."""
        shards = [shard.path for shard in self.held_out or self.train]
        return fit(tokenizer, sample(shards, _MEASURED_BYTES, 0))

    def _trained(self, out: Path, progress: Progress) -> tuple[ArabicTokenizer, int]:
        """A new tokenizer, saved as tokenizer.json, and the bytes of text that it was trained on."""
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
        return tokenizer, read


def fitting(text: int) -> int:
    """The vocabulary's size for so many bytes of training text: the power of two next to four times their root.

    The number of distinct words grows with about the root of a text (Heaps' law). A power of two stays the same while
    a corpus grows a little, so that a warm start keeps its rows.
    """
    return min(max(1 << round(math.log2(4 * math.sqrt(max(text, 1)))), SMALLEST), LARGEST)


def fit(tokenizer: ArabicTokenizer, texts: Iterable[pa.LargeStringArray]) -> Fit:
    """Counts of `texts`, which are normalised by the tokenizer's rules."""
    spelled = np.array([_is_spelled(tokenizer, index) for index in range(len(tokenizer))])
    documents = size = tokens = pieces = 0
    for batch in texts:
        ids, _ = tokenizer.encode_normalised(batch)
        documents, size = documents + len(batch), size + text_bytes(batch)
        tokens, pieces = tokens + len(ids), pieces + int(spelled[ids].sum())
    return Fit(documents=documents, bytes=size, tokens=tokens, spelled=pieces)


def _is_spelled(tokenizer: ArabicTokenizer, index: int) -> bool:
    if tokenizer.algorithm == "word":
        return index == UNK
    spelling = token_bytes(tokenizer.words[index])
    return len(spelling) == 1 and spelling[0] >= 0x80
