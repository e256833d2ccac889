"""Imports a tokenizer.json of GPT-2's, Llama 3's or Qwen's kind: byte-level BPE, with the same ids for every text.

What it is made of is compared with what packages have, and refused by name where they have none. Then it encodes PROBES
texts in ten scripts, and so does the package's tokenizer: a difference is refused too.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping
from os.path import commonprefix
from typing import Any, NoReturn

from tokenizers import Tokenizer as LibraryTokenizer

from qalam_core import files
from qalam_core.errors import PackageError
from qalam_core.package.runtime.tokenizer import Specials, Tokenizer, Vocabulary, token_bytes
from qalam_core.package.vocabulary import BPE_SPLITS, readable

PROBES = 10_000

_NAME = re.compile(r"[<\[].*[>\]]", re.DOTALL)
_KEYS = {"START": "bos", "END": "eos", "PAD": "pad"}
_SCRIPTS = (
    "\u0621-\u063a\u0641-\u0652\u0670-\u06d3\u0640\ufb50-\ufbb1\ufe70-\ufefc", "A-Za-z\u00c0-\u024f\u0300-\u0310",
    "\u0400-\u0481", "\u0391-\u03ce", "\u05d0-\u05ea\u05b0-\u05bc", "\u0905-\u094d", "\u4e00-\u9fff",
    "\u3041-\u30fe", "\uac00-\ud7a3\u1100-\u1112", "\u0e01-\u0e4e",
)  # fmt: skip
_OTHERS = (
    *" \n\t.,:;!?'\"()[]<>|/-_*&%$#@+=~^`\\\u060c\u061b\u061f\u06d4\u3002\u2019\u2026",
    *"\u20ac\u2764\ufe0f\u200d\u200c\u200f",
    *("  ", "   ", "\n\n", "\r\n", " \n", "\n ", "\r", "\u00a0", "\u3000", "\u0085", "\u2028", "\x0b", "\x1c", "\x00"),
    *("'s", "'S", "'ll", "'LL", "'re", "'vE", "'\u017f", "\u2019s", "0", "12", "2026", "12345", "3.14", "1,000"),
    *("\u0660\u0661\u0662\u0663", "\u06f4\u06f5", "\u0967\u0968", "\u00bd", "\u2167", "\U0001f600", "\U00010330"),
)


def foreign_vocabulary(text: str, roles: Mapping[str, str | int]) -> Vocabulary:
    """The vocabulary of a tokenizer.json; `roles` are the tokens or ids of START and END, and perhaps PAD.

    Raises PackageError for one whose ids a package would not reproduce.
    """
    try:
        data = files.json_object(text)
        vocabulary = _parsed(data, roles)
        tokenizer = Tokenizer(vocabulary)
    except (KeyError, TypeError, AttributeError) as error:
        refuse(f"not complete, or not of the usual form ({type(error).__name__}: {error})")
    except ValueError as error:
        refuse(str(error))
    for index in vocabulary.specials.ids():
        if (name := vocabulary.words[index]) in data["model"]["vocab"] and tokenizer.is_piece(name):
            refuse(f"the special token {name!r} is also a word of texts")
    _probe(data, tokenizer)
    return vocabulary


def roles_of(tokenizer_config: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str | int]:
    """The special tokens by role, from tokenizer_config.json or config.json; a text that none begins starts with END's.

    Raises PackageError where no token ends a text.
    """
    roles: dict[str, str | int] = {}
    for role, key in _KEYS.items():
        named, number = tokenizer_config.get(f"{key}_token"), config.get(f"{key}_token_id")
        named = named.get("content") if isinstance(named, dict) else named
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(named, str):
            roles[role] = named
        elif type(number) is int:
            roles[role] = number
    if "END" not in roles:
        raise PackageError("config.json:0: no eos_token_id; name the token that ends a text in tokenizer_config.json")
    return {"START": roles["END"], **roles}


def refuse(reason: str) -> NoReturn:
    """Raise the PackageError of a tokenizer that no package can have."""
    raise PackageError(f"tokenizer.json:0: {reason[:300]}; name a package to take the words from")


def _parsed(data: Mapping[str, Any], roles: Mapping[str, str | int]) -> Vocabulary:
    model = data["model"]
    if model.get("type") != "BPE":
        refuse(f"its model is {model.get('type')!r}; only byte-level BPE can be imported")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            refuse(f"its model has {key} {model[key]!r}, which packages do not have")
    if (data.get("decoder") or {}).get("type") != "ByteLevel":
        refuse(f"its decoder is {(data.get('decoder') or {}).get('type')!r}, and not ByteLevel")
    split, form = _split(data.get("pre_tokenizer")), _form(data.get("normalizer"))
    tokens: dict[int, str] = {}
    for token, index in model["vocab"].items():
        if type(index) is not int or tokens.setdefault(index, token) != token:
            refuse(f"two tokens have the id {index!r}")
    named: dict[int, str] = {}
    for added in data.get("added_tokens") or ():
        index, name = added["id"], added["content"]
        if tokens.get(index, name) != name or named.setdefault(index, name) != name:
            refuse(f"two tokens have the id {index!r}")
        if not (added.get("special") or _NAME.fullmatch(name)):
            refuse(f"the added token {name!r} is not special: it would be found in texts")
        tokens[index] = name
    if sorted(tokens) != list(range(len(tokens))):
        refuse(f"{len(tokens)} tokens have ids up to {max(tokens)}; none may be missing")
    numbers = {name: index for index, name in tokens.items()}
    ids: dict[str, int] = {}
    for role, given in roles.items():
        found = numbers.get(given, -1) if isinstance(given, str) else given
        if found not in tokens:
            refuse(f"the token {given!r}, which has the role {role}, is not in it")
        ids[role] = found
        named[found] = tokens[found]
    others = tuple(sorted({*named} - {*ids.values()}))
    return Vocabulary(
        "bpe",
        tuple(tokens[index] if index in named else _readable(tokens[index]) for index in range(len(tokens))),
        tuple(_pair(merge) for merge in model["merges"]),
        (),
        split,
        form,
        bool(model.get("ignore_merges")),
        Specials(ids.get("PAD", -1), -1, ids["START"], ids["END"], others),
    )


def _readable(token: str) -> str:
    try:
        return readable(token)
    except KeyError:
        refuse(f"the token {token!r} is not in the alphabet of bytes")


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return _readable(left), _readable(right)


def _form(normalizer: Any) -> str:
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    if steps not in ([], [{"type": "NFC"}]):
        refuse(f"its normalizer is {json.dumps(normalizer)}; packages have NFC or none")
    return "NFC" if steps else "none"


def _split(pre_tokenizer: Any) -> str:
    steps = [dict(step) for step in (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])]
    last = steps.pop()
    if last.get("type") != "ByteLevel":
        refuse(f"its pre_tokenizer is {json.dumps(pre_tokenizer)}, and does not end with ByteLevel")
    if last.get("add_prefix_space", True):
        refuse("its pre_tokenizer has add_prefix_space, which packages do not have")
    if not steps and last.get("use_regex", True):
        return "gpt2"
    # with a pattern that matches every character, to remove what is between the matches is to isolate them
    kinds = [("Isolated", False), ("Removed", True)]
    if (
        len(steps) == 1
        and not last.get("use_regex", True)
        and (steps[0].get("behavior"), steps[0].get("invert")) in kinds
    ):
        for split, pattern in BPE_SPLITS.items():
            if steps[0].get("type") == "Split" and steps[0].get("pattern") == {"Regex": pattern}:
                return split
    refuse(f"its pre_tokenizer is none of {', '.join(BPE_SPLITS)}: {json.dumps(steps)}")


def _probe(data: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Compare the ids of generated texts, without names of special tokens, which are plain text in a package."""
    try:
        theirs = LibraryTokenizer.from_str(
            json.dumps({**data, "truncation": None, "padding": None, "post_processor": None})
        )
    except Exception as error:  # the library raises nothing more special
        refuse(f"the library tokenizers does not read it: {error}")
    theirs.encode_special_tokens = True
    names = [tokenizer.idx2word[index] for index in tokenizer.specials.ids()]
    texts = [text for text in probes(tokenizer.idx2word) if not any(name in text for name in names)]
    for text, encoding in zip(texts, theirs.encode_batch(texts, add_special_tokens=False), strict=True):
        ids = tokenizer.encode(text)
        if ids != encoding.ids:
            same = len(commonprefix([ids, encoding.ids]))  # noqa: RUF071 - of lists it is what is meant
            ours, other = ids[same : same + 3], encoding.ids[same : same + 3]
            refuse(f"a package would give other ids: {ours} instead of {other} from token {same} on, for {text!a}")


def probes(words: Mapping[int, str]) -> Iterator[str]:
    """PROBES texts of random words in ten scripts, digits, signs, white space and tokens; the same on any machine."""
    rng = random.Random(0)
    alphabets = [_characters(ranges) for ranges in _SCRIPTS]
    for number in range(PROBES):
        alphabet, chunks = alphabets[number % len(alphabets)], list[str]()
        for _ in range(rng.randint(1, 12)):
            kind = rng.random()
            if kind < 0.5:
                chunks.append("".join(rng.choices(alphabet, k=rng.randint(1, 8))))
            elif kind < 0.85:
                chunks.append(rng.choice(_OTHERS))
            else:
                chunks.append(token_bytes(words[rng.randrange(len(words))]).decode("utf-8", "ignore"))
            chunks += " " if rng.random() < 0.5 else ""
        yield "".join(chunks)


def _characters(ranges: str) -> list[str]:
    """ "a-cx" -> a, b, c, x"""
    found = re.findall("(.)-(.)|(.)", ranges, re.DOTALL)
    return [chr(code) for first, last, one in found for code in range(ord(first or one), ord(last or one) + 1)]
