"""Stage 8: the package on the held-out split -> report.json (reproducible) and budgets.json (sizes and times)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qalam_core.arabic import NORMALISATIONS, Rules, normalise
from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.corpus.prepare import CorpusFacts
from qalam_core.corpus.spans import Span, spans
from qalam_core.corpus.splits import read_texts
from qalam_core.evaluation.model_tests.cases import Suite
from qalam_core.evaluation.results import Budgets, Copied, Repetition, Report, Sample
from qalam_core.evaluation.sampling import held_out_sample
from qalam_core.inputs import reads
from qalam_core.pipeline.export import PACKAGE
from qalam_core.pipeline.prepare import shards_of
from qalam_core.pipeline.stage import UNHASHED, Stage
from qalam_core.pipeline.tokenize import TOKENS, of_split
from qalam_core.progress import Progress
from qalam_core.recipe import Frozen, Recipe
from qalam_core.runs import SeenFacts
from qalam_core.store import Artifact, ArtifactFile
from qalam_core.tokens.shards import flat
from qalam_core.training.spec import WEIGHTS


class EvaluateSettings(Frozen):
    """Everything that a report depends on, besides the package, its checkpoint and the texts."""

    seed: int
    prompts: tuple[str, ...]
    confidence: float  # of intervals
    storage: str  # the recipe's storage type of matrices
    normalisation: Rules  # the corpus's
    tests: tuple[str, ...]  # their names
    sample_bytes: int | None  # of the test split; None: all of it is measured, whatever the limit


@dataclass(frozen=True)
class Evaluate(Stage):
    """Measures the package."""

    name = "evaluate"
    version = 6
    unit = "tokens"

    settings: EvaluateSettings
    package: Artifact
    checkpoint: Artifact | None = field(metadata=reads(WEIGHTS))  # None: the package was edited or imported
    test: tuple[ArtifactFile, ...]  # shards
    train: tuple[ArtifactFile, ...]  # shards
    tokens: tuple[Artifact, ...]  # of training
    seen: Artifact | None  # what the model and its ancestors have read; None where that is not recorded
    tests: tuple[Suite, ...] = ()
    device: str = field(default="auto", metadata=UNHASHED)

    @classmethod
    def of(
        cls, recipe: Recipe, package: Artifact, checkpoint: Artifact | None, corpus: Artifact,
        tokens: Sequence[Artifact], seen: Artifact | None, tests: tuple[Suite, ...],
    ) -> Evaluate:  # fmt: skip
        """The stage for an exported or proposed package, the corpus that `tokens` came from, and the recipe's tests."""
        limit = int(recipe.gate.test_mb * 1e6)
        settings = EvaluateSettings(
            seed=recipe.seed, prompts=recipe.gate.prompts, confidence=recipe.gate.confidence,
            storage=recipe.package.dtype, normalisation=NORMALISATIONS[recipe.corpus.normalisation],
            tests=tuple(suite.name for suite in tests),
            sample_bytes=limit if corpus.facts(CorpusFacts).splits["test"].bytes > limit else None,
        )  # fmt: skip
        test, train = shards_of(corpus, "test"), shards_of(corpus, "train")
        device = "cpu" if recipe.train.device == "cpu" else "auto"
        return cls(settings, package, checkpoint, test, train, of_split(tokens, "train"), seen, tests, device)

    def run(self, out: Path, progress: Progress) -> Frozen:
        """Write report.json and budgets.json."""
        from qalam_core.evaluation.evaluate import evaluate  # imports torch
        from qalam_core.training.hardware import choose_device

        settings = dict(self.settings)
        assert settings.pop("tests") == tuple(suite.name for suite in self.tests)
        test, counted = held_out_sample([shard.path for shard in self.test], settings.pop("sample_bytes"))
        report, budgets = evaluate(
            self.package.path / PACKAGE, self.checkpoint.path / WEIGHTS if self.checkpoint else None, test=test,
            split_documents=counted.of,
            train_tokens=[flat(artifact.path / TOKENS) for artifact in self.tokens],
            train_texts=(batch for shard in self.train for batch in read_texts(shard.path)),
            seen=Fingerprints.load(self.seen.path) if self.seen else None,
            repetition=self.seen.facts(SeenFacts).repetition if self.seen else Repetition(),
            suites=self.tests, device=choose_device(self.device), progress=progress, **settings,
        )  # fmt: skip
        report = report.model_copy(update={"samples": self._traced(report.samples)})
        for name, value in (("report.json", report), ("budgets.json", budgets)):
            (out / name).write_text(value.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return Frozen()  # the files have everything

    def _traced(self, samples: Sequence[Sample]) -> tuple[Sample, ...]:
        """The samples, with what they copy from the training text."""
        texts = [normalise(sample.text, self.settings.normalisation) for sample in samples]
        found = spans(texts, [shard.path for shard in self.train], shown=3)
        return tuple(
            sample.model_copy(update={"copied": tuple(_copied(text.split(), span) for span in of_sample)})
            for sample, text, of_sample in zip(samples, texts, found, strict=True)
        )


def _copied(words: Sequence[str], span: Span) -> Copied:
    part = words[span.start_word : span.end_word]
    documents = tuple(f"{hit.source} {hit.id}" for hit in span.documents)
    return Copied(text=" ".join(part), words=len(part), documents=documents, count=span.count)


def measured(evaluation: Artifact) -> tuple[Report, Budgets]:
    """What an evaluation stage wrote."""
    report = (evaluation.path / "report.json").read_bytes()
    budgets = (evaluation.path / "budgets.json").read_bytes()
    return Report.model_validate_json(report), Budgets.model_validate_json(budgets)
