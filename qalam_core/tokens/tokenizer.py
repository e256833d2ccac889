"""ArabicTokenizer: byte-level BPE, or the original's word list, saved as a Hugging Face tokenizer.json."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer, trainers

from qalam_core.arabic import NORMALISATIONS, Rules, normalise
from qalam_core.errors import CorpusError, PackageError, QalamError
from qalam_core.files import WRONG_PLACE
from qalam_core.package.runtime.architecture import SPECIALS, UNK
from qalam_core.package.runtime.tokenizer import Vocabulary
from qalam_core.package.vocabulary import ALPHABET, tokenizer_json, vocabulary_of

Algorithm = Literal["bpe", "word"]

# Characters that are letters, marks, digits or signs in every version of Unicode that a library may have.
_LETTER = "A-Za-z\u0621-\u063a\u0641-\u0652\u0670-\u06d3"
_DIGIT = "0-9\u0660-\u0669\u06f0-\u06f9"
_SIGN = "!-/:-@\\[-`{-~\u00ab\u00bb\u060c\u061b\u061f\u2013\u2014\u2018\u2019\u201c\u201d\ufd3e\ufd3f"
_PLAIN = f"^[{_LETTER}{_DIGIT}{_SIGN}]+$"
_PLAIN_WORD = f"([{_LETTER}]+|[{_DIGIT}]+|[{_SIGN}])"

_TOGETHER = 512  # pieces in one item for Hugging Face's encoder: an item costs as much as ten pieces
_AT_ONCE = 64 * _TOGETHER

Encoded = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]


class WordIndex(dict[str, int]):
    """word -> id, and the tokenizer: `to_python_code(folder, tokenizer.word2idx)` needs it."""

    def __init__(self, words: Sequence[str], tokenizer: ArabicTokenizer) -> None:
        super().__init__((word, index) for index, word in enumerate(words))
        self.tokenizer = tokenizer


class ArabicTokenizer:
    """A trained tokenizer, or an empty one to `build_vocab` with, as in the original.

    >>> tokenizer = ArabicTokenizer(vocab_size=8000)
    >>> tokenizer.build_vocab(lines, min_freq=2)
    >>> tokenizer.encode("القط يأكل السمك")
    """

    def __init__(
        self, vocab_size: int = 32000, algorithm: Algorithm = "word", rules: Rules = NORMALISATIONS["standard"]
    ) -> None:
        self.vocab_size = vocab_size
        self._adopt(Vocabulary(algorithm, SPECIALS, (), rules))

    def _adopt(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._tokenizer = _loaded(vocabulary)
        for name in ("word2idx", "idx2word", "_bare"):
            self.__dict__.pop(name, None)

    def build_vocab(self, texts: Iterable[str], min_freq: int = 2, normalised: bool = False) -> None:
        """Train on `texts`: at most `vocab_size` entries, none rarer than `min_freq`. Raises CorpusError.

        Deterministic on any machine. `normalised` texts are not normalised again, which would take most of the time.
        """
        trained = _loaded(self.vocabulary._replace(words=(), merges=()))
        normalizer = trained.normalizer
        if normalised:
            trained.normalizer = None
        options: dict[str, Any] = {
            "vocab_size": self.vocab_size, "min_frequency": min_freq,
            "special_tokens": list(SPECIALS), "show_progress": False,
        }  # fmt: skip
        trainer: trainers.Trainer
        if self.algorithm == "bpe":
            trainer = trainers.BpeTrainer(**options, initial_alphabet=sorted(ALPHABET.values()))
        else:
            trainer = trainers.WordLevelTrainer(**options)
        trained.train_from_iterator(texts, trainer)
        trained.normalizer = normalizer
        if trained.get_vocab_size() <= len(SPECIALS):
            raise CorpusError(f"no word occurs {min_freq} times in the text; lower tokenizer.min_freq, or add text")
        self._adopt(vocabulary_of(trained.to_str()))

    @classmethod
    def from_vocabulary(cls, vocabulary: Vocabulary) -> ArabicTokenizer:
        """The tokenizer of a vocabulary, which begins with the four special tokens."""
        if vocabulary.words[:4] != SPECIALS:
            first = " ".join(vocabulary.words[:4])
            raise QalamError(f"a vocabulary begins with {' '.join(SPECIALS)}, not with {first!r}")
        tokenizer = cls(len(vocabulary.words))
        tokenizer._adopt(vocabulary)
        return tokenizer

    @classmethod
    def from_words(cls, words: Sequence[str], rules: Rules = NORMALISATIONS["standard"]) -> ArabicTokenizer:
        """A word tokenizer over a given list, in id order."""
        return cls.from_vocabulary(Vocabulary("word", tuple(words), (), rules))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> ArabicTokenizer:
        """Read a tokenizer.json that `save` wrote. Raises QalamError."""
        try:
            return cls.from_vocabulary(vocabulary_of(Path(path).read_text(encoding="utf-8")))
        except (PackageError, UnicodeDecodeError) as error:
            raise QalamError(f"{path}: not a tokenizer.json of this project: {error}") from None

    def load(self, path: str | os.PathLike[str]) -> None:
        """Replace this tokenizer by the one saved at `path`."""
        other = self.from_file(path)
        self.vocab_size = other.vocab_size
        self._adopt(other.vocabulary)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tokenizer.json; transformers.PreTrainedTokenizerFast(tokenizer_file=path) reads it.

        Raises QalamError.
        """
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(tokenizer_json(self.vocabulary), encoding="utf-8")
        except WRONG_PLACE as error:
            raise QalamError(f"{path}: cannot be written ({error.strerror}); name another file") from None

    def __len__(self) -> int:
        return len(self.vocabulary.words)

    @property
    def algorithm(self) -> str:
        """ "bpe" or "word"."""
        return self.vocabulary.algorithm

    @property
    def words(self) -> tuple[str, ...]:
        """Every token in id order, in readable form."""
        return self.vocabulary.words

    @cached_property
    def word2idx(self) -> WordIndex:
        """token -> id."""
        return WordIndex(self.words, self)

    @cached_property
    def idx2word(self) -> dict[int, str]:
        """id -> token."""
        return dict(enumerate(self.words))

    def normalize(self, text: str) -> str:
        """The text, normalised by the tokenizer's rules."""
        return normalise(text, self.vocabulary.rules)

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

        The texts, without nulls, must be normalised by this tokenizer's rules. Memory: about ten times their bytes.
        """
        pieces, per_text = _pieces(texts)
        coded = pieces.dictionary_encode()  # each distinct piece is encoded once
        known, firsts, counts = self._encode_pieces(coded.dictionary)
        which = coded.indices.to_numpy()
        lengths = counts[which]
        ends = np.cumsum(lengths)
        # a ragged gather: the position of each piece's ids among the known ones, less their position in the output
        ids = known[np.repeat(firsts[which] - (ends - lengths), lengths) + np.arange(lengths.sum())]
        upto = np.concatenate([[0], ends])[np.concatenate([[0], np.cumsum(per_text)])]
        return ids, np.diff(upto)

    @cached_property
    def _bare(self) -> Tokenizer:
        """The same model and pre-tokenizer without the normaliser, which would strip a piece's leading space."""
        bare = Tokenizer(self._tokenizer.model)
        bare.pre_tokenizer = self._tokenizer.pre_tokenizer
        return bare

    def _encode_pieces(self, pieces: pa.LargeStringArray) -> tuple[Encoded, Counts, Counts]:
        """-> ids of distinct pieces, where each piece's begin, and how many it has."""
        counts = np.zeros(len(pieces), np.int64)
        if self.algorithm == "bpe":
            ids, counts = self._encode_anything(pieces.to_pylist())
            return ids, np.cumsum(counts) - counts, counts
        # plain words, about which all libraries agree, need only a look-up in the vocabulary
        words = pc.utf8_trim(pieces, " \n")
        plain = pc.match_substring_regex(words, _PLAIN)
        cut = pc.utf8_rtrim(pc.replace_substring_regex(words.filter(plain), _PLAIN_WORD, "\\1\n"), "\n")
        lists = pc.split_pattern(cut, "\n")
        found = pc.index_in(lists.flatten().cast(pa.string()), pa.array(self.words)).fill_null(UNK).to_numpy()
        is_plain = plain.to_numpy(zero_copy_only=False)
        counts[is_plain] = lists.value_lengths().to_numpy()
        other_ids, counts[~is_plain] = self._encode_anything(words.filter(pc.invert(plain)).to_pylist())
        firsts = np.empty(len(pieces), np.int64)
        order = np.concatenate([np.flatnonzero(is_plain), np.flatnonzero(~is_plain)])
        firsts[order] = np.cumsum(counts[order]) - counts[order]
        return np.concatenate([found.astype(np.uint32), other_ids]), firsts, counts

    def _encode_anything(self, pieces: list[str]) -> tuple[Encoded, Counts]:
        """-> ids of pieces in one flat array, and how many each has, by Hugging Face's encoder."""
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
        """The text of ids, without special tokens except <UNK>."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)


def _loaded(vocabulary: Vocabulary) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json(vocabulary))
    # text that spells "<END>" is text: special tokens never come from a corpus
    tokenizer.encode_special_tokens = True
    return tokenizer


def _pieces(texts: pa.LargeStringArray) -> tuple[pa.LargeStringArray, npt.NDArray[np.int64]]:
    """Normalised texts split before every space and line end, without a copy; and the number of pieces of each.

    No token crosses these borders: white space in a normalised text is single spaces and line ends, never two in a row
    nor at an end, and a token has it in front or not at all.
    """
    _, offsets_buffer, data_buffer = texts.buffers()
    if not len(texts) or data_buffer is None:
        return pa.array([], pa.large_string()), np.zeros(len(texts), np.int64)
    offsets = np.frombuffer(offsets_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.frombuffer(data_buffer, np.uint8)[first:last]
    begins = (data == ord(" ")) | (data == ord("\n"))
    begins[offsets[:-1][offsets[:-1] < last] - first] = True  # except empty texts at the end
    starts = np.flatnonzero(begins)
    borders = np.append(starts, last - first) + first
    pieces = pa.LargeStringArray.from_buffers(len(starts), pa.py_buffer(borders), data_buffer)
    return pieces, np.diff(np.searchsorted(starts, offsets - first))
