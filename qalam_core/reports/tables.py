"""What the reports and the command line say alike: a run in one sentence, its figures, its corpus and its origin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from qalam_core.corpus.prepare import CorpusFacts, SliceCounts
from qalam_core.evaluation.model_tests.judging import score_text
from qalam_core.evaluation.model_tests.outcomes import Outcome, Outcomes
from qalam_core.evaluation.results import Compared, Comparison, Copied, Report, Slice, Verdict
from qalam_core.runs import Ancestor, KeptTokenizer, Proposal, RunRecord, SeenFacts, SourceRead, states
from qalam_core.tokens.fit import ENOUGH_BYTES

NO_CHAMPION = "There was no champion to review it against."
"""What stands in the place of a review of a first build."""

_DECIDED = {"passed": "passed", "waiting": "waits for a person", "refused": "refused"}


def decided(verdict: Verdict) -> str:
    """What the gate decided; what people did about it later is not in a report."""
    return _DECIDED[states({"run": verdict}, ())["run"][0]]


def ratio(bits: float, other: float) -> float:
    """How many times as many bits; NaN for a baseline that needs none."""
    return bits / other if other else math.nan


def headline(run: str, record: RunRecord) -> str:
    """A run in one sentence: "demo-ef344e40efcd: passed, 1.1510 bits per byte, 2.1% better than the champion"."""
    bits, comparison = record.bits_per_byte, record.verdict.comparison
    than, model, other = "the unigram", bits.model, bits.unigram
    if comparison:
        than, model, other = "the champion", comparison.overall.model, comparison.overall.champion
    change = ratio(model, other) - 1
    words = [f"{run}: {decided(record.verdict)}"]
    words.append(f"{bits.model:.4f} bits per byte" if math.isfinite(bits.model) else "bits per byte not finite")
    if math.isfinite(change):
        words.append(f"{abs(change):.1%} {'better' if change <= 0 else 'worse'} than {than}")
    return ", ".join(words)


def provenance(record: RunRecord) -> list[tuple[str, str]]:
    """(label, text): when and where a run was built, and from what."""
    machine, proposal = record.machine, record.proposal
    own = record.seen.lineage if proposal else record.seen.own
    tokenizer = [("tokenizer", kept_text(record.tokenizer))] if record.tokenizer else []
    origin = record.origin if proposal else f"training {record.origin}"
    proposed = [("proposed", proposed_text(proposal))] if proposal else []
    unknown = f"not known: {proposal.unknown}" if proposal and proposal.unknown else ""
    most = {clipped(name, 40): own[name] for name in sorted(own, key=lambda name: -own[name])[:3]}
    return [
        ("built", f"{record.created[:16].replace('T', ' ')} UTC by Al-Qalam {record.code}, on {machine['system']} "
                  f"{machine['processor']} with {machine['cores']} cores"),
        ("from", f"recipe {record.recipe.name}, seed {record.recipe.seed}; {origin}"),
        *proposed,
        ("read", unknown or f"{sum(own.values()):,} documents: {by_source(most)}"
                 + (f", and {len(own) - len(most)} more sources" if len(own) > len(most) else "")),
        *tokenizer,
    ]  # fmt: skip


def proposed_text(proposal: Proposal) -> str:
    """Who proposed a package, why, and what was edited, in a few words."""
    edited = "; ".join(proposal.edits or proposal.changes)
    return f"by {proposal.who}: {proposal.why}" + (f" ({edited})" if edited else "")


def kept_text(kept: KeptTokenizer) -> str:
    """Whether the champion's tokenizer was kept, and the figures that decided it."""
    judged, new = kept.judged, kept.judged.new
    decided = f"kept from run {kept.run}" if judged.kept else f"trained anew, and not kept from run {kept.run}"
    if not new.documents:
        return f"{decided}, as there is no new text."
    limit = f"the limit is +{judged.limit:.1%}" if new.bytes >= ENOUGH_BYTES else "too little text for the limit"
    text = (
        f"{decided}: with that run's tokenizer, {new.documents:,} new documents ({new.bytes / 1e6:,.2f} MB) take "
        f"{new.tokens_per_byte:.4f} tokens per byte, where held-out text took {judged.before.tokens_per_byte:.4f} when "
        f"it was trained ({judged.rise:+.1%}; {limit}), and {new.spelled_share:.2%} of the tokens are single bytes of "
        f"a character or unknown, where {judged.before.spelled_share:.2%} were."
    )
    if judged.regrown:
        text += (
            f" With the new one they take {judged.regrown.tokens_per_byte:.4f}; {judged.shared:,} of its entries are "
            "also in the former, and all text was tokenized again."
        )
    return text


def clipped(name: str, width: int) -> str:
    """A name of at most `width` characters; a long one without its middle, as long names often differ at their ends."""
    end = width // 3
    return name if len(name) <= width else f"{name[: width - end - 1]}…{name[-end:]}"


def copied_from(span: Copied) -> str:
    """Where a span of a sample is in the training text."""
    more = span.count - len(span.documents)
    others = f" and {more:,} more training documents" if more > 0 else ""
    return f"{span.words} words as in {', '.join(span.documents)}{others}"


class Row(NamedTuple):
    """The figures of a slice, or of everything."""

    name: str
    figures: Slice
    champion: Compared | None  # None where it was not compared


def slices(report: Report, comparison: Comparison | None) -> list[Row]:
    """One row for everything, and one for each slice where there is more than one."""
    compared = comparison.sources if comparison else {}
    rows = [Row("all", report.overall, comparison.overall if comparison else None)]
    if len(report.sources) > 1:
        rows += [Row(name, part, compared.get(name)) for name, part in report.sources.items()]
    return rows


_FAILURES = 20
"""Cases of a file of tests that are shown in full; `qalam test` shows all."""


def tested(report: Report) -> str:
    """What became of the model tests, in a sentence for each file; "" where there are none."""
    return " ".join(f"{score_text(found)}." for found in report.tests)


def group_rows(found: Outcomes) -> list[Sequence[str]]:
    """(group, passed, share, 95% interval) by what the cases of a file are about."""
    rows: list[Sequence[str]] = []
    for name, group in found.groups().items():
        low, high = group.interval()
        counts = f"{group.passed:,} of {len(group.counted):,}"
        rows.append((name, counts, f"{group.share:.0%}", f"{low:.0%} to {high:.0%}"))
    return rows


def shown_failures(found: Outcomes) -> list[Outcome]:
    """The cases that are shown: those that must pass first, and those that unexpectedly passed last."""
    failed = [*found.missed, *(case for case in found.state("failed") if case.mark != "must")]
    return [*failed, *found.state("unexpectedly passed")][:_FAILURES]


_NOTED = {
    "passed_over": "files passed over (no documents)", "skipped": "records skipped (not readable)",
    "skipped_null": "records skipped (null)", "cut": "cut (too long)", "replaced": "replaced bytes (U+FFFD)",
    "repaired": "repaired", "repaired_in_part": "repaired in part", "not_repaired": "damaged, not repaired",
    "masked": "masked (addresses, numbers)",
}  # fmt: skip
"""Fields of SliceCounts that are shown where they are not 0, and their labels."""


def corpus_rows(facts: CorpusFacts) -> tuple[Sequence[str], list[Sequence[str]]]:
    """(head, rows): documents read, damaged, rejected by each reason, and kept; one column for each source."""
    sources = facts.sources if len(facts.sources) > 1 else {}
    parts: list[SliceCounts] = [facts, *sources.values()]
    rows = [("read", [part.read for part in parts])]
    rows += [(label, [getattr(part, what) for part in parts]) for what, label in _NOTED.items() if getattr(facts, what)]
    rows += [(reason.replace("_", " "), [part.rejected.get(reason, 0) for part in parts]) for reason in facts.rejected]
    rows.append(("kept", [part.kept for part in parts]))
    if facts.seen_by_ancestor:
        rows.append(("not held out: read by an ancestor", [part.seen_by_ancestor for part in parts]))
    return ("documents", "all", *sources), [(name, *(f"{count:,}" for count in counts)) for name, counts in rows]


def copies_text(facts: CorpusFacts) -> str:
    """How many documents were kept in place of others; "" for none."""
    if not facts.with_copies:
        return ""
    return (
        f"{facts.with_copies:,} documents were kept in place of others that equal them, or nearly: at most "
        f"{facts.most_copies:,} for one."
    )


def read_rows(sources: Mapping[str, SourceRead]) -> list[Sequence[str]]:
    """Source, its tokens, those that training read, and how often that is."""
    return [
        (name, f"{one.tokens:,}", f"{one.read:,}", f"{one.read / max(1, one.tokens):.2f}")
        for name, one in sources.items()
    ]


_SHOWN = 10


def shown_ancestors(lineage: Sequence[Ancestor]) -> list[Ancestor]:
    """The rows of the table of a model's ancestors: the nearest ones, and all for which a person made an exception."""
    return [ancestor for place, ancestor in enumerate(lineage) if place < _SHOWN or ancestor.accepted]


def origin_text(lineage: Sequence[Ancestor], seen: SeenFacts, proposal: Proposal | None = None) -> str:
    """What a training or an edit began with, and what the model has read in all: one paragraph, with source names as
    they are."""
    if proposal:
        return _proposed_origin(lineage, seen, proposal)
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


def _proposed_origin(lineage: Sequence[Ancestor], seen: SeenFacts, proposal: Proposal) -> str:
    weights = f"Its weights are an edit of those of run {lineage[0].run}" if lineage else "Its weights were imported"
    text = f"{weights}; no training was run. Proposed {proposed_text(proposal)}."
    if proposal.unknown:
        return f"{text} What the model has read is not known: {proposal.unknown}. It may have read the test documents."
    before = f", and the {len(lineage) - 1} before it," if len(lineage) > 1 else ""
    return f"{text} It has read what that run{before} had read: {sum(seen.lineage.values()):,} distinct documents."


def by_source(counts: Mapping[str, int]) -> str:
    """Counts of documents: "news 1,200, poems 30"."""
    return ", ".join(f"{' '.join(name.split())} {count:,}" for name, count in counts.items()) or "none"
