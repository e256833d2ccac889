"""The original Al-Qalam's guide is a contract: its steps, its script and its commands work with only the import lines
changed, in a folder that holds nothing but text."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qalam_core import ArabicTokenizer, PureCodeTrainer, PureDynamicTransformer
from qalam_core import package as packages
from qalam_core.errors import CorpusError, PackageError, TrainingError
from qalam_core.original import main
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.training.step import Training
from tests.conftest import sentences

STEPS = """
from qalam_core import PureDynamicTransformer

model = PureDynamicTransformer(
    vocab_size=32000,
    dim=256,
    num_heads=8,
    num_layers=6,
    max_seq_len=256
)

print(f"Parameters: {model.count_parameters():,}")

from qalam_core import PureCodeTrainer
from qalam_core import ArabicTokenizer

def line_iterator(path):
    with open(path, encoding='utf-8') as f:
        yield from f

tokenizer = ArabicTokenizer(vocab_size=32000)
tokenizer.build_vocab(line_iterator("data.txt"), min_freq=3)

trainer = PureCodeTrainer(model, tokenizer, save_dir="output")
trainer.train(
    train_file="data.txt",
    epochs=3,
    batch_size=32,
    seq_len=128,
    learning_rate=3e-4
)

model.to_python_code("output_model", tokenizer.word2idx)

from output_model import load_model

model, word2idx, idx2word = load_model()

import torch

prompt = "القط"
ids = [word2idx.get(w, 1) for w in tokenizer.tokenize(prompt)]
generated = model.generate(torch.tensor([ids]), max_new_tokens=20)
output = " ".join([idx2word[i] for i in generated[0].tolist()])
print(output)
"""

SCRIPT = """
import sys
sys.path.insert(0, ".")

from qalam_core import PureDynamicTransformer
from qalam_core import ArabicTokenizer
from qalam_core import PureCodeTrainer

DATA = "training/linguistic/linguistic_corpus.txt"
SAVE_DIR = "trained_model"
VOCAB_SIZE = 32000
DIM = 256
HEADS = 8
LAYERS = 6

print("Building tokenizer...")
tokenizer = ArabicTokenizer(vocab_size=VOCAB_SIZE)

def lines(path, max_lines=500000):
    with open(path, 'r', encoding='utf-8') as f:
        for i, line in enumerate(f):
            if i >= max_lines: break
            yield line.strip()

tokenizer.build_vocab(lines(DATA), min_freq=3)
tokenizer.save(f"{SAVE_DIR}/tokenizer.json")

print("Creating model...")
model = PureDynamicTransformer(
    vocab_size=len(tokenizer.word2idx),
    dim=DIM,
    num_heads=HEADS,
    num_layers=LAYERS
)
print(f"Parameters: {model.count_parameters():,}")

trainer = PureCodeTrainer(model, tokenizer, save_dir=SAVE_DIR)
trainer.train(
    train_file=DATA,
    epochs=3,
    batch_size=32,
    seq_len=128,
    learning_rate=3e-4,
    log_every=100,
    save_every=1000
)

print("Done! Model saved as Python code.")
"""

CORPUS = "training/linguistic/linguistic_corpus.txt"


def run(folder: Path, *arguments: str) -> list[str]:
    """The lines that `python ARGUMENTS` prints, run in `folder`, where nothing but text is at first."""
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("data.txt", CORPUS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("\n".join(sentences(60)) + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.usefixtures("processes")
def test_the_steps_of_the_guide(folder: Path) -> None:
    """Also with a text of fewer words than the model has rows."""
    (folder / "steps.py").write_text(STEPS, encoding="utf-8")
    first, *log, text = run(folder, "steps.py")
    assert first.startswith("Parameters: ")
    assert any("loss" in line for line in log)
    assert text.startswith("القط ")
    final, exported = (packages.read(folder / name) for name in ("output/final", "output_model"))
    assert all((final.weights[name] == exported.weights[name]).all() for name in final.weights)
    for name in ("config", "vocab", "weights", "loader"):
        assert "qalam_core" not in (folder / "output_model" / f"{name}.py").read_text(encoding="utf-8")


@pytest.mark.usefixtures("processes")
def test_the_whole_script_of_the_guide(folder: Path) -> None:
    (folder / "train_full_pure.py").write_text(SCRIPT, encoding="utf-8")
    assert run(folder, "train_full_pure.py")[-1] == "Done! Model saved as Python code."
    saved = {path.name for path in (folder / "trained_model").iterdir()}
    assert saved == {"epoch_1", "epoch_2", "epoch_3", "final", "tokenizer.json"}
    assert packages.verify(folder / "trained_model" / "final") == []


@pytest.mark.usefixtures("processes")
def test_the_quick_command_leaves_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, "-m", "qalam_core.original", "--quick")[-1].startswith("القط")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("processes")
def test_the_command_of_the_guide(folder: Path) -> None:
    code = "\nfrom qalam_core.original import main\nmain()\n"
    assert run(folder, "-c", code, "--data", CORPUS, "--epochs", "3")[-1].startswith("القط")
    assert packages.read(folder / "trained_model" / "final").config.num_layers == 6


def small(words: int) -> PureDynamicTransformer:
    torch.manual_seed(0)
    return PureDynamicTransformer(vocab_size=words, dim=16, num_heads=2, num_layers=1, max_seq_len=16)


def test_a_plain_dict_is_a_word_vocabulary(tmp_path: Path) -> None:
    words = {"<PAD>": 0, "<UNK>": 1, "<START>": 2, "<END>": 3, "قط": 4, "كلب": 5}
    small(6).to_python_code(tmp_path / "model", words)
    found = packages.read(tmp_path / "model")
    assert found.vocabulary.words == tuple(words)
    assert found.vocabulary.algorithm == "word"


def test_a_bpe_index_remembers_its_tokenizer(tmp_path: Path) -> None:
    tokenizer = ArabicTokenizer(300, "bpe")
    tokenizer.build_vocab(sentences(100))
    small(300).to_python_code(tmp_path / "model", tokenizer.word2idx)
    assert packages.read(tmp_path / "model").vocabulary.merges == tokenizer.vocabulary.merges


def test_an_export_replaces_only_a_package(tmp_path: Path) -> None:
    words = {"<PAD>": 0, "<UNK>": 1, "<START>": 2, "<END>": 3, "قط": 4, "كلب": 5}
    folder = tmp_path / "model"
    small(6).to_python_code(folder, words)
    small(6).to_python_code(folder, words)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    with pytest.raises(PackageError, match="not a package"):
        small(6).to_python_code(tmp_path / "thesis", words)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "mine"
    (tmp_path / "thesis" / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(PackageError, match="not a package"):
        small(6).to_python_code(tmp_path / "thesis", words)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "mine"
    (tmp_path / "file").touch()
    for place, message in (("file", "file; name a folder"), ("file/model", "cannot be written")):
        with pytest.raises(PackageError, match=message):
            small(6).to_python_code(tmp_path / place, words)


@pytest.mark.parametrize("own", [".git/config", "notes/chapter.txt", "notes.txt", "results.py"])
def test_an_export_deletes_nothing_that_is_no_file_of_the_package(tmp_path: Path, own: str) -> None:
    words = {"<PAD>": 0, "<UNK>": 1, "<START>": 2, "<END>": 3, "قط": 4, "كلب": 5}
    folder = tmp_path / "model"
    small(6).to_python_code(folder, words)
    (folder / own).parent.mkdir(exist_ok=True)
    (folder / own).write_text("mine")
    with pytest.raises(PackageError, match=f"{own.partition('/')[0]}.*; name another folder$"):
        small(6).to_python_code(folder, words)
    assert (folder / own).read_text() == "mine"


def test_rows_without_a_word_are_left_out(tmp_path: Path) -> None:
    """A text may have fewer words than were asked for; the model says the same over those it has."""
    words = {"<PAD>": 0, "<UNK>": 1, "<START>": 2, "<END>": 3, "قط": 4, "كلب": 5}
    for tied in (True, False):
        torch.manual_seed(0)
        model = PureDynamicTransformer(9, dim=16, num_heads=2, num_layers=1, max_seq_len=16, tied=tied).eval()
        model.to_python_code(tmp_path / "a" / "b" / "model", words)
        found = packages.read(tmp_path / "a" / "b" / "model")
        ids = np.array([[2, 4, 5]])
        logits = model(torch.from_numpy(ids))[0][..., :6].detach().numpy()
        np.testing.assert_allclose(NumpyTransformer(found.config, found.weights)(ids)[0], logits, atol=1e-5)
    with pytest.raises(PackageError, match="6 entries, the model 5; create the model with vocab_size=6"):
        small(5).to_python_code(tmp_path / "other", words)


def test_the_end_of_a_training_deletes_only_its_own_files(tmp_path: Path) -> None:
    tokenizer = ArabicTokenizer(60)
    tokenizer.build_vocab(sentences(100))
    (tmp_path / "text.txt").write_text("\n".join(sentences(100)), encoding="utf-8")
    own = tmp_path / "out" / "unfinished" / "chapter.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    trainer = PureCodeTrainer(small(len(tokenizer)), tokenizer, save_dir=tmp_path / "out")
    trainer.train(tmp_path / "text.txt", epochs=1, batch_size=8, seq_len=16)
    assert list(own.parent.iterdir()) == [own]
    assert own.read_text() == "mine"


def test_user_errors_are_one_line(tmp_path: Path) -> None:
    tokenizer = ArabicTokenizer(60)
    tokenizer.build_vocab(sentences(100))
    trainer = PureCodeTrainer(small(len(tokenizer)), tokenizer, save_dir=tmp_path / "out")
    with pytest.raises(TrainingError, match="max_seq_len 16"):
        trainer.train(tmp_path / "none.txt", seq_len=17)
    with pytest.raises(CorpusError, match="no such file"):
        trainer.train(tmp_path / "none.txt", seq_len=16)
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CorpusError, match="not UTF-8"):
        trainer.train(tmp_path / "bad.txt", seq_len=16)
    with pytest.raises(CorpusError, match="cannot be read"):
        trainer.train(tmp_path, seq_len=16)
    (tmp_path / "short.txt").write_text("قط", encoding="utf-8")
    with pytest.raises(CorpusError, match="has 3 tokens, and seq_len 16 needs 32"):
        trainer.train(tmp_path / "short.txt", seq_len=16)
    zeros: dict[str, Any]
    for zeros in (
        {name: 0} for name in ("epochs", "batch_size", "seq_len", "learning_rate", "log_every", "save_every")
    ):
        with pytest.raises(TrainingError, match=f"{next(iter(zeros))} is 0"):
            trainer.train(tmp_path / "short.txt", **zeros)
    with pytest.raises(TrainingError, match="not a folder to write into"):
        PureCodeTrainer(small(6), tokenizer, tmp_path / "short.txt" / "out").train(tmp_path / "short.txt", seq_len=16)


@pytest.mark.parametrize("mistake", [
    ("--data", "none.txt"), ("--dim", "30"), ("--heads", "0"), ("--epochs", "-1"), ("--save-dir", "text.txt"),
])  # fmt: skip
def test_a_mistake_on_the_command_line_is_one_line(
    mistake: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n".join(sentences(60)), encoding="utf-8")
    with pytest.raises(SystemExit) as exit_:
        main(["--data", "text.txt", "--dim", "16", *mistake])
    assert exit_.value.code == 2
    assert re.fullmatch(r"error: .+\n", capsys.readouterr().err)


def trained(folder: Path, init: int, **options: Any) -> PureDynamicTransformer:
    tokenizer = ArabicTokenizer(60)
    tokenizer.build_vocab(sentences(100))
    (folder / "text.txt").write_text("\n".join(sentences(60)) + "\n", encoding="utf-8")
    torch.manual_seed(init)
    model = PureDynamicTransformer(len(tokenizer), dim=16, num_heads=2, num_layers=1, max_seq_len=16)
    PureCodeTrainer(model, tokenizer, folder / "out").train(folder / "text.txt", 2, 8, 8, **options)
    return model


@pytest.mark.parametrize(("how", "save_every"), [
    (KeyboardInterrupt, 1000), (SystemExit, 1000), (MemoryError, 3),
])  # fmt: skip
def test_a_stopped_training_continues_to_the_same_weights(
    how: type[BaseException], save_every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Ctrl-C and SIGTERM lose no step, a crash the steps since the last checkpoint; both at their worst moment."""
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = trained(tmp_path / "whole", 0, save_every=save_every)
    step, before = Training.step, signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    def stopping(self: Training, number: int) -> Any:
        if number == 4:
            if how is MemoryError:
                raise MemoryError
            signal.raise_signal(signal.SIGINT if how is KeyboardInterrupt else signal.SIGTERM)
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", stopping)
        with pytest.raises(how):
            trained(tmp_path / "stopped", 0, save_every=save_every)
    signal.signal(signal.SIGINT, interrupt)
    assert signal.signal(signal.SIGTERM, before) not in (before, None)  # the handlers are the program's own again
    assert not (tmp_path / "stopped" / "out" / "final").exists()
    capsys.readouterr()
    resumed = trained(tmp_path / "stopped", 1, save_every=save_every)
    assert f"continues after step {3 if how is MemoryError else 5}" in capsys.readouterr().out
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert not (tmp_path / "stopped" / "out" / "unfinished").exists()


def test_a_checkpoint_is_not_used_under_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(PureCodeTrainer, "_save", crash)
        with pytest.raises(MemoryError):
            trained(tmp_path, 0, save_every=1)
    with pytest.raises(TrainingError, match=r"learning_rate .*delete .*unfinished"):
        trained(tmp_path, 0, learning_rate=1e-3)


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path, 0, log_every=5)
    lines = capsys.readouterr().out
    assert re.search(r"^step 5/\d+  loss \d\.\d{4}  [\d,]+ tokens/s$", lines, re.MULTILINE)
    assert "\x1b" not in lines
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    trained(tmp_path, 0, log_every=5)
    drawn = capsys.readouterr().out
    assert "\x1b[" in drawn and "━" in drawn
    assert "step 5/" not in drawn


def test_max_samples_bounds_the_lines_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A negative number is no bound."""
    tokenizer = ArabicTokenizer(60)
    tokenizer.build_vocab(sentences(100))
    (tmp_path / "text.txt").write_text("\n".join(sentences(9)) + "\n", encoding="utf-8")

    def tokens(bound: int | None) -> int:
        trainer = PureCodeTrainer(small(len(tokenizer)), tokenizer, save_dir=tmp_path / "out")
        trainer.train(tmp_path / "text.txt", seq_len=4, epochs=1, batch_size=8, max_samples=bound)
        found = re.search(r"([\d,]+) tokens", capsys.readouterr().out)
        assert found
        return int(found[1].replace(",", ""))

    assert tokens(2) < tokens(5) < tokens(None) == tokens(-1)
