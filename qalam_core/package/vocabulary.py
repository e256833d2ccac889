"""Converts a `Vocabulary` to Hugging Face's tokenizer.json and back, without the `tokenizers` library:
a tokenizer.json from elsewhere reaches only the JSON parser.
"""

from __future__ import annotations

import json
from itertools import count
from json.encoder import encode_basestring
from typing import Any

from qalam_core.errors import PackageError
from qalam_core.files import json_object
from qalam_core.package.runtime.architecture import SPECIALS
from qalam_core.package.runtime.data_reader import is_usable
from qalam_core.package.runtime.tokenizer import Vocabulary, token_bytes

# Letter classes contain \p{M}, so that words keep their vowel marks. Digits are split in threes, so that numbers share
# tokens. The last two branches leave one space with the word after it.
_BPE_SPLIT = r" ?[\p{L}\p{M}]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
_WORD_SPLIT = r"[\p{L}\p{M}]+|\p{N}+|[^\s\p{L}\p{M}\p{N}]"

_COMMA = ",\n"
_FIRST, _SECOND = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
_ADDS_NOTHING = {
    "type": "TemplateProcessing", "single": [_FIRST], "pair": [_FIRST, _SECOND], "special_tokens": {},
}  # fmt: skip
"""What transformers inserts when it saves a tokenizer that adds no special tokens."""


def tokenizer_json(vocabulary: Vocabulary) -> str:
    """The text that `tokenizers` would save for this vocabulary, byte for byte."""
    document, quoted = _document(vocabulary), encode_basestring
    model = document["model"]
    # the long parts are formatted here, because json.dumps with `indent` is several times slower
    words = [f"      {quoted(word)}: {index}" for word, index in model["vocab"].items()]
    merges = [f"      [\n        {quoted(a)},\n        {quoted(b)}\n      ]" for a, b in model.get("merges", ())]
    model |= {key: type(model[key])() for key in ("vocab", "merges") if key in model}
    text = json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    for key, lines, (opening, closing) in (("vocab", words, "{}"), ("merges", merges, "[]")):
        if lines:  # quotes inside JSON strings are escaped, so the empty value is found nowhere else
            full = f'"{key}": {opening}\n{_COMMA.join(lines)}\n    {closing}'
            text = text.replace(f'"{key}": {opening}{closing}', full, 1)
    return text


def vocabulary_of(text: str) -> Vocabulary:
    """The vocabulary of a tokenizer.json as this project writes it; PackageError for any other.

    It must equal the document that its words, merges and rules give.
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
        # batching options do not change the tokens of a text
        ignored = {"truncation": None, "padding": None}
        if data["post_processor"] == _ADDS_NOTHING:
            ignored["post_processor"] = None
        same = _document(vocabulary) == {**data, **ignored}
        usable = all(is_usable(pattern) and isinstance(content, str) for pattern, content in rules)
        if not (same and usable and words[: len(SPECIALS)] == SPECIALS):
            raise ValueError("not ours")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise PackageError(
            "tokenizer.json:0: its normalisation, splitting or special tokens differ from those of packages; "
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
            "vocab": dict(zip(spelled, count())), "merges": [[*map(_spelled, pair)] for pair in merges],
        }  # fmt: skip
    else:
        splitter, decoder = _split(_WORD_SPLIT, "Removed", invert=True), None
        model = {"type": "WordLevel", "vocab": dict(zip(words, count())), "unk_token": SPECIALS[1]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        # empty before training: the trainer adds the special tokens
        "added_tokens": [{"id": index, "content": name, **flags} for index, name in enumerate(words[: len(SPECIALS)])],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, *replaced, {"type": "NFKC"}, strip]},
        "pre_tokenizer": splitter,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def _split(pattern: str, behaviour: str, *, invert: bool) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behaviour, "invert": invert}


def _alphabet() -> dict[int, str]:
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return {byte: chr(byte if byte in plain else next(others)) for byte in range(256)}


ALPHABET = _alphabet()
"""Byte -> its character in GPT-2's byte-level alphabet: printable Latin-1 as it is, others from U+0100, in order."""
_BYTES = {character: byte for byte, character in ALPHABET.items()}


def _spelled(token: str) -> str:
    """Readable form -> byte-level alphabet."""
    return token_bytes(token).decode("latin-1").translate(ALPHABET)


def readable(token: str) -> str:
    """Byte-level alphabet -> readable form; see runtime/tokenizer.py."""
    raw = bytes(_BYTES[character] for character in token)
    return raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
