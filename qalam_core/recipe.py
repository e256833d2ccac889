"""The recipe: every setting of a build as frozen models, read from TOML, a mapping or Prefect's form."""

from __future__ import annotations

import codecs
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)

from qalam_core.errors import RecipeError, did_you_mean
from qalam_core.filter_profiles import RULES

Filters = Literal["none", "short", "prose", "web"]  # keys of filter_profiles.FILTER_PROFILES
Normalisation = Literal["standard", "vocalised", "search"]  # keys of arabic.NORMALISATIONS
Share = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]

OF_DATA_SETS = ("revision", "config", "split", "data_files")  # keys of a source that others do not need
OF_URLS = ("identity",)
OF_LLAMA = ("num_kv_heads", "head_dim", "hidden_dim", "rope_base", "norm_epsilon", "qk_norm")  # keys of its block alone
MIN_VOCABULARY = 260  # the special tokens and the 256 bytes

Narrow = TypeVar("Narrow", bound="Frozen")


class Frozen(BaseModel):
    """A frozen record; an unknown key is an error. NaN and infinity survive JSON, as strings."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    def canonical(self) -> dict[str, Any]:
        """The record as plain JSON values, as they are hashed and written to files."""
        return self.model_dump(mode="json")

    def narrowed(self, base: type[Narrow]) -> Narrow:
        """Its fields that are inherited from `base`, as a `base`."""
        return base.model_validate({name: getattr(self, name) for name in base.model_fields})

    def to_json(self) -> bytes:
        """The record as a JSON file; keys keep their order, so that reading it gives the same record."""
        return (json.dumps(self.canonical(), ensure_ascii=False, indent=1) + "\n").encode()


class Source(Frozen):
    """Where text comes from: files of one kind, a Hugging Face data set, or an installed package's data."""

    path: str = Field(
        description="file, folder or glob, also at s3://, gs:// or az://; a file at https://; `package:DIST/FILE` for "
        "a data file of an installed package; `hf:NAME` for a Hugging Face data set"
    )
    name: str = Field("", description="slice name in reports; the path's stem when empty")
    format: Literal["auto", "text", "jsonl", "json", "csv", "parquet", "arrow"] = Field(
        "auto", description="auto: by the file's suffix"
    )
    text: str = Field(
        "text",
        description='field of the text, as "a.b" when it is nested; "" when records are strings; "#2" for the second '
        "column of a CSV without a line of names (not for plain text)",
    )
    records: str = Field(
        "", description='JSON keys to the list of records, as "a.b"; * for each key, so "*" for an object of lists'
    )
    bad_records: Literal["refuse", "skip"] = Field(
        "refuse", description="handling of a record that cannot be read or has no text; skipped ones are counted"
    )
    delimiter: str = Field("", description="character between CSV cells; a comma when empty, a tab for .tsv files")
    unit: Literal["line", "paragraph", "file"] = Field("line", description="unit of plain text that is one document")
    encoding: str = Field("utf-8", description="encoding of text files, as Python names it, such as cp1256")
    encoding_errors: Literal["refuse", "replace"] = Field(
        "refuse", description="handling of bytes that are not valid in the encoding"
    )
    revision: str = Field("", description="commit of the Hugging Face data set, 40 hex digits; for `hf:NAME`")
    config: str = Field("", description="configuration of the Hugging Face data set")
    split: str = Field("train", description="split of the Hugging Face data set")
    data_files: tuple[str, ...] = Field((), description="data files for a Hugging Face builder such as hf:json")
    identity: Literal["content", "version"] = Field(
        "content",
        description="what tells that an object at a URL is as it was: content, which is read for that, or its version "
        "(ETag) and size",
    )
    filters: Literal["", Filters] = Field("", description="rules for its documents; the corpus's filters when empty")
    weight: Annotated[float, Field(gt=0, le=20)] = Field(
        1.0, description="how often its text is read in one pass of training: 2 twice, 0.5 half of it in each"
    )
    licence: str = Field("", description="licence of the text, for the model card")

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, encoding: str) -> str:
        try:
            "\n".encode(encoding)  # also fails for codecs that are not of characters, such as base64
            return codecs.lookup(encoding).name  # one spelling, so that another one reads nothing again
        except (LookupError, ValueError):
            raise ValueError("no encoding of Python has this name; some are utf-8, utf-16, utf-32, cp1256") from None

    @field_validator("delimiter")
    @classmethod
    def _delimiter_is_one_character(cls, delimiter: str) -> str:
        if len(delimiter) > 1 or delimiter in tuple('"\r\n\0'):
            raise ValueError('must be one character, such as ";" or "\\t", and not a quote or a line end')
        return delimiter

    @model_validator(mode="after")
    def _revision_is_pinned(self) -> Self:
        if self.path.startswith("hf:") and not self.revision and not self.data_files:
            raise ValueError(f"{self.path} needs a revision, because its data may change")
        return self


class Corpus(Frozen):
    """Where text comes from, and which documents are kept."""

    sources: tuple[Source, ...] = Field(min_length=1)
    normalisation: Normalisation = Field("standard", description="how text is normalised; see docs/corpus.md")
    repair: bool = Field(False, description="repair Arabic decoded with the wrong encoding; see docs/corpus.md")
    mask_pii: bool = Field(False, description="mask e-mail addresses, phone numbers and IBANs; see docs/corpus.md")
    min_chars: Positive = Field(20, description="shorter documents are rejected")
    max_chars: Positive = Field(1_000_000, description="longer documents are rejected")
    min_arabic: Fraction = Field(0.5, description="smallest share of Arabic among a document's letters")
    max_damaged: Fraction = Field(
        0.001, description="largest share of U+FFFD, which stands for undecodable bytes, among a document's characters"
    )
    filters: Filters = Field("short", description="default for sources: none, short (sentences), prose, web")
    thresholds: dict[str, float] = Field(
        {}, description="overrides of profiles' thresholds by rule; see docs/corpus.md"
    )
    languages: tuple[str, ...] = Field(
        ("ar", "arz", "ary"), description="languages that prose and web accept, as py3langid's codes; [] accepts any"
    )
    exclude: str = Field("", description="file of documents to leave out, by text, id or digest; see docs/lineage.md")
    near_duplicates: bool = Field(True, description="keep one of several near-duplicate documents")
    validation: Fraction = Field(0.05, description="share of documents held out for validation during training")
    test: Fraction = Field(0.05, description="share of documents held out for the gate")
    validation_mb: Annotated[int, Field(ge=0)] = Field(32, description="most MB of text in validation; 0: no limit")
    test_mb: Annotated[int, Field(ge=0)] = Field(32, description="most MB of text held out for the gate; 0: no limit")
    shard_mb: Natural = Field(0, description="MB of text per shard; 0: 16, and more for sources above 32 GB")

    @field_validator("thresholds")
    @classmethod
    def _rules_are_known(cls, thresholds: dict[str, float]) -> dict[str, float]:
        for rule in thresholds:
            if rule not in RULES:
                hint = did_you_mean(rule, RULES, f"the rules are {', '.join(RULES)}")
                raise ValueError(f'there is no rule "{rule}"; {hint}')
        return dict(sorted(thresholds.items()))

    @model_validator(mode="after")
    def _splits_leave_training_text(self) -> Self:
        if self.test == 0:
            raise ValueError("test must be above 0: the gate measures on it")
        if self.validation + self.test >= 0.9:
            raise ValueError("validation + test leave less than a tenth for training")
        if self.min_chars > self.max_chars:
            raise ValueError("min_chars is larger than max_chars")
        return self


def _vocabulary_size(value: object) -> object:
    if value != "auto" and (type(value) is not int or value < MIN_VOCABULARY):
        raise ValueError(f'must be "auto" or a whole number of at least {MIN_VOCABULARY}')
    return value


VocabularySize = Annotated[
    int | Literal["auto"],  # a validator of its own: pydantic's names each member of the union in its errors
    PlainValidator(_vocabulary_size, json_schema_input_type=Annotated[int, Field(ge=MIN_VOCABULARY)] | Literal["auto"]),
]


class Tokenizer(Frozen):
    """How text becomes tokens."""

    algorithm: Literal["bpe", "word"] = Field("bpe", description="bpe is lossless; word is the original's")
    vocab_size: VocabularySize = Field(
        8000, description="most entries, the four specials included; auto: by the size of the training text"
    )
    min_freq: Positive = Field(2, description="rarer words (word) or pairs (bpe) get no entry")
    sample_mb: Positive = Field(32, description="MB of text that the vocabulary is trained on, drawn with the seed")
    keep: Literal["", "champion"] = Field(
        "", description='"champion" keeps the champion\'s tokenizer while it fits the new text; "" trains a new one'
    )
    regrow: NonNegativeFloat = Field(
        0.05, description="with keep: train a new one when new text takes this share more tokens per byte than before"
    )


class Model(Frozen):
    """The architecture of the transformer."""

    block: Literal["original", "llama"] = Field(
        "original", description="original: as GPT-2; llama: as Llama and Qwen3, with rotary positions, RMSNorm, SwiGLU"
    )
    dim: Positive = Field(128, description="width C")
    num_heads: Positive = Field(4, description="attention heads H; divides dim")
    num_layers: Positive = Field(2, description="blocks L")
    max_seq_len: Annotated[int, Field(ge=2)] = Field(128, description="context T, in tokens")
    dropout: Fraction = Field(0.0, description="on embeddings, attention and residual branches")
    tied: bool = Field(True, description="the head shares the embedding's matrix")
    num_kv_heads: Natural = Field(0, description="llama: heads of keys and values, dividing num_heads; 0: num_heads")
    head_dim: Natural = Field(0, description="llama: width of a head, even; 0: dim / num_heads")
    hidden_dim: Natural = Field(0, description="llama: width of the feed-forward; 0: 8/3 of dim, a multiple of 32")
    rope_base: Annotated[float, Field(ge=1, le=1e12)] = Field(10_000.0, description="llama: base of rotary positions")
    norm_epsilon: Annotated[float, Field(ge=1e-12, le=1)] = Field(1e-6, description="llama: epsilon of RMSNorm")
    qk_norm: bool = Field(True, description="llama: normalise queries and keys, as Qwen3 does; false: as Llama")

    @model_validator(mode="after")
    def _is_a_model(self) -> Self:
        if self.dim % self.num_heads and not self.head_dim:
            divisors = [h for h in range(1, self.dim + 1) if self.dim % h == 0]
            nearest = min(divisors, key=lambda h: abs(h - self.num_heads))
            raise ValueError(f"num_heads {self.num_heads} does not divide dim {self.dim}; {nearest} does")
        if self.block == "llama":
            if self.num_kv_heads and self.num_heads % self.num_kv_heads:
                raise ValueError(f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}")
            if (width := self.head_dim or self.dim // self.num_heads) % 2:
                raise ValueError(f"the width of a head is {width}, which is odd; rotary positions turn pairs")
        else:
            for name in OF_LLAMA:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f'{name} is a setting of block = "llama"; the original block has none')
        return self


class Optimisation(Frozen):
    """The settings of training that the weights depend on."""

    steps: Positive = Field(1000, description="optimizer steps")
    batch_size: Positive = Field(32, description="sequences per step, over all micro-batches and processes")
    accumulate: Positive = Field(1, description="micro-batches per step in each process, to save memory")
    processes: Positive = Field(1, description="data-parallel processes (one a GPU), over all machines")
    distributed: Literal["ddp", "fsdp"] = Field(
        "ddp", description="with several processes: ddp replicates the model, fsdp shards it"
    )
    optimizer: Literal["adamw", "muon"] = Field(
        "muon", description="muon for the blocks' matrices with adamw for the rest, or adamw for all"
    )
    learning_rate: PositiveFloat = Field(1e-2, description="peak; adamw alone needs about a third of muon's")
    embedding_rate: Annotated[float, Field(gt=0, le=100)] = Field(
        1.0, description="rate of the embedding and the head, as a multiple of learning_rate"
    )
    schedule: Literal["cosine", "wsd"] = Field(
        "wsd", description="after the warm-up: constant, then linear decay (wsd), or cosine decay"
    )
    warmup: Fraction = Field(0.05, description="share of the steps with a linear warm-up")
    decay: Annotated[float, Field(gt=0, le=1)] = Field(0.3, description="share of the steps in wsd's linear decay")
    final: Share = Field(0.1, description="final learning rate as a share of the peak")
    weight_decay: NonNegativeFloat = Field(0.1, description="weight decay, on matrices only")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.95), description="AdamW's betas")
    clip: PositiveFloat = Field(1.0, description="gradient norm clipping")
    z_loss: NonNegativeFloat = Field(0.0, description="weight of the squared log-partition, which keeps logits small")
    spike: NonNegativeFloat = Field(
        0.0,
        description="skip steps whose gradient norm is non-finite or this many times the running average; 0: never",
    )
    copies: Literal["once", "log"] = Field(
        "once", description="a document that stands for n near-duplicates is read once, or 1 + log2(n) times (log)"
    )
    patience: Natural = Field(
        0, description="early stopping: validation passes without improvement, the best weights are kept; 0: off"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU when there is one")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="dtype of matrix products (autocast); auto: bfloat16 where the hardware supports it"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile; auto: for runs long enough to benefit"
    )
    threads: Positive = Field(2, description="CPU threads of each process; another number changes last bits")

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        parts = self.accumulate * self.processes
        if self.batch_size % parts:
            processes = f" x processes {self.processes}" if self.processes > 1 else ""
            raise ValueError(f"accumulate {self.accumulate}{processes} does not divide batch_size {self.batch_size}")
        if self.distributed == "fsdp" and self.optimizer == "muon":
            raise ValueError('muon needs full matrices, and fsdp shards them; set optimizer = "adamw", or use ddp')
        return self


class Monitoring(Frozen):
    """The settings of training that do not change the weights: logging, validation and checkpoints."""

    log_every: Positive = Field(20, description="steps between two lines of metrics.jsonl")
    validate_every: Positive = Field(200, description="steps between two validation passes")
    checkpoint_every: Positive = Field(200, description="steps between two checkpoints")
    checkpoint_minutes: PositiveFloat = Field(10.0, description="longest time between two checkpoints")
    tensorboard: str = Field("", description="folder for TensorBoard's event files; needs al-qalam[tensorboard]")


class Continuing(Frozen):
    """What a training reads that goes on from the state of an earlier one, which decides how long it is."""

    epochs_of_new: PositiveFloat = Field(1.0, description="continue: passes over the new text, which decide the steps")
    replay: Fraction = Field(0.15, description="continue: share of the tokens that is drawn from what was read before")
    rewarm: Annotated[float, Field(gt=0, le=1)] = Field(
        0.2, description="continue: the rate that it warms up to again, as a share of learning_rate"
    )


class Train(Continuing, Monitoring, Optimisation):
    """How the model is trained. What "auto" resolved to is recorded with the weights, and kept on resume."""

    start: str = Field(
        "scratch",
        description="scratch: random weights; champion, or a run's id: its weights; continue: the champion's training "
        "goes on with the new text; see docs/training.md",
    )
    cold_every: Natural = Field(
        0, description="champion and continue: every so many builds in a chain one starts from scratch; 0: none"
    )


class Package(Frozen):
    """How the weights are stored."""

    dtype: str = Field("f32", description="storage type of the matrices: f32 is exact, q8 is readable decimals")

    @field_validator("dtype")
    @classmethod
    def _is_a_storage_type(cls, dtype: str) -> str:
        from qalam_core.package.runtime.rows import MATRIX_TYPES  # the only list; it ships with packages

        if dtype not in MATRIX_TYPES:
            raise ValueError(f"known are {', '.join(MATRIX_TYPES)}")
        return dtype


class Requirements(Frozen):
    """The limits of the gate's checks."""

    beat_unigram: Share = Field(
        0.0, description="required improvement over the unigram baseline, as a share of its bits per byte"
    )
    beat_ngram: bool = Field(False, description="require the model to beat the Kneser-Ney 4-gram of tokens too")
    beat_characters: bool = Field(False, description="require the same of the Kneser-Ney 10-gram of characters")
    tolerance: NonNegativeFloat = Field(
        0.035, description="non-inferiority margin: how much worse than champions bits per byte may be, as a share"
    )
    slice_tolerance: NonNegativeFloat = Field(
        0.05, description="how much worse than the champion a source may surely be, as a share"
    )
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = Field(
        0.95, description="confidence that a change is below its margin; of each end of an interval of a change"
    )
    seed_sd: NonNegativeFloat = Field(
        0.005, description="standard deviation of bits per byte over seeds, as a share; `qalam seeds` measures it"
    )
    max_unknown: Share = Field(0.5, description="largest share of unknown tokens")
    max_repeated: Share = Field(0.3, description="largest share of repeated 4-grams in samples")
    max_empty: Share = Field(0.2, description="largest share of samples without a token")
    max_copied: Share = Field(
        0.02, description="largest share of test documents contained in the training text, above what is usual in it"
    )
    max_package_mb: PositiveFloat = Field(2000.0, description="largest package, in MB")
    max_load_seconds: PositiveFloat = Field(60.0, description="longest load time without execution, in seconds")


class Gate(Requirements):
    """The gate's requirements, and which samples the report shows."""

    prompts: tuple[str, ...] = Field(("في", "من", "قال"), description="prompts of the samples in the report")
    test_mb: PositiveFloat = Field(
        1.0, description="MB of held-out text that are measured; of a larger test split, a sample of its documents"
    )


SHIPPED = "suite:"  # begins the path of tests that come with Al-Qalam


class ModelTests(Frozen):
    """A file of model tests, which are run on the package after training."""

    path: str = Field(description="file of cases, JSON Lines; suite:arabic for the one that comes with Al-Qalam")
    name: str = Field("", description="name in reports; the path's stem when empty")
    share: Share = Field(1.0, description="share of the cases that must pass; 0: reported, not required")

    @classmethod
    def of(cls, path: str, share: float) -> Self:
        """A file that is named outside of a recipe. Raises RecipeError."""
        try:
            return cls.model_validate({"path": path, "share": share})
        except ValidationError as error:
            raise RecipeError(f"{path}: {explain(error, cls)}") from None

    @model_validator(mode="before")
    @classmethod
    def _is_named(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("path"), str) and data.get("name", "") == "":
            return {**data, "name": PurePath(data["path"].removeprefix(SHIPPED)).stem}
        return data

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, name: str) -> str:
        if not re.fullmatch(r"[^\W_]([\w .-]{0,38}[^\W_])?", name):
            raise ValueError("must be 1 to 40 letters and digits, inside also spaces and . - _; set name")
        return name


RecipeName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


class Recipe(Frozen):
    """All settings of one build."""

    name: RecipeName = Field(description="champions are recorded under this name")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(1, description="seed of every random choice")
    # not hashed: the results have the same bytes wherever they are computed
    runner: str = Field(
        "threads", description='where files and shards are processed: threads, processes, dask, or "tcp://HOST:8786"'
    )
    corpus: Corpus
    tokenizer: Tokenizer = Tokenizer()
    model: Model = Model()
    train: Train = Train()
    package: Package = Package()
    gate: Gate = Gate()
    tests: tuple[ModelTests, ...] = Field((), description="files of model tests; see docs/testing.md")

    @field_validator("tests")
    @classmethod
    def _tests_have_names(cls, tests: tuple[ModelTests, ...]) -> tuple[ModelTests, ...]:
        for place, one in enumerate(tests):
            if one.name in {other.name for other in tests[:place]}:
                raise ValueError(f'two files of tests have the name "{one.name}"; set another name for one')
        return tests

    @property
    def shares(self) -> dict[str, float]:
        """The share of cases that must pass, by the name of the tests."""
        return {tests.name: tests.share for tests in self.tests}

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
        """Read a TOML file; `overrides` are `section.key=value` strings, values in TOML or bare text.

        Relative source paths are relative to the file. Raises RecipeError, one line with the key.
        """
        path = Path(path)
        try:
            data = _toml_values(path.read_text(encoding="utf-8").removeprefix("\ufeff"))
        except FileNotFoundError:
            raise RecipeError(f"{path}: no such recipe; `qalam init {path} --corpus FILES` writes one") from None
        except IsADirectoryError:
            raise RecipeError(f"{path}: is a folder; name a recipe file in it") from None
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path}: byte {error.start} is not UTF-8; a recipe is a TOML text file") from None
        except ValueError as error:
            raise RecipeError(f"{path}: not TOML: {error}") from None
        for override in overrides:
            _override(data, override)
        recipe = cls.parse(data, str(path))
        folder = path.resolve().parent
        tests = tuple(
            each if each.path.startswith(SHIPPED) else each.model_copy(update={"path": str(folder / each.path)})
            for each in recipe.tests
        )
        return recipe.model_copy(update={"corpus": _anchored(recipe.corpus, folder), "tests": tests})

    @classmethod
    def parse(cls, data: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """Validate a mapping. Raises RecipeError, with `where` at the beginning of its message."""
        try:
            return cls.model_validate(_with_tuples(data), strict=True)  # true is no number, and "1" neither
        except ValidationError as error:
            raise RecipeError(f"{where}: {explain(error, cls)}") from None


def _with_tuples(value: Any) -> Any:
    """A mapping whose lists are tuples, as they are in a recipe."""
    if isinstance(value, Mapping):
        return {key: _with_tuples(each) for key, each in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _anchored(corpus: Corpus, folder: Path) -> Corpus:
    """The corpus with paths relative to `folder` made absolute."""

    def anchored(path: str) -> str:
        return path if path.startswith(("package:", "hf:")) or "://" in path else str(folder / path)

    def of(source: Source) -> Source:
        # with a revision, data files are names in the data set's repository
        files = source.data_files if source.revision else tuple(map(anchored, source.data_files))
        return source.model_copy(update={"path": anchored(source.path), "data_files": files})

    exclude = str(folder / corpus.exclude) if corpus.exclude else ""
    return corpus.model_copy(update={"sources": tuple(map(of, corpus.sources)), "exclude": exclude})


def _toml_values(text: str) -> dict[str, Any]:
    """As tomllib, which has other errors for values that are too deep. Raises ValueError."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("values are nested too deeply") from None


def _override(data: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted.strip():
        raise RecipeError(f"--set {override}: write it as section.key=value")
    if "\n" in text:
        raise RecipeError(f"--set {override}: is several lines; give each value in a --set of its own")
    try:
        value = _toml_values(f"value = {text}")["value"]
    except ValueError:
        value = text.strip()
    *sections, key = dotted.strip().split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise RecipeError(f"--set {override}: {section} is not a section of single values; edit the file")
    data[key] = value


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem as one line: the key, what is wrong, and for an unknown key the nearest known one."""
    problem = error.errors()[0]
    place = ".".join(str(step) for step in problem["loc"])
    if problem["type"] == "extra_forbidden":
        parent = _part_at(model, problem["loc"][:-1])
        known = "known here: " + ", ".join(sorted(parent.model_fields))
        return f"{place}: unknown key; {did_you_mean(str(problem['loc'][-1]), list(parent.model_fields), known)}"
    if problem["type"] == "missing":
        return f"{place}: missing; every {'recipe' if model is Recipe else 'one'} needs it"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = "" if isinstance(problem["input"], dict | BaseModel) else f" (it is {problem['input']!r})"
    return f"{place}: {message}{given}" if place else f"{message}{given}"


_LISTED: dict[str, type[BaseModel]] = {"sources": Source, "tests": ModelTests}


def _part_at(part: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    for step in location:
        if isinstance(step, str):
            part = _LISTED.get(step) or part.model_fields[step].annotation  # type: ignore[assignment]
    return part


def changed_pairs(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:  # fmt: skip
    """("section.key", old, new) of each value that differs, None for one that is absent."""
    for key in dict.fromkeys((*new, *old)):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from changed_pairs(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}", before, after


def to_toml(recipe: Recipe) -> str:
    """The recipe as commented TOML that loads to an equal recipe; the comments are the fields' descriptions."""
    sections: list[tuple[str, Frozen]] = [("", recipe), ("[corpus]", recipe.corpus)]
    sections += [("[[corpus.sources]]", source) for source in recipe.corpus.sources]
    sections += [(f"[{name}]", getattr(recipe, name)) for name in ("tokenizer", "model", "train", "package", "gate")]
    sections += [("[[tests]]", tests) for tests in recipe.tests]
    lines = []
    for header, part in sections:
        lines += ["", header] if header else []
        for key, field in type(part).model_fields.items():
            value = getattr(part, key)
            has_section = isinstance(value, Frozen) or key in _LISTED
            source = part.path if isinstance(part, Source) else ""
            omitted = bool(source) and (
                (key in OF_DATA_SETS and not source.startswith("hf:")) or (key in OF_URLS and "://" not in source)
            )
            if not has_section and not omitted:
                lines.append(f"{key} = {_toml(value)}  # {field.description}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float):
        return repr(value)
    # TOML's strings, booleans and integers are JSON's, but for one character that JSON need not escape
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
