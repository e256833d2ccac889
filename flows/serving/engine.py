"""The thread that generates for all requests of a server, and the texts that it makes of tokens."""

from __future__ import annotations

import asyncio
import codecs
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from qalam_core.package.batching import Batch, Sampling, Text, Token
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.package.runtime.tokenizer import Tokenizer, Vocabulary, token_bytes

log = logging.getLogger(__name__)

_utf8 = codecs.getincrementaldecoder("utf-8")


class BusyError(Exception):
    """As many requests wait as may, or another model has just taken this one's place."""


@dataclass(eq=False)
class Choice:
    """One text of an answer. The engine's thread fills it, and calls `notify` when there is something to read: at the
    end, and where it is streamed after each piece."""

    ids: Sequence[int]
    sampling: Sampling
    random: np.random.Generator
    stop: Sequence[str]
    stream: bool
    notify: Callable[[], None]
    text: str = ""  # that may be shown: whole characters, and nothing of a stop sequence
    tokens: list[Token] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)  # in `text`, of each token
    prompt: Sequence[Token] = ()  # where logprobs are asked for
    reason: str = ""  # why it ended: "stop", "length", or "error"
    error: str = ""  # what went wrong
    cancelled: bool = False
    _held: str = ""  # may be the beginning of a stop sequence
    _letters: codecs.IncrementalDecoder = field(default_factory=lambda: _utf8(errors="replace"))

    def add(self, token: Token, spelled: bytes | None) -> None:
        """Take the next token, as the bytes that it adds to the text; None is the end."""
        if spelled is None:
            self._show(self._letters.decode(b"", final=True))
            self._finish("stop")
            return
        self.tokens.append(token)
        self.offsets.append(len(self.text) + len(self._held))
        last = len(self.tokens) == self.sampling.max_tokens
        self._show(self._letters.decode(spelled, final=last))
        if last:
            self._finish("length")

    def fail(self, error: str) -> None:
        """End it, as there is no next token."""
        self.reason, self.error = "error", error
        self.notify()

    def _show(self, piece: str) -> None:
        self._held += piece
        found = [place for stop in self.stop if (place := self._held.find(stop)) >= 0]
        if found:
            self.text, self._held = self.text + self._held[: min(found)], ""
            kept = sum(offset < len(self.text) for offset in self.offsets)
            del self.tokens[kept:], self.offsets[kept:]
            self.reason = "stop"
            return
        held = max((_overlap(self._held, stop) for stop in self.stop), default=0)
        whole = len(self._held) - held
        self.text, self._held = self.text + self._held[:whole], self._held[whole:]

    def _finish(self, reason: str) -> None:
        self.text, self._held = self.text + self._held, ""
        self.reason = self.reason or reason


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)


class Engine:
    """Generates with one model, in a thread of its own."""

    def __init__(
        self, model: NumpyTransformer, vocabulary: Vocabulary, places: int, waiting: int, batch: Batch | None = None
    ) -> None:
        self.model, self.vocabulary, self.tokenizer = model, vocabulary, Tokenizer(vocabulary)
        self._specials = {*self.tokenizer.specials.ids()}
        self._batch = batch or Batch(self.model, places)
        self._choices: dict[Text, Choice] = {}
        self._waiting, self._most = deque[Choice](), waiting
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        """Texts that are being generated."""
        return len(self._batch.texts)

    @property
    def waiting(self) -> int:
        """Texts that wait for a place."""
        return len(self._waiting)

    def submit(self, choices: Sequence[Choice]) -> None:
        """Generate these, as soon as there are places. Raises BusyError."""
        with self._changed:
            if self._closed or len(self._waiting) + len(choices) > self._most + max(
                0, self._batch.places - self.active
            ):
                raise BusyError
            self._waiting.extend(choices)
            self._changed.notify()

    def cancel(self, choices: Sequence[Choice]) -> None:
        """Free the places of choices that nobody waits for."""
        with self._changed:
            for choice in choices:
                choice.cancelled = True
                if choice in self._waiting:
                    self._waiting.remove(choice)

    def close(self) -> None:
        """End when all is generated that was submitted."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def spelled(self, token: int) -> str:
        """A token as text; one that is part of a character as its bytes."""
        if token in self._specials:
            return str(self.vocabulary.words[token])
        try:
            return self._bytes(token).decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self._bytes(token))

    def id_of(self, spelled: str) -> int:
        """The token that `spelled` writes so. Raises KeyError."""
        return self._ids[spelled]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {self.spelled(id_): id_ for id_ in reversed(range(self.model.vocab_size))}

    def offsets(self, tokens: Sequence[int]) -> list[int]:
        """Where each begins in the text of all, in characters; one that is part of a character, where that begins."""
        letters, found, count, after = _utf8(errors="replace"), list[int](), 0, False
        for token in tokens:
            found.append(count)
            count += len(letters.decode(self._added(token, after)))
            after = after or bool(self._bytes(token))
        return found

    def _added(self, token: int, after: bool) -> bytes:
        """What a token adds to a text, perhaps after others that are seen: between words is a space."""
        added = self._bytes(token)
        return b" " + added if added and after and self.tokenizer.algorithm == "word" else added

    def _bytes(self, token: int) -> bytes:
        """A token in a text; special ones but <UNK> are not seen."""
        if token in self._specials:
            return self.vocabulary.words[token].encode() if token == self.tokenizer.specials.unk else b""
        word = self.vocabulary.words[token]
        return token_bytes(word) if self.tokenizer.algorithm == "bpe" else word.encode()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._choices or self._closed):
                    self._changed.wait()
                if self._closed and not self._waiting and not self._choices:
                    return
                free = self._batch.places - len(self._choices)
                joining = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
            for choice in joining:
                if not choice.cancelled:
                    self._join(choice)
            for text in [text for text, choice in self._choices.items() if choice.cancelled]:
                self._leave(text)
            if self._choices:
                self._step()

    def _step(self) -> None:
        try:
            found = self._batch.step()
        except Exception as error:  # who waits is told, and later requests are answered
            for text in [*self._choices]:
                self._fail(text, error)
            return
        for text, token in found:
            if isinstance(token, Token):
                self._deliver(text, self._choices[text], token)
            else:
                self._fail(text, token)

    def _fail(self, text: Text, error: Exception) -> None:
        choice = self._choices[text]
        self._leave(text)
        choice.fail(_problem(error))

    def _join(self, choice: Choice) -> None:
        try:
            text, token = self._batch.join(choice.ids, choice.sampling, choice.random)
        except Exception as error:  # as above
            choice.fail(_problem(error))
            return
        choice.prompt = text.prompt
        if token is None:
            choice.reason = "length"
            choice.notify()
            return
        self._choices[text] = choice
        self._deliver(text, choice, token)

    def _deliver(self, text: Text, choice: Choice, token: Token) -> None:
        before = choice.text
        after = any(map(self._bytes, choice.ids)) or any(self._bytes(each.id) for each in choice.tokens)
        choice.add(token, None if token.id == self.model.end_id else self._added(token.id, after))
        if choice.reason:
            self._leave(text)
        if choice.reason or (choice.stream and choice.text != before):
            choice.notify()

    def _leave(self, text: Text) -> None:
        self._batch.leave(text)
        del self._choices[text]


def _problem(error: Exception) -> str:
    """What a client is told of it."""
    if isinstance(error, FloatingPointError):
        return str(error)
    log.error("generation failed", exc_info=error)
    return "generation failed; the server's log says why"


def notifier(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> Callable[[], None]:
    """A function for other threads that sets an event of `loop`."""

    def notify() -> None:
        with suppress(RuntimeError):  # the server has ended
            loop.call_soon_threadsafe(event.set)

    return notify
