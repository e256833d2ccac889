"""The evaluation harness with a package, beside the harness's own class for transformers over its export.

    python -m benchmarks.bench_harness [--questions 1000] [--peer 100] [--check]

Needs the extra `lmeval`, and accelerate for the peer. A model of 21 million random weights answers questions with four
choices; the common beginning has 300 characters, a choice 40. Targets: 1,000 questions in at most 180 seconds on two
cores; the log-likelihoods are within 1e-4 of the peer's, and the same choice is the likeliest.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.targets import judged
from benchmarks.texts import texts
from qalam_core.package import ModelConfig, write
from qalam_core.package.interop.transformers_folder import export_transformers
from qalam_core.tokens.tokenizer import ArabicTokenizer

CHOICES, SECONDS, CLOSE = 4, 180.0, 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--peer", type=int, default=100, help="questions that the peer answers as well")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from qalam_core.evaluation.harness import QalamLM

    known = list(texts(None))
    begins = [text[:300] for text in known if len(text) > 300][: options.questions]
    ends = [text[:40] for text in known]
    questions = [
        Instance("loglikelihood", {}, (begin, f" {ends[number * 7 % 1000 + choice]}"), 0)
        for number, begin in enumerate(begins)
        for choice in range(CHOICES)
    ]
    with tempfile.TemporaryDirectory() as folder:
        random_package(Path(folder) / "model", known)
        export_transformers(Path(folder) / "model", Path(folder) / "checkpoint")
        ours: Any = QalamLM(str(Path(folder) / "model"))
        since = time.perf_counter()
        found = np.array([score for score, _ in ours.loglikelihood(questions)])
        seconds = time.perf_counter() - since
        theirs: Any = HFLM(pretrained=str(Path(folder) / "checkpoint"), device="cpu", batch_size=16)
        since = time.perf_counter()
        peer = np.array([score for score, _ in theirs.loglikelihood(questions[: CHOICES * options.peer])])
        of_peer = (time.perf_counter() - since) / options.peer
    best, of_best = (scores[: len(peer)].reshape(-1, CHOICES).argmax(1) for scores in (found, peer))
    print(f"{len(begins)} questions in {seconds:.0f} s; the peer takes {of_peer:.3f} s for each")
    return judged([
        ("seconds for 1,000 questions", 1000 * seconds / len(begins), "at most", SECONDS),
        ("largest difference of log-likelihoods", float(np.abs(found[: len(peer)] - peer).max()), "at most", CLOSE),
        ("questions with another likeliest choice", float((best != of_best).sum()), "at most", 0.0),
    ], options.check)  # fmt: skip


def random_package(folder: Path, known: list[str]) -> None:
    tokenizer = ArabicTokenizer(8_000)
    tokenizer.build_vocab(known)
    config = ModelConfig(len(tokenizer), dim=384, num_heads=8, num_layers=10, max_seq_len=256)
    random = np.random.default_rng(0)
    weights = {
        name: random.normal(1.0 if "ln" in name and name.endswith("weight") else 0.0, 0.05, shape).astype(np.float32)
        for name, shape in config.tensor_shapes().items()
    }
    print(f"{sum(tensor.size for tensor in weights.values()) / 1e6:.1f} M parameters")
    write(folder, config=config, vocabulary=tokenizer.vocabulary, weights=weights, card="# x\n", provenance={})


if __name__ == "__main__":
    raise SystemExit(main())
