"""The Markdown report of a run.
Takes the recipe, the figures and the verdict as values, gives one string.
It does not know files, and measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from qalam_core.corpus.prepare import CorpusFacts
from qalam_core.evaluation.results import Budgets, Integrity, Report, Slice, Verdict
from qalam_core.recipe import Recipe, to_toml
from qalam_core.reports.tables import cell, corpus_tables, number, percent, rtl, table, unprompted, yes

__all__ = ["markdown"]

_SLICE_HEAD = (
    "documents", "bits per byte", "unigram", "trigram", "unknown", "tokens per word", "top-1", "number",
    "bytes",
)  # fmt: skip


def markdown(
    recipe: Recipe,
    report: Report,
    budgets: Budgets,
    verdict: Verdict,
    corpus: CorpusFacts,
    timings: Mapping[str, float],
) -> str:
    """A run's report in GitHub's Markdown; `timings` are seconds by stage."""
    reasons = [f"- {cell(reason)}" for reason in verdict.reasons()]
    checks = (
        ("passed" if check.passed else "**failed**", check.name, number(check.value), number(check.limit))
        for check in verdict.checks
    )
    slices = [_row("**all**", report.overall), *(_row(name, part) for name, part in report.sources.items())]
    seconds = ((stage, f"{spent:.1f}") for stage, spent in timings.items())
    sections = [
        f"# {recipe.name}: {'passed' if verdict.passed else 'did not pass'} the gate",
        "\n".join(reasons) if reasons else "Every check passed.",
        "With plots, and every token's probability: [report.html](report.html), beside this file.",
        "## Checks",
        table(("", "check", "value", "limit"), checks, raw=True),
        "\n".join(f"- {cell(check.sentence)}" for check in verdict.checks),
        "## On the held-out documents",
        table(_SLICE_HEAD, slices),
        "Bits per byte: lower is better. Unknown words pay for their spelling, in every column.",
        "## What it writes",
        *(rtl(sample.text) for sample in report.samples),
        unprompted(report.generation),
        "## The package",
        table(("", "found"), _package(report.integrity, budgets)),
        "## Corpus",
        *corpus_tables(corpus),
        "## Time",
        table(("stage", "seconds"), seconds),
        f"<details><summary>Recipe</summary>\n\n```toml\n{to_toml(recipe)}```\n\n</details>",
    ]
    return "\n\n".join(sections) + "\n"


def _package(integrity: Integrity, budgets: Budgets) -> list[tuple[str, str]]:
    return [
        ("size", f"{budgets.package_mb:.2f} MB"),
        ("load without execution", f"{budgets.load_seconds:.3f} s"),
        ("verifies", yes(integrity.verifies)),
        ("same tensors as the checkpoint", yes(integrity.tensors_agree)),
        ("logits against the checkpoint", f"{integrity.checkpoint_difference:.3g} apart"),
        ("loads by plain import", yes(integrity.loads_by_import)),
        ("numpy agrees with torch", yes(integrity.numpy_backend_agrees)),
        ("its tokenizer agrees with tokenizer.json", yes(integrity.tokenizer_agrees)),
    ]


def _row(name: str, part: Slice) -> tuple[str, ...]:
    bits = part.bits_per_byte
    return (
        name,
        f"**{bits.model:.4f}**",
        f"{bits.unigram:.4f}",
        f"{bits.trigram:.4f}",
        percent(part.unknown_rate),
        f"{part.tokens_per_word:.2f}",
        percent(part.next_token_accuracy),
        f"{part.documents:,}",
        f"{part.bytes:,}",
    )
