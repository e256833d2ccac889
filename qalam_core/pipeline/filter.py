"""Stage 2: the documents of some source files -> those that pass the filters, normalised, and the rejected ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qalam_core.corpus.exclusion import Excluded
from qalam_core.corpus.filtered import FilterFacts, filter_documents
from qalam_core.corpus.filters import FilterSettings, filters_by_slice
from qalam_core.corpus.pieces import growth
from qalam_core.corpus.readers import DOCUMENTS
from qalam_core.corpus.sources import SourceFile
from qalam_core.display import printable
from qalam_core.pipeline.stage import UNHASHED, Stage
from qalam_core.progress import Progress
from qalam_core.recipe import Recipe
from qalam_core.store import Artifact

GROUP_BYTES = 16_000_000  # of small files that are filtered together, on average, in a corpus that has not grown


@dataclass(frozen=True)
class Filter(Stage):
    """Normalises and filters documents."""

    name = "filter"
    version = 5

    settings: FilterSettings
    documents: tuple[Artifact, ...]
    excluded: Excluded | None
    slice: str = field(default="", metadata=UNHASHED)  # the name of their source

    @classmethod
    def all_of(cls, recipe: Recipe, files: Sequence[SourceFile], documents: Sequence[Artifact]) -> list[Filter]:
        """The stages for all files that were read, in order. Raises RecipeError."""
        corpus = recipe.corpus
        excluded = Excluded.load(Path(corpus.exclude)) if corpus.exclude else None
        settings = {name: FilterSettings.of(corpus, filters) for name, filters in filters_by_slice(corpus).items()}
        return [cls(settings[name], tuple(group), excluded, name) for name, group in _groups(files, documents)]

    @property
    def label(self) -> str:
        """With the name of the source."""
        return f"filter {printable(self.slice)}"

    def run(self, out: Path, progress: Progress) -> FilterFacts:
        """Write texts.arrow, digests.arrow, keys.arrow and rejects.arrow."""
        paths = [artifact.path / DOCUMENTS for artifact in self.documents]
        return filter_documents(paths, self.settings, out, progress, self.excluded)


def _groups(files: Sequence[SourceFile], documents: Sequence[Artifact]) -> Iterator[tuple[str, list[Artifact]]]:
    """Neighbouring files of one slice, and their documents.

    A file ends its group with a probability that is proportional to its size, by its digest: in a folder to which a
    file is added only the group around it changes.
    """
    group: list[Artifact] = []
    size = GROUP_BYTES * growth(sum(file.size for file in files))
    for number, (file, read) in enumerate(zip(files, documents, strict=True)):
        group.append(read)
        ends = int(file.digest[:8], 16) / 2**32 < file.size / size
        if ends or number + 1 == len(files) or files[number + 1].settings.name != file.settings.name:
            yield file.settings.name, group
            group = []
