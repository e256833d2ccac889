"""The original Al-Qalam's script interface: its model with `to_python_code`, and its trainer.
A script works with only its import lines changed. A reproducible build is `qalam build`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from qalam_core import model as models
from qalam_core.errors import CorpusError, PackageError, TrainingError
from qalam_core.package.runtime.architecture import END, START, ModelConfig
from qalam_core.package.write import write
from qalam_core.recipe import Optimisation
from qalam_core.tokens.shards import Batches, flattened, write_shard
from qalam_core.tokens.tokenizer import ArabicTokenizer, WordIndex
from qalam_core.training.hardware import choose_device
from qalam_core.training.step import Training, weights_of

_CARD = """# A model written by PureDynamicTransformer.to_python_code

Nothing is recorded of its data or its training.
"""


class PureDynamicTransformer(models.PureDynamicTransformer):
    """The model, with a method to write it as a package."""

    def to_python_code(self, save_dir: str | os.PathLike[str], word2idx: Mapping[str, int]) -> None:
        """Write the model as a package into `save_dir`, replacing an existing package.

        `word2idx` is `ArabicTokenizer.word2idx`; a plain dict is a word vocabulary with the standard normalisation.
        Raises PackageError when the folder holds anything but a package.
        """
        if isinstance(word2idx, WordIndex):
            tokenizer = word2idx.tokenizer
        else:
            tokenizer = ArabicTokenizer.from_words(sorted(word2idx, key=word2idx.__getitem__))
        if len(tokenizer) != self.vocab_size:
            raise PackageError(f"the vocabulary has {len(tokenizer)} entries, the model {self.vocab_size}")
        folder = Path(save_dir)
        if folder.exists() and any(folder.iterdir()) and not (folder / "manifest.json").is_file():
            raise PackageError(f"{folder} is not empty and not a package; name another folder")
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        config = ModelConfig(**{name: getattr(self, name) for name in ModelConfig.names()})
        weights = {name: tensor.numpy() for name, tensor in weights_of(self).items()}
        write(partial, config=config, vocabulary=tokenizer.vocabulary, weights=weights, card=_CARD, provenance={})
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


class PureCodeTrainer:
    """Trains a model on a text file and writes packages: `step_N`, `epoch_N`, `final`."""

    def __init__(
        self, model: PureDynamicTransformer, tokenizer: ArabicTokenizer,
        save_dir: str | os.PathLike[str] = "trained_model", device: str | None = None,
    ) -> None:  # fmt: skip
        self.model = model.to(device or choose_device("auto"))
        self.tokenizer = tokenizer
        self.save_dir = Path(save_dir)
        self.device = model.device

    def train(
        self, train_file: str | os.PathLike[str], epochs: int = 3, batch_size: int = 32, seq_len: int = 128,
        learning_rate: float = 3e-4, log_every: int = 100, save_every: int = 1000, max_samples: int | None = None,
    ) -> None:  # fmt: skip
        """Train on a UTF-8 text file, one document per line; `max_samples` bounds the lines read.

        Raises CorpusError and TrainingError. Prints a line every `log_every` steps.
        """
        if seq_len > self.model.max_seq_len:
            raise TrainingError(f"seq_len {seq_len} is longer than the model's max_seq_len {self.model.max_seq_len}")
        self.save_dir.mkdir(parents=True, exist_ok=True)
        shard = self.save_dir / "tokens.arrow"
        lines = islice(lines_of(train_file), None if max_samples is None or max_samples < 0 else max_samples)
        encoded = (flattened(self.tokenizer.encode_batch(some)) for some in iter(lambda: list(islice(lines, 1000)), []))
        write_shard(shard, encoded, len(self.tokenizer), START, END)
        batches = Batches([shard], batch_size, seq_len, seed=0)
        steps = epochs * batches.per_epoch
        settings = Optimisation(steps=steps, batch_size=batch_size, learning_rate=learning_rate)
        print(f"{self.model.count_parameters():,} parameters, {batches.tokens:,} tokens, {settings.steps:,} steps")
        training = Training(self.model, batches, settings, seed=0)
        self.model.train()
        since = time.monotonic()
        for number in range(settings.steps):
            loss, _ = training.step(number)
            done = number + 1
            if done % log_every == 0:
                rate = log_every * batch_size * seq_len / (time.monotonic() - since)
                print(f"step {done:,}/{settings.steps:,}  loss {loss.item():.4f}  {rate:,.0f} tokens/s")
                since = time.monotonic()
            if done % save_every == 0:
                self._save(f"step_{done}")
            if done % batches.per_epoch == 0:
                self._save(f"epoch_{done // batches.per_epoch}")
        self._save("final")
        self.model.eval()

    def _save(self, name: str) -> None:
        self.model.to_python_code(self.save_dir / name, self.tokenizer.word2idx)
        print(f"saved {self.save_dir / name}")


def lines_of(path: str | os.PathLike[str]) -> Iterator[str]:
    """The lines of a UTF-8 text file, stripped, without blank ones."""
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            for line in file:
                if stripped := line.strip():
                    yield stripped
    except FileNotFoundError:
        raise CorpusError(f"{path}: no such file; train_file is a text file") from None
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: not UTF-8 ({error.reason}); convert it first") from None
