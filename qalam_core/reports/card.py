"""The model card of a package, in English with an Arabic summary: the same build gives the same card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from qalam_core.corpus.prepare import CorpusFacts
from qalam_core.evaluation.results import Report
from qalam_core.recipe import Recipe, Source
from qalam_core.reports.render import render
from qalam_core.runs import Ancestor, KeptTokenizer, Proposal, ProposedFacts, SeenFacts, TrainFacts


def model_card(
    recipe: Recipe, corpus: CorpusFacts, made: TrainFacts | ProposedFacts, lineage: Sequence[Ancestor],
    seen: SeenFacts, report: Report | None = None, kept: KeptTokenizer | None = None, proposal: Proposal | None = None,
) -> str:  # fmt: skip
    """MODEL_CARD.md. Without a `report` it is the card of a package that was not measured yet, and says so."""
    # slice names as in the report: where there is none, the last part of the path
    sources = [
        (source.name or PurePath(source.path.rpartition(":")[2]).stem, _origin(source), source.licence or "not stated")
        for source in recipe.corpus.sources
    ]
    return render(
        "card.md", recipe=recipe, sources=sources, corpus=corpus, facts=made, lineage=lineage, seen=seen,
        kept=kept, report=report, proposal=proposal,
    )  # fmt: skip


def _origin(source: Source) -> str:
    """Where anyone can find it; a path on this machine means nothing elsewhere."""
    if source.path.startswith("package:"):
        return f"the package {source.path.removeprefix('package:')}"
    if source.path.startswith("hf:") and not source.data_files:
        return f"the Hugging Face data set {source.path.removeprefix('hf:')}, revision {source.revision}"
    return "local files"
