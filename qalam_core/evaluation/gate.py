"""The gate: decides whether a model may become champion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from qalam_core.evaluation.comparison import MIN_EFFECTIVE, Anchor, Champion, common, compare, settings_check
from qalam_core.evaluation.intervals import effective
from qalam_core.evaluation.model_tests.judging import checks_of_tests, weakened
from qalam_core.evaluation.results import Budgets, Check, Contamination, Report, Verdict, rounded
from qalam_core.recipe import Requirements

LEAK = 0.15
"""A fall of the character n-grams' bits beyond this is a leak."""

PER_DOUBLING = 0.065
"""By this much their bits fall when there is twice as much text of the same kind: 5.9 to 6.8% were measured."""


def decide(
    report: Report, budgets: Budgets, gate: Requirements, champion: Champion | None, anchors: Iterable[Anchor] = (),
    shares: Mapping[str, float] | None = None,
) -> Verdict:  # fmt: skip
    """Check what was measured against the requirements, the champion, and the champions before it, newest first.
    `shares` of the model tests must pass, by their name.

    A figure of NaN fails every limit, and a model that cannot be compared with the champion fails "yardstick".
    """
    shares = shares or {}
    written = report.generation
    comparison, compared = compare(report, champion, anchors, gate) if champion else (None, [_first(report)])
    if champion and champion.gate:
        weaker = weakened(report.tests, shares, champion.report.tests, champion.shares)
        compared.append(settings_check(gate, champion.gate, weaker))
    checks = [
        _integrity(report),
        _baseline("unigram", report, gate.beat_unigram, required=True),
        _baseline("ngram", report, 0.0, required=gate.beat_ngram),
        _baseline("characters", report, 0.0, required=gate.beat_characters),
        *compared,
        _at_most("unknown words", "The share of unknown tokens", report.overall.unknown_rate, gate.max_unknown),
        _at_most("package size", "The package's size", budgets.package_mb, gate.max_package_mb, " MB"),
        _at_most("load time", "Loading without execution", budgets.load_seconds, gate.max_load_seconds, " s"),
        _at_most("repetition", "The share of repeated 4-grams", written.repeated_4grams, gate.max_repeated),
        _at_most(
            "samples",
            f"The share of empty samples (their mean length is {written.mean_length:.1f} tokens)",
            written.empty,
            gate.max_empty,
        ),
    ]
    if champion:
        checks.append(_leak_alarm(report, champion.report))
    if (found := report.contamination) is not None:
        checks.append(_contamination(found, gate.max_copied))
    elif report.integrity.loads_without_execution:  # else there are no figures at all
        checks.append(_unknown_lineage())
    checks += checks_of_tests(report.tests, shares, champion.report.tests if champion else None)
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
    shown = "" if difference is None else f"{difference:.3g}"
    faults = {
        "The package cannot be read without executing it": not found.loads_without_execution,
        "The package does not verify: it differs from its manifest": not found.verifies,
        f"The package's logits differ from the checkpoint's by {shown}; at most {limit:.3g} is allowed":
            difference is not None and not difference <= limit,
        "The package's tensors differ from the checkpoint's": found.is_the_checkpoint is False,
        "The package does not load by plain import": not found.loads_by_import,
        f"The imported model's logits differ from the reader's by {found.import_difference:.3g}; they must be equal":
            found.import_difference != 0,
        f"The numpy logits differ from torch's by {found.numpy_difference:.3g}, beyond rounding":
            not found.numpy_backend_agrees,
        "The package's own tokenizer gives other ids than tokenizer.json": not found.tokenizer_agrees,
        "The package's tokenizer gives training documents other ids than those that were trained on":
            not found.trained_ids_agree,
        "The package stores its matrices in another type than the recipe's": not found.storage_agrees,
        "The package's tokenizer normalises text otherwise than the corpus was": not found.normalisation_agrees,
    }  # fmt: skip
    message = next((fault for fault, is_there in faults.items() if is_there), "")
    if message:
        message += f" ({found.problem})." if found.problem else "."
    elif difference is None:
        message = (
            "The package verifies, and loads with and without execution; it was not trained by this run, and its "
            "comparison with a checkpoint does not apply."
        )
    else:
        message = (
            "The package verifies, loads with and without execution, and its logits differ from the checkpoint's by "
            f"{shown} (limit {limit:.3g})."
        )
    return Check(name="integrity", value=difference, limit=limit, passed=found.intact, message=message)


def _baseline(figure: str, report: Report, share: float, required: bool) -> Check:
    name = {"unigram": "unigram", "ngram": "token 4-gram", "characters": "character 10-gram"}[figure]
    bits = report.bits_per_byte
    baseline: float = getattr(bits, figure)
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


def _leak_alarm(report: Report, champion: Report) -> Check:
    """Refuses when character n-grams of today's training text need far fewer bits for the champion's test documents
    than those of the champion's, and the growth of the text does not explain it: these documents are in the text, in
    some form."""
    name, limit = "leak alarm", -LEAK
    here, there = common(report, champion)
    size = [report.document_bytes[place] for place in here]
    now, then = report.baselines, champion.baselines
    if not now or not then or effective(size) < MIN_EFFECTIVE:
        return Check(
            name=name, value=None, limit=None, passed=True,
            message="The training text's character n-grams cannot be compared with those of the champion's: the common "
            f"test documents count as {effective(size):.1f} of equal size, and {MIN_EFFECTIVE} are needed.",
        )  # fmt: skip
    growth = max(1.0, now.characters.size / max(then.characters.size, 1))
    nats = sum(report.document_character_nats[place] for place in here)
    before = sum(champion.document_character_nats[place] for place in there)
    change = rounded(nats / before / (1 - PER_DOUBLING) ** math.log2(growth) - 1)
    return Check(
        name=name, value=change, limit=limit, passed=change >= limit,
        message=f"On the {len(here)} test documents that both have, 10-grams of the training text's characters need "
        f"{nats / before - 1:+.1%} bits, {change:+.1%} after what {growth:.1f} times as much text explains; a fall by "
        f"more than {LEAK:.0%} means that these documents are in the training text in some form.",
    )  # fmt: skip


def _first(report: Report) -> Check:
    return Check(
        name="champion", value=report.bits_per_byte.model, limit=None, passed=True,
        message="There is no champion yet to compare with.",
    )  # fmt: skip


def _unknown_lineage() -> Check:
    return Check(
        name="lineage", value=None, limit=0, passed=False,
        message="What the model has read is not recorded, so that nothing shows that the test documents are new to it.",
    )  # fmt: skip


def _contamination(found: Contamination, allowed: float) -> Check:
    """By those n-grams of which more were read than is expected."""
    both = ((found.words_8, 8), (found.words_13, 13))
    (other, of_other), (worst, words) = sorted(both, key=lambda pair: pair[0].excess)
    limit = allowed + worst.expected
    usual = f", where {worst.expected:.1%} is usual, as training documents repeat each other" if worst.expected else ""
    return Check(
        name="contamination", value=worst.copied, limit=limit, passed=worst.copied <= limit,
        message=f"The model, or one before it, has mostly read {other.copied:.1%} of the test documents by n-grams of "
        f"{of_other} words, and {worst.copied:.1%} by n-grams of {words} words; at most {limit:.1%} is allowed{usual}.",
    )  # fmt: skip


def _at_most(name: str, subject: str, value: float, limit: float, unit: str = "") -> Check:
    return Check(
        name=name,
        value=value,
        limit=limit,
        passed=value <= limit,
        message=f"{subject} is {value:.3g}{unit}; at most {limit:g}{unit} is allowed.",
    )
