"""The original Al-Qalam's own script, with only its import lines changed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qalam_core import ArabicTokenizer, PureCodeTrainer, PureDynamicTransformer
from qalam_core import package as packages
from qalam_core.errors import CorpusError, PackageError, TrainingError
from tests.conftest import sentences

SCRIPT = """
import torch
from qalam_core import ArabicTokenizer
from qalam_core import PureCodeTrainer
from qalam_core import PureDynamicTransformer

tokenizer = ArabicTokenizer(vocab_size=2000)

def lines(path):
    with open(path, 'r', encoding='utf-8') as f:
        for line in f:
            yield line.strip()

tokenizer.build_vocab(lines("corpus.txt"), min_freq=3)
tokenizer.save("tokenizer.json")

model = PureDynamicTransformer(
    vocab_size=len(tokenizer.word2idx),
    dim=32,
    num_heads=2,
    num_layers=1,
    max_seq_len=32
)
print(f"Parameters: {model.count_parameters():,}")

trainer = PureCodeTrainer(model, tokenizer, save_dir="trained")
trainer.train(
    train_file="corpus.txt",
    epochs=3,
    batch_size=32,
    seq_len=16,
    learning_rate=3e-4,
    log_every=5,
    save_every=10
)
model.to_python_code("output_model", tokenizer.word2idx)

from output_model import load_model
model, word2idx, idx2word = load_model()
prompt = "يقرأ القط"
ids = [word2idx.get(w, 1) for w in tokenizer.tokenize(prompt)]
generated = model.generate(torch.tensor([ids]), max_new_tokens=20)
print(" ".join(idx2word[i] for i in generated[0].tolist()))
"""


@pytest.mark.usefixtures("processes")
def test_the_originals_script(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(sentences(300)) + "\n", encoding="utf-8")
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *log, text = done.stdout.splitlines()
    assert any(line.startswith("Parameters: ") for line in log)
    assert any("loss" in line for line in log)
    assert text.startswith("يقرأ القط ")
    saved = {path.name for path in (tmp_path / "trained").iterdir() if path.is_dir()}
    assert {"epoch_1", "epoch_2", "epoch_3", "step_10", "final"} <= saved
    assert packages.verify(tmp_path / "trained" / "final") == []
    final, exported = (packages.read(tmp_path / name) for name in ("trained/final", "output_model"))
    assert all((final.weights[name] == exported.weights[name]).all() for name in final.weights)
    for file in (tmp_path / "output_model").glob("*.py"):
        assert "qalam_core" not in file.read_text(encoding="utf-8")


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
    with pytest.raises(PackageError, match="6 entries, the model 7"):
        small(7).to_python_code(tmp_path / "other", words)


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
