from __future__ import annotations

import importlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qalam_core.arabic import PROFILES
from qalam_core.package.runtime.numpy_model import NumpyTransformer, _sample, erf
from qalam_core.package.runtime.tokenizer import Tokenizer as OurTokenizer
from qalam_core.package.runtime.tokenizer import token_bytes
from tests.small_package import CONFIG, WORDS, export, weights

BPE_SPLIT = r" ?[\p{L}\p{M}]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
WORD_SPLIT = r"[\p{L}\p{M}]+|\p{N}+|[^\s\p{L}\p{M}\p{N}]"
SPECIALS = ["<PAD>", "<UNK>", "<START>", "<END>"]
CORPUS = [
    "القط يأكل السمك في البيت الكبير", "بِسْمِ اللَّهِ الرَّحْمَنِ الرَّحِيمِ", "سنة 1445 هـ و2024 م، 12345678",
    "قال: «نعم»، ثم مضى... hello world 😀🇸🇦 👩‍👩‍👧", "كَتَبَ كِتَابًا\nثُمَّ   قَرَأَهُ", "القط والقط والقطط يأكل ويأكل",
]  # fmt: skip
TEXTS = [
    *CORPUS, "", " ", "   القط", "القط   ", "a   b", "\n\n القط\t\tيأكل \u00a0في\u3000البيت", "٣٤٥٦ 12 ½ Ⅷ",
    "<END><UNK> القط",
    "نص\u200fمع\u200eعلامات", "ـــمطــوط", "\x1c فاصل \x1f", "ﷲ ﻻ ﷺ", "😀😀 ❤️", "z\u0301\u0301 \u0651\u064e",
    "!!??،؛؟", "ق" * 300,
    "back\\slash \\xd8", "\u2028x\u0085y", "漢字かな", "𞤀𞤣 \U0001f9ff",
]  # fmt: skip


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    export(tmp_path / "output_model")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    importlib.invalidate_caches()
    yield importlib.import_module("output_model")
    for name in [name for name in sys.modules if name.partition(".")[0] == "output_model"]:
        del sys.modules[name]


def test_erf_is_within_a_millionth() -> None:
    x = np.linspace(-6, 6, 20001, dtype=np.float32)
    exact = np.array([math.erf(value) for value in x.astype(np.float64)])
    assert np.abs(erf(x) - exact).max() < 1e-6


@pytest.mark.parametrize("tied", [True, False])
def test_numpy_and_torch_agree(tmp_path: Path, tied: bool) -> None:
    from qalam_core.model import PureDynamicTransformer

    config = {**CONFIG, "TIED": tied}
    values = weights(config)
    theirs = PureDynamicTransformer(12, 8, 2, 2, 10, 0.0, tied).eval()
    state = {name: torch.from_numpy(tensor) for name, tensor in values.items()}
    theirs.load_state_dict(state, strict=not tied)
    ours = NumpyTransformer(config, values)
    assert ours.count_parameters() == theirs.count_parameters()
    ids = np.random.default_rng(1).integers(0, 12, (3, 10))
    logits, loss = ours(ids)
    assert loss is None
    with torch.no_grad():
        assert np.abs(logits - theirs(torch.from_numpy(ids))[0].numpy()).max() < 1e-4
    for length in (1, 4, 10, 13):  # 13 and every continuation past 10 slide the window
        prompt = np.random.default_rng(length).integers(0, 12, (4, length))
        expected = theirs.generate(torch.from_numpy(prompt), 12, temperature=0)
        assert ours.generate(prompt, 12, temperature=0).tolist() == expected.tolist()
    with pytest.raises(ValueError, match="context is 10"):
        ours(np.zeros((1, 11), np.int64))
    with pytest.raises(ValueError, match="no tokens"):
        ours.generate(np.zeros((1, 0), np.int64))


def test_sampling_repeats_with_a_seed_and_keeps_to_the_top_k() -> None:
    model = NumpyTransformer(CONFIG, weights())
    prompt = np.array([[4]] * 64)
    assert model.generate(prompt, 6, seed=7).tolist() == model.generate(prompt, 6, seed=7).tolist()
    logits = model(prompt[:1])[0][0, -1]
    allowed = set(np.argsort(logits)[-3:].tolist())
    drawn = set(model.generate(prompt, 1, temperature=2.0, top_k=3, seed=1)[:, 1].tolist())
    assert drawn == allowed
    greedy = model.generate(prompt, 4, temperature=0)
    assert model.generate(prompt, 4, top_k=1, seed=3).tolist() == greedy.tolist()


def test_rows_that_ended_are_filled() -> None:
    values = weights()
    values["ln_out.weight"][:] = 0
    values["embedding.weight"][3] *= 10
    values["ln_out.bias"] = values["embedding.weight"][3] * 100  # <END> always wins
    out = NumpyTransformer(CONFIG, values).generate(np.array([[4, 5]]), 5, temperature=0)
    assert out.tolist() == [[4, 5, 3]]


def test_the_originals_snippet(package: ModuleType) -> None:
    model, word2idx, idx2word = package.load_model()
    ids = [word2idx[word] for word in ("القط", "يأكل")]
    generated = model.generate(torch.tensor([ids]), max_new_tokens=20)
    assert " ".join(idx2word[index] for index in generated[0].tolist()).startswith("القط يأكل")
    assert not model.training
    assert model.lm_head.weight is model.embedding.weight
    assert model.count_parameters() == package.load_model(backend="numpy")[0].count_parameters()
    assert package.load_tokenizer().encode("القط لا يأكل") == [4, 1, 5]
    for name, tensor in package.load_weights().items():
        assert np.array_equal(tensor, weights()[name])
    assert not {"output_model.weights", "output_model.vocab"} & sys.modules.keys()


def test_backends_agree(package: ModuleType) -> None:
    prompt = np.array([[2, 4, 5]])
    ours = package.load_model("numpy")[0].generate(prompt, 7, temperature=0)
    theirs = package.load_model("torch")[0].generate(torch.from_numpy(prompt), 7, temperature=0)
    assert ours.tolist() == theirs.tolist()
    with pytest.raises(ValueError, match="jax"):
        package.load_model("jax")


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


def test_a_package_stands_alone_without_torch_and_without_us(tmp_path: Path) -> None:
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


# -- the tokenizer ------------------------------------------------------------------------------


def hugging_face(algorithm: str, profile: str, size: int = 400) -> Tokenizer:
    steps = [normalizers.Replace(Regex(pattern), by) for pattern, by in PROFILES[profile]]
    normalizer = normalizers.Sequence([normalizers.NFKC(), *steps, normalizers.NFKC(), normalizers.Strip()])
    options: dict[str, Any] = {"vocab_size": size, "special_tokens": SPECIALS, "show_progress": False}
    trainer: trainers.Trainer
    if algorithm == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(BPE_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(**options, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token="<UNK>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD_SPLIT), "removed", invert=True)
        trainer = trainers.WordLevelTrainer(**options)
    tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def byte_alphabet() -> dict[str, int]:
    """GPT-2's letter for each byte, the other way round."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(rest)}


def readable(token: str, letters: dict[str, int]) -> str:
    if token in SPECIALS:
        return token
    return bytes(letters[char] for char in token).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def ours_from(theirs: Tokenizer, algorithm: str, profile: str) -> OurTokenizer:
    model = json.loads(theirs.to_str())["model"]
    words = sorted(model["vocab"], key=model["vocab"].__getitem__)
    if algorithm == "word":
        return OurTokenizer(algorithm, words, (), PROFILES[profile])
    letters = byte_alphabet()
    merges = [(readable(left, letters), readable(right, letters)) for left, right in model["merges"]]
    return OurTokenizer(algorithm, [readable(word, letters) for word in words], merges, PROFILES[profile])


@pytest.mark.parametrize("algorithm", ["bpe", "word"])
@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_the_runtime_tokenizer_is_hugging_faces(algorithm: str, profile: str) -> None:
    theirs = hugging_face(algorithm, profile)
    ours = ours_from(theirs, algorithm, profile)
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids, text
        if algorithm == "bpe":
            assert ours.decode(ids) == theirs.decode(ids)
            assert [ours.word2idx[token] for token in ours.tokenize(text)] == ids
    assert ours.decode([2, *ours.encode(" القط السمك\n"), 3, 0]) == "القط السمك"


def test_readable_tokens_lose_no_byte() -> None:
    for raw in (b"\xd8", b"\\", b"\\xd8", b"\xd8\xa7\xd8", bytes(range(256)), "القط".encode(), b"\\\\x41"):
        token = raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
        assert token_bytes(token) == raw


def test_words_unknown_and_absent() -> None:
    tokenizer = OurTokenizer("word", WORDS, (), ())
    assert tokenizer.tokenize("القط طار!") == ["القط", "طار", "!"]
    assert tokenizer.encode("القط طار!") == [4, 1, 1]
    assert tokenizer.decode([2, 4, 1, 5, 3]) == "القط يأكل"
    with pytest.raises(ValueError, match="merge 0"):
        OurTokenizer("bpe", WORDS, [("x", "y")], ())


def test_top_p_keeps_the_fewest_that_hold_the_share() -> None:
    logits = np.log(np.array([[0.1, 0.5, 0.05, 0.3, 0.05]], np.float32))
    random = np.random.default_rng(0)
    for share, allowed in ((0.01, {1}), (0.49, {1}), (0.51, {1, 3}), (0.85, {0, 1, 3}), (1.0, {0, 1, 2, 3, 4})):
        drawn = {int(_sample(logits, 1.0, 0, share, random)[0]) for _ in range(300)}
        assert drawn == allowed, share
