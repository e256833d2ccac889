"""Stage: the training split, and what the parent has read -> fingerprints of everything that the model has read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qalam_core.corpus.fingerprints import Fingerprints, document_hashes, folded
from qalam_core.corpus.splits import SCHEMA, SPLITS, read_texts
from qalam_core.evaluation.contamination import repetition
from qalam_core.evaluation.results import Repetition
from qalam_core.pipeline.lineage import WarmStart
from qalam_core.pipeline.prepare import shards_of
from qalam_core.pipeline.stage import Stage
from qalam_core.progress import Progress
from qalam_core.recipe import Frozen
from qalam_core.runs import SeenFacts
from qalam_core.store import Artifact, ArtifactFile

CONTROL, CONTROL_SHARE = 1_000, 0.1  # training documents, and share of them at most, that are compared with the others


class SeenSettings(Frozen):
    """There are none: fingerprints do not depend on a recipe."""


@dataclass(frozen=True)
class Seen(Stage):
    """Records what the model and its ancestors have read."""

    name = "seen"
    version = 4
    unit = "shards"

    settings: SeenSettings
    train: tuple[ArtifactFile, ...]  # shards
    held_out: tuple[ArtifactFile, ...]
    parent: Artifact | None  # of the same kind

    @classmethod
    def of(cls, corpus: Artifact, start: WarmStart | None) -> Seen:
        """The stage for a prepared corpus and the run that training begins with."""
        parent = start.seen if start else None
        # held-out shards are read only to find what is gone
        held_out = shards_of(corpus, *SPLITS[1:]) if parent else ()
        return cls(SeenSettings(), shards_of(corpus, SPLITS[0]), held_out, parent)

    def run(self, out: Path, progress: Progress) -> SeenFacts:
        """Write the files of Fingerprints."""
        sample = [pa.record_batch([[]] * len(SCHEMA), schema=SCHEMA)]
        others = Fingerprints.of(self._others(sample))
        documents = pa.Table.from_batches(sample)
        own = others.united(Fingerprints.of(documents.to_batches()))
        progress(len(self.train), len(self.train) + 1)
        before = Fingerprints.load(self.parent.path) if self.parent else None
        control = self._control(documents.column("text").combine_chunks(), others, before)
        if self.parent is None or before is None:
            own.save(out)
            return SeenFacts(own=own.counts(), lineage=own.counts(), gone={}, repetition=control)
        held_out = [
            document_hashes(folded(batch.column("text"))) for shard in self.held_out for batch in read_texts(shard.path)
        ]
        gone = before.absent_from(np.unique(np.concatenate([own.documents, *held_out])))
        united = own.united(before)
        united.save(out)
        control = control.pooled(self.parent.facts(SeenFacts).repetition)
        return SeenFacts(own=own.counts(), lineage=united.counts(), gone=gone, repetition=control)

    def _others(self, sample: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The training documents but for a sample, which is appended to `sample`."""
        count = sum(len(batch) for shard in self.train for batch in read_texts(shard.path))
        share = min(CONTROL_SHARE, CONTROL / count)
        first = f"{int((1 - share) * 2**64):016x}"  # training has the largest ids
        for shard in self.train:
            for batch in read_texts(shard.path):
                chosen = pc.greater_equal(batch.column("id"), first)
                sample.append(batch.filter(chosen))
                yield batch.filter(pc.invert(chosen))

    def _control(self, texts: pa.Array, others: Fingerprints, before: Fingerprints | None) -> Repetition:
        """How often a document that could be held out is mostly in the rest of the training text."""
        if before is not None:
            texts = texts.filter(pa.array(~before.meets(texts).read))
        return repetition(texts, others)
