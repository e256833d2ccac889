"""Stage 3: the keys of all filtered documents -> which documents repeat another, by ranges of the keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path

from qalam_core.corpus.filtered import KEYS, FilterFacts
from qalam_core.corpus.matches import match_documents
from qalam_core.inputs import reads
from qalam_core.pipeline.stage import Stage
from qalam_core.progress import Progress
from qalam_core.recipe import Frozen
from qalam_core.store import Artifact


class MatchSettings(Frozen):
    """Which keys are joined: a range of all possible ones."""

    partition: int
    of: int


@dataclass(frozen=True)
class Match(Stage):
    """Finds the documents that share a key with an earlier one."""

    name = "match"
    version = 1
    unit = "ranges"

    settings: MatchSettings
    documents: tuple[Artifact, ...] = field(metadata=reads(KEYS))

    @classmethod
    def all_of(cls, filtered: Sequence[Artifact]) -> list[Match]:
        """The stages for all filtered documents, in order.

        Each reads a part of every group, so that there are fewer of them than of groups: one for a small corpus.
        """
        of = isqrt(len(filtered) // 4) or 1
        return [cls(MatchSettings(partition=number, of=of), tuple(filtered)) for number in range(of)]

    @property
    def label(self) -> str:
        """With its number."""
        return f"match {self.settings.partition + 1} of {self.settings.of}"

    def run(self, out: Path, progress: Progress) -> Frozen:
        """Write matches.arrow."""
        files = [(made.path, made.facts(FilterFacts).passed) for made in self.documents]
        match_documents(files, self.settings.partition, self.settings.of, out, progress)
        return Frozen()


def complete(matches: Sequence[Artifact], filtered: Sequence[Artifact]) -> bool:
    """Whether `matches` are all that there is to know about the repeats among these documents."""
    found = [MatchSettings.model_validate(made.manifest.settings) for made in matches]
    digests = [made.digest for made in filtered]
    return (
        bool(found)
        and found == [MatchSettings(partition=number, of=len(found)) for number in range(len(found))]
        and all(list(made.manifest.inputs.values()) == digests for made in matches)
    )
