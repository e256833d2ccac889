"""Packages in the lm-evaluation-harness, under the model name `qalam`; needs the extra `lmeval`.

    python -m qalam_core.evaluation.harness run --model qalam --model_args path=PKG --tasks TASK

is the harness's command line with this model registered: its `lm_eval` command loads no plug-ins. In Python, importing
this module registers the model. The package is read, not imported.

Source: https://github.com/EleutherAI/lm-evaluation-harness, docs/model_guide.md (0.4.13).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs

from qalam_core.errors import PackageError, QalamError
from qalam_core.evaluation.continuations import common, continuation_scores, score
from qalam_core.package import read
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.package.runtime.tokenizer import Tokenizer

TOGETHER = 16
"""Continuations of one context that are read at the same time."""

_OTHERS = {"batch_size", "max_batch_size", "device", "trust_remote_code"}
"""Arguments that the harness gives to every model; they change nothing here."""

_GREEDY = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "seed"}
"""Settings of a generation that is greedy."""


@register_model("qalam")
class QalamLM(LM):  # type: ignore[misc]  # the harness has no types
    """A package as a model of the harness."""

    def __init__(self, path: str = "", max_gen_toks: int | str = 64, **others: Any) -> None:
        """`path` is a package folder. Raises PackageError."""
        super().__init__()
        if unknown := others.keys() - _OTHERS:
            raise PackageError(f"--model_args {min(unknown)}: there are path and max_gen_toks")
        if not str(max_gen_toks).isdecimal():
            raise PackageError(f"--model_args max_gen_toks={max_gen_toks}: give a number of tokens")
        if not path:
            raise PackageError("name the package: --model_args path=PKG")
        package = read(Path(path))
        self.tokenizer = Tokenizer(package.vocabulary)
        self.model = NumpyTransformer(package.config, package.weights, package.vocabulary.specials)
        self.start, self.end = self.tokenizer.specials.start, self.tokenizer.specials.end
        self.max_gen_toks = int(max_gen_toks)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """ln P(continuation | context), and whether greedy decoding gives the continuation."""
        answers: list[tuple[float, bool]] = []
        for context, group in groupby((request.args for request in requests), itemgetter(0)):
            begin = self.tokenizer.encode(context)
            while continuations := [continuation for _, continuation in islice(group, TOGETHER)]:
                texts = [[self.start, *self.tokenizer.encode(context + each)] for each in continuations]
                # a token that spans the border belongs to the continuation
                known = [min(common([[self.start, *begin], ids]), len(ids) - 1) for ids in texts]
                if max(map(len, texts)) - 1 <= self.model.max_seq_len and min(known) > 0:
                    answers += continuation_scores(self.model, texts, known)
                else:
                    answers += [self._score(ids, place) for ids, place in zip(texts, known, strict=True)]
        return answers

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """ln P of each text and its <END>, as in the definition of bits per byte in docs/metrics.md."""
        texts = (request.args[0] for request in requests)
        return [self._score([self.start, *self.tokenizer.encode(text), self.end], 1)[0] for text in texts]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy continuations, cut before the first of the stop texts. Raises PackageError for any others."""
        answers = []
        for context, given in (request.args for request in requests):
            settings = normalize_gen_kwargs(given, self.max_gen_toks)
            others = [name for name, value in settings.items() if name not in _GREEDY and value not in (None, False, 1)]
            if settings["do_sample"] or others:
                raise PackageError(f"generation_kwargs {others[0] if others else 'do_sample'}: texts are greedy here")
            ids = [self.start, *self.tokenizer.encode(context)]
            out = self.model.generate(np.array([ids]), settings["max_gen_toks"], temperature=0.0)[0].tolist()
            text = self.tokenizer.decode(out)[len(self.tokenizer.decode(ids)) :]
            for stop in settings["until"]:
                text = text.partition(stop)[0] if stop else text
            answers.append(text)
        return answers

    def _score(self, ids: Sequence[int], known: int) -> tuple[float, bool]:
        """ln P of ids[known:], each with at least half a context before it; and whether each has the largest logit."""
        context = self.model.max_seq_len
        total, greedy, place = 0.0, True, known
        while place < len(ids):
            begin = 0 if place == known and len(ids) <= context + 1 else max(0, place - (context + 1) // 2)
            window = np.array([ids[begin : begin + context]])
            logits_TV = self.model(window)[0][0]
            end = min(begin + context + 1, len(ids))
            found, right = score(logits_TV[place - 1 - begin : end - 1 - begin], ids[place:end])
            total, greedy, place = total + found, greedy and right, end
        return total, greedy


def main() -> None:
    """The harness's command line, with `--model qalam`."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except QalamError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
