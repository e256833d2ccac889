from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer as HuggingFace

from qalam_core.arabic import NORMALISATIONS
from qalam_core.errors import PackageError
from qalam_core.package.vocabulary import tokenizer_json, vocabulary_of
from qalam_core.tokens.tokenizer import Algorithm, ArabicTokenizer
from tests.package.conftest import trained_tokenizer
from tests.package.hugging_face import hugging_face


@pytest.mark.parametrize("algorithm", ["bpe", "word"])
def test_tokenizer_json_equals_that_of_the_library(algorithm: Algorithm) -> None:
    for rules in NORMALISATIONS.values():
        text = hugging_face(algorithm, rules).to_str(pretty=True) + "\n"
        assert tokenizer_json(vocabulary_of(text)) == text
    tokenizer = trained_tokenizer(algorithm)
    text = tokenizer_json(tokenizer.vocabulary)
    assert text == HuggingFace.from_str(text).to_str(pretty=True) + "\n"
    assert vocabulary_of(text) == tokenizer.vocabulary


@pytest.mark.parametrize("algorithm", ["bpe", "word"])
def test_a_tokenizer_whose_unknown_word_is_hidden_is_read(algorithm: Algorithm) -> None:
    """Trainers and transformers list <UNK> among the special tokens, which changes no token of a text."""
    vocabulary = trained_tokenizer(algorithm).vocabulary
    data = json.loads(tokenizer_json(vocabulary))
    shown = HuggingFace.from_str(json.dumps(data))
    data["added_tokens"].insert(1, {**data["added_tokens"][0], "id": 1, "content": "<UNK>"})
    hidden = HuggingFace.from_str(json.dumps(data))
    assert vocabulary_of(json.dumps(data)) == vocabulary
    assert hidden.decode([0, 1, 2]) == ""
    assert shown.decode([0, 1, 2]) == "<UNK>"
    data["added_tokens"][1]["lstrip"] = True
    with pytest.raises(PackageError, match="special tokens differ"):
        vocabulary_of(json.dumps(data))


def change_model(data: Any) -> None:
    data["model"]["ignore_merges"] = True


def change_split(data: Any) -> None:
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r" ?\p{L}+"


def change_id(data: Any) -> None:
    data["model"]["vocab"]["Ġ"] = 10**6


def change_rule(data: Any) -> None:
    data["normalizer"]["normalizers"][1]["pattern"]["Regex"] = "(a+)+"


def change_specials(data: Any) -> None:
    data["added_tokens"][2]["content"] = "<|endoftext|>"


def rename_specials(data: Any) -> None:
    for token in data["added_tokens"]:
        index, token["content"] = token["id"], f"<s{token['id']}>"
        data["model"]["vocab"] = {
            token["content"] if number == index else word: number for word, number in data["model"]["vocab"].items()
        }


def change_replacement(data: Any) -> None:
    data["normalizer"]["normalizers"][1]["content"] = 5


@pytest.mark.parametrize("change", [
    change_model, rename_specials, change_replacement, change_split, change_id, change_rule, change_specials,
    lambda data: data.clear(),
    lambda data: data.update(normalizer=None), lambda data: data["model"].update(vocab=[]),
    lambda data: data["model"].update(vocab={"a": "b", "c": 1}), lambda data: data.update(decoder={}),
    lambda data: data["model"]["merges"].append(["no", "such one"]),
])  # fmt: skip
def test_a_foreign_tokenizer_is_refused(bpe: ArabicTokenizer, change: Callable[[Any], None]) -> None:
    data = json.loads(tokenizer_json(bpe.vocabulary))
    change(data)
    with pytest.raises(PackageError, match=r"^tokenizer\.json:0: .*name a package"):
        vocabulary_of(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "[" * 10**5, '{"a": 1, "a": 2}'])
def test_a_tokenizer_that_is_not_a_json_object_is_refused(text: str) -> None:
    with pytest.raises(PackageError, match=r"^tokenizer\.json:0: "):
        vocabulary_of(text)
