"""Stage 7: the package on the held-out split -> report.json (reproducible) and budgets.json (sizes and times)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.corpus.splits import read_texts
from qalam_core.evaluation.results import Budgets, Report
from qalam_core.pipeline.export import PACKAGE
from qalam_core.pipeline.prepare import shards_of
from qalam_core.pipeline.stage import Stage
from qalam_core.pipeline.tokenize import TOKENS, of_split
from qalam_core.progress import Progress
from qalam_core.recipe import Frozen, Recipe
from qalam_core.store import Artifact, ArtifactFile
from qalam_core.tokens.shards import flat
from qalam_core.training.spec import WEIGHTS


class EvaluateSettings(Frozen):
    """Everything that a report depends on, besides the package, its checkpoint and the texts."""

    seed: int
    prompts: tuple[str, ...]
    confidence: float  # of intervals
    storage: str  # the recipe's storage type of matrices


@dataclass(frozen=True)
class Evaluate(Stage):
    """Measures the package."""

    name = "evaluate"
    version = 3
    unit = "tokens"

    settings: EvaluateSettings
    package: Artifact
    checkpoint: Artifact
    test: tuple[ArtifactFile, ...]  # shards
    train: tuple[ArtifactFile, ...]  # shards
    tokens: tuple[Artifact, ...]  # of training
    seen: Artifact  # what the model and its ancestors have read

    @classmethod
    def of(
        cls, recipe: Recipe, package: Artifact, checkpoint: Artifact, corpus: Artifact, tokens: Sequence[Artifact],
        seen: Artifact,
    ) -> Evaluate:  # fmt: skip
        """The stage for an exported package, and the corpus that `tokens` came from."""
        settings = EvaluateSettings(
            seed=recipe.seed, prompts=recipe.gate.prompts, confidence=recipe.gate.confidence,
            storage=recipe.package.dtype,
        )  # fmt: skip
        test, train = shards_of(corpus, "test"), shards_of(corpus, "train")
        return cls(settings, package, checkpoint, test, train, of_split(tokens, "train"), seen)

    def run(self, out: Path, progress: Progress) -> Frozen:
        """Write report.json and budgets.json."""
        from qalam_core.evaluation.evaluate import evaluate  # imports torch

        report, budgets = evaluate(
            self.package.path / PACKAGE, self.checkpoint.path / WEIGHTS,
            test=[
                pair for shard in self.test for batch in read_texts(shard.path)
                for pair in zip(batch.column("source").to_pylist(), batch.column("text").to_pylist(), strict=True)
            ],
            train_tokens=[flat(artifact.path / TOKENS) for artifact in self.tokens],
            train_texts=(batch.column("text") for shard in self.train for batch in read_texts(shard.path)),
            seen=Fingerprints.load(self.seen.path), progress=progress, **dict(self.settings),
        )  # fmt: skip
        for name, value in (("report.json", report), ("budgets.json", budgets)):
            (out / name).write_text(value.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return Frozen()  # the files have everything


def measured(evaluation: Artifact) -> tuple[Report, Budgets]:
    """What an evaluation stage wrote."""
    report = (evaluation.path / "report.json").read_bytes()
    budgets = (evaluation.path / "budgets.json").read_bytes()
    return Report.model_validate_json(report), Budgets.model_validate_json(budgets)
