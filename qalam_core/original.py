"""The original Al-Qalam's script interface: its model with `to_python_code`, its trainer and its command line.
A script works with only its import lines changed. A reproducible build is `qalam build`.

`python -m qalam_core.original --quick` trains, saves and loads a small model in seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qalam_core import model as models
from qalam_core.display import printable
from qalam_core.errors import CorpusError, PackageError, QalamError, TrainingError
from qalam_core.files import sha256_file
from qalam_core.package.inference import generate
from qalam_core.package.read import read
from qalam_core.package.runtime.architecture import END, START, ModelConfig
from qalam_core.package.write import write
from qalam_core.recipe import Monitoring, Optimisation
from qalam_core.tokens.shards import Batches, flattened, write_shard
from qalam_core.tokens.tokenizer import ArabicTokenizer, WordIndex
from qalam_core.training import checkpoints
from qalam_core.training.hardware import choose_device
from qalam_core.training.spec import CHECKPOINTS
from qalam_core.training.step import Training, weights_of

_QUIET_SECONDS = 30  # without a terminal, a line at least so often

_CARD = """# A model written by PureDynamicTransformer.to_python_code

Nothing is recorded of its data or its training.
"""


class PureDynamicTransformer(models.PureDynamicTransformer):
    """The model, with a method to write it as a package."""

    def to_python_code(self, save_dir: str | os.PathLike[str], word2idx: Mapping[str, int]) -> None:
        """Write the model as a package into `save_dir`, replacing an existing package.

        `word2idx` is `ArabicTokenizer.word2idx`; a plain dict is a word vocabulary with the standard normalisation.
        Where the text had fewer words than the model has rows, the rows without a word are left out: no text can use
        them. Raises PackageError when the folder holds anything but a package, or cannot be written.
        """
        if isinstance(word2idx, WordIndex):
            tokenizer = word2idx.tokenizer
        else:
            tokenizer = ArabicTokenizer.from_words(sorted(word2idx, key=word2idx.__getitem__))
        entries = len(tokenizer)
        if entries > self.vocab_size:
            raise PackageError(
                f"the vocabulary has {entries} entries, the model {self.vocab_size}; create the model with "
                f"vocab_size={entries}"
            )
        folder = Path(save_dir).resolve()
        if folder.exists() and not folder.is_dir():
            raise PackageError(f"{save_dir}: a file; name a folder")
        if folder.exists() and any(folder.iterdir()) and (reason := _loses(folder)):
            raise PackageError(f"{save_dir} {reason}; name another folder")
        partial, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
        config = ModelConfig(**{name: getattr(self, name) for name in ModelConfig.names()} | {"vocab_size": entries})
        weights = {name: tensor.numpy() for name, tensor in weights_of(self).items()}
        for name in weights.keys() & {"embedding.weight", "lm_head.weight"}:
            weights[name] = weights[name][:entries]
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            for left in (partial, old):  # of a script that was killed while it wrote
                shutil.rmtree(left, ignore_errors=True)
            write(partial, config=config, vocabulary=tokenizer.vocabulary, weights=weights, card=_CARD, provenance={})
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise PackageError(f"{save_dir}: cannot be written ({error.strerror}); name another folder") from None


def _loses(folder: Path) -> str:
    """Why a folder must not be replaced: it is no package, or holds more than one; else ""."""
    try:
        others = read(folder).unlisted
    except PackageError as error:
        return f"is not empty and not a package ({error})"
    if (folder / ".git").exists():
        others = (".git", *others)
    return f"holds {others[0]}, which is no file of the package there and would be deleted" if others else ""


class PureCodeTrainer:
    """Trains a model on a text file and writes packages: `step_N`, `epoch_N`, `final`.

    A training that was stopped leaves its checkpoints in `save_dir/unfinished`; the same script continues from there.
    """

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

        Shows a bar on a terminal, else prints a line every `log_every` steps. Ctrl-C is obeyed after the step that is
        running, with a checkpoint. Raises CorpusError and TrainingError.
        """
        numbers = {"epochs": epochs, "batch_size": batch_size, "seq_len": seq_len, "learning_rate": learning_rate}
        for name, value in {**numbers, "log_every": log_every, "save_every": save_every}.items():
            if not value > 0:
                raise TrainingError(f"{name} is {value}, and must be above 0")
        if seq_len > self.model.max_seq_len:
            raise TrainingError(f"seq_len {seq_len} is longer than the model's max_seq_len {self.model.max_seq_len}")
        unfinished = self.save_dir / "unfinished"
        try:
            unfinished.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(
                f"{self.save_dir}: not a folder to write into ({error.strerror}); name another"
            ) from None
        batches = self._batches(unfinished / "tokens.arrow", train_file, batch_size, seq_len, max_samples)
        steps = epochs * batches.per_epoch
        settings = Optimisation(steps=steps, batch_size=batch_size, learning_rate=learning_rate)
        training = Training(self.model, batches, settings, seed=0)
        conditions = self._conditions(training, seq_len, unfinished / "tokens.arrow")
        checkpoint = checkpoints.find(unfinished, conditions)
        done = checkpoint.done if checkpoint else 0
        self.model.train()
        with _progress(done, steps, log_every, batch_size * seq_len) as log, _held_back() as signals:
            log.say(f"{self.model.count_parameters():,} parameters, {batches.tokens:,} tokens, {steps:,} steps")
            if checkpoint:
                training.load(checkpoint.tensors(), checkpoint.notes)
                log.say(f"continues after step {done:,}")
            saved = time.monotonic()
            while done < steps:
                loss, _ = training.step(done)
                done += 1
                log.step(done, loss)
                names = [f"step_{done}"] if done % save_every == 0 else []
                names += [f"epoch_{done // batches.per_epoch}"] if done % batches.per_epoch == 0 else []
                due = done % Monitoring().checkpoint_every == 0
                if names or due or signals or time.monotonic() - saved > 60 * Monitoring().checkpoint_minutes:
                    if not training.is_finite():
                        raise TrainingError(f"the weights stopped being finite by step {done}; lower learning_rate")
                    checkpoints.write(unfinished, done, *training.state(), conditions)
                    saved = time.monotonic()
                for name in names:
                    self._save(name, log)
                if signals:
                    break
            if done == steps:
                self._save("final", log)
                _clear(unfinished)
            else:
                log.say(f"stopped after step {done:,} of {steps:,}; the same script continues from there")
        self.model.eval()
        if signals:
            signal.raise_signal(signals[0])  # whoever runs the script decides what it means

    def _batches(
        self, shard: Path, train_file: str | os.PathLike[str], batch_size: int, seq_len: int, max_samples: int | None
    ) -> Batches:
        lines = islice(lines_of(train_file), None if max_samples is None or max_samples < 0 else max_samples)
        encoded = (flattened(self.tokenizer.encode_batch(some)) for some in iter(lambda: list(islice(lines, 1000)), []))
        _, tokens = write_shard(shard, encoded, len(self.tokenizer), START, END)
        if tokens < 2 * seq_len:
            raise CorpusError(f"{train_file}: has {tokens} tokens, and seq_len {seq_len} needs {2 * seq_len}; add text")
        return Batches([shard], batch_size, seq_len, seed=0)

    def _conditions(self, training: Training, seq_len: int, shard: Path) -> dict[str, str]:
        """Everything that the weights depend on besides the initial ones, which a script draws anew at each start."""
        config = {name: getattr(self.model, name) for name in ModelConfig.names()}
        found = {
            "torch": torch.__version__, **config, "dropout": self.model.dropout, "seq_len": seq_len,
            **training.settings.canonical(), **asdict(training.numerics), "tokens": sha256_file(shard)[:12],
        }  # fmt: skip
        return {name: str(value) for name, value in found.items()}

    def _save(self, name: str, log: _Log) -> None:
        self.model.to_python_code(self.save_dir / name, self.tokenizer.word2idx)
        log.say(f"saved {self.save_dir / name}")


def _clear(unfinished: Path) -> None:
    """Delete what a training has left in a folder, and the folder unless somebody else has files there."""
    for pattern in (CHECKPOINTS, ".checkpoint-*", "*tokens.arrow*"):
        for path in unfinished.glob(pattern):
            path.unlink()
    with suppress(OSError):
        unfinished.rmdir()


class _Log:
    """What a training shows: a bar on a terminal; elsewhere a line every `every` steps, and after half a minute."""

    def __init__(self, bar: Progress, done: int, steps: int, every: int, tokens: int) -> None:
        self._bar, self._steps, self._every, self._tokens = bar, steps, every, tokens
        self._task = bar.add_task("", total=steps, completed=done, figures="")
        self._shown, self._since = done, time.monotonic()

    def say(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        self._bar.console.print(printable(line), soft_wrap=True)

    def step(self, done: int, loss: torch.Tensor) -> None:
        """Show that `done` steps are done; `loss` is in nats a token."""
        self._bar.update(self._task, completed=done)
        seconds = time.monotonic() - self._since
        if done % self._every and done < self._steps and seconds < _QUIET_SECONDS:
            return
        figures = f"loss {loss.item():.4f}  {(done - self._shown) * self._tokens / max(seconds, 1e-9):,.0f} tokens/s"
        self._bar.update(self._task, figures=figures)
        if self._bar.disable or done == self._steps:
            self.say(f"step {done:,}/{self._steps:,}  {figures}")
        self._shown, self._since = done, time.monotonic()


@contextmanager
def _progress(done: int, steps: int, every: int, tokens: int) -> Iterator[_Log]:
    console = Console(highlight=False, markup=False, emoji=False)
    columns = (BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield _Log(bar, done, steps, every, tokens)


@contextmanager
def _held_back() -> Iterator[list[signal.Signals]]:
    """Collect Ctrl-C and SIGTERM, which would stop a step half-way; a second one is obeyed at once.

    Only the main thread may set handlers, and what is ignored stays ignored.
    """
    caught: list[signal.Signals] = []
    handlers: dict[signal.Signals, Any] = {}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        caught.append(signal.Signals(number))
        restore()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                handlers[number] = signal.signal(number, note)
    try:
        yield caught
    finally:
        restore()


def lines_of(path: str | os.PathLike[str]) -> Iterator[str]:
    """The lines of a UTF-8 text file, stripped, without blank ones."""
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            for line in file:
                if stripped := line.strip():
                    yield stripped
    except FileNotFoundError:
        raise CorpusError(f"{path}: no such file; name a text file") from None
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}); name a text file") from None
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: not UTF-8 ({error.reason}); convert it first") from None


def main(arguments: Sequence[str] | None = None) -> None:
    """The original's command line: tokenizer, training, and a text by the package that was saved.

    Exit status 2 with one line for what the user can correct, 130 after Ctrl-C.
    """
    with tempfile.TemporaryDirectory(prefix="qalam-") as temporary:
        try:
            _run(_options(arguments, Path(temporary)))
        except QalamError as error:
            sys.exit(_fail(error))
        except KeyboardInterrupt:
            sys.exit(130)


def _fail(error: QalamError) -> int:
    print(f"error: {printable(str(error))}", file=sys.stderr)
    return 2


def _options(arguments: Sequence[str] | None, temporary: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser("qalam_core.original", description="Train a model and save it as Python code.")
    parser.add_argument(
        "--quick", action="store_true", help="a small model of built-in sentences, for a test in seconds"
    )
    parser.add_argument(
        "--data", default="training/linguistic/linguistic_corpus.txt", help="UTF-8 text, a document a line"
    )
    parser.add_argument("--save-dir", default="trained_model")
    parser.add_argument("--max-samples", type=int, help="lines to read; default: all")
    numbers = {"epochs": 3, "batch-size": 32, "dim": 256, "heads": 8, "layers": 6, "vocab-size": 32000}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.set_defaults(seq_len=128, learning_rate=3e-4)
    if parser.parse_args(arguments).quick:
        data = temporary / "sentences.txt"
        data.write_text("\n".join(12 * [" ".join(words) for words in product(*_SENTENCES)]), encoding="utf-8")
        small = {"dim": 32, "heads": 2, "layers": 1, "vocab_size": 100, "seq_len": 16, "learning_rate": 3e-3}
        parser.set_defaults(data=data, save_dir=temporary, **small)
    return parser.parse_args(arguments)


_SENTENCES = (
    ("القط", "الولد", "المعلم", "الطبيب", "الفلاح", "التاجر"),
    ("يرى", "يحب", "يفتح", "يحمل"),
    ("الكتاب", "الباب", "القلم", "الخبز"),
    ("في البيت", "في السوق", "قرب النهر"),
)


def _run(options: argparse.Namespace) -> None:
    folder = Path(options.save_dir)
    for name in ("epochs", "batch_size", "dim", "heads", "layers", "vocab_size"):
        if getattr(options, name) < 1:
            raise TrainingError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least 1")
    if options.dim % options.heads:
        raise TrainingError(f"--heads {options.heads} does not divide --dim {options.dim}")
    tokenizer = ArabicTokenizer(vocab_size=options.vocab_size)
    tokenizer.build_vocab(lines_of(options.data), min_freq=3)
    tokenizer.save(folder / "tokenizer.json")
    model = PureDynamicTransformer(len(tokenizer), options.dim, options.heads, options.layers)
    PureCodeTrainer(model, tokenizer, folder).train(
        options.data, options.epochs, options.batch_size, options.seq_len, options.learning_rate,
        max_samples=options.max_samples,
    )  # fmt: skip
    print(printable(generate(read(folder / "final"), "القط", 20), lines=True))


if __name__ == "__main__":
    main()
