"""Held-out loss against compute over four sizes, and what that line predicts for a larger one.

    python -m benchmarks.bench_scaling [--corpus FILE] [--seeds 1] [--threads 1]

The block of Llama, one vocabulary of 8,000, 16 sequences of 128 tokens a step, Muon at 2e-2 times the root of
128/width. Each size trains on about as many tokens as it has parameters, which is far less than is best for it, and
what two cores can do. Compute is 6 operations for each parameter (the embedding once, as it is the head) and token. The
line is a power law through the four points (least squares in logarithms), and `left out` is what the line through the
others predicts for a size: how far the prediction can be trusted.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.bench_train import Data, Size, ours
from benchmarks.texts import texts
from qalam_core.recipe import Model
from qalam_core.tokens.shards import Batches, flat

SHAPES = ((64, 2, 250), (96, 3, 500), (128, 4, 1000), (192, 5, 1800))  # width, layers, steps
BATCH, CONTEXT = 16, 128
LARGER = 54e6, 655e6  # parameters and tokens of the preset `large`


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="jsonl with a field `text`, plain or .gz")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    torch.set_num_threads(asked.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as made:
        data = Data(asked.corpus, Path(made), 8_000)
        size = sum(len(text.encode()) for number, text in enumerate(texts(asked.corpus)) if not number % 20)
        bits = len(flat(data.test)) / size / math.log(2)  # bits per byte for a nat per token
        windows = data.windows(CONTEXT, 512)
        columns = ("parameters", 12), ("tokens", 12), ("compute", 10), ("CPU s", 8), ("nats", 8), ("bits/byte", 11)
        print(f"{'width x layers':16}" + "".join(f"{name:>{width}}" for name, width in columns))
        points = []
        for dim, layers, steps in SHAPES:
            shape = Model(dim=dim, num_heads=dim // 32, num_layers=layers, max_seq_len=CONTEXT)
            each = Size(f"{dim}", shape, data.vocab_size, BATCH, 2e-2 * math.sqrt(128 / dim))
            losses, since = [], time.process_time()
            for seed in asked.seeds:
                batches = Batches([data.train], BATCH, CONTEXT, seed)
                training = ours(
                    each, batches, seed, "llama", steps=steps, optimizer="muon", embedding_rate=3.0, schedule="wsd",
                    compile="on",
                )  # fmt: skip
                for number in range(steps):
                    training.step(number)
                losses.append(training.validate(windows))
            seconds = (time.process_time() - since) / len(asked.seeds)
            count, tokens = training.model.count_parameters(), steps * BATCH * CONTEXT
            loss = statistics.mean(losses)
            points.append((6.0 * count * tokens, loss))
            print(
                f"{f'{dim} x {layers}':16}{count:12,}{tokens:12,}{points[-1][0]:10.1e}{seconds:8.0f}{loss:8.3f}"
                f"{loss * bits:11.3f}"
            )
        power, factor = _line(points)
        print(f"\nloss = {factor:.2f} * compute ^ {power:.4f} nats a token")
        for number, (compute, loss) in enumerate(points):
            rest = _line([point for index, point in enumerate(points) if index != number])
            print(
                f"  left out {SHAPES[number][0]} x {SHAPES[number][1]}: {_at(rest, compute):.3f}, measured {loss:.3f}"
            )
        compute = 6 * LARGER[0] * LARGER[1]
        predicted = _at((power, factor), compute)
        print(f"predicted for large ({compute:.1e}): {predicted:.2f} nats a token, {predicted * bits:.2f} bits a byte")
    return 0


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    compute, loss = np.log(np.array(points)).T
    power, offset = np.polyfit(compute, loss, 1)
    return float(power), float(np.exp(offset))


def _at(line: tuple[float, float], compute: float) -> float:
    return float(line[1] * compute ** line[0])


if __name__ == "__main__":
    sys.exit(main())
