"""Stage 2: all documents -> normalised, filtered, deduplicated shards of three splits, and the rejected documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qalam_core.corpus.exclusion import Excluded
from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.corpus.prepare import CorpusFacts, PrepareSettings, prepare
from qalam_core.corpus.readers import DOCUMENTS
from qalam_core.corpus.writer import IngestFacts
from qalam_core.errors import CorpusError, StoreError
from qalam_core.pipeline.stage import Stage
from qalam_core.progress import Progress
from qalam_core.recipe import Recipe
from qalam_core.store import Artifact, ArtifactFile


@dataclass(frozen=True)
class Prepare(Stage):
    """Cleans, deduplicates and splits the corpus."""

    name = "prepare"
    version = 4

    settings: PrepareSettings
    documents: tuple[Artifact, ...]
    seen: Artifact | None  # what the ancestors of the model have read
    excluded: Excluded | None

    @classmethod
    def of(cls, recipe: Recipe, documents: Sequence[Artifact], seen: Artifact | None = None) -> Prepare:
        """The stage for all ingested files, in order."""
        excluded = Excluded.load(Path(recipe.corpus.exclude)) if recipe.corpus.exclude else None
        return cls(PrepareSettings.of(recipe.corpus), tuple(documents), seen, excluded)

    def run(self, out: Path, progress: Progress) -> CorpusFacts:
        """Write the shards and rejects.arrow."""
        ingested = [(artifact.manifest.settings["name"], artifact.facts(IngestFacts)) for artifact in self.documents]
        holding = Counter[str]()
        for name, facts in ingested:
            holding[name] += facts.documents
        for name, count in holding.items():
            if not count:  # of files that were found; one that is named was refused when it was read
                raise CorpusError(f"{name}: none of the files of this source holds a document; add text, or remove it")
        paths = [artifact.path / DOCUMENTS for artifact in self.documents]
        if self.seen and not self.seen.exists():
            raise StoreError(
                f"{self.seen.path}: the record of what an earlier run has read was deleted; build that run again, or "
                'set train.warm_start to ""'
            )
        seen = Fingerprints.load(self.seen.path) if self.seen else None
        return prepare(paths, self.settings, out, progress, seen, self.excluded, ingested)


def shards_of(corpus: Artifact, *splits: str) -> tuple[ArtifactFile, ...]:
    """The shards of some splits of a prepared corpus, in order."""
    names = sorted(name for name in corpus.manifest.files if name.partition("-")[0] in splits)
    return tuple(corpus.file(name) for name in names)
