"""Stage: one shard of the training split -> fingerprints of its documents, apart for those of the control."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.corpus.prepare import CorpusFacts
from qalam_core.corpus.splits import read_texts
from qalam_core.pipeline.prepare import shards_of
from qalam_core.pipeline.stage import Stage
from qalam_core.progress import Progress
from qalam_core.recipe import Frozen
from qalam_core.store import Artifact, ArtifactFile

CONTROL = 1_000  # documents at most, in a corpus of any size
CONTROL_FOLDER = "control"


class FingerprintSettings(Frozen):
    """Which documents are in the control: those that are compared with the others, to see how often text recurs."""

    control_bits: int  # a document is when the first bits of its id are ones; so few are when a corpus grows a little

    @classmethod
    def of(cls, corpus: Artifact) -> FingerprintSettings:
        """For an eighth of the training documents, and CONTROL of them at most."""
        documents = corpus.facts(CorpusFacts).splits["train"].documents
        return cls(control_bits=max(3, ((documents - 1) // CONTROL).bit_length()))

    def control(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        """Which documents of a batch are in the control."""
        # training has the largest ids
        return pc.greater_equal(batch.column("id"), f"{2**64 - 2 ** (64 - self.control_bits):016x}")


@dataclass(frozen=True)
class Fingerprint(Stage):
    """Fingerprints one training shard."""

    name = "fingerprint"
    version = 2
    unit = "documents"

    settings: FingerprintSettings
    shard: ArtifactFile

    @classmethod
    def all_of(cls, corpus: Artifact) -> list[Fingerprint]:
        """One stage for each training shard, in order."""
        settings = FingerprintSettings.of(corpus)
        return [cls(settings, shard) for shard in shards_of(corpus, "train")]

    @property
    def label(self) -> str:
        """With the shard's name."""
        return f"fingerprint {self.shard.name.removesuffix('.arrow')}"

    def run(self, out: Path, progress: Progress) -> Frozen:
        """Write the files of Fingerprints: of the documents outside of the control, and in `control` of those in it."""
        chosen = [(batch, self.settings.control(batch)) for batch in read_texts(self.shard.path)]
        Fingerprints.of(batch.filter(pc.invert(control)) for batch, control in chosen).save(out)
        (out / CONTROL_FOLDER).mkdir()
        Fingerprints.of(batch.filter(control) for batch, control in chosen).save(out / CONTROL_FOLDER)
        return Frozen()
