from __future__ import annotations

import importlib
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from qalam_core.package import verify
from tests.small_package import CONFIG, WORDS, export, vocabulary, weights


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    export(tmp_path / "output_model")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    importlib.invalidate_caches()
    yield importlib.import_module("output_model")
    for name in [name for name in sys.modules if name.partition(".")[0] == "output_model"]:
        del sys.modules[name]


def test_the_usage_of_the_original_works(imported: ModuleType) -> None:
    model, word2idx, idx2word = imported.load_model()
    ids = [word2idx[word] for word in ("القط", "يأكل")]
    generated = model.generate(torch.tensor([ids]), max_new_tokens=20)
    assert " ".join(idx2word[index] for index in generated[0].tolist()).startswith("القط يأكل")
    assert not model.training
    assert model.lm_head.weight is model.embedding.weight
    assert model.count_parameters() == imported.load_model(backend="numpy")[0].count_parameters()
    assert imported.load_tokenizer().encode("القط لا يأكل") == [4, 1, 5]
    for name, tensor in imported.load_weights().items():
        assert np.array_equal(tensor, weights()[name])
    assert not {"output_model.weights", "output_model.vocab"} & sys.modules.keys()


def test_the_command_line_prints_no_character_that_a_terminal_obeys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    obeyed = "\x1b\r\x07\x9b\u202e\x7f\0\b"
    words = (*WORDS[:4], *(f"{character}[31m" for character in obeyed))
    export(tmp_path / "hostile_model", vocabulary=vocabulary(words=words))
    monkeypatch.syspath_prepend(tmp_path)
    for seed in range(8):
        options = [f"--seed={seed}", "--temperature=9", "--backend=numpy"]
        monkeypatch.setattr(sys, "argv", ["hostile_model", "", *options])
        runpy.run_module("hostile_model", run_name="__main__")
    printed = capsys.readouterr().out
    assert not any(character in printed for character in obeyed)
    assert all(f"\\u{ord(character):04x}[31m" in printed for character in obeyed)


def test_backends_agree(imported: ModuleType) -> None:
    prompt = np.array([[2, 4, 5]])
    ours = imported.load_model("numpy")[0].generate(prompt, 7, temperature=0)
    theirs = imported.load_model("torch")[0].generate(torch.from_numpy(prompt), 7, temperature=0)
    assert ours.tolist() == theirs.tolist()
    with pytest.raises(ValueError, match="jax"):
        imported.load_model("jax")


ISOLATED = """
import sys, runpy
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "qalam_core", "pybase64", "tokenizers"):
            raise ImportError(name + " is not for a package")
sys.meta_path.insert(0, Block())
sys.path.insert(0, sys.argv.pop(1))
sys.argv[0] = "my_model"
runpy.run_module("my_model", run_name="__main__", alter_sys=True)
"""


@pytest.mark.usefixtures("processes")
def test_a_package_needs_neither_torch_nor_this_project(tmp_path: Path) -> None:
    export(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there" / "my_model")
    before = sorted(path.name for path in (tmp_path / "there" / "my_model").iterdir())
    command = [
        sys.executable,
        "-B",
        "-X",
        "utf8",
        "-c",
        ISOLATED,
        str(tmp_path / "there"),
        "القط",
        "--tokens",
        "5",
        "--seed",
        "1",
    ]
    done = [subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, encoding="utf-8") for _ in range(2)]
    assert done[0].returncode == 0, done[0].stderr
    assert done[0].stdout == done[1].stdout
    assert done[0].stdout.startswith("القط ")
    assert set(done[0].stdout.split()) <= set(WORDS)
    assert sorted(path.name for path in (tmp_path / "there" / "my_model").iterdir()) == before


@pytest.mark.usefixtures("processes")
def test_loading_does_not_import_torchs_compiler(tmp_path: Path) -> None:
    """Which takes a second, and which initialising an embedding on the meta device does."""
    export(tmp_path / "model")
    code = "import sys, model; model.load_model('torch'); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0


def test_a_package_contains_its_activation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export(tmp_path / "tanh_model", config=replace(CONFIG, activation="gelu_tanh"))
    assert verify(folder) == []
    monkeypatch.syspath_prepend(str(tmp_path))
    loader = __import__("tanh_model.loader", fromlist=["load_model"])
    assert [loader.load_model(backend)[0].activation for backend in ("torch", "numpy")] == ["gelu_tanh"] * 2
    with pytest.raises(ValueError, match="gelu, gelu_tanh"):
        replace(CONFIG, activation="relu")
    with pytest.raises(ValueError, match='"relu": known are gelu, gelu_tanh'):
        type(loader.load_model("torch")[0])(dim=8, num_heads=2, activation="relu")
