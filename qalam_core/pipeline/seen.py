"""Stage: the training split, and what the parent has read -> fingerprints of everything that the model has read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qalam_core.corpus.fingerprints import Fingerprints, document_hashes, folded
from qalam_core.corpus.splits import SPLITS, read_texts
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
    version = 3
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
        own = Fingerprints.of(batch for shard in self.train for batch in read_texts(shard.path))
        progress(len(self.train), len(self.train) + 1)
        if self.parent is None:
            own.save(out)
            return SeenFacts(own=own.counts(), lineage=own.counts(), gone={})
        before = Fingerprints.load(self.parent.path)
        held_out = [
            document_hashes(folded(batch.column("text"))) for shard in self.held_out for batch in read_texts(shard.path)
        ]
        gone = before.absent_from(np.unique(np.concatenate([own.documents, *held_out])))
        united = own.united(before)
        united.save(out)
        return SeenFacts(own=own.counts(), lineage=united.counts(), gone=gone)
