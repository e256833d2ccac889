"""Stage 1: one source file -> its documents, as Arrow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qalam_core.corpus.readers import ingest
from qalam_core.corpus.sources import ReadSettings, SourceFile
from qalam_core.corpus.writer import IngestFacts
from qalam_core.display import printable
from qalam_core.pipeline.stage import Stage
from qalam_core.progress import Progress


@dataclass(frozen=True)
class Ingest(Stage):
    """Reads one source file."""

    name = "ingest"
    version = 4

    settings: ReadSettings
    file: SourceFile

    @classmethod
    def of(cls, file: SourceFile) -> Ingest:
        """The stage for one file."""
        return cls(file.settings, file)

    @property
    def label(self) -> str:
        """With the name of the source."""
        return f"ingest {printable(self.settings.name)}"

    def run(self, out: Path, progress: Progress) -> IngestFacts:
        """Write documents.arrow."""
        return ingest(self.file, out, progress)
