"""The whole preparation of files that were read: each filtered, then all deduplicated and split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qalam_core.corpus.filtered import filter_documents
from qalam_core.corpus.filters import FilterSettings, filters_by_slice
from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.corpus.held_out import fold_documents
from qalam_core.corpus.matches import match_documents
from qalam_core.corpus.prepare import CorpusFacts, FilteredFiles, PrepareSettings, prepare
from qalam_core.corpus.writer import IngestFacts
from qalam_core.progress import Progress, no_progress
from qalam_core.recipe import Corpus

NOTHING = IngestFacts(documents=0, bytes=0, cut=0, replaced=0, skipped_null=0)


def prepare_files(
    files: Sequence[tuple[str, Path]], corpus: Corpus, out: Path, progress: Progress = no_progress,
    read: IngestFacts = NOTHING, seen: Fingerprints | None = None, fold: bool = False,
    partitions: int = 1,
) -> CorpusFacts:  # fmt: skip
    """Filter and prepare the documents of (slice, file)s; those that could be held out are folded before, or not."""
    filters, found = filters_by_slice(corpus), []
    for number, (name, path) in enumerate(files):
        settings = FilterSettings.of(corpus, filters.get(name, corpus.filters))
        folder = out.with_name(f"{out.name}-filtered-{number}")
        found.append(FilteredFiles(name, folder, filter_documents([path], settings, folder)))
    folds = [file.folder.with_name(f"{file.folder.name}-folded") for file in found] if fold else []
    for file, folder in zip(found, folds, strict=False):
        fold_documents(file.folder, PrepareSettings.of(corpus), folder)
    matches = [out.with_name(f"{out.name}-matches-{number}") for number in range(partitions)]
    for number, folder in enumerate(matches):
        match_documents([(file.folder, file.facts.passed) for file in found], number, partitions, folder)
    settings = FilterSettings.of(corpus, corpus.filters)
    facts = [(name, read) for name, _ in files]
    return prepare(found, matches, PrepareSettings.of(corpus), settings, out, progress, facts, seen, folds)
