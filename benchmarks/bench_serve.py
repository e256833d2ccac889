"""What serving a model costs: `qalam serve` beside `generate` in a process of its own, and `transformers serve`.

    python -m benchmarks.bench_serve [--block llama] [--check]

Two models of random weights: one of the demo's shape, one of 21 million parameters. Each client sends one request after
the other, with 8 tokens as its prompt and 80 to generate, drawn from the 50 most probable ones. Clients are threads of
one process, on the server's machine, with one connection each. Targets: with one client at least 0.9 of the tokens per
second of `generate`, with 32 at least 3 times those of one client, and always at least those of `transformers serve`.

That one needs `accelerate`, and is skipped with its message where it cannot start. It serves what `qalam export --to
hub` writes, and answers the same endpoint: no chat template is involved. Prompts are texts, so both tokenize and
decode. Both compute in float32 and draw from the 50 likeliest at temperature 1. Its requests carry their own generation
config, as the export's is greedy; there `<END>` ends nothing, while it ends few of our answers: tokens are counted as
each server reports them. It runs with one thread and with one for each core, and the faster counts. Only a quiet
machine compares them: threads that wait for each other by spinning make a server many times slower beside other work.
Numpy has one thread, unless OPENBLAS_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported

import numpy as np

from benchmarks.bench_generate import CONFIGS
from benchmarks.bench_package import example_words
from benchmarks.targets import Target, judged
from qalam_core.package import ModelConfig, read, write
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.reports.hub import export_hub

PROMPT, NEW, SECONDS, CLIENTS = 8, 80, 10.0, (1, 8, 32)
OURS: dict[str, Any] = {"top_k": 50}
THEIRS: dict[str, Any] = {"generation_config": json.dumps({"do_sample": True, "top_k": 50})}
# the fastest of those tried; by default the cache takes 60% of the memory, and the first request 40 seconds
THEIR_OPTIONS = [
    "--continuous-batching", "--cb-num-blocks", "33", "--cb-block-size", "128", "--cb-max-batch-tokens", "256",
    "--device", "cpu", "--log-level", "error", "--host", "127.0.0.1", "--port", "0",
]  # fmt: skip
BLOCK: dict[str, Any] = {
    "num_kv_heads": 4,
    "head_dim": 32,
    "hidden_dim": 352,
    "rope_base": 10_000.0,
    "norm_epsilon": 1e-6,
    "qk_norm": True,
}
DEMO: dict[str, Any] = {
    "vocab_size": 4096,
    "dim": 128,
    "num_heads": 4,
    "num_layers": 2,
    "max_seq_len": 128,
    "tied": True,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--block", choices=["original", "llama"], default="original")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    small = ModelConfig(**DEMO, **({"block": "llama", **BLOCK} if options.block == "llama" else {}))
    targets: list[Target] = []
    print(f"load {os.getloadavg()[0]:.1f} before")
    for name, config in (("demo's shape", small), ("21 M", CONFIGS[options.block])):
        with tempfile.TemporaryDirectory() as folder:
            random = np.random.default_rng(0)
            weights = {
                tensor: random.normal(1.0 if "ln" in tensor and tensor.endswith("weight") else 0.0, 0.05, shape)
                for tensor, shape in config.tensor_shapes().items()
            }
            tensors = {tensor: values.astype(np.float32) for tensor, values in weights.items()}
            vocabulary = example_words(config.vocab_size)
            write(
                Path(folder) / "model", config=config, vocabulary=vocabulary, weights=tensors, card="#", provenance={}
            )
            targets += measured(name, Path(folder) / "model")
    return judged(targets, options.check)


def measured(name: str, folder: Path) -> list[Target]:
    """Print the figures of one package; -> the targets."""
    with ours(folder) as address:
        with_alone = alone(folder)
        speeds = {clients: served(f"{name}, {clients:2} clients", address, clients, OURS) for clients in CLIENTS}
        bare = (with_alone + alone(folder)) / 2
    print(f"{name}, generate: {bare:7,.0f} tokens/s")
    targets: list[Target] = [
        (f"{name}: one client, of generate's tokens/s", speeds[1] / bare, "at least", 0.9),
        (f"{name}: 32 clients, of one client's tokens/s", speeds[32] / speeds[1], "at least", 3.0),
    ]
    hub = folder.with_name("hub")
    export_hub(folder, hub)
    best = dict.fromkeys(CLIENTS, 0.0)
    for threads in sorted({1, os.cpu_count() or 1}):  # ours was a tenth slower beside two
        with theirs(hub, threads) as address:
            for clients in CLIENTS if address else ():
                what = f"{name}, {clients:2} clients, transformers with {threads} threads"
                best[clients] = max(best[clients], served(what, address, clients, THEIRS))
    for clients, theirs_too in best.items():
        if theirs_too:
            what = f"{name}: {clients:2} clients, of transformers serve's tokens/s"
            targets.append((what, speeds[clients] / theirs_too, "at least", 1.0))
    return targets


@contextmanager
def ours(folder: Path) -> Iterator[str]:
    """`qalam serve` of a package: its address."""
    command = "from al_qalam.flows.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "serve", str(folder), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        yield process.stdout.readline().partition(" at ")[2].partition(";")[0]
    finally:
        process.terminate()
        process.wait()


@contextmanager
def theirs(hub: Path, threads: int) -> Iterator[str]:
    """`transformers serve` of a folder for the Hub: its address, or, where it cannot start, nothing."""
    command, log = "from transformers.cli.transformers import main; main()", hub.with_name(f"log {threads}")
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", str(hub), *THEIR_OPTIONS],
            stdout=subprocess.DEVNULL, stderr=stream,
            env={**os.environ, "HF_HUB_OFFLINE": "1"}
            | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)),
        )  # fmt: skip
    try:
        while not (found := re.search(r"running on (http://\S+)", log.read_text())) and process.poll() is None:
            time.sleep(0.1)
        if not found:
            said = log.read_text().strip().splitlines() or [f"it ended with {process.returncode}"]
            print(f"transformers serve with {threads} threads is skipped: {said[-1]}")
        yield found[1] if found else ""
    finally:
        process.terminate()
        process.wait()


def alone(folder: Path) -> float:
    """Tokens per second of `generate` in this process, while the server waits."""
    package = read(folder)
    model = NumpyTransformer(package.config, package.weights)
    model.end_id = -1
    prompt, count, since = [[2, *range(5, 4 + PROMPT)]], 0, time.perf_counter()
    while time.perf_counter() - since < SECONDS / 2:
        count += model.generate(prompt, NEW, 1.0, 50, seed=count).shape[1] - PROMPT
    return count / (time.perf_counter() - since)


def served(name: str, address: str, clients: int, sampling: dict[str, Any]) -> float:
    """Print tokens per second of all clients together, and the seconds of a request; -> the first."""
    prompt = " ".join(example_words(4 + PROMPT).words[5:])  # and <START>

    def client(number: int, until: float) -> list[tuple[int, float]]:
        answers = list[tuple[int, float]]()
        connection = http.client.HTTPConnection(urlsplit(address).netloc)  # kept, as the openai client does
        body = json.dumps({"prompt": prompt, "max_tokens": NEW, "seed": number, **sampling})
        while not answers or time.perf_counter() < until:
            since = time.perf_counter()
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            answer = json.load(connection.getresponse())
            answers.append((answer["usage"]["completion_tokens"], time.perf_counter() - since))
        connection.close()
        return answers

    client(0, 0)  # what the first request alone prepares
    since = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        each = list(pool.map(client, range(clients), [since + SECONDS] * clients))
    speed = sum(tokens for answers in each for tokens, _ in answers) / (time.perf_counter() - since)
    middle, slow = np.percentile([seconds for answers in each for _, seconds in answers], [50, 99])
    print(f"{name}: {speed:7,.0f} tokens/s, p50 {middle:.3f} s, p99 {slow:.3f} s", flush=True)
    return speed


if __name__ == "__main__":
    raise SystemExit(main())
