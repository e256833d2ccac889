"""The gate: decides whether a model may become champion."""

from __future__ import annotations

import math

import numpy as np

from qalam_core.evaluation.bootstrap import intervals
from qalam_core.evaluation.results import Budgets, Check, Compared, Comparison, Interval, Report, Verdict, rounded
from qalam_core.recipe import Requirements


def decide(report: Report, budgets: Budgets, gate: Requirements, champion: Report | None) -> Verdict:
    """Check what was measured against the requirements and the champion; a figure of NaN fails every limit."""
    written = report.generation
    comparison = _compare(report, champion, gate.confidence) if champion else None
    checks = [
        _integrity(report),
        _baseline("unigram", report, gate.beat_unigram, required=True),
        _baseline("trigram", report, 0.0, required=gate.beat_trigram),
        _champion(report, champion, comparison, gate),
        _at_most("unknown words", "The share of unknown tokens", report.overall.unknown_rate, gate.max_unknown),
        _at_most("package size", "The package's size", budgets.package_mb, gate.max_package_mb, " MB"),
        _at_most("load time", "Loading without execution", budgets.load_seconds, gate.max_load_seconds, " s"),
        _at_most("repetition", "The share of repeated 4-grams", written.repeated_4grams, gate.max_repeated),
    ]
    if (found := report.contamination) is not None:
        shares = f"by n-grams of 8 words {found.words_8.copied:.1%}, of 13 words {found.words_13.copied:.1%}"
        subject = f"The share of test documents that the model, or one before it, has mostly read ({shares})"
        checks.append(_at_most("contamination", subject, found.copied, gate.max_copied))
    checks.append(
        Check(
            name="verbatim copy", value=written.longest_copy, limit=None, passed=True,
            message=f"The longest span that samples copy from the training text is {written.longest_copy} tokens; "
            "reported, not required.",
        )
    )  # fmt: skip
    return Verdict(passed=all(check.passed for check in checks), checks=tuple(checks), comparison=comparison)


def _integrity(report: Report) -> Check:
    """The message names the first fault, because later ones often follow from it."""
    found = report.integrity
    difference, limit = found.checkpoint_difference, found.checkpoint_limit
    faults = {
        "The package cannot be read without executing it": not found.loads_without_execution,
        "The package does not verify: it differs from its manifest": not found.verifies,
        f"The package's logits differ from the checkpoint's by {difference:.3g}; at most {limit:.3g} is allowed":
            not difference <= limit,
        "The package's tensors differ from the checkpoint's": not found.tensors_agree,
        "The package does not load by plain import": not found.loads_by_import,
        f"The imported model's logits differ from the reader's by {found.import_difference:.3g}; they must be equal":
            found.import_difference != 0,
        f"The numpy logits differ from torch's by {found.numpy_difference:.3g}, beyond rounding":
            not found.numpy_backend_agrees,
        "The package's own tokenizer gives other ids than tokenizer.json": not found.tokenizer_agrees,
        "The package's tokenizer gives training documents other ids than those that were trained on":
            not found.trained_ids_agree,
        "The package stores its matrices in another type than the recipe's": not found.storage_agrees,
    }  # fmt: skip
    message = next((fault for fault, is_there in faults.items() if is_there), "")
    if message:
        message += f" ({found.problem})." if found.problem else "."
    else:
        message = (
            "The package verifies, loads with and without execution, and its logits differ from the checkpoint's by "
            f"{difference:.3g} (limit {limit:.3g})."
        )
    return Check(name="integrity", value=difference, limit=limit, passed=found.intact, message=message)


def _baseline(name: str, report: Report, share: float, required: bool) -> Check:
    bits = report.bits_per_byte
    baseline: float = getattr(bits, name)
    limit = baseline * (1 - share)
    numbers = f"{bits.model:.4f} bits per byte against the {name} baseline's {baseline:.4f}"
    if math.isfinite(bits.model) and baseline > 0:
        change = bits.model / baseline - 1
        numbers += f" ({abs(change):.1%} {'better' if change <= 0 else 'worse'})"
    demand = f"at most {limit:.4f} is required" if required else "reported, not required"
    return Check(
        name=name,
        value=bits.model,
        limit=limit if required else None,
        passed=bits.model <= limit or not required,
        message=f"The model needs {numbers}; {demand}.",
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

    def compared(mask: np.ndarray) -> Compared:
        ((low, high),) = intervals([nats[mask]], [theirs[mask]], confidence)
        nats_to_bits = math.log(2) * size[mask].sum()
        model, incumbent = rounded(nats[mask].sum() / nats_to_bits), rounded(theirs[mask].sum() / nats_to_bits)
        return Compared(
            documents=int(mask.sum()), model=model, champion=incumbent,
            change=Interval(low=rounded(low - 1), high=rounded(high - 1)),
        )  # fmt: skip

    parts = {}
    if report.document_slices:
        slices = np.array(report.document_slices)[here]
        masks = {name: slices == number for number, name in enumerate(report.sources)}
        parts = {name: compared(mask) for name, mask in masks.items() if mask.any()}
    return Comparison(overall=compared(np.ones(len(here), np.bool_)), sources=parts)


def _champion(report: Report, champion: Report | None, comparison: Comparison | None, gate: Requirements) -> Check:
    """Fails when the model is worse than the tolerance with the recipe's confidence."""
    value = report.bits_per_byte.model
    if champion is None or comparison is None:
        message = "There is no champion yet to compare with."
        if champion is not None:
            message = (
                f"The champion's {champion.bits_per_byte.model:.4f} bits per byte cannot be compared with "
                f"{value:.4f}: none of the {report.overall.documents} test documents is among its "
                f"{champion.overall.documents}. Only the absolute requirements were checked."
            )
        return Check(name="champion", value=value, limit=None, passed=True, message=message)
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
        message=f"The model needs {found.model:.4f} bits per byte, the champion {found.champion:.4f} on "
        f"{documents}: a change of {change.low:+.2%} to {change.high:+.2%} ({gate.confidence:.0%} confidence); "
        f"the model is refused when all of it is above {gate.tolerance:+.2%}.",
    )


def _at_most(name: str, subject: str, value: float, limit: float, unit: str = "") -> Check:
    return Check(
        name=name,
        value=value,
        limit=limit,
        passed=value <= limit,
        message=f"{subject} is {value:.3g}{unit}; at most {limit:g}{unit} is allowed.",
    )
