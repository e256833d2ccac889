"""Evaluation: what the count-based baselines say and cost, and how long a large model takes.

    python -m benchmarks.bench_evaluate [--mb N] [--check]

Baselines on the demo corpus: bits per byte of each order, and the seconds for counting and scoring a token 4-gram and a
character 10-gram (target: 10 together). Baselines at their limit: training text of 25 million tokens and as many
characters, of which 20 million each are drawn, counted, and used to score 1.5 MB, in a process of its own whose peak
memory the kernel reports (targets: 90 s, 2 GB). Its words are drawn by Zipf's law from 300,000, and its ids
independently of each other, so that it has more distinct n-grams than text has.

A large model: the recipe `large` with random weights scores N MB of the demo's text; a document is as long as they
come, or four contexts long. The time for `gate.test_mb`, plus that of the baselines, is an evaluation (target: ten
minutes). Reading a package, samples and integrity come to less than a minute more.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tokenizers import Tokenizer

from benchmarks.bench_tokens import normalised
from qalam_core.corpus.sources import resolve
from qalam_core.corpus.splits import read_texts
from qalam_core.evaluation.baselines import (
    CHARACTER_ORDER,
    CHARACTERS,
    TOKEN_ORDER,
    Ids,
    KneserNey,
    Unigram,
    characters,
)
from qalam_core.evaluation.sampling import training_sample
from qalam_core.evaluation.scoring import HeldOut, score
from qalam_core.model import PureDynamicTransformer
from qalam_core.package.runtime.architecture import END, START
from qalam_core.package.vocabulary import tokenizer_json
from qalam_core.pipeline.build import InPlace, ingested, tokenized
from qalam_core.pipeline.prepare import shards_of
from qalam_core.pipeline.tokenize import TOKENS, of_split
from qalam_core.progress import no_progress
from qalam_core.recipe import Recipe
from qalam_core.store import Store
from qalam_core.tokens.shards import flat
from qalam_core.tokens.tokenizer import ArabicTokenizer
from qalam_core.training.spec import model_config

RECIPES = Path(__file__).parent.parent / "deployments" / "recipes"
DEMO_SECONDS, LIMIT_SECONDS, LIMIT_GB, EVALUATION_SECONDS = 10.0, 90.0, 2.0, 600.0
WORDS, DOCUMENT_WORDS, TEST_CHARACTERS = 300_000, 300, 850_000


def demo() -> float:
    """Print the floors of the demo corpus; -> seconds for the two that reports have."""
    recipe = Recipe.load(RECIPES / "demo.toml")
    with tempfile.TemporaryDirectory() as root:
        executor = InPlace(Store(Path(root)))
        corpus, tokenizer, tokens, _ = tokenized(
            recipe, ingested(recipe, resolve(recipe.corpus.sources), executor), executor
        )
        words = ArabicTokenizer.from_file(tokenizer.path / "tokenizer.json")
        train, test = (
            [batch for shard in shards_of(corpus, split) for batch in read_texts(shard.path)]
            for split in ("train", "test")
        )
        texts = pa.concat_arrays([batch.column("text") for batch in test])
        size = pc.sum(pc.binary_length(texts)).as_py() * math.log(2)
        ids = [np.array([START, *words.encode(text), END], np.uint16) for text in texts.to_pylist()]
        begun = time.perf_counter()
        sample = training_sample(train, [flat(each.path / TOKENS) for each in of_split(tokens, "train")], 0)
        seconds = time.perf_counter() - begun
        for name, streams, symbols, held_out, orders, reported in (
            ("token", sample.tokens, len(words), np.concatenate(ids), range(2, 7), TOKEN_ORDER),
            ("character", [sample.characters], CHARACTERS, characters(texts), range(6, 13), CHARACTER_ORDER),
        ):
            for order in orders:
                begun = time.perf_counter()
                bits = KneserNey.fit(streams, symbols, order).nats(held_out).sum() / size
                took = time.perf_counter() - begun
                seconds += took * (order == reported)
                print(f"{name} {order}-gram{bits:>10.4f} bits per byte{took:>8.2f} s")
    return seconds


def synthetic(size: int, seed: int) -> tuple[list[pa.RecordBatch], list[Ids], int]:
    """Documents of about `size` characters in all, and as many ids in as many documents; -> texts, ids, entries."""
    random = np.random.default_rng(seed)
    letters = np.array([chr(code) for code in (*range(0x621, 0x63B), *range(0x641, 0x64B))])
    common = np.minimum(random.zipf(1.3, (WORDS, 8)), len(letters)) - 1
    lengths = random.integers(2, 9, WORDS)
    words = pa.array(["".join(letters[row[:length]]) for row, length in zip(common, lengths, strict=True)])
    count = int(size / 6)
    drawn = np.minimum(random.zipf(1.15, count), WORDS) - 1
    borders = np.arange(0, count - DOCUMENT_WORDS, DOCUMENT_WORDS)
    lists = pa.ListArray.from_arrays(pa.array(borders, pa.int32()), words.take(pa.array(drawn)))
    texts = pc.binary_join(lists, " ").cast(pa.large_string())
    ids = pa.array([f"{id_:016x}" for id_ in random.integers(0, 2**63, len(texts))])
    batches = pa.table({"id": ids, "text": texts}).to_batches(1000)
    entries = 32_000
    stream = np.minimum(random.zipf(1.2, size) + END, entries - 1).astype(np.uint16)
    starts = np.linspace(0, size, len(texts), endpoint=False).astype(np.int64)
    stream[starts], stream[np.append(starts[1:], size) - 1] = START, END
    return batches, [stream], entries


def at_the_limit() -> None:
    """Count and score at the limit; print the seconds and the peak memory as JSON."""
    train, tokens, entries = synthetic(25_000_000, 1)
    held_out, held_out_ids, _ = synthetic(TEST_CHARACTERS, 2)
    written = characters(pa.concat_arrays([batch.column("text") for batch in held_out]))
    begun = time.perf_counter()
    sample = training_sample(train, tokens, 0)
    times = {"sampling": time.perf_counter() - begun}
    for name, streams, symbols, scored, order in (
        ("tokens", sample.tokens, entries, held_out_ids[0], TOKEN_ORDER),
        ("characters", [sample.characters], CHARACTERS, written, CHARACTER_ORDER),
    ):
        begun = time.perf_counter()
        if name == "tokens":
            Unigram.fit(streams, symbols).nats(scored)
        KneserNey.fit(streams, symbols, order).nats(scored)
        times[name] = time.perf_counter() - begun
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9
    print(json.dumps({"times": times, "peak": peak, "counted": sample.counted.model_dump()}))


def large(megabytes: float) -> float:
    """Print the cost of scoring with a large model; -> seconds per MB of the slower kind of documents."""
    recipe = Recipe.load(RECIPES / "large.toml")
    torch.set_num_threads(2)
    tokenizer = ArabicTokenizer(16_000, "bpe")  # the demo has no text for more
    texts = normalised(None)
    tokenizer.build_vocab(texts)
    fast = Tokenizer.from_str(tokenizer_json(tokenizer.vocabulary))
    model = PureDynamicTransformer(**model_config(recipe.model, len(tokenizer)).arguments(), dropout=0.0).eval()
    slowest = 0.0
    for name, target in (("as they come", 0), ("four contexts", 4 * model.max_seq_len * 4)):
        documents: list[str] = []
        for text in texts:
            if documents and len(documents[-1]) < target:
                documents[-1] += f" {text}"
            else:
                documents.append(text)
            if sum(map(len, documents)) * 1.8 > megabytes * 1e6:
                break
        held_out = HeldOut.of([("demo", text) for text in documents], fast, tokenizer.vocabulary)
        begun = time.perf_counter()
        score(model, held_out, no_progress)
        seconds = (time.perf_counter() - begun) / (held_out.bytes.sum() / 1e6)
        tokens = len(held_out.stream) / len(documents)
        print(f"documents of {tokens:,.0f} tokens ({name}): {seconds:.0f} s per MB")
        slowest = max(slowest, seconds)
    return slowest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=0.1, help="text that the large model scores")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    parser.add_argument("--limit", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.limit:
        at_the_limit()
        return 0
    missed = []

    def compared(what: str, value: float, target: float, unit: str) -> None:
        print(f"{what:<40}{value:>10.1f} {unit} (target: {target:g})")
        if value > target:
            missed.append(what)

    compared("demo: counting and scoring", demo(), DEMO_SECONDS, "s")
    child = [sys.executable, "-m", "benchmarks.bench_evaluate", "--limit"]
    found = json.loads(subprocess.run(child, stdout=subprocess.PIPE, check=True).stdout)
    print(f"counted: {found['counted']}")
    print(f"seconds: {', '.join(f'{name} {seconds:.1f}' for name, seconds in found['times'].items())}")
    baselines = sum(found["times"].values())
    compared("at the limit: counting and scoring", baselines, LIMIT_SECONDS, "s")
    compared("at the limit: peak memory", found["peak"], LIMIT_GB, "GB")
    limit = Recipe.load(RECIPES / "large.toml").gate.test_mb
    compared(f"large, {limit:g} MB", limit * large(arguments.mb) + baselines, EVALUATION_SECONDS, "s")
    return int(arguments.check and bool(missed))


if __name__ == "__main__":
    sys.exit(main())
