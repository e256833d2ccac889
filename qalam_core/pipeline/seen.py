"""Stage: the training split, and what the parent has read -> fingerprints of everything that the model has read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.corpus.prepare import HELD_OUT
from qalam_core.corpus.splits import SPLITS, read_texts
from qalam_core.evaluation.contamination import repetition
from qalam_core.evaluation.results import Repetition
from qalam_core.pipeline.fingerprint import CONTROL_FOLDER, FingerprintSettings
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
    held_out: ArtifactFile | None  # with a parent: hashes of the documents that are held out
    parent: Artifact | None  # of the same kind

    @classmethod
    def of(cls, corpus: Artifact, fingerprints: Sequence[Artifact], start: WarmStart | None) -> Seen:
        """The stage for a prepared corpus, and the run that training begins with."""
        parent = start.seen if start else None
        # absent only from a plan, in which a corpus of a run without a parent may stand for this one
        held_out = corpus.file(HELD_OUT) if parent and HELD_OUT in corpus.manifest.files else None
        return cls(SeenSettings(), tuple(fingerprints), shards_of(corpus, SPLITS[0]), held_out, parent)

    def run(self, out: Path, progress: Progress) -> SeenFacts:
        """Write the files of Fingerprints."""
        parts = [Fingerprints.load(made.path) for made in self.fingerprints]
        controls = [Fingerprints.load(made.path / CONTROL_FOLDER) for made in self.fingerprints]
        before = Fingerprints.load(self.parent.path) if self.parent else None
        in_before = set(self.parent.manifest.inputs.values()) if self.parent else set()
        new = [number for number, made in enumerate(self.fingerprints) if made.digest not in in_before]
        repeated = self._repetition(parts, controls, new, before)
        progress(1, 2)
        # what the parent's record was made of is in it
        sets = [*([before] if before else []), *(of[number] for number in new for of in (parts, controls))]
        documents = Fingerprints.union([*parts, *controls], [])
        lineage = Fingerprints.union([documents, before] if before else [documents], sets)
        lineage.save(out)
        own, gone = documents.counts(), dict[str, int]()
        if self.parent and before:
            assert self.held_out, "the corpus was prepared without the parent"
            held_out = [batch.column("hash").to_numpy() for batch in read_texts(self.held_out.path)]
            gone = before.absent_from(np.unique(np.concatenate([documents.documents, *held_out])))
            repeated = repeated.pooled(self.parent.facts(SeenFacts).repetition)
        return SeenFacts(own=own, lineage=lineage.counts(), gone=gone, repetition=repeated)

    def _repetition(
        self, parts: Sequence[Fingerprints], controls: Sequence[Fingerprints], new: Sequence[int],
        before: Fingerprints | None,
    ) -> Repetition:  # fmt: skip
        """How often a document that could be held out is mostly in the rest of the training text."""
        control = FingerprintSettings.model_validate(self.fingerprints[0].manifest.settings).control
        # of the others the parent has read all; a document without words, whose hash is 0, counts as read by no one
        chosen = [number for number, part in enumerate(controls) if number in new or 0 in part.documents[:1]]
        shards = (self.train[number].path for number in chosen)
        sample = [batch.filter(control(batch)).column("text") for shard in shards for batch in read_texts(shard)]
        texts = pa.chunked_array(sample, pa.large_string()).combine_chunks()
        if before is not None:
            texts = texts.filter(pa.array(~before.meets(texts).read))
        asked = Fingerprints.union([controls[number] for number in chosen]) if chosen else None
        return repetition(texts, Fingerprints.union([part.common(asked) for part in parts])) if asked else Repetition()
