"""Tokenization: MB of normalised text per second, compared with peers, and the peak memory of vocab and tokenize.

    python -m benchmarks.bench_tokens [--mb N] [--corpus FILE] [--rounds N] [--sizes MB MB ...] [--check]

Speed: the demo corpus, normalised, its sentences drawn again with a seed until there are N MB; and once as it is,
where every sixth piece is a new one (or the texts of a JSON Lines file). Peers alternate in one
process, best of N. Memory: vocab and tokenize as the pipeline runs them, each in a process of its own whose peak
the kernel reports (VmHWM); the text for it is drawn from three million words by Zipf's law, so that its
vocabulary keeps growing as a real one does. Pages of mapped shards count if they are touched. The original's
tokenizer is reimplemented from its published rule (a run of the Arabic block, a run of Latin letters or digits, or
one other character; a dictionary), without its normaliser. Targets: 15 MB/s (BPE) and 40 MB/s (word) on two threads,
and less than 1 GB.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc

from benchmarks.texts import texts
from qalam_core.arabic import NORMALISATIONS, normalise_array
from qalam_core.corpus.prepare import CorpusFacts, SplitCounts
from qalam_core.package.runtime.architecture import SPECIALS
from qalam_core.package.runtime.tokenizer import token_bytes
from qalam_core.package.vocabulary import BPE_SPLITS
from qalam_core.pipeline.tokenize import Tokenize
from qalam_core.pipeline.vocab import Vocab
from qalam_core.progress import Progress
from qalam_core.recipe import Recipe
from qalam_core.store import Identity, Store
from qalam_core.tokens.tokenizer import Algorithm, ArabicTokenizer

TARGETS = {"bpe": 15.0, "word": 40.0}  # MB/s on two threads, recombined text
LIMIT_MB = 1000
CHUNK_MB = 8  # what the pipeline encodes at once
SHARD_MB = 16

Work = Callable[[list[pa.Array], int], Any]


def normalised(corpus: Path | None) -> list[str]:
    """Normalised documents: the demo's, or those of a file."""
    found = normalise_array(pa.array(texts(corpus), pa.large_string()), NORMALISATIONS["standard"]).to_pylist()
    return [text for text in found if text]


def recombined(texts: list[str], megabytes: float, seed: int) -> pa.Array:
    """Documents of ten sentences drawn with a seed."""
    sentences = [part.strip() for text in texts for part in re.split(r"[.؟!\n]", text) if len(part) > 20]
    draw = random.Random(seed).choices
    made: list[str] = []
    size = 0
    while size < megabytes * 1e6:
        made.append(". ".join(draw(sentences, k=10)) + ".")
        size += len(made[-1].encode())
    return pa.array(made, pa.large_string())


def by_chunk(encode: Callable[[pa.Array], Any]) -> Work:
    def work(chunks: list[pa.Array], threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(encode, chunks):
                pass

    return work


def hugging_face(tokenizer: ArabicTokenizer, fast: bool) -> Work:
    """Its own threads (see `parallel`); without the normaliser, since the text is normalised, and with ids as lists."""
    bare = tokenizer._bare
    encode = bare.encode_batch_fast if fast else bare.encode_batch

    def work(chunks: list[pa.Array], threads: int) -> None:
        for chunk in chunks:
            [one.ids for one in encode(chunk.to_pylist(), add_special_tokens=False)]

    return work


def original(tokenizer: ArabicTokenizer) -> Work:
    words = re.compile("[\u0600-\u06ff]+|[A-Za-z0-9]+|[^\\s]")
    ids = dict(tokenizer.word2idx)

    def encode(chunk: pa.Array) -> None:
        for text in chunk.to_pylist():
            [ids.get(word, 1) for word in words.findall(text)]

    return by_chunk(encode)


def tiktoken_of(tokenizer: ArabicTokenizer) -> Work | None:
    try:
        import tiktoken
    except ImportError:
        return None
    ranks = {token_bytes(token): index for index, token in enumerate(tokenizer.words) if token not in SPECIALS}
    coder = tiktoken.Encoding("bench", pat_str=BPE_SPLITS["al-qalam"], mergeable_ranks=ranks, special_tokens={})
    return by_chunk(lambda chunk: [coder.encode_ordinary(text) for text in chunk.to_pylist()])


def speed(texts: list[str], megabytes: float, rounds: int, name: str) -> dict[str, float]:
    """Best MB/s on two threads of our own paths, by algorithm; prints the table."""
    count = max(2, round(megabytes / CHUNK_MB))
    inputs = {
        f"{name}, recombined": [recombined(texts, megabytes / count, seed) for seed in range(count)],
        f"{name}, as it is": [pa.array(texts[half::2], pa.large_string()) for half in (0, 1)],
    }
    peers: dict[str, Work | None] = {}
    kinds: list[tuple[Algorithm, int]] = [("word", 32_000), ("bpe", 8_000), ("bpe", 32_000)]
    for algorithm, entries in kinds:
        tokenizer = ArabicTokenizer(entries, algorithm)
        tokenizer.build_vocab(texts, 2, normalised=True)
        label = f"{algorithm} {entries // 1000}k"
        peers[f"{label}: ours"] = by_chunk(tokenizer.encode_normalised)
        peers[f"{label}: Hugging Face encode_batch"] = hugging_face(tokenizer, fast=False)
        peers[f"{label}: Hugging Face encode_batch_fast"] = hugging_face(tokenizer, fast=True)
        if algorithm == "word":
            peers[f"{label}: the original's rule in Python"] = original(tokenizer)
        else:
            peers[f"{label}: tiktoken, the same merges"] = tiktoken_of(tokenizer)
    best: dict[str, float] = {}
    for title, chunks in inputs.items():
        size = sum(chunk.nbytes for chunk in chunks) / 1e6
        found: dict[tuple[str, int], float] = {}
        for _ in range(rounds):
            for peer, work in peers.items():
                for threads in (1, 2):
                    if work:
                        parallel(threads)
                        since = time.perf_counter()
                        work(chunks, threads)
                        took = time.perf_counter() - since
                        found[peer, threads] = max(found.get((peer, threads), 0.0), size / took)
        print(f"\n{title} ({size:.1f} MB){'':<20}{'1 thread':>10}{'2 threads':>11}")
        for peer, work in peers.items():
            row = "   (not installed)" if not work else f"{found[peer, 1]:10.1f}{found[peer, 2]:11.1f}"
            print(f"  {peer:<50}{row}")
        if "recombined" in title:
            for kind in TARGETS:
                best[kind] = min(v for (p, t), v in found.items() if p.startswith(kind) and "ours" in p and t == 2)
    return best


def parallel(threads: int) -> None:
    """Set whether Hugging Face's encoder may use its own threads; it reads this at each call."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"


# -- memory ---------------------------------------------------------------------------------------


def generated(megabytes: int, seed: int = 1) -> Iterator[pa.RecordBatch]:
    """Record batches of a corpus shard, 1 MB each, of documents of some 200 words."""
    random_ = np.random.default_rng(seed)
    letters = np.array(list("ابتثجحخدذرزسشصضطظعغفقكلمنهوي"))
    types = 3_000_000
    lengths = random_.integers(3, 9, types)
    borders = np.concatenate([[0], np.cumsum(lengths)])
    flat = "".join(letters[random_.integers(0, len(letters), borders[-1])]).encode()
    words = pa.StringArray.from_buffers(types, pa.py_buffer((borders * 2).astype(np.int32)), pa.py_buffer(flat))
    for _ in range(megabytes):
        ranks = np.exp(random_.random(75_000) * math.log(types)).astype(np.int64) - 1  # the share falls as 1 / rank
        chosen = words.take(pa.array(np.clip(ranks, 0, types - 1))).to_pylist()
        texts = [" ".join(chosen[i : i + 200]) + "." for i in range(0, len(chosen), 200)]
        ids = [f"{number:016x}" for number in random_.integers(0, 2**63, len(texts))]
        yield pa.record_batch(
            [pa.array(ids), pa.array(texts, pa.large_string()), pa.array(["generated"] * len(texts))],
            names=["id", "text", "source"],
        )


@dataclass(frozen=True)
class Generated:
    """A stage in the place of `prepare`: a corpus of generated text, all of it in the training split."""

    megabytes: int
    resumable: tuple[str, ...] = ()

    @property
    def identity(self) -> Identity:
        return Identity(stage="prepare", version=0, settings={"generated": self.megabytes}, inputs={})

    def run(self, out: Path, progress: Progress) -> CorpusFacts:
        size = characters = documents = 0
        shards, batches = math.ceil(self.megabytes / SHARD_MB), generated(self.megabytes)
        for number in range(shards):
            first = next(batches)
            with ipc.new_file(out / f"train-{number:05d}.arrow", first.schema) as writer:
                for index in range(SHARD_MB):
                    batch = first if not index else next(batches, None)
                    if batch is not None:
                        writer.write_batch(batch)
                        size += batch.column("text").nbytes
                        characters += pc.sum(pc.utf8_length(batch.column("text"))).as_py()
                        documents += len(batch)
        train = SplitCounts(documents=documents, characters=characters, bytes=size, shards=shards)
        return CorpusFacts(read=documents, kept=documents, repaired=0, rejected={}, sources={}, splits={"train": train})


def recipe_of(algorithm: str, entries: int) -> Recipe:
    data = {"name": "bench", "corpus": {"sources": [{"path": "x"}]}}
    return Recipe.parse({**data, "tokenizer": {"algorithm": algorithm, "vocab_size": entries}})


def child(root: Path, megabytes: int, algorithm: str, entries: int, stage: str) -> None:
    """One stage on the generated corpus, in this process; prints its peak in MB and its seconds."""
    store = Store(root)
    corpus = store.build(Generated(megabytes))
    recipe = recipe_of(algorithm, entries)
    before = peak_mb()
    since = time.perf_counter()
    tokenizer = store.build(Vocab.of(recipe, corpus))
    if stage == "tokenize":
        since = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:  # as the flow does on this machine
            list(pool.map(store.build, Tokenize.all_of(corpus, tokenizer)))
    took = time.perf_counter() - since
    print(json.dumps([peak_mb(), before, took]))


def peak_mb() -> float:
    """The largest resident memory of this process; unlike ru_maxrss, a child does not begin with its parent's."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def memory(sizes: list[int]) -> float:
    """The largest peak in MB; prints the table."""
    print(f"\n{'peak memory':<26}{'text':>9}{'peak':>10}{'at start':>10}{'seconds':>10}{'MB/s':>8}")
    largest = 0.0
    for megabytes in sizes:
        with tempfile.TemporaryDirectory() as folder:
            Store(Path(folder)).build(Generated(megabytes))
            for algorithm, entries in (("bpe", 32_000), ("word", 32_000)):
                for stage in ("vocab", "tokenize"):
                    arguments = ["--child", folder, str(megabytes), algorithm, str(entries), stage]
                    done = subprocess.run(
                        [sys.executable, "-m", "benchmarks.bench_tokens", *arguments],
                        capture_output=True, text=True, check=True,
                    )  # fmt: skip
                    peak, before, took = json.loads(done.stdout)
                    largest = max(largest, peak)
                    row = f"{megabytes:>6} MB{peak:>7.0f} MB{before:>7.0f} MB{took:>10.1f}{megabytes / took:>8.1f}"
                    print(f"{stage + ', ' + algorithm + ' 32k':<26}{row}", flush=True)
    return largest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=32, help="recombined text, in MB")
    parser.add_argument("--corpus", type=Path, help="JSON Lines with a field `text`, plain or compressed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="*", default=[30], help="MB of generated text for the memory table")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        root, megabytes, algorithm, entries, stage = arguments.child
        child(Path(root), int(megabytes), algorithm, int(entries), stage)
        return 0
    missed = []
    if arguments.mb:
        name = arguments.corpus.name if arguments.corpus else "the demo corpus"
        best = speed(normalised(arguments.corpus), arguments.mb, arguments.rounds, name)
        missed += [f"{k}: {best[k]:.1f} MB/s, target {target}" for k, target in TARGETS.items() if best[k] < target]
    if arguments.sizes:
        largest = memory(arguments.sizes)
        missed += [f"peak memory {largest:.0f} MB, target {LIMIT_MB}"] if largest >= LIMIT_MB else []
    print("\n" + ("missed: " + "; ".join(missed) if missed else "all targets are met"))
    return int(bool(missed) and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
