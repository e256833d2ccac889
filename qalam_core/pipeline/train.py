"""Stage 6: token shards, and what an earlier run has left -> model.safetensors; trained by a separate process."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qalam_core.corpus.filters import weights_by_slice
from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.corpus.prepare import COPIES
from qalam_core.corpus.splits import read_texts
from qalam_core.errors import TrainingError
from qalam_core.files import json_object, sha256_file
from qalam_core.package.read import Package, read
from qalam_core.package.runtime.architecture import ModelConfig
from qalam_core.package.runtime.tokenizer import Vocabulary
from qalam_core.pipeline.lineage import WarmStart
from qalam_core.pipeline.prepare import shards_of
from qalam_core.pipeline.stage import UNHASHED, Stage
from qalam_core.pipeline.tokenize import TOKENS, of_split
from qalam_core.pipeline.vocab import TOKENIZER, VocabFacts
from qalam_core.progress import Progress
from qalam_core.recipe import Continuing, Monitoring, Optimisation, Recipe
from qalam_core.runs import TrainFacts
from qalam_core.store import ELSEWHERE, Artifact, ArtifactFile
from qalam_core.tokens.tokenizer import ArabicTokenizer
from qalam_core.training.continuing import schedule, write_reading
from qalam_core.training.process import follow
from qalam_core.training.spec import CHECKPOINTS, METRICS, RESULT, STATE, WEIGHTS, Spec, TrainSettings, model_config
from qalam_core.training.warm_start import adapted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Train(Stage):
    """Trains the model; resumes from the checkpoints of a killed build. Raises TrainingError."""

    name = "train"
    version = 5
    unit = "steps"
    resumable = (CHECKPOINTS, METRICS)

    settings: TrainSettings
    tokenizer: Artifact
    tokens: tuple[Artifact, ...]  # of training, then of validation
    warm_start: WarmStart | None
    texts: tuple[ArtifactFile, ...]  # that the tokens of training came from, where it continues: some are new
    copies: ArtifactFile | None  # how many documents each stands for, where that weighs
    # logging, validation and saving do not change the weights
    monitoring: Monitoring = field(compare=False, metadata=UNHASHED)
    corpus: str = field(default="", compare=False, metadata=UNHASHED)  # digest of what the tokens came from

    @classmethod
    def of(
        cls, recipe: Recipe, tokenizer: Artifact, tokens: Sequence[Artifact], start: WarmStart | None = None,
        corpus: Artifact | None = None,
    ) -> Train:  # fmt: skip
        """The stage for these tokens, which begins with `start` or with random weights.

        `corpus` is where the tokens came from; it is needed where `start` has a state, or copies weigh, and to train on
        another machine.
        """
        continues = start is not None and start.state is not None
        settings = _settings(recipe, tokenizer.facts(VocabFacts).entries, continues)
        copies = corpus.file(COPIES) if corpus and settings.optimisation.copies != "once" else None
        shards = (*of_split(tokens, "train"), *of_split(tokens, "validation"))
        texts = shards_of(corpus, "train") if continues and corpus else ()
        monitoring = recipe.train.narrowed(Monitoring)
        return cls(settings, tokenizer, shards, start, texts, copies, monitoring, corpus.digest if corpus else "")

    def run(self, out: Path, progress: Progress) -> TrainFacts:
        """Write model.safetensors, state.safetensors and metrics.jsonl."""
        result = out / RESULT
        if not result.exists():  # it exists when a build was killed between training and the end of this stage
            initial, reading, elsewhere = out / "initial.safetensors", out / "initial.arrow", out / ELSEWHERE
            if (elsewhere / METRICS).exists() and not (out / METRICS).exists():
                (elsewhere / METRICS).rename(out / METRICS)
            settings, tokens = self.settings, self._paths("train")
            if self.warm_start and self.warm_start.state:
                if not (size := self._write_reading(reading)):
                    return self._unchanged(out)
                optimisation = schedule(settings.optimisation, self._continuing, size, settings.model.max_seq_len)
                settings, tokens = settings.model_copy(update={"optimisation": optimisation}), (str(reading),)
            if self.warm_start:
                self._write_initial(initial)
            spec = Spec(
                settings=settings, monitoring=self.monitoring, out=str(out), tokens=tokens,
                validation=self._paths("validation"), initial=str(initial) if self.warm_start else "",
                copies=str(self.copies.path) if self.copies else "",
                elsewhere=str(elsewhere) if elsewhere.exists() else "",
            )  # fmt: skip
            spec.save(out / "spec.json")
            follow(out / "spec.json", settings.optimisation.steps, progress)
        shutil.rmtree(out / ELSEWHERE, ignore_errors=True)
        for pattern in ("spec.json", "initial*", CHECKPOINTS, ".*"):
            for leftover in out.glob(pattern):
                leftover.unlink()
        facts = json_object(result.read_bytes())
        return TrainFacts(**facts, warm_start=self.warm_start.parent if self.warm_start else None)

    def _paths(self, split: str) -> tuple[str, ...]:
        return tuple(str(artifact.path / TOKENS) for artifact in of_split(self.tokens, split))

    @property
    def _continuing(self) -> Continuing:
        assert self.settings.continuing
        return self.settings.continuing

    def _write_reading(self, path: Path) -> int:
        """The tokens that a continued training reads, as a shard; -> how many, 0 where no document is new."""
        assert self.warm_start
        seen = Fingerprints.load(self.warm_start.seen.path)
        new = [
            np.concatenate([np.zeros(0, np.bool_), *(seen.unread(batch) for batch in read_texts(shard.path))])
            for shard in self.texts
        ]
        if not any(documents.any() for documents in new):
            return 0
        batch = self.settings.optimisation.batch_size * self.settings.model.max_seq_len
        return write_reading(
            path, [Path(shard) for shard in self._paths("train")], new, self._continuing.replay,
            least=batch + 2 * self.settings.model.max_seq_len, vocab_size=self.settings.vocab_size,
            seed=(self.settings.seed, int(self.warm_start.digest[:16], 16)),
        )  # fmt: skip

    def _write_initial(self, path: Path) -> tuple[Package, Vocabulary, ModelConfig]:
        """Write what training begins with; -> the earlier package, and what it was adapted to."""
        from safetensors.numpy import load_file, save_file

        assert self.warm_start
        state = self.warm_start.state
        if state and not state.is_as_recorded():
            raise TrainingError(
                f"train.start: the state of run {self.warm_start.parent.run} was deleted or changed since; build its "
                'recipe again, or set train.start to "champion"'
            )
        log.info(
            "training %s run %s", "continues from" if state else "begins with the weights of",
            self.warm_start.parent.run,
        )  # fmt: skip
        package, vocabulary, config = self._before_and_now()
        tensors = load_file(state.path) if state else {f"model.{name}": t for name, t in package.weights.items()}
        save_file(adapted(package, vocabulary, config, tensors), path)
        return package, vocabulary, config

    def _unchanged(self, out: Path) -> TrainFacts:
        """The earlier model and its state, where there is nothing new to read."""
        from safetensors.numpy import load_file, save_file

        assert self.warm_start
        assert self.warm_start.state
        package, vocabulary, config = self._write_initial(out / STATE)
        weights = load_file(self.warm_start.state.artifact.path / WEIGHTS)
        save_file(adapted(package, vocabulary, config, weights), out / WEIGHTS)
        (out / METRICS).touch()
        log.info("no document is new since run %s, whose model is taken", self.warm_start.parent.run)
        facts = self.warm_start.state.artifact.facts(TrainFacts)
        none: dict[str, object] = {
            "sources": {}, "steps": 0, "tokens_seen": 0, "epochs": 0.0, "best_step": None, "validation_loss": None,
        }  # fmt: skip
        return facts.model_copy(update={**none, "warm_start": self.warm_start.parent})

    def _before_and_now(self) -> tuple[Package, Vocabulary, ModelConfig]:
        """The package of the earlier run, and the vocabulary and configuration of this one."""
        assert self.warm_start
        package = read(self.warm_start.path, strict=True)
        if sha256_file(package.path / "manifest.json") != self.warm_start.parent.package:
            raise TrainingError(
                f"train.start: the package of run {self.warm_start.parent.run} was sealed again since its weights "
                "were used; restore it, or name another run"
            )
        vocabulary = ArabicTokenizer.from_file(self.tokenizer.path / TOKENIZER).vocabulary
        return package, vocabulary, model_config(self.settings.model, len(vocabulary.words))


def _settings(recipe: Recipe, vocab_size: int, continues: bool) -> TrainSettings:
    return TrainSettings(
        seed=recipe.seed,
        model=recipe.model,
        vocab_size=vocab_size,
        optimisation=recipe.train.narrowed(Optimisation),
        validate_every=recipe.train.validate_every if recipe.train.patience else None,
        continuing=recipe.train.narrowed(Continuing) if continues else None,
        weights={name: weight for name, weight in weights_by_slice(recipe.corpus).items() if weight != 1},
    )
