"""The gate: whether a model may become champion.
Takes a `Report` and `Budgets` (what evaluation measured), the recipe's requirements and the champion's report; gives a
`Verdict` in which every check is one sentence with its numbers.
It does not know how anything was measured, and reads no files.
"""

from __future__ import annotations

import math

import numpy as np

from qalam_core.evaluation.bootstrap import intervals
from qalam_core.evaluation.results import (
    Bits,
    Budgets,
    Check,
    Compared,
    Comparison,
    Integrity,
    Interval,
    Report,
    Verdict,
    rounded,
)
from qalam_core.recipe import Requirements

__all__ = ["decide"]


def decide(report: Report, budgets: Budgets, gate: Requirements, champion: Report | None) -> Verdict:
    """All checks in a fixed order; a figure of NaN fails every limit."""
    bits = report.bits_per_byte
    written = report.generation
    comparison = _compare(report, champion, gate.confidence) if champion else None
    checks = [
        _integrity(report.integrity),
        _baseline("unigram", bits, gate.beat_unigram, required=True),
        _baseline("trigram", bits, 0.0, required=gate.beat_trigram),
        _champion(report, champion, comparison, gate),
        _at_most("unknown words", "The share of unknown tokens", report.overall.unknown_rate, gate.max_unknown),
        _at_most("package size", "The package's size", budgets.package_mb, gate.max_package_mb, " MB"),
        _at_most("load time", "Loading without execution", budgets.load_seconds, gate.max_load_seconds, " s"),
        _at_most("repetition", "The share of repeated 4-grams", written.repeated_4grams, gate.max_repeated),
    ]
    if (found := report.contamination) is not None:
        subject = f"The share of test documents contained in the training text ({found.covered:.1%} of all words are)"
        checks.append(_at_most("contamination", subject, found.copied, gate.max_copied))
    checks.append(
        Check(
            name="verbatim copy", value=written.longest_copy, limit=None, passed=True,
            sentence=f"The longest span that samples copy from the training text is {written.longest_copy} tokens; "
            "stated, not required.",
        )
    )  # fmt: skip
    return Verdict(passed=all(check.passed for check in checks), checks=tuple(checks), comparison=comparison)


def _integrity(found: Integrity) -> Check:
    """The sentence names the first fault: later ones often follow from it."""
    difference, limit = found.checkpoint_difference, found.checkpoint_limit
    faults = [
        (not found.loads_without_execution, "The package cannot be read without executing it"),
        (not found.verifies, "The package does not verify: something in it is not what its manifest says"),
        (
            not difference <= limit,
            f"The package's logits differ from the checkpoint's by {difference:.3g}; at most {limit:.3g} is allowed",
        ),
        (not found.tensors_agree, "The package holds other tensors than the checkpoint"),
        (not found.loads_by_import, "The package does not load by plain import"),
        (
            found.import_difference != 0,
            f"The imported model's logits differ from the reader's by {found.import_difference:.3g}; "
            "they must be equal",
        ),
        (
            not found.numpy_backend_agrees,
            f"The numpy logits differ from torch's by {found.numpy_difference:.3g}, beyond rounding",
        ),
        (not found.tokenizer_agrees, "The package's own tokenizer gives other ids than tokenizer.json"),
        (
            not found.trained_ids_agree,
            "The package's tokenizer gives training documents other ids than those that were trained on",
        ),
        (not found.storage_agrees, "The package stores its matrices in another type than the recipe asks for"),
    ]
    sentence = next((text for fault, text in faults if fault), None)
    if sentence is None:
        sentence = (
            "The package verifies, loads with and without execution, and its logits differ from the "
            f"checkpoint's by {difference:.3g} (limit {limit:.3g})."
        )
    else:
        sentence += f" ({found.problem})." if found.problem else "."
    return Check(name="integrity", value=difference, limit=limit, passed=found.whole, sentence=sentence)


def _baseline(name: str, bits: Bits, share: float, required: bool) -> Check:
    baseline = bits.unigram if name == "unigram" else bits.trigram
    limit = baseline * (1 - share)
    below = bits.model <= limit
    numbers = f"{bits.model:.4f} bits per byte against the {name} baseline's {baseline:.4f}"
    if math.isfinite(bits.model) and baseline > 0:
        change = bits.model / baseline - 1
        numbers += f" ({abs(change):.1%} {'better' if change <= 0 else 'worse'})"
    demand = f"at most {limit:.4f} is required" if required else "stated, not required"
    return Check(
        name=name,
        value=bits.model,
        limit=limit if required else None,
        passed=below or not required,
        sentence=f"The model needs {numbers}; {demand}.",
    )


def _compare(report: Report, champion: Report, confidence: float) -> Comparison | None:
    """Both models on the documents that both reports have; None when there are none."""
    if report.test_digest == champion.test_digest:
        here = there = np.arange(len(report.document_nats))
    else:
        places = {digest: place for place, digest in enumerate(champion.document_digests)}
        shared = [(n, places[digest]) for n, digest in enumerate(report.document_digests) if digest in places]
        here, there = np.array(shared, np.int64).reshape(-1, 2).T
    if not len(here):
        return None
    nats, theirs = np.array(report.document_nats)[here], np.array(champion.document_nats)[there]
    size = np.array(report.document_bytes)[here]
    slices = np.array(report.document_slices or [0] * len(report.document_nats))[here]
    # over all of them first, then over each slice
    chosen = [np.ones(len(here), np.bool_), *(slices == number for number in range(len(report.sources)))]

    def compared(of: np.ndarray) -> Compared:
        ((low, high),) = intervals([nats[of]], [theirs[of]], confidence)
        bits = math.log(2) * size[of].sum()
        return Compared(
            documents=int(of.sum()), model=rounded(nats[of].sum() / bits), champion=rounded(theirs[of].sum() / bits),
            change=Interval(low=rounded(low - 1), high=rounded(high - 1)),
        )  # fmt: skip

    if not report.document_slices:
        chosen = chosen[:1]
    parts = {name: compared(of) for name, of in zip(report.sources, chosen[1:], strict=False) if of.any()}
    return Comparison(overall=compared(chosen[0]), sources=parts)


def _champion(report: Report, champion: Report | None, comparison: Comparison | None, gate: Requirements) -> Check:
    """A model is refused when it is worse than the tolerance with the recipe's confidence."""
    value = report.bits_per_byte.model
    if champion is None or comparison is None:
        sentence = "There is no champion yet to compare with."
        if champion is not None:
            sentence = (
                f"The champion's {champion.bits_per_byte.model:.4f} bits per byte cannot be compared with "
                f"{value:.4f}: none of the {report.overall.documents} test documents is among its "
                f"{champion.overall.documents}. Only the absolute requirements were checked."
            )
        return Check(name="champion", value=value, limit=None, passed=True, sentence=sentence)
    found, change = comparison.overall, comparison.overall.change
    documents = f"the same {found.documents} documents"
    if report.test_digest != champion.test_digest:
        documents = (
            f"the {found.documents} documents that both were measured on "
            f"(of {champion.overall.documents} then and {report.overall.documents} now)"
        )
    return Check(
        name="champion",
        value=change.low,
        limit=gate.tolerance,
        passed=change.low <= gate.tolerance,
        sentence=f"The model needs {found.model:.4f} bits per byte, the champion {found.champion:.4f} on "
        f"{documents}: a change of {change.low:+.2%} to {change.high:+.2%} ({gate.confidence:.0%} confidence); "
        f"the model is refused when all of that is above {gate.tolerance:+.2%}.",
    )


def _at_most(name: str, subject: str, value: float, limit: float, unit: str = "") -> Check:
    return Check(
        name=name,
        value=value,
        limit=limit,
        passed=value <= limit,
        sentence=f"{subject} is {value:.3g}{unit}; at most {limit:g}{unit} is allowed.",
    )
