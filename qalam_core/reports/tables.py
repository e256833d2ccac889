"""The table of a corpus, for the reports and the command line."""

from __future__ import annotations

from collections.abc import Sequence

from qalam_core.corpus.prepare import CorpusFacts, SliceCounts


def corpus_rows(facts: CorpusFacts) -> tuple[Sequence[str], list[Sequence[str]]]:
    """(head, rows): documents read, rejected by each reason, and kept; one column for each source."""
    parts: dict[str, SliceCounts] = {"all": facts, **(facts.sources if len(facts.sources) > 1 else {})}
    rows = [("read", [part.read for part in parts.values()])]
    if facts.repaired:
        rows.append(("repaired", [part.repaired for part in parts.values()]))
    rows += [
        (reason.replace("_", " "), [part.rejected.get(reason, 0) for part in parts.values()])
        for reason in facts.rejected
    ]
    rows.append(("kept", [part.kept for part in parts.values()]))
    return ("documents", *parts), [(name, *(f"{count:,}" for count in counts)) for name, counts in rows]
