"""Stage: the training split, and what the parent has read -> fingerprints of everything that the model has read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from qalam_core.corpus.fingerprints import Fingerprints, document_hashes, folded
from qalam_core.corpus.splits import SPLITS, read_texts
from qalam_core.evaluation.contamination import repetition
from qalam_core.evaluation.results import Repetition
from qalam_core.pipeline.fingerprint import FingerprintSettings
from qalam_core.pipeline.lineage import WarmStart
from qalam_core.pipeline.prepare import shards_of
from qalam_core.pipeline.stage import Stage
from qalam_core.progress import Progress
from qalam_core.recipe import Frozen
from qalam_core.runs import SeenFacts
from qalam_core.store import Artifact, ArtifactFile


class SeenSettings(Frozen):
    """There are none: fingerprints do not depend on a recipe."""


@dataclass(frozen=True)
class Seen(Stage):
    """Records what the model and its ancestors have read."""

    name = "seen"
    version = 5
    unit = "shards"

    settings: SeenSettings
    fingerprints: tuple[Artifact, ...]  # of training shards
    train: tuple[ArtifactFile, ...]  # the shards, for the documents of the control
    held_out: tuple[ArtifactFile, ...]
    parent: Artifact | None  # of the same kind

    @classmethod
    def of(cls, corpus: Artifact, fingerprints: Sequence[Artifact], start: WarmStart | None) -> Seen:
        """The stage for a prepared corpus, and the run that training begins with."""
        parent = start.seen if start else None
        # held-out shards are read only to find what is gone
        held_out = shards_of(corpus, *SPLITS[1:]) if parent else ()
        return cls(SeenSettings(), tuple(fingerprints), shards_of(corpus, SPLITS[0]), held_out, parent)

    def run(self, out: Path, progress: Progress) -> SeenFacts:
        """Write the files of Fingerprints."""
        others = Fingerprints.union([Fingerprints.load(made.path) for made in self.fingerprints])
        control = FingerprintSettings.model_validate(self.fingerprints[0].manifest.settings).control
        sample = [batch.filter(control(batch)) for shard in self.train for batch in read_texts(shard.path)]
        own = Fingerprints.union([others, Fingerprints.of(sample)])
        progress(len(self.train), len(self.train) + 1)
        before = Fingerprints.load(self.parent.path) if self.parent else None
        repeated = self._repetition(pa.Table.from_batches(sample).column("text").combine_chunks(), others, before)
        if self.parent is None or before is None:
            own.save(out)
            return SeenFacts(own=own.counts(), lineage=own.counts(), gone={}, repetition=repeated)
        held_out = [
            document_hashes(folded(batch.column("text"))) for shard in self.held_out for batch in read_texts(shard.path)
        ]
        gone = before.absent_from(np.unique(np.concatenate([own.documents, *held_out])))
        united = Fingerprints.union([own, before])
        united.save(out)
        repeated = repeated.pooled(self.parent.facts(SeenFacts).repetition)
        return SeenFacts(own=own.counts(), lineage=united.counts(), gone=gone, repetition=repeated)

    def _repetition(self, texts: pa.Array, others: Fingerprints, before: Fingerprints | None) -> Repetition:
        """How often a document that could be held out is mostly in the rest of the training text."""
        if before is not None:
            texts = texts.filter(pa.array(~before.meets(texts).read))
        return repetition(texts, others)
