"""The gate: which figures a model must show before it may become champion.
Takes a `Report` and `Budgets` (what evaluation measured) and the champion's report, gives a `Verdict` in
which every check is one sentence with its numbers.
It does not know how anything was measured, reads no files, and refuses nothing itself.
"""

from __future__ import annotations

import math

import numpy as np
from pydantic import BaseModel, ConfigDict

from qalam_core.evaluation.bootstrap import intervals
from qalam_core.recipe import Gate

__all__ = [
    "COPIED", "Bits", "Budgets", "Check", "Compared", "Comparison", "Contamination", "Generation", "Integrity",
    "Interval", "Intervals", "Piece", "Report", "Sample", "Slice", "Verdict", "judge",
]  # fmt: skip

COPIED = 0.5
"""A test document counts as copied when more than this share of its words lies in runs of the training text."""


class _Value(BaseModel):
    """Frozen; NaN and infinity survive JSON as strings, because a diverged model must still be reported."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Bits(_Value):
    """Bits per byte of the same token sequences under three models; unknown words pay for their spelling."""

    model: float
    unigram: float
    trigram: float


class Interval(_Value):
    """Both ends of a bootstrap interval over documents; see docs/metrics.md."""

    low: float
    high: float


class Intervals(_Value):
    """How sure a slice's figures are."""

    model: Interval  # of the model's bits per byte
    unigram: Interval  # of the change against the baseline, paired by document: -0.2 is 20% fewer bits
    trigram: Interval


class Slice(_Value):
    """Figures over some of the test documents."""

    documents: int
    bytes: int  # UTF-8, of the normalised text
    tokens: int  # predicted ones: every document's ids and its <END>
    words: int  # whitespace-separated
    bits_per_byte: Bits
    unknown_rate: float  # share of the ids (without <END>) that are <UNK>
    tokens_per_word: float  # ids (without <END>) per word
    next_token_accuracy: float  # share of predicted tokens that the model ranks first
    intervals: Intervals | None = None  # reports of earlier releases have none


class Piece(_Value):
    """A part of a sample, whole characters, and the probability that the model gave it at temperature 1."""

    text: str
    probability: float


class Sample(_Value):
    """A prompt and what the model made of it."""

    prompt: str
    text: str
    pieces: tuple[Piece, ...] = ()  # what follows the prompt


class Contamination(_Value):
    """How much of the test documents stands in the training text, by runs of 13 words."""

    documents: int  # those long enough to hold a run
    copied: float  # share of them of whose words more than half are covered
    covered: float  # share of their words that lie in such a run


class Generation(_Value):
    """What unprompted samples look like: `samples` of them, at most `length` tokens each."""

    samples: int
    length: int
    repeated_4grams: float  # share of 4-grams that occurred before in the same sample
    distinct_2grams: float  # distinct ones over all of them, all samples together
    end_rate: float  # share of samples that reached <END>
    longest_copy: int  # tokens: the longest run of a sample that stands in the training text, too


class Integrity(_Value):
    """Whether the package is the trained model, by every way in; differences are the largest in logits."""

    verifies: bool  # every file and tensor is what the manifest says
    loads_without_execution: bool
    tensors_agree: bool  # each is the checkpoint's, rounded to the storage type
    loads_by_import: bool  # in a fresh interpreter without this project
    checkpoint_difference: float  # the reader's logits against the checkpoint's
    checkpoint_limit: float  # 0 for an exact storage type; else what rounding the checkpoint to it costs
    import_difference: float  # the imported torch model's logits against the reader's
    numpy_difference: float  # the imported numpy model's logits against the torch model's
    numpy_backend_agrees: bool
    tokenizer_agrees: bool  # the package's own tokenizer gives the ids that were scored
    trained_ids_agree: bool = True  # it gives training documents the ids that were trained on
    storage_agrees: bool = True  # matrices are stored as the recipe asks
    problem: str = ""  # the first error that was met, one line

    @property
    def whole(self) -> bool:
        """Whether everything holds; a difference that is NaN does not."""
        return (
            self.verifies
            and self.loads_without_execution
            and self.tensors_agree
            and self.loads_by_import
            and self.checkpoint_difference <= self.checkpoint_limit
            and self.import_difference == 0
            and self.numpy_backend_agrees
            and self.tokenizer_agrees
            and self.trained_ids_agree
            and self.storage_agrees
        )


class Report(_Value):
    """What evaluation found: the same for the same package, test documents and training tokens."""

    test_digest: str  # sha256 of the test documents in order; reports compare only when it is the same
    overall: Slice
    sources: dict[str, Slice]  # by source name, sorted
    samples: tuple[Sample, ...]
    generation: Generation
    integrity: Integrity
    document_nats: tuple[float, ...]  # the model's, in test order: for a paired bootstrap
    document_bytes: tuple[int, ...]
    document_digests: tuple[str, ...] = ()  # 48 bits each: enough to find the same document in another report
    document_slices: tuple[int, ...] = ()  # which of `sources` each belongs to
    contamination: Contamination | None = None

    @property
    def bits_per_byte(self) -> Bits:
        """Of all test documents."""
        return self.overall.bits_per_byte


class Budgets(_Value):
    """What the package costs on the machine that measured it; kept apart because it holds times."""

    package_mb: float  # all files, in 10^6 bytes
    load_seconds: float  # reading it without execution, once


class Check(_Value):
    """One thing that was looked at; `limit` is None where it is only stated."""

    name: str
    value: float | None
    limit: float | None
    passed: bool
    sentence: str


class Compared(_Value):
    """Model and champion on the documents that both were measured on, all of them or a slice."""

    documents: int
    model: float  # bits per byte
    champion: float
    change: Interval  # of model / champion - 1, paired by document


class Comparison(_Value):
    """The model beside the champion."""

    overall: Compared
    sources: dict[str, Compared]


class Verdict(_Value):
    """Every check, and whether all of them passed."""

    passed: bool
    checks: tuple[Check, ...]
    comparison: Comparison | None = None

    def reasons(self) -> list[str]:
        """The sentences of the checks that failed."""
        return [check.sentence for check in self.checks if not check.passed]


def judge(report: Report, budgets: Budgets, gate: Gate, champion: Report | None) -> Verdict:
    """All checks in a fixed order; a figure that is NaN fails every limit it meets."""
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
        subject = f"The share of test documents that stand in the training text ({found.covered:.1%} of all words do)"
        checks.append(_at_most("contamination", subject, found.copied, gate.max_copied))
    checks.append(
        Check(
            name="verbatim copy", value=written.longest_copy, limit=None, passed=True,
            sentence=f"The longest run that samples copy from the training text is {written.longest_copy} tokens; "
            "stated, not required.",
        )
    )  # fmt: skip
    return Verdict(passed=all(check.passed for check in checks), checks=tuple(checks), comparison=comparison)


def _integrity(found: Integrity) -> Check:
    """The first thing that does not hold is the sentence: later ones often follow from it."""
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
    """Both on the documents that both have; None when there is none."""
    if report.test_digest == champion.test_digest:
        here = there = np.arange(len(report.document_nats))
    else:
        places = {digest: place for place, digest in enumerate(champion.document_digests)}
        shared = [(n, places[digest]) for n, digest in enumerate(report.document_digests) if digest in places]
        here, there = np.array(shared, np.int64).reshape(-1, 2).T
    if not len(here):
        return None
    nats, rival = np.array(report.document_nats)[here], np.array(champion.document_nats)[there]
    size = np.array(report.document_bytes)[here]
    slices = np.array(report.document_slices or [0] * len(report.document_nats))[here]
    # over all of them first, then over each slice
    chosen = [np.ones(len(here), np.bool_), *(slices == number for number in range(len(report.sources)))]

    def compared(of: np.ndarray) -> Compared:
        ((low, high),) = intervals([nats[of]], [rival[of]], confidence)
        bits = math.log(2) * size[of].sum()
        return Compared(
            documents=int(of.sum()), model=_rounded(nats[of].sum() / bits), champion=_rounded(rival[of].sum() / bits),
            change=Interval(low=_rounded(low - 1), high=_rounded(high - 1)),
        )  # fmt: skip

    if not report.document_slices:
        chosen = chosen[:1]
    parts = {name: compared(of) for name, of in zip(report.sources, chosen[1:], strict=False) if of.any()}
    return Comparison(overall=compared(chosen[0]), sources=parts)


def _champion(report: Report, champion: Report | None, comparison: Comparison | None, gate: Gate) -> Check:
    """Refused is what is worse than the tolerance with the recipe's confidence: not what merely may be."""
    value = report.bits_per_byte.model
    if champion is None or comparison is None:
        sentence = "There is no champion yet, so there is nothing to be worse than."
        if champion is not None:
            sentence = (
                f"The champion's {champion.bits_per_byte.model:.4f} bits per byte cannot be compared with "
                f"{value:.4f}: none of the {report.overall.documents} test documents is among its "
                f"{champion.overall.documents}. Only the floors were held against the model."
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
        f"refused is what is above {gate.tolerance:+.2%} altogether.",
    )


def _rounded(value: float) -> float:
    return round(float(value), 6)


def _at_most(name: str, subject: str, value: float, limit: float, unit: str = "") -> Check:
    return Check(
        name=name,
        value=value,
        limit=limit,
        passed=value <= limit,
        sentence=f"{subject} is {value:.3g}{unit}; at most {limit:g}{unit} is allowed.",
    )
