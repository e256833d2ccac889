"""Packages in the lm-evaluation-harness, under the model name `qalam`; needs the extra `lmeval`.
Takes a package folder and the harness' requests, gives log-likelihoods and greedy continuations; the package is
read, not imported.
It does not know tasks; they are the harness'.

    python -m qalam_core.evaluation.harness run --model qalam --model_args path=PKG --tasks TASK

is the harness' own command line with this model registered. The harness has no plug-in mechanism that its
`lm_eval` command would look into; from Python, importing this module is enough.

Source: https://github.com/EleutherAI/lm-evaluation-harness, docs/model_guide.md (0.4.13).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from qalam_core.errors import PackageError
from qalam_core.package import read
from qalam_core.package.runtime.architecture import END, START
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.package.runtime.tokenizer import Tokenizer

__all__ = ["QalamLM", "main"]


@register_model("qalam")
class QalamLM(LM):  # type: ignore[misc]  # the harness has no types
    """A package as the harness sees a model."""

    def __init__(self, path: str = "", max_gen_toks: int | str = 64, **ignored: Any) -> None:
        """`path` is a package folder; the harness' own arguments (device, batch size) mean nothing here."""
        super().__init__()
        if not path:
            raise PackageError("name the package: --model_args path=PKG")
        package = read(Path(path))
        self.tokenizer = Tokenizer(package.vocabulary)
        self.model = NumpyTransformer(package.config, package.weights)
        self.max_gen_toks = int(max_gen_toks)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """ln P(continuation | context), and whether greedy decoding would write it."""
        answers = []
        for context, continuation in (request.args for request in requests):
            whole = self.tokenizer.encode(context + continuation)
            known = self._shared(self.tokenizer.encode(context), whole)
            answers.append(self._score([START, *whole], known + 1))
        return answers

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """ln P of each text, its end included, as `bits_per_byte` in docs/metrics.md counts it."""
        return [self._score([START, *self.tokenizer.encode(text), END], 1)[0] for (text,) in (r.args for r in requests)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy continuations, cut before the first of the stop texts."""
        answers = []
        for context, settings in (request.args for request in requests):
            ids = [START, *self.tokenizer.encode(context)]
            length = int(settings.get("max_gen_toks", self.max_gen_toks))
            out = self.model.generate(np.array([ids]), length, temperature=0.0)[0].tolist()
            text = self.tokenizer.decode(out)[len(self.tokenizer.decode(ids)) :]
            stops = settings.get("until") or []
            for stop in [stops] if isinstance(stops, str) else stops:
                text = text.partition(stop)[0] if stop else text
            answers.append(text)
        return answers

    @staticmethod
    def _shared(context: Sequence[int], whole: Sequence[int]) -> int:
        """How many ids are the context's: a token that spans the border belongs to the continuation."""
        return next(
            (n for n, (a, b) in enumerate(zip(context, whole, strict=False)) if a != b), min(len(context), len(whole))
        )

    def _score(self, ids: Sequence[int], known: int) -> tuple[float, bool]:
        """ln P of ids[known:], each seen with at least half a context before it; and whether all are likeliest."""
        context = self.model.max_seq_len
        total, greedy, place = 0.0, True, known
        while place < len(ids):
            begin = 0 if place == known and len(ids) <= context + 1 else max(0, place - (context + 1) // 2)
            window = np.array([ids[begin : begin + context]])
            logits_TV = self.model(window)[0][0].astype(np.float64)
            end = min(begin + context + 1, len(ids))
            rows_NV = logits_TV[place - 1 - begin : end - 1 - begin]
            targets = np.array(ids[place:end])
            largest = rows_NV.max(-1)
            logs = rows_NV[np.arange(len(targets)), targets] - largest
            total += float((logs - np.log(np.exp(rows_NV - largest[:, None]).sum(-1))).sum())
            greedy = greedy and bool((rows_NV.argmax(-1) == targets).all())
            place = end
        return total, greedy


def main() -> None:
    """The harness' command line, with `--model qalam`."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
