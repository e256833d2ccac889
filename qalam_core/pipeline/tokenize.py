"""Stage 5: one corpus shard and the tokenizer -> one token shard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from qalam_core.corpus.fingerprints import id_numbers
from qalam_core.corpus.splits import read_texts, text_bytes, text_chunks
from qalam_core.package.runtime.architecture import END, START
from qalam_core.pipeline.prepare import shards_of
from qalam_core.pipeline.stage import Stage
from qalam_core.pipeline.vocab import TOKENIZER
from qalam_core.progress import Progress
from qalam_core.recipe import Frozen
from qalam_core.store import Artifact, ArtifactFile
from qalam_core.tokens.shards import Labels, write_shard
from qalam_core.tokens.tokenizer import ArabicTokenizer

TOKENS = "tokens.arrow"


class TokenizeSettings(Frozen):
    """Which split the shard is of; recorded in the facts, without influence on the tokens."""

    split: str


class TokenizeFacts(Frozen):
    """Counts of a token shard, and of the text (UTF-8 bytes) that it came from."""

    split: str
    documents: int
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Tokenize(Stage):
    """Tokenizes one shard. A shard keeps its artifact while it and the content of tokenizer.json are the same."""

    name = "tokenize"
    version = 3

    settings: TokenizeSettings
    shard: ArtifactFile
    tokenizer: ArtifactFile

    @classmethod
    def all_of(cls, corpus: Artifact, tokenizer: Artifact) -> list[Tokenize]:
        """A stage for each shard that is trained or validated on, in order."""
        shards, file = shards_of(corpus, "train", "validation"), tokenizer.file(TOKENIZER)
        return [cls(TokenizeSettings(split=shard.name.partition("-")[0]), shard, file) for shard in shards]

    @property
    def label(self) -> str:
        """With the name of the shard."""
        return f"tokenize {Path(self.shard.name).stem}"

    def run(self, out: Path, progress: Progress) -> TokenizeFacts:
        """Write tokens.arrow."""
        tokenizer = _tokenizer(self.tokenizer.path)
        path = self.shard.path
        size, done = path.stat().st_size, 0

        def encoded() -> Iterable[Any]:
            nonlocal done
            for texts in text_chunks(path):
                yield tokenizer.encode_normalised(texts)
                done += text_bytes(texts)
                progress(min(done, size), size)

        documents, tokens = write_shard(out / TOKENS, encoded(), len(tokenizer), START, END, _labels(path))
        return TokenizeFacts(split=self.settings.split, documents=documents, tokens=tokens, bytes=done)


def _labels(shard: Path) -> Labels:
    """Which documents a shard of text has."""
    batches = list(read_texts(shard))
    ids = [id_numbers(batch.column("id").to_pylist()) for batch in batches]
    sources = pa.chunked_array([batch.column("source") for batch in batches], pa.string()).combine_chunks()
    return Labels.of(np.concatenate([np.zeros(0, np.uint64), *ids]), sources)


def of_split(tokens: Sequence[Artifact], split: str) -> tuple[Artifact, ...]:
    """The token shards of one split, in order."""
    return tuple(artifact for artifact in tokens if artifact.facts(TokenizeFacts).split == split)


@lru_cache(maxsize=2)  # loading it takes a third of a second, and a new one for each shard fragments the heap
def _tokenizer(path: Path) -> ArabicTokenizer:
    return ArabicTokenizer.from_file(path)
