"""A package's vocabulary in the Hugging Face form, tokenizer.json, there and back.
Takes words, merges and rules in readable form, gives the text `tokenizers` loads; or takes such a text.
It does not know the `tokenizers` library: a tokenizer.json from elsewhere reaches no parser but JSON's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from qalam_core.errors import PackageError
from qalam_core.package.interop.safetensors_file import json_object
from qalam_core.package.runtime.data_reader import SPECIALS, is_usable
from qalam_core.package.runtime.tokenizer import token_bytes
from qalam_core.package.write import Vocabulary

__all__ = ["tokenizer_json", "vocabulary", "vocabulary_of"]

_BPE_SPLIT = r" ?[\p{L}\p{M}]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
_WORD_SPLIT = r"[\p{L}\p{M}]+|\p{N}+|[^\s\p{L}\p{M}\p{N}]"

_FIRST, _SECOND = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
_ADDS_NOTHING = {
    "type": "TemplateProcessing", "single": [_FIRST], "pair": [_FIRST, _SECOND], "special_tokens": {},
}  # fmt: skip
"""What transformers puts in when it saves a tokenizer that adds no special tokens to a text."""

Pairs = Sequence[tuple[str, str]]


def vocabulary(algorithm: str, words: Sequence[str], merges: Pairs, rules: Pairs) -> Vocabulary:
    """The parts with the tokenizer.json that says the same."""
    text = tokenizer_json(algorithm, words, merges, rules)
    return Vocabulary(algorithm, tuple(words), tuple(merges), tuple(rules), text)


def tokenizer_json(algorithm: str, words: Sequence[str], merges: Pairs, rules: Pairs) -> str:
    """The text that `tokenizers` would save for this vocabulary, byte for byte."""
    return json.dumps(_parts(algorithm, words, merges, rules), ensure_ascii=False, indent=2) + "\n"


def vocabulary_of(text: str) -> Vocabulary:
    """The vocabulary that a tokenizer.json of this project's kind says; any other is refused.

    Ours is told by making it again from its words, merges and rules: all else in it must come out the same.
    """
    data = json_object(text, "tokenizer.json")
    try:
        model = data["model"]
        algorithm = {"BPE": "bpe", "WordLevel": "word"}[model["type"]]
        spelled = sorted(model["vocab"], key=model["vocab"].__getitem__)
        steps = data["normalizer"]["normalizers"]
        rules = [(step["pattern"]["Regex"], step["content"]) for step in steps if step["type"] == "Replace"]
        words, merges = spelled, []
        if algorithm == "bpe":
            words = [*spelled[: len(SPECIALS)], *(_readable(token) for token in spelled[len(SPECIALS) :])]
            merges = [(_readable(left), _readable(right)) for left, right in model["merges"]]
        again = _parts(algorithm, words, merges, rules)
        # how long a batch may become is no part of what a text's tokens are
        silent = {"truncation": None, "padding": None}
        if data["post_processor"] == _ADDS_NOTHING:
            silent["post_processor"] = None
        same = again == {**data, **silent}
        if not (same and all(is_usable(pattern) for pattern, _ in rules)):
            raise ValueError("not ours")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise PackageError(
            "tokenizer.json:0: it normalises, splits or numbers its special tokens in another way than packages do; "
            "name a package to take the words from"
        ) from None
    return vocabulary(algorithm, words, merges, rules)


def _parts(algorithm: str, words: Sequence[str], merges: Pairs, rules: Pairs) -> dict[str, Any]:
    replaced = [{"type": "Replace", "pattern": {"Regex": left}, "content": right} for left, right in rules]
    strip = {"type": "Strip", "strip_left": True, "strip_right": True}
    bytes_as_text = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    if algorithm == "bpe":
        spelled = [*words[: len(SPECIALS)], *(_spelled(word) for word in words[len(SPECIALS) :])]
        splitter: dict[str, Any] = {
            "type": "Sequence", "pretokenizers": [_split(_BPE_SPLIT, "Isolated", invert=False), bytes_as_text],
        }  # fmt: skip
        decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
        model: dict[str, Any] = {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": _numbered(spelled), "merges": [[_spelled(left), _spelled(right)] for left, right in merges],
        }  # fmt: skip
    else:
        splitter, decoder = _split(_WORD_SPLIT, "Removed", invert=True), None
        model = {"type": "WordLevel", "vocab": _numbered(words), "unk_token": SPECIALS[1]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": name, **flags} for index, name in enumerate(SPECIALS)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, *replaced, {"type": "NFKC"}, strip]},
        "pre_tokenizer": splitter,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def _split(pattern: str, behaviour: str, *, invert: bool) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behaviour, "invert": invert}


def _numbered(words: Sequence[str]) -> dict[str, int]:
    return {word: index for index, word in enumerate(words)}


def _alphabet() -> dict[int, str]:
    """Byte -> the printable character that byte-level tokenizers write for it: itself where it is printable
    Latin-1, else the next code point from 256 on."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return {byte: chr(byte if byte in plain else next(others)) for byte in range(256)}


_CHARACTERS = _alphabet()
_BYTES = {character: byte for byte, character in _CHARACTERS.items()}


def _spelled(token: str) -> str:
    """A readable token in the byte alphabet."""
    return "".join(_CHARACTERS[byte] for byte in token_bytes(token))


def _readable(token: str) -> str:
    """The inverse; see runtime/tokenizer.py for the readable form."""
    raw = bytes(_BYTES[character] for character in token)
    return raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
