"""The tokenizer of a package: text -> ids -> text, with the standard library only.
Takes the vocabulary as vocab.py holds it, gives token lists and id lists.
It does not know files, models, or the Hugging Face file beside it that says the same.

A byte-pair token is kept in readable form: its bytes as text where they are UTF-8, other bytes as
`\\xd8`, a backslash doubled. `token_bytes` takes that back; both directions lose nothing.
"""

from __future__ import annotations

import heapq
import re
import unicodedata
from collections.abc import Iterable, Sequence

__all__ = ["Tokenizer", "normalise", "token_bytes"]

_UNKNOWN, _SPECIAL_IDS = 1, 4
_CACHE_SIZE = 1 << 16
_WHITE_SPACE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_ESCAPE = re.compile(rb"\\(?:\\|x([0-9a-f]{2}))")

# Splitting runs on one letter per character, as `re` knows no Unicode categories:
# "_" the space, "w" other white space, "l" letter or mark, "n" number, "p" the rest.
_PIECES = {
    "bpe": re.compile(r"_?l+|_?n{1,3}|_?p+|[_w]+(?![lnp])|[_w]+"),
    "word": re.compile(r"l+|n+|p"),
}


class _Classes(dict[int, str]):
    """Code point -> its class letter, worked out once each."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if char in _WHITE_SPACE:
            letter = "_" if char == " " else "w"
        else:
            letter = {"L": "l", "M": "l", "N": "n"}.get(unicodedata.category(char)[0], "p")
        self[code] = letter
        return letter


_CLASSES = _Classes()


def token_bytes(token: str) -> bytes:
    """The bytes a token in readable form stands for."""
    raw = token.encode()
    if b"\\" not in raw:
        return raw
    return _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()) if found[1] else b"\\", raw)


def normalise(text: str, rules: Iterable[tuple[str, str]]) -> str:
    """NFKC, each (pattern, literal replacement) in order, NFKC, strip."""
    text = unicodedata.normalize("NFKC", text)
    for pattern, replacement in rules:
        text = re.sub(pattern, lambda _, by=replacement: by, text)  # type: ignore[misc]
    return unicodedata.normalize("NFKC", text).strip(_WHITE_SPACE)


class Tokenizer:
    """Byte-level BPE ("bpe") or whole words ("word"); the names of special tokens in a text are plain text.

    Raises ValueError when a merge speaks of tokens the vocabulary does not hold.
    """

    def __init__(
        self,
        algorithm: str,
        words: Sequence[str],
        merges: Sequence[tuple[str, str]],
        rules: Sequence[tuple[str, str]],
    ) -> None:
        if algorithm not in _PIECES:
            raise ValueError(f'algorithm "{algorithm}" is neither "bpe" nor "word"')
        self.algorithm = algorithm
        self.rules = tuple(rules)
        self.idx2word = dict(enumerate(words))
        self.word2idx = {word: index for index, word in self.idx2word.items()}
        self._cache: dict[str, list[int]] = {}
        self._bytes: list[bytes] = []
        self._merges: dict[tuple[int, int], tuple[int, int]] = {}
        if algorithm == "bpe":
            self._bytes = [b"" if index < _SPECIAL_IDS else token_bytes(word) for index, word in enumerate(words)]
            self._index = {token: index for index, token in enumerate(self._bytes) if token}
            for rank, (left, right) in enumerate(merges):
                self._add_merge(rank, token_bytes(left), token_bytes(right))

    def _add_merge(self, rank: int, left: bytes, right: bytes) -> None:
        try:
            pair = self._index[left], self._index[right]
            self._merges.setdefault(pair, (rank, self._index[left + right]))
        except KeyError:
            raise ValueError(f"merge {rank} speaks of a token that is not in the vocabulary") from None

    def tokenize(self, text: str) -> list[str]:
        """Text -> its tokens in readable form, unknown words as they stand."""
        if self.algorithm == "word":
            return self._pieces(text)
        return [self.idx2word[index] for index in self.encode(text)]

    def encode(self, text: str) -> list[int]:
        """Text -> token ids, without special tokens; an unknown word is <UNK>."""
        pieces = self._pieces(text)
        if self.algorithm == "word":
            return [self.word2idx.get(piece, _UNKNOWN) for piece in pieces]
        ids: list[int] = []
        for piece in pieces:
            known = self._cache.get(piece)
            if known is None:
                known = self._merge(piece.encode("utf-8", "replace"))
                if len(self._cache) < _CACHE_SIZE:
                    self._cache[piece] = known
            ids += known
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Token ids -> text; special tokens are dropped, broken UTF-8 shows as U+FFFD."""
        kept = [int(index) for index in ids if int(index) >= _SPECIAL_IDS]
        if self.algorithm == "word":
            return " ".join(self.idx2word[index] for index in kept)
        return b"".join(self._bytes[index] for index in kept).decode("utf-8", "replace")

    def _pieces(self, text: str) -> list[str]:
        text = normalise(text, self.rules)
        return [text[m.start() : m.end()] for m in _PIECES[self.algorithm].finditer(text.translate(_CLASSES))]

    def _merge(self, piece: bytes) -> list[int]:
        """Join pairs, the lowest rank first and the leftmost among equals, until none is left."""
        ids = [self._index.get(piece[at : at + 1], _UNKNOWN) for at in range(len(piece))]
        after = [*range(1, len(ids)), -1]
        before = [*range(-1, len(ids) - 1)]
        queue: list[tuple[int, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            merge = self._merges.get((ids[left], ids[right]))
            if merge:
                heapq.heappush(queue, (merge[0], left, ids[left], ids[right]))

        for at in range(len(ids) - 1):
            offer(at, at + 1)
        while queue:
            _, left, left_id, right_id = heapq.heappop(queue)
            right = after[left]
            if ids[left] != left_id or right < 0 or ids[right] != right_id:
                continue  # one of the two was joined elsewhere meanwhile
            ids[left] = self._merges[left_id, right_id][1]
            ids[right] = -1
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
                offer(left, after[right])
            if before[left] >= 0:
                offer(before[left], left)
        return [index for index in ids if index >= 0]
