"""The results of an evaluation and of the gate, as frozen records; docs/metrics.md defines every figure."""

from __future__ import annotations

from pydantic import Field

from qalam_core.recipe import Frozen


class Bits(Frozen):
    """Bits per byte of the same token sequences under three models; an unknown word costs the bits of its spelling."""

    model: float
    unigram: float
    trigram: float


class Interval(Frozen):
    """A bootstrap interval over documents."""

    low: float
    high: float


class Intervals(Frozen):
    """Confidence intervals of a slice's figures."""

    model: Interval  # of the model's bits per byte
    unigram: Interval  # of the change against the baseline, paired by document: -0.2 is 20% fewer bits
    trigram: Interval


class Slice(Frozen):
    """Figures over some of the test documents."""

    documents: int
    bytes: int  # UTF-8, of the normalised text
    tokens: int  # predicted ones: every document's ids and its <END>
    words: int  # whitespace-separated
    bits_per_byte: Bits
    unknown_rate: float  # share of the ids (without <END>) that are <UNK>
    tokens_per_word: float  # ids (without <END>) per word
    next_token_accuracy: float  # share of predicted tokens that the model ranks first
    intervals: Intervals | None = None  # None when the package could not be read


class Piece(Frozen):
    """Part of a sample, of complete characters, and its probability under the model at temperature 1."""

    text: str
    probability: float


class Sample(Frozen):
    """A prompt and its continuation."""

    prompt: str
    text: str
    pieces: tuple[Piece, ...] = ()  # of the continuation


class Overlap(Frozen):
    """How much of the test documents is in n-grams of words that were read, or was read exactly."""

    copied: float  # share of the documents with more than half of their words covered
    covered: float  # share of all their words


class Contamination(Frozen):
    """How much of the test documents the model, or a model before it, has read."""

    documents: int
    words_8: Overlap  # by n-grams of 8 words
    words_13: Overlap

    @property
    def copied(self) -> float:
        """The larger share of copied documents."""
        return max(self.words_8.copied, self.words_13.copied)


class Generation(Frozen):
    """Statistics of unprompted samples: `samples` of them, at most `length` tokens each."""

    samples: int
    length: int
    repeated_4grams: float  # share of 4-grams that occur earlier in the same sample
    distinct_2grams: float  # share of distinct ones, over all samples
    end_rate: float  # share of samples that reached <END>
    longest_copy: int  # in tokens: the longest span of a sample that occurs in the training text


class Integrity(Frozen):
    """Whether the package is the trained model, however it is loaded; differences are maxima over logits."""

    verifies: bool  # every file and tensor is what the manifest says
    loads_without_execution: bool
    tensors_agree: bool  # each is the checkpoint's, rounded to the storage type
    loads_by_import: bool  # in a fresh interpreter without this project
    checkpoint_difference: float  # the reader's logits against the checkpoint's
    checkpoint_limit: float  # 0 for an exact storage type; else what rounding the checkpoint to it changes
    import_difference: float  # the imported torch model's logits against the reader's
    numpy_difference: float  # the imported numpy model's logits against the imported torch model's
    numpy_backend_agrees: bool
    tokenizer_agrees: bool  # the package's own tokenizer gives the ids that were scored
    trained_ids_agree: bool = True  # it gives training documents the ids that were trained on
    storage_agrees: bool = True  # matrices have the recipe's storage type
    problem: str = ""  # the first error, one line

    @property
    def intact(self) -> bool:
        """Whether every condition holds; a difference of NaN fails."""
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


class TensorStatistics(Frozen):
    """Statistics of a tensor of the package, to 6 significant digits."""

    shape: tuple[int, ...]
    mean: float
    std: float
    minimum: float
    maximum: float


class Report(Frozen):
    """The evaluation of a package: the same for the same package, test documents and training tokens."""

    test_digest: str  # sha256 of the test documents in order
    overall: Slice
    sources: dict[str, Slice]  # by source name, sorted
    samples: tuple[Sample, ...]
    generation: Generation
    integrity: Integrity
    document_nats: tuple[float, ...]  # the model's, in test order: for a paired bootstrap
    document_bytes: tuple[int, ...]
    document_digests: tuple[str, ...] = ()  # 48 bits each, to find the same document in another report
    document_slices: tuple[int, ...] = ()  # index into `sources` of each
    contamination: Contamination | None = None
    tensors: dict[str, TensorStatistics] = Field(default_factory=dict)  # by name, in the package's order

    @property
    def bits_per_byte(self) -> Bits:
        """Of all test documents."""
        return self.overall.bits_per_byte


class Budgets(Frozen):
    """The package's size and load time on this machine; not in the report, because times are not reproducible."""

    package_mb: float  # all files, in 10^6 bytes
    load_seconds: float  # reading it without execution, once


class Check(Frozen):
    """One check of the gate; `limit` is None where a figure is reported without a limit."""

    name: str
    value: float | None
    limit: float | None
    passed: bool
    message: str


class Compared(Frozen):
    """Model and champion on documents that both were measured on: all of those, or a slice."""

    documents: int
    model: float  # bits per byte
    champion: float
    change: Interval  # of model / champion - 1, paired by document


class Comparison(Frozen):
    """The model compared with the champion."""

    overall: Compared
    sources: dict[str, Compared]


class Verdict(Frozen):
    """The gate's decision: every check, and whether all of them passed."""

    passed: bool
    checks: tuple[Check, ...]
    comparison: Comparison | None = None

    def reasons(self) -> list[str]:
        """The messages of the checks that failed."""
        return [check.message for check in self.checks if not check.passed]


def rounded(value: float) -> float:
    """A figure to six decimals, as in reports, where the last bits of a sum must not show."""
    return round(float(value), 6)
