"""Stage 4: all documents that passed the filters -> deduplicated shards of three splits, and the rejected documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from qalam_core.corpus.filtered import DIGESTS, REJECTS, TEXTS, FilterFacts
from qalam_core.corpus.filters import FilterSettings
from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.corpus.prepare import CorpusFacts, FilteredFiles, PrepareSettings, prepare
from qalam_core.corpus.writer import IngestFacts
from qalam_core.errors import CorpusError, StoreError
from qalam_core.inputs import reads
from qalam_core.pipeline.match import complete
from qalam_core.pipeline.stage import UNHASHED, Stage
from qalam_core.progress import Progress
from qalam_core.recipe import Recipe
from qalam_core.store import Artifact, ArtifactFile


class Documents(NamedTuple):
    """The documents of all source files, in order: as read, and those that passed the filters."""

    read: list[Artifact]
    filtered: list[Artifact]
    matches: Sequence[Artifact] = ()  # of those that passed
    folds: Sequence[Artifact] = ()  # of those that passed, unless training begins at random
    size: int = 0  # bytes of the source files


@dataclass(frozen=True)
class Prepare(Stage):
    """Deduplicates and splits the corpus."""

    name = "prepare"
    version = 6

    settings: PrepareSettings
    documents: tuple[Artifact, ...] = field(metadata=reads())  # for the counts
    filtered: tuple[Artifact, ...] = field(metadata=reads(TEXTS, DIGESTS, REJECTS))
    seen: Artifact | None  # what the ancestors of the model have read
    matches: tuple[Artifact, ...] = field(metadata=UNHASHED)  # of `filtered`: they follow from these
    folds: tuple[Artifact, ...] = field(default=(), metadata=UNHASHED)  # of `filtered`: they only save time

    @classmethod
    def of(cls, recipe: Recipe, documents: Documents, seen: Artifact | None = None) -> Prepare:
        """The stage for the documents of all files."""
        settings = PrepareSettings.of(recipe.corpus, documents.size)
        matches, folds = tuple(documents.matches), tuple(documents.folds)
        return cls(settings, tuple(documents.read), tuple(documents.filtered), seen, matches, folds)

    def run(self, out: Path, progress: Progress) -> CorpusFacts:
        """Write the shards, rejects.arrow and, with `seen`, held_out.arrow."""
        read = [(artifact.manifest.settings["name"], artifact.facts(IngestFacts)) for artifact in self.documents]
        holding = Counter[str]()
        for name, of_file in read:
            holding[name] += of_file.documents
        for name, count in holding.items():
            if not count:  # of files that were found; one that is named was refused when it was read
                raise CorpusError(f"{name}: none of the files of this source holds a document; add text, or remove it")
        if self.seen and not self.seen.exists():
            raise StoreError(
                f"{self.seen.path}: the record of what an earlier run has read was deleted; build that run again, or "
                'set train.start to "scratch"'
            )
        seen = Fingerprints.load(self.seen.path) if self.seen else None
        filters = FilterSettings.model_validate(self.filtered[0].manifest.settings)
        slices = {artifact.digest: name for artifact, (name, _) in zip(self.documents, read, strict=True)}
        files = [
            FilteredFiles(slices[made.manifest.inputs["documents-00000"]], made.path, made.facts(FilterFacts))
            for made in self.filtered
        ]
        assert complete(self.matches, self.filtered), "matches of other documents: duplicates would be kept"
        matches, folds = ([made.path for made in several] for several in (self.matches, self.folds))
        return prepare(files, matches, self.settings, filters, out, progress, read, seen, folds)


def shards_of(corpus: Artifact, *splits: str) -> tuple[ArtifactFile, ...]:
    """The shards of some splits of a prepared corpus, in order."""
    names = sorted(name for name in corpus.manifest.files if name.partition("-")[0] in splits)
    return tuple(corpus.file(name) for name in names)
