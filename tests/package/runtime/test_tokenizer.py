from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer

from qalam_core.arabic import NORMALISATIONS, Rules
from qalam_core.package.runtime.architecture import SPECIALS
from qalam_core.package.runtime.tokenizer import Tokenizer as OurTokenizer
from qalam_core.package.runtime.tokenizer import Vocabulary, token_bytes
from tests.package.hugging_face import CORPUS, hugging_face
from tests.small_package import WORDS

TEXTS = [
    *CORPUS, "", " ", "   القط", "القط   ", "a   b", "\n\n القط\t\tيأكل \u00a0في\u3000البيت", "٣٤٥٦ 12 ½ Ⅷ",
    "<END><UNK> القط",
    "نص\u200fمع\u200eعلامات", "ـــمطــوط", "\x1c فاصل \x1f", "ﷲ ﻻ ﷺ", "😀😀 ❤️", "z\u0301\u0301 \u0651\u064e",
    "!!??،؛؟", "ق" * 300,
    "back\\slash \\xd8", "\u2028x\u0085y", "漢字かな", "𞤀𞤣 \U0001f9ff",
]  # fmt: skip


def byte_alphabet() -> dict[str, int]:
    """GPT-2's character for each byte -> the byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(rest)}


def readable(token: str, letters: dict[str, int]) -> str:
    if token in SPECIALS:
        return token
    return bytes(letters[char] for char in token).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def ours_from(theirs: Tokenizer, algorithm: str, rules: Rules) -> OurTokenizer:
    model = json.loads(theirs.to_str())["model"]
    words = tuple(sorted(model["vocab"], key=model["vocab"].__getitem__))
    if algorithm == "word":
        return OurTokenizer(Vocabulary(algorithm, words, (), rules))
    letters = byte_alphabet()
    merges = tuple((readable(left, letters), readable(right, letters)) for left, right in model["merges"])
    return OurTokenizer(Vocabulary(algorithm, tuple(readable(word, letters) for word in words), merges, rules))


@pytest.mark.parametrize("algorithm", ["bpe", "word"])
@pytest.mark.parametrize("profile", sorted(NORMALISATIONS))
def test_the_runtime_tokenizer_equals_that_of_hugging_face(algorithm: str, profile: str) -> None:
    rules = NORMALISATIONS[profile]
    theirs = hugging_face(algorithm, rules)
    ours = ours_from(theirs, algorithm, rules)
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids)
        if algorithm == "bpe":
            assert [ours.word2idx[token] for token in ours.tokenize(text)] == ids
    assert ours.decode([2, *ours.encode(" القط السمك\n"), 3, 0]) == "القط السمك"


def test_readable_tokens_are_lossless() -> None:
    for raw in (b"\xd8", b"\\", b"\\xd8", b"\xd8\xa7\xd8", bytes(range(256)), "القط".encode(), b"\\\\x41"):
        token = raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
        assert token_bytes(token) == raw


def test_unknown_words_and_special_tokens() -> None:
    tokenizer = OurTokenizer(Vocabulary("word", WORDS, (), ()))
    assert tokenizer.tokenize("القط طار!") == ["القط", "طار", "!"]
    assert tokenizer.encode("القط طار!") == [4, 1, 1]
    assert tokenizer.decode([2, 4, 1, 5, 3]) == "القط <UNK> يأكل"
    assert tokenizer.decode([0, 1, 1]) == "<UNK> <UNK>"
    with pytest.raises(ValueError, match="merge 0"):
        OurTokenizer(Vocabulary("bpe", WORDS, (("x", "y"),), ()))
