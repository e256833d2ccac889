"""The table of a corpus, and the origin of a model, for the reports and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qalam_core.corpus.prepare import CorpusFacts, SliceCounts
from qalam_core.runs import Ancestor, SeenFacts

_NOTED = {
    "passed_over": "files passed over (no documents)", "skipped": "records skipped (not readable)",
    "skipped_null": "records skipped (null)", "cut": "cut (too long)", "replaced": "replaced bytes (U+FFFD)",
    "repaired": "repaired", "repaired_in_part": "repaired in part", "not_repaired": "damaged, not repaired",
}  # fmt: skip
"""Fields of SliceCounts that are shown where they are not 0, and their labels."""


def corpus_rows(facts: CorpusFacts) -> tuple[Sequence[str], list[Sequence[str]]]:
    """(head, rows): documents read, damaged, rejected by each reason, and kept; one column for each source."""
    parts: dict[str, SliceCounts] = {"all": facts, **(facts.sources if len(facts.sources) > 1 else {})}
    rows = [("read", [part.read for part in parts.values()])]
    rows += [
        (label, [getattr(part, what) for part in parts.values()])
        for what, label in _NOTED.items()
        if getattr(facts, what)
    ]
    rows += [
        (reason.replace("_", " "), [part.rejected.get(reason, 0) for part in parts.values()])
        for reason in facts.rejected
    ]
    rows.append(("kept", [part.kept for part in parts.values()]))
    if facts.seen_by_ancestor:
        rows.append(("not held out: read by an ancestor", [part.seen_by_ancestor for part in parts.values()]))
    return ("documents", *parts), [(name, *(f"{count:,}" for count in counts)) for name, counts in rows]


_SHOWN = 10


def shown_ancestors(lineage: Sequence[Ancestor]) -> list[Ancestor]:
    """The rows of the table of a model's ancestors: the nearest ones, and all for which a person made an exception."""
    return [ancestor for place, ancestor in enumerate(lineage) if place < _SHOWN or ancestor.accepted]


def origin_text(lineage: Sequence[Ancestor], seen: SeenFacts) -> str:
    """What a training began with, and what the model has read in all: one paragraph, with source names as they are."""
    own = f"{sum(seen.own.values()):,}"
    if not lineage:
        return (
            f"Training began with random weights. The model has read {own} distinct documents, all of them in its own "
            f"corpus: {by_source(seen.own)}."
        )
    before = f", and the {len(lineage) - 1} before it," if len(lineage) > 1 else ""
    gone = "All of them are still in the corpus."
    if seen.gone:
        gone = (
            f"{sum(seen.gone.values()):,} documents that earlier runs had read are no longer in the corpus "
            f"({by_source(seen.gone)}); the model may still repeat them."
        )
    return (
        f"Training continued from the weights of run {lineage[0].run}. So the model has read what that run{before} had "
        f"read, and not only the texts of its own corpus: {sum(seen.lineage.values()):,} distinct documents in all, "
        f"{own} of them in its own training. {gone}"
    )


def by_source(counts: Mapping[str, int]) -> str:
    """Counts of documents: "news 1,200, poems 30"."""
    return ", ".join(f"{' '.join(name.split())} {count:,}" for name, count in counts.items()) or "none"
