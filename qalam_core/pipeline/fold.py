"""Stage, only of builds that begin with another run's weights: filtered documents that could be held out -> the hashes
that are looked up in what that run has read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qalam_core.corpus.filtered import DIGESTS, TEXTS
from qalam_core.corpus.held_out import fold_documents
from qalam_core.corpus.splits import Shares
from qalam_core.inputs import reads
from qalam_core.pipeline.stage import Stage
from qalam_core.progress import Progress
from qalam_core.recipe import Frozen, Recipe
from qalam_core.store import Artifact


@dataclass(frozen=True)
class Fold(Stage):
    """Folds and hashes the documents that could be held out."""

    name = "fold"
    version = 1

    settings: Shares
    documents: Artifact = field(metadata=reads(TEXTS, DIGESTS))

    @classmethod
    def all_of(cls, recipe: Recipe, filtered: Sequence[Artifact]) -> list[Fold]:
        """One stage for each group of filtered documents, in order."""
        shares = Shares(validation=recipe.corpus.validation, test=recipe.corpus.test)
        return [cls(shares, documents) for documents in filtered]

    @property
    def label(self) -> str:
        """With the first digits of the documents' digest."""
        return f"fold {self.documents.digest[:8]}"

    def run(self, out: Path, progress: Progress) -> Frozen:
        """Write folded.arrow."""
        fold_documents(self.documents.path, self.settings, out, progress)
        return Frozen()
