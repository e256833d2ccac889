"""Whether the gate can be trusted: planted faults, and trainings without a fault.

    python -m benchmarks.bench_gate [--steps 400] [--seeds 10] [--nights 30] [--repetitions 4000] [--check]

A small model on the demo corpus is champion. A fault in weights, in the export or in figures is measured on the test
split and decided on by the gate; a fault in the corpus or in the recipe goes through all stages. All limits of the gate
are the defaults. Warm starts whose parent has read held-out documents are prepared with and without the parent's record
of what it read. Then come the table of coverage and the simulated year (bench_statistics), the same recipe with other
seeds, and a corpus that grows by 1% a night, trained on from each night's champion.
Targets: every fault is refused, no leak is left, and no harmless change is refused; of ten retrainings, and of thirty
nights, without a fault at most one is; evaluation and gate take below 60 s; the targets of bench_statistics.
Faults that cost less than the margin, as another seed does, cannot be told by a comparison of figures. They are shown,
and not counted.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.numpy import load_file, save_file

from benchmarks import bench_statistics
from qalam_core import package as packages
from qalam_core.arabic import NORMALISATIONS, normalise
from qalam_core.corpus.fingerprints import SHORT, Fingerprints
from qalam_core.corpus.prepare import CorpusFacts
from qalam_core.corpus.sources import resolve
from qalam_core.corpus.splits import SPLITS, read_texts
from qalam_core.evaluation.comparison import Champion
from qalam_core.evaluation.contamination import contamination
from qalam_core.evaluation.evaluate import evaluate
from qalam_core.evaluation.gate import decide
from qalam_core.evaluation.integrity import transformer
from qalam_core.evaluation.results import Budgets, Interval, Report, Verdict
from qalam_core.model import PureDynamicTransformer
from qalam_core.package.runtime.architecture import END, START
from qalam_core.pipeline.build import History, InPlace, build, ingested, read_by, stages_in_order
from qalam_core.pipeline.evaluate import measured
from qalam_core.pipeline.export import PACKAGE
from qalam_core.pipeline.gate import verdict_of
from qalam_core.pipeline.prepare import Prepare, shards_of
from qalam_core.pipeline.tokenize import TOKENS, of_split
from qalam_core.pipeline.vocab import TOKENIZER
from qalam_core.recipe import Recipe, Requirements, Source
from qalam_core.runs import Runs
from qalam_core.store import Artifact, Store
from qalam_core.tokens.shards import Batches, flat, flattened, write_shard
from qalam_core.tokens.tokenizer import ArabicTokenizer
from qalam_core.training.spec import WEIGHTS, model_config
from qalam_core.training.step import weights_of

TARGET_SECONDS = 60.0
HARMLESS = {"none: the champion itself", "source renamed"}
BELOW_TOLERANCE = {
    "1% of values flipped, in training", "two heads swapped", "positions shifted by one",
    "the row of a word replaced that no test document has",
}  # fmt: skip
WORSE = 1.019  # bits per byte of each model of the ratchet, as a multiple of the last champion's
ADDED = ("أعيد نشر هذا النص بإذن من أصحابه",
         "نشر هذا النص أول مرة في موقع الجريدة وأعيد نشره هنا بإذن من أصحابه")  # fmt: skip
Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Outcome:
    """What became of a model."""

    refused_by: tuple[str, ...]  # checks of the gate, or what else stopped it; () when it passed
    change: Interval | None = None  # against the champion
    note: str = ""

    @classmethod
    def of(cls, verdict: Verdict, note: str = "") -> Outcome:
        comparison = verdict.comparison
        if comparison and comparison.measured_again:
            note = "champion measured again" + (f"; {note}" if note else "")
        failed = tuple(check.name for check in verdict.checks if not check.passed)
        return cls(failed, comparison.overall.change if comparison else None, note)

    @property
    def passed(self) -> bool:
        return not self.refused_by


@dataclass
class Sound:
    """A model that was built as it should be, the champion of its store, and what a fault needs to be planted in it."""

    recipe: Recipe
    store: Store
    corpus: Artifact
    tokenizer: Artifact
    tokens: list[Artifact]
    checkpoint: Artifact
    seen: Artifact
    package: Artifact
    report: Report
    budgets: Budgets

    @classmethod
    def build(cls, recipe: Recipe, store: Store) -> Sound:
        published = build(recipe, store)
        assert published.champion, f"train longer: {published.decision}"
        return cls._of(recipe, store, published.artifacts)

    @classmethod
    def _of(cls, recipe: Recipe, store: Store, artifacts: Sequence[Artifact]) -> Sound:
        made = {artifact.stage: artifact for artifact in artifacts}
        tokens = [artifact for artifact in artifacts if artifact.stage == "tokenize"]
        return cls(
            recipe, store, made["prepare"], made["vocab"], tokens, made["train"], made["seen"], made["export"],
            *measured(made["evaluate"]),
        )  # fmt: skip

    def again(self, **changes: Any) -> tuple[Sound, Verdict]:
        """Another recipe through all stages, in the same store, and the gate's verdict; the champion stays."""
        recipe = self.recipe.model_copy(update=changes)
        files = resolve(recipe.corpus.sources)
        artifacts = stages_in_order(recipe, files, History(Runs(self.store)), InPlace(self.store))
        return self._of(recipe, self.store, artifacts), verdict_of(artifacts[-1])

    def decided(self, **changes: Any) -> Outcome:
        return Outcome.of(self.again(**changes)[1])

    def steps(self, share: float) -> dict[str, Any]:
        """The change to fewer training steps."""
        steps = max(1, round(self.recipe.train.steps * share))
        return {"train": self.recipe.train.model_copy(update={"steps": steps})}

    def on(self, path: Path, **changes: Any) -> dict[str, Any]:
        """The change to the documents of a file."""
        source = Source(path=str(path), name=self.recipe.corpus.sources[0].name)
        return {"corpus": self.recipe.corpus.model_copy(update={"sources": (source,), **changes})}

    def renamed(self) -> dict[str, Any]:
        """The change to another name of the source."""
        corpus = self.recipe.corpus
        (source,) = corpus.sources
        return {"corpus": corpus.model_copy(update={"sources": (source.model_copy(update={"name": "renamed"}),)})}

    @property
    def weights(self) -> Weights:
        return load_file(self.checkpoint.path / WEIGHTS)

    @property
    def shards(self) -> list[Path]:
        return [artifact.path / TOKENS for artifact in of_split(self.tokens, "train")]

    def batches(self, *splits: str) -> Iterator[pa.RecordBatch]:
        return batches(self.corpus, *splits)

    def texts(self, *splits: str) -> list[str]:
        return [text for batch in self.batches(*splits) for text in batch.column("text").to_pylist()]

    @property
    def words(self) -> ArabicTokenizer:
        return ArabicTokenizer.from_file(self.tokenizer.path / TOKENIZER)

    @property
    def champion(self) -> Champion:
        return Champion(self.report, gate=self.recipe.gate.narrowed(Requirements))

    def packed(self, folder: Path, weights: Weights, words: ArabicTokenizer | None = None, dtype: str = "f32") -> Path:
        """A package of these weights, sealed: its manifest agrees with whatever is in it."""
        words = words or self.words
        packages.write(
            folder, config=model_config(self.recipe.model, len(words)), weights=weights, vocabulary=words.vocabulary,
            card="# planted\n", provenance={}, dtype=dtype,
        )  # fmt: skip
        return folder

    def measure(
        self, package: Path, checkpoint: Path | None = None, leaked: Sequence[str] = ()
    ) -> tuple[Report, Budgets]:  # fmt: skip
        seen = Fingerprints.load(self.seen.path)
        if leaked:
            columns = {"id": [f"{number:016x}" for number in range(len(leaked))], "text": list(leaked),
                       "source": ["leaked"] * len(leaked)}  # fmt: skip
            seen = Fingerprints.union([seen, Fingerprints.of([pa.RecordBatch.from_pydict(columns)])])
        test = [
            pair for batch in self.batches("test")
            for pair in zip(batch.column("source").to_pylist(), batch.column("text").to_pylist(), strict=True)
        ]  # fmt: skip
        gate = self.recipe.gate
        return evaluate(
            package, checkpoint or self.checkpoint.path / WEIGHTS, test, [flat(path) for path in self.shards],
            self.batches("train"), seen=seen, seed=self.recipe.seed, prompts=gate.prompts, confidence=gate.confidence,
            storage="f32", normalisation=NORMALISATIONS[self.recipe.corpus.normalisation],
        )  # fmt: skip

    def decide(self, report: Report, budgets: Budgets | None = None, **changes: Any) -> Verdict:
        gate = self.recipe.gate.model_copy(update=changes)
        return decide(report, budgets or self.budgets, gate, self.champion)

    def trained_plainly(self, shards: list[Path], shift: int) -> Weights:
        """A training of our own, with `shift` places between a token and what is to be predicted from it."""
        settings, torch_model = self.recipe.train, self.recipe.model
        torch.manual_seed(self.recipe.seed)
        model = PureDynamicTransformer(
            **model_config(torch_model, len(self.words)).arguments(), dropout=torch_model.dropout
        ).train()
        batches = Batches(shards, settings.batch_size, torch_model.max_seq_len + shift - 1, self.recipe.seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=settings.betas)
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                warm = min(1.0, (step + 1) / max(1, settings.warmup * settings.steps))
                group["lr"] = settings.learning_rate * warm * (1 - 0.9 * step / settings.steps)
            ids = torch.from_numpy(batches[step])
            loss = model(ids[:, :-shift], ids[:, shift:])[1]
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
        return {name: tensor.numpy().copy() for name, tensor in weights_of(model).items()}


def batches(corpus: Artifact, *splits: str) -> Iterator[pa.RecordBatch]:
    """The documents of some splits."""
    return (batch for shard in shards_of(corpus, *splits) for batch in read_texts(shard.path))


def written(path: Path, texts: Iterable[str]) -> Path:
    """The texts as JSON Lines."""
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def scaled(report: Report, factor: float, chosen: np.ndarray | None = None) -> Report:
    """A report of a model that needs `factor` times the bits on the chosen documents, with noise of 1% a document."""
    noise = np.random.default_rng(3).normal(0, 0.01, len(report.document_nats))
    nats = np.array(report.document_nats)
    worse = nats * factor * np.exp(noise)
    if chosen is not None:
        worse = np.where(chosen, worse, nats)
    bits = report.bits_per_byte.model_copy(update={"model": worse.sum() / math.log(2) / sum(report.document_bytes)})
    overall = report.overall.model_copy(update={"bits_per_byte": bits})
    return report.model_copy(update={"document_nats": tuple(worse.tolist()), "overall": overall})


def part_of(report: Report, kept: np.ndarray) -> Report:
    """A report on some of the documents."""
    fields = [name for name, value in report if name.startswith("document_") and len(value) == len(kept)]
    values = {name: tuple(np.array(getattr(report, name))[kept].tolist()) for name in fields}
    return report.model_copy(update=values)


def faults(sound: Sound, work: Path) -> dict[str, Callable[[], Outcome]]:
    """Name -> plants that fault; -> what became of the model."""
    last = sound.recipe.model.num_layers - 1
    matrices = [name for name, values in sound.weights.items() if values.ndim > 1]
    block = [name for name in matrices if name.startswith(f"blocks.{last}.")]
    random = np.random.default_rng(1)

    def training(weights: Weights, leaked: Sequence[str] = ()) -> Outcome:
        """The fault is older than the checkpoint: package and checkpoint agree."""
        folder = Path(tempfile.mkdtemp(dir=work))
        save_file(weights, folder / "c.safetensors")
        found = sound.measure(sound.packed(folder / "model", weights), folder / "c.safetensors", leaked)
        return Outcome.of(sound.decide(*found))

    def exported(weights: Weights, words: ArabicTokenizer | None = None, dtype: str = "f32") -> Outcome:
        """The fault came with the export: the checkpoint is sound, and the manifest agrees with the package."""
        package = sound.packed(Path(tempfile.mkdtemp(dir=work)) / "model", weights, words, dtype)
        return Outcome.of(sound.decide(*sound.measure(package)))

    def changed(change: Callable[[np.ndarray], np.ndarray], names: Sequence[str]) -> Weights:
        weights = sound.weights
        return {**weights, **{name: np.ascontiguousarray(change(weights[name])) for name in names}}

    def rolled() -> Weights:
        return changed(lambda rows: np.roll(rows, 1, axis=0), ["embedding.weight"])

    def flipped(names: Sequence[str]) -> Weights:
        return changed(lambda v: np.where(random.random(v.shape) < 0.01, -v, v).astype(np.float32), names)

    def leak() -> Outcome:
        texts = sound.texts("test")[::10]
        shard = work / "leaked.arrow"
        write_shard(shard, [flattened(sound.words.encode_batch(texts * 3))], len(sound.words), START, END)
        return training(sound.trained_plainly([*sound.shards, shard], shift=1), texts)

    def paraphrased() -> Outcome:
        """Four copies of each test document, in which every tenth word is another one's."""
        known = [word for text in sound.texts("train")[:200] for word in text.split()]

        def copy(text: str, begin: int) -> str:
            parts = text.split()
            parts[begin::10] = random.choice(known, len(parts[begin::10])).tolist()
            return " ".join(parts)

        copies = [copy(text, begin) for text in sound.texts("test") for begin in (0, 3, 5, 8)]
        return sound.decided(**sound.on(written(work / "paraphrased.jsonl", [*sound.texts(*SPLITS), *copies])))

    def foreign() -> Outcome:
        other = ArabicTokenizer(len(sound.words), sound.recipe.tokenizer.algorithm)
        texts = sound.texts("train")
        other.build_vocab(texts[: len(texts) // 2])
        assert len(other) == len(sound.words)
        return exported(sound.weights, other)

    def vocalised() -> Outcome:
        vocabulary = sound.words.vocabulary._replace(rules=NORMALISATIONS["vocalised"])
        return exported(sound.weights, ArabicTokenizer.from_vocabulary(vocabulary))

    def parrot() -> Outcome:
        """Only the embedding acts: with a tied head, every token is followed by itself."""
        silenced = [name for name in sound.weights if {"out", "fc2", "pos_embedding"} & set(name.split("."))]
        return training(changed(np.zeros_like, silenced))

    def silent() -> Outcome:
        """The first position's row is trained until every text ends at once; nothing else is changed."""
        weights = {name: torch.from_numpy(values) for name, values in sound.weights.items()}
        model = transformer(model_config(sound.recipe.model, len(sound.words)), weights).requires_grad_(False)
        assert isinstance(model, PureDynamicTransformer)
        rows = model.pos_embedding.requires_grad_(True)
        optimizer = torch.optim.Adam([rows], lr=0.02)
        for _ in range(500):
            loss = torch.nn.functional.cross_entropy(model(torch.tensor([[START]]))[0][0], torch.tensor([END]))
            if loss < 0.001:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return training(changed(lambda _: rows.detach().numpy().copy(), ["pos_embedding"]))

    def poisoned() -> Outcome:
        """The most frequent token of training that no test document has takes the meaning of another one."""
        tested = set(np.concatenate(sound.words.encode_batch(sound.texts("test"))).tolist())
        counts = np.bincount(np.concatenate([flat(path) for path in sound.shards]), minlength=len(sound.words))
        by_count = np.argsort(-counts)
        word = next(token for token in by_count.tolist() if token not in tested and token > END)
        return training(changed(lambda rows: _with_row(rows, word, rows[by_count[20]]), ["embedding.weight"]))

    def heads_swapped() -> Outcome:
        width = sound.recipe.model.dim // sound.recipe.model.num_heads
        order = [*range(width, 2 * width), *range(width), *range(2 * width, sound.recipe.model.dim)]
        return training(changed(lambda matrix: matrix[:, order], [f"blocks.{last}.out.weight"]))

    def quartered(**changes: Any) -> Outcome:
        """Of each document the beginning; the note says how the model does on the champion's whole ones."""
        texts = [" ".join(words[: -(-len(words) // 4)]) for words in map(str.split, sound.texts(*SPLITS))]
        other, verdict = sound.again(**sound.on(written(work / "quartered.jsonl", texts)), **changes)
        whole = sound.decide(*sound.measure(other.package.path / PACKAGE, other.checkpoint.path / WEIGHTS)).comparison
        assert whole
        change = whole.overall.change
        return Outcome.of(verdict, f"{change.low:+.2%} to {change.high:+.2%} on whole documents")

    def harder_dropped(share: float) -> Outcome:
        """The test documents that cost most are excluded from the corpus."""
        cost = np.array(sound.report.document_nats) / np.array(sound.report.document_bytes)
        order = np.argsort(-cost)
        size = np.array(sound.report.document_bytes)[order]
        ids = [number for batch in sound.batches("test") for number in batch.column("id").to_pylist()]
        count = int(np.searchsorted(np.cumsum(size), share * size.sum()))
        exclude = work / f"harder-{share}.txt"
        exclude.write_text("\n".join(ids[place] for place in order[:count]) + "\n", encoding="utf-8")
        return sound.decided(corpus=sound.recipe.corpus.model_copy(update={"exclude": str(exclude)}))

    def searched(**changes: Any) -> Outcome:
        return sound.decided(corpus=sound.recipe.corpus.model_copy(update={"normalisation": "search"}), **changes)

    def searched_widely() -> Outcome:
        """With so many test documents that enough are left which the champion has not read."""
        corpus = sound.recipe.corpus.model_copy(update={"test": 0.3})
        name = f"{sound.recipe.name}-wide"[:40]
        wide = Sound.build(sound.recipe.model_copy(update={"name": name, "corpus": corpus}), sound.store)
        return wide.decided(corpus=corpus.model_copy(update={"normalisation": "search"}), **wide.steps(1 / 5))

    def ratchet() -> Outcome:
        line = [sound.champion]
        for number in range(1, 11):
            report = scaled(line[0].report, WORSE)
            verdict = decide(report, sound.budgets, sound.recipe.gate, line[0], line[1:])
            if not verdict.passed:
                return Outcome.of(verdict, f"model {number}")
            assert verdict.comparison
            line.insert(0, Champion(report, verdict.comparison.level, line[0].gate))
        return Outcome((), None, "all ten passed")

    def loosened() -> Outcome:
        found, _ = sound.again(**sound.steps(1 / 5))
        return Outcome.of(sound.decide(found.report, found.budgets, tolerance=1.0))

    def rolled_back() -> Outcome:
        """Two champions, a rollback to the first one, and the second is built again."""
        name = f"{sound.recipe.name}-again"[:40]
        first = sound.recipe.model_copy(update={"name": name})
        second = first.model_copy(update={"seed": first.seed + 1})
        build(first, sound.store)
        run, runs = build(second, sound.store).run, Runs(sound.store)
        runs.promote(name, run, when="2030-01-01T00:00:00+00:00", why="benchmark", who="benchmark")
        runs.rollback(name, when="2030-01-02T00:00:00+00:00", why="benchmark", who="benchmark")
        again = build(second, sound.store)
        return Outcome(() if again.promoted or not again.held else ("publish: rolled back",), None)

    def slices(report: Report) -> tuple[Report, np.ndarray]:
        """The report with every sixth document in a slice of its own, and which these are."""
        sixth = np.arange(len(report.document_nats)) % 6 == 0
        own = next(iter(report.sources.values()))
        division = {"document_slices": tuple(sixth.astype(int).tolist()), "sources": {"most": own, "sixth": own}}
        return report.model_copy(update=division), sixth

    def of_slices(change: Callable[[Report, np.ndarray], Report]) -> Outcome:
        report, sixth = slices(sound.report)
        champion = Champion(report, gate=sound.champion.gate)
        return Outcome.of(decide(change(report, sixth), sound.budgets, sound.recipe.gate, champion))

    return {
        "labels shifted twice": lambda: training(sound.trained_plainly(sound.shards, shift=2)),
        "vocabulary off by one, in training": lambda: training(rolled()),
        "vocabulary off by one, in the export": lambda: exported(rolled()),
        "one block zeroed, in training": lambda: training(changed(np.zeros_like, block)),
        "one block zeroed, in the export": lambda: exported(changed(np.zeros_like, block)),
        "1% of values flipped, in training": lambda: training(flipped(matrices)),
        "1% of values flipped, in the export": lambda: exported(flipped(matrices)),
        "1% of one matrix flipped, in the export": lambda: exported(flipped(block[:1])),
        "stored as f16 where f32 was asked": lambda: exported(sound.weights, dtype="f16"),
        "stored as f32, but rounded to f16": lambda: exported(
            changed(lambda values: values.astype(np.float16).astype(np.float32), matrices)
        ),
        "two heads swapped": heads_swapped,
        "positions shifted by one": lambda: training(
            changed(lambda rows: np.concatenate([rows[:1], rows[:-1]]), ["pos_embedding"])
        ),
        "the row of a word replaced that no test document has": poisoned,
        "a tokenizer of another run": foreign,
        "tokenizer.json with the normaliser `vocalised`": vocalised,
        "a generator that repeats itself": parrot,
        "a generator that ends at once": silent,
        "a tenth of the test split leaked": leak,
        "four paraphrases of each test document in training": paraphrased,
        "trained ten times too short": lambda: sound.decided(**sound.steps(1 / 10)),
        "source renamed": lambda: sound.decided(**sound.renamed()),
        "source renamed, trained five times too short": lambda: sound.decided(**sound.renamed(), **sound.steps(1 / 5)),
        "normalisation `search`": lambda: searched(),
        "normalisation `search`, trained five times too short": lambda: searched(**sound.steps(1 / 5)),
        "normalisation `search`, trained five times too short, test = 0.3": searched_widely,
        "documents cut to a quarter": lambda: quartered(),
        "documents cut to a quarter, trained five times too short": lambda: quartered(**sound.steps(1 / 5)),
        "the harder 45% of the test text dropped": lambda: harder_dropped(0.45),
        "the harder 70% of the test text dropped": lambda: harder_dropped(0.7),
        "a slice vanished": lambda: of_slices(lambda report, sixth: part_of(report, ~sixth)),
        "a slice, a sixth of the documents, 20% worse": lambda: of_slices(
            lambda report, sixth: scaled(report, 1.2, sixth)
        ),
        f"ten models in a row, each {WORSE - 1:.1%} worse": ratchet,
        "trained five times too short, gate.tolerance = 1.0": loosened,
        "a rolled-back model, built again": rolled_back,
        "a package over its budget": lambda: Outcome.of(
            sound.decide(sound.report, max_package_mb=sound.budgets.package_mb * 0.9)
        ),
    }


def _with_row(rows: np.ndarray, place: int, row: np.ndarray) -> np.ndarray:
    rows = rows.copy()
    rows[place] = row
    return rows


def missed(name: str, outcome: Outcome) -> bool:
    """Whether a fault passed, or a harmless change did not."""
    return outcome.passed != (name in HARMLESS) and name not in BELOW_TOLERANCE


def row(name: str, outcome: Outcome) -> str:
    """A line of the table of faults."""
    change = f"{outcome.change.low:+.2%} to {outcome.change.high:+.2%}" if outcome.change else ""
    change += f" ({outcome.note})" if outcome.note else ""
    found = ", ".join(outcome.refused_by)
    if missed(name, outcome):
        found = f"MISSED {found}"
    elif outcome.passed:
        found = "nothing: harmless" if name in HARMLESS else "not told: costs less than the margin"
    return f"| {name} | {change.strip()} | {found} |"


@dataclass(frozen=True)
class Leak:
    """Held-out documents of a warm start that its parent has read."""

    without: float  # share of the test documents, when it is not known what the parent has read
    documents: int  # test documents, when it is
    known: float  # share of those
    copied: tuple[float, float]  # what the gate's contamination says of the test documents, without and with the record
    allowed: float

    @property
    def caught_by(self) -> str:
        """ "" when nothing notices the leak."""
        if not self.known:
            return "prepare" if self.without else ""
        return "contamination" if self.copied[1] > self.allowed else ""

    def row(self, name: str) -> str:
        """A line of the table of leaks."""
        shares = (
            f"{self.without:.1%} | {self.copied[0]:.1%} | {self.documents} | {self.known:.1%} | {self.copied[1]:.1%}"
        )
        return f"| {name} | {shares} | {self.caught_by or 'MISSED'} |"


LEAK_HEAD = (
    "| warm start | test documents that the parent has read, without its record | their contamination "
    "| test documents with its record | that the parent has read | their contamination | caught by |"
)


def leaks(sound: Sound, work: Path) -> dict[str, Callable[[], Leak]]:
    """Name -> prepares the corpora of a parent and of a child."""
    plain = sound.recipe.corpus
    executor = InPlace(sound.store)

    def prepared(corpus: Any, seen: Artifact | None = None) -> Artifact:
        recipe = sound.recipe.model_copy(update={"corpus": corpus})
        return executor.run(Prepare.of(recipe, ingested(recipe, resolve(corpus.sources), executor), seen))

    def letters(text: str) -> str:
        return re.sub(r"[\W_]+", "", normalise(text, NORMALISATIONS["search"]))

    def bare(text: str) -> str:
        """Letters alone, without an added line: a comparison that shares nothing with the fingerprints' hashes."""
        found = letters(text)
        return next((found.removesuffix(line) for line in lines if found.endswith(line)), found)

    def texts(corpus: Artifact, split: str) -> list[str]:
        return [text for batch in batches(corpus, split) for text in batch.column("text").to_pylist()]

    def leak(parent: dict[str, Any], child: dict[str, Any]) -> Leak:
        before = prepared(plain.model_copy(update=parent))
        *_, seen = read_by(before, None, executor)
        # fingerprints of a shorter text cannot be found in a longer one
        read = {bare(text) for text in texts(before, "train") if len(text.split()) >= SHORT}
        corpus = plain.model_copy(update={"validation": 0.0, **child})  # which would be empty, and an error
        open_, kept = texts(prepared(corpus), "test"), texts(prepared(corpus, seen), "test")
        shares = [float(np.mean([bare(text) in read for text in some])) for some in (open_, kept)]
        known = Fingerprints.load(seen.path)
        copied = contamination(open_, known).worst.copied, contamination(kept, known).worst.copied
        return Leak(shares[0], len(kept), shares[1], copied, sound.recipe.gate.max_copied)

    def republished(line: str) -> Leak:
        path = written(work / "republished.jsonl", (f"{text}\n{line}" for text in sound.texts(*SPLITS)))
        source = plain.sources[0].model_copy(update={"path": str(path), "text": "text"})
        return leak({}, {"sources": (source,)})

    lines = [letters(line) for line in ADDED]
    return {
        "a parent from another recipe (test = 0.01)": lambda: leak({"test": 0.01, "validation": 0.0}, {}),
        "every text republished with an added line of 7 words": lambda: republished(ADDED[0]),
        "every text republished with an added line of 14 words": lambda: republished(ADDED[1]),
        "test share 0.15 -> 0.5": lambda: leak({"test": 0.15}, {"test": 0.5}),
        "normalisation `search`": lambda: leak({}, {"normalisation": "search"}),
    }


def retrained(sound: Sound, seeds: int) -> int:
    """Other seeds; -> how many the gate refused. Prints a table."""
    refused, reports = 0, [sound.report]
    print("| other seed | change | repeated 4-grams | copied documents | refused by |", "|---" * 5 + "|", sep="\n")
    for seed in range(sound.recipe.seed + 1, sound.recipe.seed + 1 + seeds):
        honest, verdict = sound.again(seed=seed)
        outcome, report = Outcome.of(verdict), honest.report
        reports.append(report)
        refused += not outcome.passed
        assert outcome.change
        assert report.contamination
        print(
            f"| {seed} | {outcome.change.low:+.2%} to {outcome.change.high:+.2%} "
            f"| {report.generation.repeated_4grams:.4f} | {report.contamination.worst.copied:.4f} "
            f"| {', '.join(outcome.refused_by)} |", flush=True,
        )  # fmt: skip
    pairs = [(one, other) for one in reports for other in reports if one is not other]
    verdicts = [decide(other, sound.budgets, sound.recipe.gate, Champion(one)) for one, other in pairs]
    print(f"\nwith each of them as champion, {sum(not v.passed for v in verdicts)} of {len(pairs)} are refused")
    return refused


def nights(recipe: Recipe, texts: Sequence[str], work: Path, count: int) -> int:
    """A corpus that grows by 1% a night, trained on from the champion; -> how many nights the gate refused."""
    store, corpus = Store(work / "nights"), work / "nights.jsonl"
    order = np.random.default_rng(5).permutation(len(texts))
    first = int(len(texts) / 1.01**count)
    source = Source(path=str(corpus), name="growing")
    recipe = recipe.model_copy(
        update={"name": "nights", "corpus": recipe.corpus.model_copy(update={"sources": (source,)})}
    )
    settings = {"start": "champion", "steps": max(1, recipe.train.steps // 10),
                "learning_rate": recipe.train.learning_rate / 3}  # fmt: skip
    nightly = recipe.model_copy(update={"train": recipe.train.model_copy(update=settings)})
    reasons: Counter[str] = Counter()
    refused, moved = 0, 0.0
    print("| night | documents | change | refused by |", "|---" * 4 + "|", sep="\n")
    for night in range(count + 1):
        written(corpus, (texts[place] for place in order[: int(first * 1.01**night)]))
        published = build(nightly if night else recipe, store)
        facts = next(one for one in published.artifacts if one.stage == "prepare").facts(CorpusFacts)
        moved = max(moved, facts.seen_by_ancestor / facts.kept)
        outcome = Outcome.of(published.verdict)
        refused += not outcome.passed
        reasons.update(outcome.refused_by)
        change = f"{outcome.change.low:+.2%} to {outcome.change.high:+.2%}" if outcome.change else "from scratch"
        print(f"| {night} | {facts.kept} | {change} | {', '.join(outcome.refused_by)} |", flush=True)
    print(f"\nat most {moved:.2%} of documents were not held out because an ancestor had read them; refused by: "
          f"{dict(reasons) or 'nothing'}")  # fmt: skip
    return refused


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=10, help="retrainings without a fault")
    parser.add_argument("--nights", type=int, default=30, help="warm starts without a fault")
    parser.add_argument("--repetitions", type=int, default=4000, help="of each simulated interval")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = parser.parse_args()
    demo = Path(__file__).parent.parent / "deployments" / "recipes" / "demo.toml"
    settings = [
        f"train.steps={arguments.steps}", "tokenizer.vocab_size=2048", "model.dim=64", "model.num_heads=2",
        "model.max_seq_len=64", "train.batch_size=16", "train.learning_rate=0.003", "train.warmup=0.1",
        "train.threads=1",
    ]  # fmt: skip
    torch.set_num_threads(1)  # threads that wait for one another take many times as long on a busy machine
    recipe = Recipe.load(demo, [*settings, "gate.beat_unigram=0"])
    failed = []
    with tempfile.TemporaryDirectory() as root:
        sound = Sound.build(recipe, Store(Path(root) / "store"))
        since = time.perf_counter()
        verdict = sound.decide(*sound.measure(sound.package.path / PACKAGE))
        seconds = time.perf_counter() - since
        print(f"champion: {sound.report.bits_per_byte.model:.4f} bits per byte; evaluate and gate: {seconds:.1f} s")
        failed += [f"evaluate and gate took {seconds:.0f} s"] if seconds > TARGET_SECONDS else []
        work = Path(root) / "faults"
        work.mkdir()
        print("\n| planted fault | change against the champion | refused by |", "|---" * 3 + "|", sep="\n")
        for name, plant in {"none: the champion itself": lambda: Outcome.of(verdict), **faults(sound, work)}.items():
            outcome = plant()
            print(row(name, outcome), flush=True)
            failed += [name] if missed(name, outcome) else []
        print(f"\n{LEAK_HEAD}", "|---" * 7 + "|", sep="\n")
        for name, prepare in leaks(sound, work).items():
            found = prepare()
            print(found.row(name), flush=True)
            failed += [] if found.caught_by else [name]
        print("\nSimulation\n", flush=True)
        if bench_statistics.main(["--check", "--repetitions", str(arguments.repetitions)]):
            failed.append("bench_statistics")
        print()
        if (refused := retrained(sound, arguments.seeds)) > 1:
            failed.append(f"{refused} retrainings without a fault")
        print()
        if (refused := nights(recipe, sound.texts(*SPLITS), work, arguments.nights)) > 1:
            failed.append(f"{refused} nights without a fault")
    print(f"\ntargets missed: {', '.join(failed) or 'none'}")
    return int(arguments.check and bool(failed))


if __name__ == "__main__":
    sys.exit(main())
