"""Converts a `Vocabulary` to Hugging Face's tokenizer.json and back, without the `tokenizers` library:
a tokenizer.json from elsewhere reaches only the JSON parser.
"""

from __future__ import annotations

import json
from codecs import charmap_decode
from functools import cache
from itertools import count
from json.encoder import encode_basestring
from typing import Any

from qalam_core.errors import PackageError
from qalam_core.files import json_object
from qalam_core.package.runtime.architecture import SPECIALS
from qalam_core.package.runtime.data_reader import rules_error
from qalam_core.package.runtime.tokenizer import Vocabulary, is_first, token_bytes

_MODERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Letter classes contain \p{M}, so that words keep their vowel marks. Digits are split in threes, so that numbers share
# tokens. The last two branches leave one space with the word after it.
BPE_SPLITS = {
    "al-qalam": r" ?[\p{L}\p{M}]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+",
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": _MODERN % "{1,3}",
    "qwen2": _MODERN % "",
}
"""The patterns of the splits in runtime/tokenizer.py, as Hugging Face writes them; that of GPT-2 is built into it."""
_WORD_SPLIT = r"[\p{L}\p{M}]+|\p{N}+|[^\s\p{L}\p{M}\p{N}]"

_COMMA = ",\n"
_FIRST, _SECOND = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
_ADDS_NOTHING: dict[str, Any] = {
    "type": "TemplateProcessing", "single": [_FIRST], "pair": [_FIRST, _SECOND], "special_tokens": {},
}  # fmt: skip
"""What transformers inserts when it saves a tokenizer that adds no special tokens."""
_SPACED = {"type": "Replace", "pattern": {"Regex": "^"}, "content": " "}
"""Decodes words with a space before each, because pipelines decode a continuation without its prompt."""


def tokenizer_json(vocabulary: Vocabulary) -> str:
    """The text that `tokenizers` would save for this vocabulary, byte for byte."""
    algorithm, words, merges = vocabulary[:3]
    named = {*vocabulary.specials.ids()}
    text = json.dumps(_document(vocabulary, long=False), ensure_ascii=False, indent=2) + "\n"
    # the long parts are formatted here, because json.dumps with `indent` is several times slower
    quoted = _Quoted().__getitem__ if algorithm == "bpe" else encode_basestring
    vocab = [
        f"      {encode_basestring(word) if index in named else quoted(word)}: {index}"
        for index, word in enumerate(words)
    ]
    pairs = [f"      [\n        {quoted(a)},\n        {quoted(b)}\n      ]" for a, b in merges]
    for key, lines, (opening, closing) in (("vocab", vocab, "{}"), ("merges", pairs, "[]")):
        if lines:  # quotes inside JSON strings are escaped, so the empty value is found nowhere else
            full = f'"{key}": {opening}\n{_COMMA.join(lines)}\n    {closing}'
            text = text.replace(f'"{key}": {opening}{closing}', full, 1)
    return text


def says_the_same(text: str, vocabulary: Vocabulary) -> bool:
    """Whether a tokenizer.json is `tokenizer_json` in any layout, or that of an earlier export.

    Raises ValueError if it is not a JSON object.
    """
    ours = _document(vocabulary)
    earlier = {**ours, "added_tokens": _specials(vocabulary)}
    found, *accepted = (json.dumps(document, sort_keys=True) for document in (json_object(text), ours, earlier))
    return found in accepted  # compared as text, because True and 1.0 equal 1


def generating_json(vocabulary: Vocabulary) -> str:
    """A tokenizer.json with which transformers gives the model what `generate` does: <START>, then the text."""
    document = {**_document(vocabulary), "post_processor": _begins(vocabulary)}
    return json.dumps({**document, "decoder": document["decoder"] or _SPACED}, ensure_ascii=False, indent=2) + "\n"


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
        if words[: len(SPECIALS)] != SPECIALS:
            raise ValueError("not ours")
        vocabulary = Vocabulary(algorithm, words, merges, rules)
        # batching options do not change the tokens of a text
        ignored: dict[str, Any] = {"truncation": None, "padding": None}
        if data["post_processor"] in (_ADDS_NOTHING, _begins(vocabulary)):
            ignored["post_processor"] = None
        if data["decoder"] == _SPACED:
            ignored["decoder"] = None
        if data["added_tokens"] == _specials(vocabulary):
            ignored["added_tokens"] = _hidden(vocabulary)
        same = _document(vocabulary) == {**data, **ignored}
        usable = all(isinstance(content, str) for _, content in rules) and not rules_error(rules)
        if not (same and usable):
            raise ValueError("not ours")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise PackageError(
            "tokenizer.json:0: its normalisation, splitting or special tokens differ from those of packages; "
            "name a package to take the words from"
        ) from None
    return vocabulary


def _begins(vocabulary: Vocabulary) -> dict[str, Any]:
    """The post-processor that puts the START token before a text."""
    start = vocabulary.words[vocabulary.specials.start]
    return {
        "type": "TemplateProcessing",
        **{kind: [{"SpecialToken": {"id": start, "type_id": 0}}, *_ADDS_NOTHING[kind]] for kind in ("single", "pair")},
        "special_tokens": {start: {"id": start, "ids": [vocabulary.specials.start], "tokens": [start]}},
    }


def _document(vocabulary: Vocabulary, *, long: bool = True) -> dict[str, Any]:
    """The tokenizer.json as JSON gives it, or without its long parts: vocab and merges."""
    algorithm, words, merges, rules = vocabulary[:4]
    before, after = (
        [
            {"type": "Replace", "pattern": {"Regex": pattern}, "content": by}
            for pattern, by in rules
            if is_first(pattern) == first
        ]
        for first in (True, False)
    )
    strip = {"type": "Strip", "strip_left": True, "strip_right": True}
    bytes_as_text = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    if algorithm == "bpe":
        spell = cache(_spelled)
        named = {*vocabulary.specials.ids()}
        spelled = [word if index in named else spell(word) for index, word in enumerate(words) if long]
        pattern = BPE_SPLITS[vocabulary.split]
        splitter: dict[str, Any] = {
            "type": "Sequence", "pretokenizers": [_split(pattern, "Isolated", invert=False), bytes_as_text],
        }  # fmt: skip
        decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
        model: dict[str, Any] = {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": vocabulary.ignore_merges,
            "vocab": dict(zip(spelled, count())), "merges": [[*map(spell, pair)] for pair in merges if long],
        }  # fmt: skip
    else:
        splitter, decoder = _split(_WORD_SPLIT, "Removed", invert=True), None
        model = {"type": "WordLevel", "vocab": dict(zip(words, count())) if long else {}, "unk_token": SPECIALS[1]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _hidden(vocabulary),
        "normalizer": {
            "NFKC": {"type": "Sequence", "normalizers": [*before, {"type": "NFKC"}, *after, {"type": "NFKC"}, strip]},
            "NFC": {"type": "NFC"},
            "none": None,
        }[vocabulary.form],
        "pre_tokenizer": splitter,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def _specials(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """The special tokens as a trainer or transformers adds them; none before training."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [
        {"id": index, "content": vocabulary.words[index], **flags}
        for index in vocabulary.specials.ids()
        if index < len(vocabulary.words)
    ]


def _hidden(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Those that decoding drops: without <UNK>, whose absence would make wrong sentences fluent."""
    return [token for token in _specials(vocabulary) if token["id"] != vocabulary.specials.unk]


def _split(pattern: str, behaviour: str, *, invert: bool) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behaviour, "invert": invert}


def _alphabet() -> dict[int, str]:
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return {byte: chr(byte if byte in plain else next(others)) for byte in range(256)}


ALPHABET = _alphabet()
"""Byte -> its character in GPT-2's byte-level alphabet: printable Latin-1 as it is, others from U+0100, in order."""
_BYTES = {character: byte for byte, character in ALPHABET.items()}
_CHARACTERS = "".join(ALPHABET.values())


def _spelled(token: str) -> str:
    """Readable form -> byte-level alphabet."""
    return charmap_decode(token_bytes(token), "strict", _CHARACTERS)[0]


class _Quoted(dict[str, str]):
    """Readable form -> the token's JSON string in the byte-level alphabet, computed on first use."""

    def __missing__(self, token: str) -> str:
        self[token] = text = encode_basestring(_spelled(token))
        return text


def readable(token: str) -> str:
    """Byte-level alphabet -> readable form; see runtime/tokenizer.py."""
    raw = bytes(_BYTES[character] for character in token)
    return raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
