"""Stage 5: token shards, and for a warm start a package -> model.safetensors; trained by a separate process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qalam_core.errors import TrainingError
from qalam_core.files import json_object, sha256_file
from qalam_core.package.read import read
from qalam_core.package.runtime.architecture import ModelConfig
from qalam_core.pipeline.lineage import WarmStart
from qalam_core.pipeline.stage import UNHASHED, Stage
from qalam_core.pipeline.tokenize import TOKENS, of_split
from qalam_core.pipeline.vocab import TOKENIZER, VocabFacts
from qalam_core.progress import Progress
from qalam_core.recipe import Model, Monitoring, Optimisation, Recipe
from qalam_core.runs import TrainFacts
from qalam_core.store import Artifact
from qalam_core.tokens.tokenizer import ArabicTokenizer
from qalam_core.training.process import follow
from qalam_core.training.spec import RESULT, Spec, TrainSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Train(Stage):
    """Trains the model; continues from the checkpoints of a killed build. Raises TrainingError."""

    name = "train"
    version = 3
    unit = "steps"
    resumable = True

    settings: TrainSettings
    tokenizer: Artifact
    tokens: tuple[Artifact, ...]  # of training, then of validation
    warm_start: WarmStart | None
    # logging, validation and saving do not change the weights
    monitoring: Monitoring = field(compare=False, metadata=UNHASHED)

    @classmethod
    def of(
        cls, recipe: Recipe, tokenizer: Artifact, tokens: Sequence[Artifact], start: WarmStart | None = None
    ) -> Train:
        """The stage for these tokens, with the weights of `start` or random ones."""
        settings = _settings(recipe, tokenizer.facts(VocabFacts).entries)
        shards = (*of_split(tokens, "train"), *of_split(tokens, "validation"))
        return cls(settings, tokenizer, shards, start, recipe.train.narrowed(Monitoring))

    def run(self, out: Path, progress: Progress) -> TrainFacts:
        """Write model.safetensors and metrics.jsonl."""
        result = out / RESULT
        if not result.exists():  # it exists when a build was killed between training and the end of this stage
            spec = Spec(
                settings=self.settings, monitoring=self.monitoring, out=str(out),
                tokens=self._paths("train"), validation=self._paths("validation"), initial=self._write_initial(out),
            )  # fmt: skip
            spec.save(out / "spec.json")
            follow(out / "spec.json", self.settings.optimisation.steps, progress)
        for pattern in ("spec.json", "initial*", "checkpoint-*", ".*"):
            for leftover in out.glob(pattern):
                leftover.unlink()
        facts = json_object(result.read_bytes())
        return TrainFacts(**facts, warm_start=self.warm_start.parent if self.warm_start else None)

    def _paths(self, split: str) -> tuple[str, ...]:
        return tuple(str(artifact.path / TOKENS) for artifact in of_split(self.tokens, split))

    def _write_initial(self, out: Path) -> str:
        """The initial weights, as a file in `out`; -> its path, "" for random ones."""
        if self.warm_start is None:
            return ""
        from safetensors.numpy import save_file

        from qalam_core.training.warm_start import initial_weights

        parent, path = self.warm_start.parent, out / "initial.safetensors"
        package = read(self.warm_start.path, strict=True)
        if sha256_file(package.path / "manifest.json") != parent.package:
            raise TrainingError(
                f"train.warm_start: the package of run {parent.run} was sealed again since its weights were used; "
                "restore it, or name another run"
            )
        log.info("the weights start from run %s", parent.run)
        vocabulary = ArabicTokenizer.from_file(self.tokenizer.path / TOKENIZER).vocabulary
        save_file(initial_weights(package, vocabulary, model_config(self.settings.model, len(vocabulary.words))), path)
        return str(path)


def model_config(model: Model, vocab_size: int) -> ModelConfig:
    """The configuration of a recipe's model; dropout is a setting of training alone."""
    return ModelConfig(vocab_size=vocab_size, **model.model_dump(exclude={"dropout"}))


def _settings(recipe: Recipe, vocab_size: int) -> TrainSettings:
    return TrainSettings(
        seed=recipe.seed,
        model=recipe.model,
        vocab_size=vocab_size,
        optimisation=recipe.train.narrowed(Optimisation),
        validate_every=recipe.train.validate_every if recipe.train.patience else None,
    )
