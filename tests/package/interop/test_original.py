"""Import of packages of the original Al-Qalam."""

from __future__ import annotations

import base64
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qalam_core.arabic import NORMALISATIONS
from qalam_core.errors import PackageError
from qalam_core.package import generate, read, verify
from qalam_core.package.interop.original import import_original
from qalam_core.package.interop.transformers_folder import export_transformers, import_transformers
from tests.small_package import CONFIG, same_weights, weights

THEIR_SETTINGS = ("VOCAB_SIZE", "DIM", "NUM_HEADS", "NUM_LAYERS", "MAX_SEQ_LEN")
THEIR_WORDS = ("<PAD>", "<UNK>", "<START>", "<END>", "القط", "ياكل", "السمك،", "'", "it's", 'a"b', "\\\n\u200f", ".")


def packed(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.astype("<f4").tobytes(), 9)).decode()


def their_files(values: dict[str, np.ndarray]) -> dict[str, str]:
    """The files that the original's exporter writes."""
    sizes = "".join(f"{name} = {CONFIG.constants()[name]}\n" for name in THEIR_SETTINGS)
    lines = []
    for name, tensor in values.items():
        stored = tensor[None] if name == "pos_embedding" else tensor
        lines.append(f'    "{name}": ("{packed(stored)}", {stored.shape}),\n')
    parameters = sum(tensor.size for tensor in values.values())
    their_index = {word: index for index, word in enumerate(THEIR_WORDS)}
    return {
        "__init__.py": "from .loader import load_model\n",
        "loader.py": "raise SystemExit('executed')\n",
        "config.py": '# -*- coding: utf-8 -*-\n"""\nGenerated: 2026-02-01T11:24:59.973542\nTrain Steps: 5\n"""\n\n'
        f'# === CONFIG ===\n{sizes}PARAMETERS = {parameters}\nTRAIN_STEPS = 5\nVERSION = "5.0"\n',
        "vocab.py": f'# -*- coding: utf-8 -*-\n"""Vocabulary"""\n\nWORD2IDX = {their_index!r}'
        "\n\nIDX2WORD = {v: k for k, v in WORD2IDX.items()}\n",
        "weights.py": '# -*- coding: utf-8 -*-\n"""\nUse unpack(WEIGHTS["name"], shape)\n"""\nimport zlib\n\n'
        "def unpack(text, shape):\n    raise SystemExit('executed')\n\n# === WEIGHTS ===\nWEIGHTS = {\n"
        + "".join(lines)
        + "}\n\ndef load_weights():\n    return {name: unpack(*pair) for name, pair in WEIGHTS.items()}\n",
    }  # fmt: skip


def their_folder(folder: Path, line_end: str = "\n") -> Path:
    folder.mkdir()
    for name, text in their_files(weights()).items():
        (folder / name).write_bytes(text.replace("\n", line_end).encode())
    return folder


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_import_of_an_original_package(tmp_path: Path, line_end: str) -> None:
    folder = their_folder(tmp_path / "original", line_end)
    remarks = import_original(folder, tmp_path / "ours")
    # "السمك،", "'" alone is a word here, but "it's", 'a"b' and the escapes are split or dropped
    assert [remark.partition("; ")[2] for remark in remarks] == ["4 of 12 words are unreachable"]
    found = read(tmp_path / "ours", strict=True)
    assert all(found.weights[name].tobytes() == tensor.tobytes() for name, tensor in weights().items())
    assert found.vocabulary.words == THEIR_WORDS
    assert found.vocabulary.rules == NORMALISATIONS["search"]
    assert found.config.activation == "gelu" and found.config.tied is True
    assert verify(tmp_path / "ours") == []
    assert generate(found, "القط يأكل", 3, seed=0).startswith("القط ياكل")
    export_transformers(tmp_path / "ours", tmp_path / "hf")
    import_transformers(tmp_path / "hf", tmp_path / "back")
    assert same_weights(tmp_path / "ours", tmp_path / "back")
    with pytest.raises(PackageError, match="already"):
        import_original(tmp_path / "ours", tmp_path / "other")


def test_a_vocabulary_may_be_smaller_than_the_embedding(tmp_path: Path) -> None:
    folder = their_folder(tmp_path / "original")
    few = {word: index for index, word in enumerate(THEIR_WORDS[:7])}
    vocab = (folder / "vocab.py").read_text(encoding="utf-8")
    start, end = vocab.index("{"), vocab.index("}") + 1
    (folder / "vocab.py").write_text(vocab[:start] + repr(few) + vocab[end:], encoding="utf-8")
    assert import_original(folder, tmp_path / "ours")[1:] == [
        "5 of 12 rows of the embedding have no word and were dropped"
    ]
    found = read(tmp_path / "ours", strict=True)
    assert found.vocabulary.words == THEIR_WORDS[:7]
    assert found.config.vocab_size == 7
    for name, tensor in weights().items():
        assert np.array_equal(found.weights[name], tensor[:7] if name == "embedding.weight" else tensor)


EMBEDDING = packed(weights()["embedding.weight"])
BOMB = base64.b64encode(zlib.compress(b"\0" * (1 << 28), 9)).decode()
SMALL_BOMB = base64.b64encode(zlib.compress(b"\0" * (3 << 20), 9)).decode()  # on a line no longer than a real one
SHORT = packed(np.zeros(95))
LONG = packed(np.zeros(97))
CUT = base64.b64encode(zlib.compress(weights()["embedding.weight"].tobytes())[:-3]).decode()
TAIL = base64.b64encode(zlib.compress(weights()["embedding.weight"].tobytes()) + b"more").decode()
LINE = f'    "embedding.weight": ("{EMBEDDING}", (12, 8)),\n'


@pytest.mark.parametrize(("file", "old", "new", "message"), [
    ("weights.py", EMBEDDING, BOMB[: len(BOMB) // 4 * 4], r"weights\.py:\d+: longer than any tensor"),
    ("weights.py", EMBEDDING, SMALL_BOMB, "holds more than the 384 bytes"),
    ("weights.py", EMBEDDING, LONG, r"weights\.py:12: .* holds more than the 384 bytes"),
    ("weights.py", EMBEDDING, SHORT, "holds less than"),
    ("weights.py", EMBEDDING, CUT, "holds less than"),
    ("weights.py", EMBEDDING, TAIL, "holds more than"),
    ("weights.py", EMBEDDING, EMBEDDING[:-1], "not base64 of zlib"),
    ("weights.py", EMBEDDING, base64.b64encode(b"x" * 400).decode(), "not base64 of zlib"),
    ("weights.py", LINE, LINE + LINE, "twice"),
    ("weights.py", LINE, "", '"embedding.weight" is missing'),
    ("weights.py", "(12, 8)", "(8, 12)", r"is \(8, 12\), but config.py requires \(12, 8\)"),
    ("weights.py", "(12, 8)", "(12, 8,)", "not a tensor"),
    ("weights.py", "(12, 8)", "(12, 8, )", "not a tensor"),
    ("weights.py", "(12, 8)", "(999999999999, 8)", "not a tensor"),
    ("weights.py", "(12, 8)", "(12, 8) if True else ()", "not a tensor"),
    ("weights.py", "(1, 10, 8)", "(10, 8)", "pos_embedding"),
    ("weights.py", '"embedding.weight": (', '"embedding.weight": open("x", "w") or (', "not a tensor"),
    ("weights.py", '"embedding.weight"', '"lm_head.weight"', "not a tensor of this config"),
    ("weights.py", "WEIGHTS = {\n", "WEIGHTS = {\n    **evil(),\n", "not a tensor"),
    ("weights.py", "WEIGHTS = {\n", "weights = {\n", "changes WEIGHTS|too long|is missing; this"),
    ("weights.py", "}\n\ndef", "}\nWEIGHTS['a'] = 1\ndef", "changes WEIGHTS"),
    ("weights.py", "}\n\ndef", "}\nWEIGHTS = {\ndef", "changes WEIGHTS"),
    ("weights.py", "}\n\ndef", "}\n" + "#\n" * 300 + "def", "too many lines"),
    ("weights.py", "import zlib\n", "#\n" * 300, "is missing; this"),
    ("config.py", "VOCAB_SIZE = 12", "VOCAB_SIZE = __import__('os').getpid()", r"config\.py:8: not a setting"),
    ("config.py", "VOCAB_SIZE = 12", "VOCAB_SIZE = 012", "not a setting"),
    ("config.py", "VOCAB_SIZE = 12", "VOCAB_SIZE = 12\nVOCAB_SIZE = 12", "twice"),
    ("config.py", "VOCAB_SIZE = 12\n", "", "VOCAB_SIZE is missing"),
    ("config.py", "VOCAB_SIZE = 12", 'VOCAB_SIZE = "12"', "VOCAB_SIZE is missing"),
    ("config.py", "VOCAB_SIZE = 12", "VOCAB_SIZE = 13", "PARAMETERS is"),
    ("config.py", "NUM_LAYERS = 2", "NUM_LAYERS = 1000000000000", "NUM_LAYERS must be between"),
    ("config.py", "NUM_HEADS = 2", "NUM_HEADS = 3", "divisible"),
    ("vocab.py", "'القط': 4", "'القط': exit()", "neither 'word': id"),
    ("vocab.py", "'القط': 4", "'القط': 5", "two words have id 5"),
    ("vocab.py", "'القط': 4", "'القط': 40", "12 words, but VOCAB_SIZE is 12"),
    ("vocab.py", "'القط'", "'ياكل'", "two ids"),
    ("vocab.py", "'<END>': 3, 'القط': 4", "'<END>': 4, 'القط': 3", "ids 0 to 3"),
    ("vocab.py", "'القط'", "'\\N{DIGIT ONE}'", "an escape"),
    ("vocab.py", "'القط'", "'\\ud800'", "an escape"),
    ("vocab.py", "'القط'", "'القط' 'x'", "neither 'word': id"),
    ("vocab.py", "IDX2WORD = {v: k", "IDX2WORD = {exit(): k", "nothing else"),
    ("vocab.py", "\n\nIDX2WORD", "\nimport os\nIDX2WORD", "nothing else"),
])  # fmt: skip
def test_damaged_and_forged_originals_are_refused(tmp_path: Path, file: str, old: str, new: str, message: str) -> None:
    folder = their_folder(tmp_path / "original")
    text = (folder / file).read_text(encoding="utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(PackageError, match=message) as caught:
        import_original(folder, tmp_path / "ours")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ours").exists()


def test_shapes_are_bounded_by_the_file_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gigabytes from a small file are refused before decompression, even with valid shapes and valid deflate."""
    folder = their_folder(tmp_path / "original")
    config = (folder / "config.py").read_text(encoding="utf-8").replace("MAX_SEQ_LEN = 10", "MAX_SEQ_LEN = 99999999")
    (folder / "config.py").write_text("".join(line for line in config.splitlines(True) if "PARAM" not in line))
    monkeypatch.setattr(zlib, "decompressobj", lambda: pytest.fail("decompressed"))
    with pytest.raises(PackageError, match="too few for 32000"):
        import_original(folder, tmp_path / "ours")


def test_a_bomb_is_decompressed_only_one_byte_beyond_its_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    inflate = zlib.decompressobj

    class Counting:
        def __init__(self) -> None:
            self.inflater = inflate()

        def decompress(self, *arguments: Any) -> bytes:
            raw: bytes = self.inflater.decompress(*arguments)
            sizes.append(len(raw))
            return raw

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inflater, name)

    folder = their_folder(tmp_path / "original")
    text = (folder / "weights.py").read_text(encoding="utf-8")
    (folder / "weights.py").write_text(text.replace(EMBEDDING, SMALL_BOMB), encoding="utf-8")
    monkeypatch.setattr(zlib, "decompressobj", Counting)
    with pytest.raises(PackageError, match="holds more than the 384 bytes"):
        import_original(folder, tmp_path / "ours")
    assert sizes == [385]


def test_links_and_special_files_of_an_original_are_refused(tmp_path: Path) -> None:
    for name in ("config.py", "vocab.py", "weights.py"):
        folder = their_folder(tmp_path / f"linked-{name}")
        (folder / name).rename(tmp_path / name)
        with pytest.raises(PackageError, match="no such file"):
            import_original(folder, tmp_path / "ours")
        (folder / name).symlink_to(tmp_path / name)
        with pytest.raises(PackageError, match="a link"):
            import_original(folder, tmp_path / "ours")
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(PackageError, match="no such file"):
            import_original(folder, tmp_path / "ours")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    folder = their_folder(tmp_path / "original")
    complete = (folder / "weights.py").read_bytes()
    end = complete.index(b"}\n\ndef")
    for cut in range(0, end + 1, 97):
        (folder / "weights.py").write_bytes(complete[:cut])
        with pytest.raises(PackageError):
            import_original(folder, tmp_path / "ours")
