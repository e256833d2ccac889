"""The results of an evaluation and of the gate, as frozen records; docs/metrics.md defines every figure."""

from __future__ import annotations

from pydantic import Field, model_validator

from qalam_core.evaluation.model_tests.outcomes import Outcomes
from qalam_core.recipe import Frozen


class Bits(Frozen):
    """Bits per byte of the same documents under four models; an unknown word costs the bits of its spelling."""

    model: float
    unigram: float  # of tokens
    ngram: float  # Kneser-Ney 4-grams of tokens
    characters: float  # Kneser-Ney 10-grams of characters: whatever the tokenizer


class Interval(Frozen):
    """A confidence interval over documents; NaN where one document is all there is."""

    low: float
    high: float


class Intervals(Frozen):
    """Confidence intervals of a slice's figures."""

    model: Interval  # of the model's bits per byte
    unigram: Interval  # of the change against the baseline, paired by document: -0.2 is 20% fewer bits
    ngram: Interval
    characters: Interval


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
    intervals: Intervals | None = None  # None for one document, and when the package could not be read


class Piece(Frozen):
    """Part of a sample, of complete characters, and its probability under the model at temperature 1."""

    text: str
    probability: float


class Copied(Frozen):
    """A span of a sample that is in the training text, word for word."""

    text: str
    words: int
    documents: tuple[str, ...]  # some of those that hold it: the source and the id
    count: int  # of all of them


class Sample(Frozen):
    """A prompt and its continuation."""

    prompt: str
    text: str
    pieces: tuple[Piece, ...] = ()  # of the continuation
    copied: tuple[Copied, ...] = ()  # the longest spans of the text that are in the training text


class Repetition(Frozen):
    """How much training documents repeat each other: of a sample, how many are mostly in the rest of the training text.

    Documents that an ancestor has read are not in the sample, as they are not held out.
    """

    documents: int = 0  # in the sample
    words_8: int = 0  # of which more than half of the words are in 8-grams, or in lines, of the others
    words_13: int = 0

    def pooled(self, other: Repetition) -> Repetition:
        """Two samples as one."""
        pairs = zip(self.model_dump().items(), other.model_dump().values(), strict=True)
        return Repetition.model_validate({name: one + another for (name, one), another in pairs})


class Overlap(Frozen):
    """How much of the test documents is in n-grams of words that were read, or was read exactly."""

    copied: float  # share of the documents with more than half of their words covered
    expected: float = 0.0  # the largest such share that is honest, because the training documents repeat each other
    covered: float  # share of all their words

    @property
    def excess(self) -> float:
        """How many more are copied than expected, as a share."""
        return self.copied - self.expected


class Contamination(Frozen):
    """How much of the test documents the model, or a model before it, has read."""

    documents: int
    words_8: Overlap  # by n-grams of 8 words
    words_13: Overlap
    control: int = 0  # training documents that `expected` comes from

    @property
    def worst(self) -> Overlap:
        """The one with more copied documents than expected."""
        return max(self.words_8, self.words_13, key=lambda overlap: overlap.excess)


class Generation(Frozen):
    """Statistics of unprompted samples: `samples` of them, at most `length` tokens each."""

    samples: int
    length: int
    repeated_4grams: float  # share of 4-grams that occur earlier in the same sample
    distinct_2grams: float  # share of distinct ones, over all samples
    empty: float  # share of samples without a token
    mean_length: float  # in tokens, without <END>
    end_rate: float  # share of samples that reached <END>
    longest_copy: int  # in tokens: the longest span of a sample that occurs in the training text


class Integrity(Frozen):
    """Whether the package is the trained model, however it is loaded; differences are maxima over logits."""

    verifies: bool  # every file and tensor is what the manifest says
    loads_without_execution: bool
    tensors_agree: bool | None  # each is the checkpoint's, rounded to the storage type; None without a checkpoint
    loads_by_import: bool  # in a fresh interpreter without this project
    checkpoint_difference: float | None  # the reader's logits against the checkpoint's; None without a checkpoint
    checkpoint_limit: float  # 0 for an exact storage type; else what rounding the checkpoint to it changes
    import_difference: float  # the imported torch model's logits against the reader's
    numpy_difference: float  # the imported numpy model's logits against the imported torch model's
    numpy_backend_agrees: bool
    tokenizer_agrees: bool  # the package's own tokenizer gives tokenizer.json's ids, of test documents and hostile text
    trained_ids_agree: bool = True  # it gives training documents the ids that were trained on
    storage_agrees: bool = True  # matrices have the recipe's storage type
    normalisation_agrees: bool = True  # tokenizer.json normalises the same texts as the corpus was
    problem: str = ""  # the first error, one line

    @property
    def intact(self) -> bool:
        """Whether every condition that applies holds; a difference of NaN fails."""
        return (
            self.verifies
            and self.loads_without_execution
            and self.is_the_checkpoint is not False
            and self.loads_by_import
            and self.import_difference == 0
            and self.numpy_backend_agrees
            and self.tokenizer_agrees
            and self.trained_ids_agree
            and self.storage_agrees
            and self.normalisation_agrees
        )

    @property
    def is_the_checkpoint(self) -> bool | None:
        """Whether the package is the model that was trained; None where there is no checkpoint to compare with."""
        if self.checkpoint_difference is None:
            return None if self.tensors_agree is None else False
        return bool(self.tensors_agree) and self.checkpoint_difference <= self.checkpoint_limit


class TensorStatistics(Frozen):
    """Statistics of a tensor of the package, to 6 significant digits."""

    shape: tuple[int, ...]
    mean: float
    std: float
    minimum: float
    maximum: float


class Counted(Frozen):
    """How many documents a figure was computed on, of how many; fewer are a random sample."""

    documents: int
    of: int
    size: int  # of those documents, in the unit of the figure

    @property
    def sampled(self) -> bool:
        """Whether some documents were left out."""
        return self.documents < self.of


class Baselines(Frozen):
    """The training text that the baselines counted."""

    tokens: Counted  # size in tokens, of the unigram and the n-grams over tokens
    characters: Counted  # size in characters


class Report(Frozen):
    """The evaluation of a package: the same for the same package, test documents and training tokens."""

    test_digest: str  # sha256 of the texts of the test documents, in order
    overall: Slice
    sources: dict[str, Slice]  # by source name, sorted
    samples: tuple[Sample, ...]
    generation: Generation
    integrity: Integrity
    document_nats: tuple[float, ...]  # the model's, in test order: to be paired with another model's
    document_bytes: tuple[int, ...]
    document_ngram_nats: tuple[float, ...] = ()  # of the n-grams over tokens
    document_character_nats: tuple[float, ...] = ()  # of the n-grams over characters
    document_digests: tuple[str, ...] = ()  # 48 bits of each text's, to find the same text in another report
    document_slices: tuple[int, ...] = ()  # index into `sources` of each
    contamination: Contamination | None = None
    test: Counted | None = None  # the test documents that were measured; size in bytes of normalised text
    baselines: Baselines | None = None  # None when the package could not be read
    tensors: dict[str, TensorStatistics] = Field(default_factory=dict)  # by name, in the package's order
    tests: tuple[Outcomes, ...] = ()  # of the files that the recipe names

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

    @property
    def state(self) -> str:
        """Whether it "failed", "passed", or was "reported" where nothing was required."""
        if not self.passed:
            return "failed"
        return "reported" if self.limit is None else "passed"


class Compared(Frozen):
    """Model and champion on documents that both were measured on: all of those, or a slice."""

    documents: int
    effective: float  # number of documents of equal size that would say as much
    model: float  # bits per byte
    champion: float
    change: Interval  # of model / champion - 1, paired by document, with the seed's noise


class Comparison(Frozen):
    """The model compared with the champion."""

    overall: Compared
    sources: dict[str, Compared]
    measured_again: bool  # the champion's package, on this report's documents; else both reports' common ones
    level: float  # bits per byte as a multiple of the first champion's, by the changes from one champion to the next
    levels: dict[str, float] = Field(default_factory=dict)  # of the champion's run and those before it, newest first


class Verdict(Frozen):
    """The gate's decision: every check, and whether all of them passed."""

    passed: bool
    checks: tuple[Check, ...]
    comparison: Comparison | None = None

    @model_validator(mode="after")
    def _passed_by_its_checks(self) -> Verdict:
        if self.passed and not (self.checks and all(check.passed for check in self.checks)):
            raise ValueError("passed, although a check failed, or there is none")
        return self

    def failed(self) -> list[str]:
        """The names of the checks that failed."""
        return [check.name for check in self.checks if not check.passed]

    def reasons(self) -> list[str]:
        """The messages of the checks that failed."""
        return [check.message for check in self.checks if not check.passed]


def rounded(value: float) -> float:
    """A figure to six decimals, as in reports, where the last bits of a sum must not show."""
    return round(float(value), 6)
