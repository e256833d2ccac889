"""How long `qalam trace` takes: the verbatim spans of a text in 1 GB of training text.

    python -m benchmarks.bench_find [--megabytes N] [--check]

The text is synthetic: words of two to nine letters by Zipf's law, in documents of 400 words, each of which begins with
the same eight words and repeats 60 words of an earlier one. Targets, for 1 GB: every trace in under 10 s; and each span
that was planted is found.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from qalam_core.corpus.spans import spans
from qalam_core.corpus.splits import SCHEMA

LETTERS = np.array(list("ابتثجحخدذرزسشصضطظعغفقكلمنهوي"))
WORDS = 400  # of a document
SECONDS = 10.0
SHARD = 64_000_000


def synthetic(folder: Path, size: int, random: np.random.Generator) -> tuple[list[Path], list[list[str]]]:
    """Shards of about `size` bytes in all, and the words of some of their documents."""
    spellings = ["".join(random.choice(LETTERS, random.integers(2, 10))) for _ in range(100_000)]
    vocabulary = np.array(spellings, object)
    shares = 1 / np.arange(10, len(vocabulary) + 10)
    opening = " ".join(vocabulary[:8])
    shards: list[Path] = []
    kept: list[list[str]] = []
    pool, written, number = "", 0, 0
    while written < size:
        shards.append(folder / f"train-{len(shards):05}.arrow")
        with ipc.new_file(shards[-1], SCHEMA) as file:
            filled = 0
            while filled < min(SHARD, size - written):
                drawn = random.choice(len(vocabulary), 200 * WORDS, p=shares / shares.sum())
                bodies = [" ".join(row) for row in vocabulary[drawn].reshape(200, WORDS)]
                pool = pool or bodies[0]
                texts = [f"{opening} {body} {' '.join(pool.split()[:60])}" for body in bodies]
                pool = bodies[-1]
                ids = [f"{number + place:016x}" for place in range(len(texts))]
                number += len(texts)
                columns = [pa.array(ids), pa.array(texts, pa.large_string()), pa.array(["synthetic"] * len(texts))]
                file.write_batch(pa.record_batch(columns, schema=SCHEMA))
                filled += sum(len(text.encode()) for text in texts)
                kept.append(texts[7].split())
            written += filled
    return shards, kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000, help="training text")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    limit = SECONDS * max(1.0, arguments.megabytes / 1000)
    missed = False
    with tempfile.TemporaryDirectory(prefix="qalam-bench-") as folder:
        shards, kept = synthetic(Path(folder), arguments.megabytes * 1_000_000, random)
        words = np.array([word for document in kept[:50] for word in document], object)
        unknown = list(random.permutation(words)[:100])
        planted = [*unknown, *kept[-1][20:60], *unknown]
        texts = {
            "200 words, 40 of them copied": [" ".join(planted)],
            "200 words that nothing holds": [" ".join(f"{word}ء" for word in words[:200])],
            "the words that open every document": [" ".join(words[:8])],
            "10,000 words of 25 documents": [" ".join(words[:10_000])],
            "1,000 texts of 40 words": [" ".join(document[30:70]) for document in (kept * 1000)[:1000]],
        }
        print(f"{'':<38}{'seconds':>9}{'spans':>9}{'documents':>12}{'MB':>8}")
        for name, queries in texts.items():
            since = time.monotonic()
            found = spans(queries, shards)
            took = time.monotonic() - since
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            count = sum(span.count for of_text in found for span in of_text)
            print(f"{name:<38}{took:>9.1f}{sum(map(len, found)):>9,}{count:>12,}{memory:>8,.0f}", flush=True)
            missed |= took > limit
            if name.endswith("copied"):
                missed |= (100, 140) not in {(span.start_word, span.end_word) for span in found[0]}
            if name.endswith("holds"):
                missed |= bool(found[0])
            if name.startswith("1,000"):
                missed |= any((of_text[0].start_word, of_text[0].end_word) != (0, 40) for of_text in found if of_text)
                missed |= not all(found)
    print(f"targets {'missed' if missed else 'met'}: every one within {limit:.0f} s, and what was planted is found")
    return int(arguments.check and missed)


if __name__ == "__main__":
    sys.exit(main())
