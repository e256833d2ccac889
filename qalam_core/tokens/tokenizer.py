"""ArabicTokenizer: byte-level BPE, or the original's word list, kept as a Hugging Face tokenizer.json.
Takes texts and gives token ids and back; trains to the same bytes from the same texts on any machine.
It does not know corpora, shards or models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qalam_core.arabic import PROFILES, Rules, normalise
from qalam_core.errors import CorpusError, QalamError

__all__ = ["END", "PAD", "SPECIALS", "START", "UNK", "ArabicTokenizer", "WordIndex"]

SPECIALS = ("<PAD>", "<UNK>", "<START>", "<END>")
PAD, UNK, START, END = range(4)

# A word keeps its vowel marks: letter classes hold \p{M}. Digits are cut in threes, so that numbers
# share tokens; the last two branches leave one space with the word that follows it.
_BPE_SPLIT = r" ?[\p{L}\p{M}]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
_WORD_SPLIT = r"[\p{L}\p{M}]+|\p{N}+|[^\s\p{L}\p{M}\p{N}]"

Algorithm = Literal["bpe", "word"]

# Characters that are letters, marks, digits or signs in every Unicode since long ago, and so to every library.
_LETTER = "A-Za-z\u0621-\u063a\u0641-\u0652\u0670-\u06d3"
_DIGIT = "0-9\u0660-\u0669\u06f0-\u06f9"
_SIGN = "!-/:-@\\[-`{-~\u00ab\u00bb\u060c\u061b\u061f\u2013\u2014\u2018\u2019\u201c\u201d\ufd3e\ufd3f"
_PLAIN = f"^[{_LETTER}{_DIGIT}{_SIGN}]+$"
_PLAIN_WORD = f"([{_LETTER}]+|[{_DIGIT}]+|[{_SIGN}])"

_TOGETHER = 512  # pieces handed to Hugging Face's encoder as one item: an item costs as much as ten pieces
_AT_ONCE = 64 * _TOGETHER


Encoded = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]


class WordIndex(dict[str, int]):
    """word -> id, remembering its tokenizer: `to_python_code(folder, tokenizer.word2idx)` needs no more."""

    def __init__(self, words: Sequence[str], tokenizer: ArabicTokenizer) -> None:
        super().__init__((word, index) for index, word in enumerate(words))
        self.tokenizer = tokenizer


class ArabicTokenizer:
    """A trained tokenizer, or an empty one to `build_vocab` with, as in the original.

    >>> tokenizer = ArabicTokenizer(vocab_size=8000)
    >>> tokenizer.build_vocab(lines, min_freq=2)
    >>> tokenizer.encode("القط يأكل السمك")
    """

    def __init__(self, vocab_size: int = 32000, algorithm: Algorithm = "word", profile: str = "standard") -> None:
        self.vocab_size = vocab_size
        self.algorithm: Algorithm = algorithm
        self.profile = profile
        self._adopt(_assemble(algorithm, {word: i for i, word in enumerate(SPECIALS)}, [], PROFILES[profile]))

    def _adopt(self, tokenizer: Tokenizer) -> None:
        # Ordinary text that spells "<END>" is text: a special token comes from us, never from a corpus.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        for name in ("words", "merges", "word2idx", "idx2word", "_bare", "_entries"):
            self.__dict__.pop(name, None)

    # -- making ---------------------------------------------------------------------------------

    def build_vocab(self, texts: Iterable[str], min_freq: int = 2, normalised: bool = False) -> None:
        """Train on `texts`: at most `vocab_size` entries, none rarer than `min_freq`.

        Texts that `normalised` says are so already are not normalised again, which would take most of the time.
        Raises CorpusError when the texts hold nothing to learn from.
        """
        trained = _assemble(self.algorithm, {}, [], PROFILES[self.profile])
        normalizer = trained.normalizer
        if normalised:
            trained.normalizer = None
        options: dict[str, Any] = {
            "vocab_size": self.vocab_size, "min_frequency": min_freq,
            "special_tokens": list(SPECIALS), "show_progress": False,
        }  # fmt: skip
        trainer: trainers.Trainer
        if self.algorithm == "bpe":
            alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
            trainer = trainers.BpeTrainer(**options, initial_alphabet=alphabet)
        else:
            trainer = trainers.WordLevelTrainer(**options)
        trained.train_from_iterator(texts, trainer)
        trained.normalizer = normalizer
        found = trained.get_vocab_size()
        if found <= len(SPECIALS):
            raise CorpusError(f"no word occurs {min_freq} times in the text; lower tokenizer.min_freq, or add text")
        self._adopt(trained)

    @classmethod
    def from_words(cls, words: Sequence[str], profile: str = "standard") -> ArabicTokenizer:
        """A word tokenizer over a given list, id order; the list opens with the four specials."""
        if tuple(words[:4]) != SPECIALS:
            raise QalamError(f"a vocabulary opens with {' '.join(SPECIALS)}, not with {' '.join(words[:4])!r}")
        tokenizer = cls(len(words), "word", profile)
        vocabulary = {word: index for index, word in enumerate(words)}
        tokenizer._adopt(_assemble("word", vocabulary, [], PROFILES[profile]))
        return tokenizer

    @classmethod
    def from_json(cls, text: str) -> ArabicTokenizer:
        """From the text of a tokenizer.json that this class wrote."""
        try:
            data = json.loads(text)
            algorithm: Algorithm = {"BPE": "bpe", "WordLevel": "word"}[data["model"]["type"]]  # type: ignore[assignment]
            rules = _rules(data["normalizer"])
            profile = next(name for name, known in PROFILES.items() if known == rules)
            tokenizer = cls(len(data["model"]["vocab"]), algorithm, profile)
            tokenizer._adopt(Tokenizer.from_str(text))
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise QalamError(f"not a tokenizer.json of this project: {error}") from None
        return tokenizer

    def load(self, path: str | os.PathLike[str]) -> None:
        """Become the tokenizer saved at `path`."""
        other = self.from_json(Path(path).read_text(encoding="utf-8"))
        self.vocab_size, self.algorithm, self.profile = other.vocab_size, other.algorithm, other.profile
        self._adopt(other._tokenizer)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tokenizer.json; transformers.PreTrainedTokenizerFast(tokenizer_file=path) reads it."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """The tokenizer.json text; the same tokenizer gives the same bytes."""
        return self._tokenizer.to_str(pretty=True) + "\n"

    # -- using ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    @property
    def rules(self) -> Rules:
        """The normalisation rules, as in qalam_core/arabic.py."""
        return PROFILES[self.profile]

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Every token in id order, readable: see `_readable`."""
        by_id = sorted(self._tokenizer.get_vocab().items(), key=lambda item: item[1])
        if self.algorithm == "word":
            return tuple(token for token, _ in by_id)
        return tuple(token if token in SPECIALS else _readable(token) for token, _ in by_id)

    @cached_property
    def merges(self) -> tuple[tuple[str, str], ...]:
        """The BPE merges in rank order, readable; none for a word tokenizer."""
        model = json.loads(self._tokenizer.to_str())["model"]
        return tuple((_readable(left), _readable(right)) for left, right in model.get("merges", []))

    @cached_property
    def word2idx(self) -> WordIndex:
        """token -> id."""
        return WordIndex(self.words, self)

    @cached_property
    def idx2word(self) -> dict[int, str]:
        """id -> token."""
        return dict(enumerate(self.words))

    def normalize(self, text: str) -> str:
        """The text as the tokenizer sees it."""
        return normalise(text, self.profile)

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text; for a word tokenizer also words that have no id."""
        if self.algorithm == "word":
            pieces = self._tokenizer.pre_tokenizer.pre_tokenize_str(self._tokenizer.normalizer.normalize_str(text))
            return [piece for piece, _ in pieces]
        return [self.words[index] for index in self.encode(text)]

    def encode(self, text: str, max_len: int | None = None) -> list[int]:
        """Ids of a text, without <START> and <END>; at most `max_len` of them."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids[:max_len]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, on all cores."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def encode_normalised(self, texts: pa.LargeStringArray) -> tuple[Encoded, Counts]:
        """Ids of all `texts` in one flat array, and how many of them each text has, as `encode` would give them.

        The texts, without nulls, must be normalised by this tokenizer's profile, as a corpus shard's are; any
        others may come out differently. Each distinct piece of text is encoded once, the rest is looked up.
        Memory: some ten bytes per byte of text.
        """
        pieces, per_text = _pieces(texts)
        coded = pieces.dictionary_encode()
        known, firsts, counts = self._encode_pieces(coded.dictionary)
        which = coded.indices.to_numpy()
        lengths = counts[which]
        ends = np.cumsum(lengths)
        # a ragged gather: where each piece's ids stand among the known ones, less where they shall stand
        ids = known[np.repeat(firsts[which] - (ends - lengths), lengths) + np.arange(lengths.sum())]
        upto = np.concatenate([[0], ends])[np.concatenate([[0], np.cumsum(per_text)])]
        return ids, np.diff(upto)

    @cached_property
    def _bare(self) -> Tokenizer:
        """The same model and splitting without the normaliser, which would strip a piece's leading space."""
        bare = Tokenizer(self._tokenizer.model)
        bare.pre_tokenizer = self._tokenizer.pre_tokenizer
        return bare

    @cached_property
    def _entries(self) -> pa.StringArray:
        return pa.array(self.words)

    def _encode_pieces(self, pieces: pa.LargeStringArray) -> tuple[Encoded, Counts, Counts]:
        """Ids of distinct pieces; where each piece's begin among them, and how many it has."""
        counts = np.zeros(len(pieces), np.int64)
        if self.algorithm == "bpe":
            ids, counts = self._encode_anything(pieces.to_pylist())
            return ids, np.cumsum(counts) - counts, counts
        # Words need no more than a look into the vocabulary, where nobody can doubt what a word is.
        words = pc.utf8_trim(pieces, " \n")
        plain = pc.match_substring_regex(words, _PLAIN)
        cut = pc.utf8_rtrim(pc.replace_substring_regex(words.filter(plain), _PLAIN_WORD, "\\1\n"), "\n")
        lists = pc.split_pattern(cut, "\n")
        found = pc.index_in(lists.flatten().cast(pa.string()), self._entries).fill_null(UNK).to_numpy()
        is_plain = plain.to_numpy(zero_copy_only=False)
        counts[is_plain] = lists.value_lengths().to_numpy()
        other_ids, counts[~is_plain] = self._encode_anything(words.filter(pc.invert(plain)).to_pylist())
        firsts = np.empty(len(pieces), np.int64)
        order = np.concatenate([np.flatnonzero(is_plain), np.flatnonzero(~is_plain)])
        firsts[order] = np.cumsum(counts[order]) - counts[order]
        return np.concatenate([found.astype(np.uint32), other_ids]), firsts, counts

    def _encode_anything(self, pieces: list[str]) -> tuple[Encoded, Counts]:
        """Ids of pieces in one flat array, and how many each has, by Hugging Face's encoder."""
        ids, counts = [np.empty(0, np.uint32)], [np.empty(0, np.int64)]
        for start in range(0, len(pieces), _AT_ONCE):  # an encoding takes a hundred times the memory of its ids
            block = pieces[start : start + _AT_ONCE]
            groups = [block[i : i + _TOGETHER] for i in range(0, len(block), _TOGETHER)]
            encoded = self._bare.encode_batch(groups, is_pretokenized=True, add_special_tokens=False)
            for one, group in zip(encoded, groups, strict=True):
                ids.append(np.array(one.ids, np.uint32))
                counts.append(np.bincount(np.array(one.word_ids, np.int64), minlength=len(group)))
        return np.concatenate(ids), np.concatenate(counts)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; specials are left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)


def _assemble(algorithm: Algorithm, words: dict[str, int], merges: list[tuple[str, str]], rules: Rules) -> Tokenizer:
    steps: list[normalizers.Normalizer] = [normalizers.NFKC()]
    steps += [normalizers.Replace(Regex(pattern), replacement) for pattern, replacement in rules]
    steps += [normalizers.NFKC(), normalizers.Strip()]
    if algorithm == "bpe":
        tokenizer = Tokenizer(models.BPE(words, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(_BPE_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer = Tokenizer(models.WordLevel(words, unk_token=SPECIALS[UNK]))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD_SPLIT), "removed", invert=True)
    tokenizer.normalizer = normalizers.Sequence(steps)
    if words:
        tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def _pieces(texts: pa.LargeStringArray) -> tuple[pa.LargeStringArray, npt.NDArray[np.int64]]:
    """Normalised texts cut before every space and line end, without a copy; and pieces per text.

    No token crosses these cuts: white space in a normalised text is single spaces and line ends, never two of
    them side by side nor one at an end, and a token has it in front or not at all. What is letter, mark or digit
    is left to the tokenizer: two libraries' tables may be of different Unicodes.
    """
    _, offsets_buffer, data_buffer = texts.buffers()
    if not len(texts) or data_buffer is None:
        return pa.array([], pa.large_string()), np.zeros(len(texts), np.int64)
    offsets = np.frombuffer(offsets_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.frombuffer(data_buffer, np.uint8)[first:last]
    begins = (data == ord(" ")) | (data == ord("\n"))
    begins[offsets[:-1][offsets[:-1] < last] - first] = True  # but for empty texts at the end
    starts = np.flatnonzero(begins)
    borders = np.append(starts, last - first) + first
    pieces = pa.LargeStringArray.from_buffers(len(starts), pa.py_buffer(borders), data_buffer)
    return pieces, np.diff(np.searchsorted(starts, offsets - first))


def _rules(normalizer: dict[str, Any]) -> Rules:
    """The (pattern, replacement) pairs of a tokenizer.json's normalizer."""
    steps = normalizer["normalizers"]
    return tuple((step["pattern"]["Regex"], step["content"]) for step in steps if step["type"] == "Replace")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes, character -> byte: a byte that is a printable
    Latin-1 character stands for itself, the others take code points from 256 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def _readable(token: str) -> str:
    """A byte-alphabet token as text a person reads: its UTF-8, backslash doubled, and bytes that are
    no UTF-8 of their own as \\xNN. The doubling makes it one-to-one."""
    raw = bytes(_BYTES[character] for character in token)
    return raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
