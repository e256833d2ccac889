"""The vocabulary of a package in the Hugging Face form, tokenizer.json, and back.
Takes a `Vocabulary`, gives the text that the `tokenizers` library loads; or takes such a text.
It does not use the `tokenizers` library: a tokenizer.json from elsewhere reaches no parser but JSON's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from qalam_core.errors import PackageError
from qalam_core.files import json_object
from qalam_core.package.runtime.architecture import SPECIALS
from qalam_core.package.runtime.data_reader import is_usable
from qalam_core.package.runtime.tokenizer import Vocabulary, token_bytes

__all__ = ["ALPHABET", "readable", "tokenizer_json", "vocabulary_of"]

# A word keeps its vowel marks: letter classes hold \p{M}. Digits are split in threes, so that numbers share tokens; the
# last two branches leave one space with the word that follows it.
_BPE_SPLIT = r" ?[\p{L}\p{M}]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
_WORD_SPLIT = r"[\p{L}\p{M}]+|\p{N}+|[^\s\p{L}\p{M}\p{N}]"

_FIRST, _SECOND = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
_ADDS_NOTHING = {
    "type": "TemplateProcessing", "single": [_FIRST], "pair": [_FIRST, _SECOND], "special_tokens": {},
}  # fmt: skip
"""What transformers inserts when it saves a tokenizer that adds no special tokens to a text."""


def tokenizer_json(vocabulary: Vocabulary) -> str:
    """The text that `tokenizers` would save for this vocabulary, byte for byte."""
    return json.dumps(_document(vocabulary), ensure_ascii=False, indent=2) + "\n"


def vocabulary_of(text: str) -> Vocabulary:
    """The vocabulary that a tokenizer.json of this project's kind states; PackageError for any other.

    Ours is recognised by writing it again from its words, merges and rules: everything else must be the same.
    """
    try:
        data = json_object(text)
    except ValueError as error:
        raise PackageError(f"tokenizer.json:0: {error}; fetch the file again") from None
    try:
        model = data["model"]
        algorithm = {"BPE": "bpe", "WordLevel": "word"}[model["type"]]
        spelled = sorted(model["vocab"], key=model["vocab"].__getitem__)
        steps = data["normalizer"]["normalizers"]
        rules = tuple((step["pattern"]["Regex"], step["content"]) for step in steps if step["type"] == "Replace")
        words = tuple(spelled)
        merges: tuple[tuple[str, str], ...] = ()
        if algorithm == "bpe":
            words = (*spelled[: len(SPECIALS)], *(readable(token) for token in spelled[len(SPECIALS) :]))
            merges = tuple((readable(left), readable(right)) for left, right in model["merges"])
        vocabulary = Vocabulary(algorithm, words, merges, rules)
        # batching options do not change what the tokens of a text are
        ignored = {"truncation": None, "padding": None}
        if data["post_processor"] == _ADDS_NOTHING:
            ignored["post_processor"] = None
        same = _document(vocabulary) == {**data, **ignored}
        if not (same and all(is_usable(pattern) for pattern, _ in rules)):
            raise ValueError("not ours")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise PackageError(
            "tokenizer.json:0: it normalises, splits or numbers its special tokens in another way than packages do; "
            "name a package to take the words from"
        ) from None
    return vocabulary


def _document(vocabulary: Vocabulary) -> dict[str, Any]:
    algorithm, words, merges, rules = vocabulary
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
        # a vocabulary that is yet to be trained gets its special tokens from the trainer
        "added_tokens": [{"id": index, "content": name, **flags} for index, name in enumerate(words[: len(SPECIALS)])],
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
    """Byte -> the printable character that byte-level tokenizers (GPT-2's) write for it.

    A byte that is printable Latin-1 stands for itself, the others take the code points from 256 on, in order.
    """
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return {byte: chr(byte if byte in plain else next(others)) for byte in range(256)}


ALPHABET = _alphabet()
"""Byte -> its character in the byte-level alphabet."""

_BYTES = {character: byte for byte, character in ALPHABET.items()}


def _spelled(token: str) -> str:
    """A readable token in the byte-level alphabet."""
    return "".join(ALPHABET[byte] for byte in token_bytes(token))


def readable(token: str) -> str:
    """A token in the byte-level alphabet -> in readable form; see runtime/tokenizer.py."""
    raw = bytes(_BYTES[character] for character in token)
    return raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
