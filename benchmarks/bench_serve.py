"""What serving a model costs: `qalam serve` with 1, 8 and 32 clients beside `generate` in a process of its own.

    python -m benchmarks.bench_serve [--block llama] [--check]

Two models of random weights: one of the demo's shape, one of 21 million parameters. Each client sends one request after
the other, with 8 tokens as its prompt and 80 to generate, drawn from the 50 most probable ones. Clients are threads of
one process, on the server's machine, with one connection each. Targets: with one client at least 0.9 of the tokens per
second of `generate`, with 32 at least 3 times those of one client.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.bench_generate import CONFIGS
from benchmarks.bench_package import example_words
from benchmarks.targets import Target, judged
from qalam_core.package import ModelConfig, read, write
from qalam_core.package.runtime.numpy_model import NumpyTransformer

PROMPT, NEW, SECONDS, CLIENTS = 8, 80, 10.0, (1, 8, 32)
BLOCK: dict[str, Any] = {
    "num_kv_heads": 4,
    "head_dim": 32,
    "hidden_dim": 352,
    "rope_base": 10_000.0,
    "norm_epsilon": 1e-6,
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
    speeds = {}
    process = subprocess.Popen(
        [sys.executable, "-c", "from al_qalam.flows.cli.main import main; main()", "serve", str(folder), "--port", "0"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        address = process.stdout.readline().partition(" at ")[2].partition(";")[0]
        with_alone = alone(folder)
        for clients in CLIENTS:
            speeds[clients], latencies = served(address, clients)
            middle, slow = np.percentile(latencies, [50, 99])
            print(
                f"{name}, {clients:2} clients: {speeds[clients]:7,.0f} tokens/s, p50 {middle:.3f} s, p99 {slow:.3f} s"
            )
        bare = (with_alone + alone(folder)) / 2
        print(f"{name}, generate: {bare:7,.0f} tokens/s")
    finally:
        process.terminate()
        process.wait()
    return [
        (f"{name}: one client, of generate's tokens/s", speeds[1] / bare, "at least", 0.9),
        (f"{name}: 32 clients, of one client's tokens/s", speeds[32] / speeds[1], "at least", 3.0),
    ]


def alone(folder: Path) -> float:
    """Tokens per second of `generate` in this process, while the server waits."""
    package = read(folder)
    model = NumpyTransformer(package.config, package.weights)
    model.end_id = -1
    prompt, count, since = [[2, *range(5, 4 + PROMPT)]], 0, time.perf_counter()
    while time.perf_counter() - since < SECONDS / 2:
        count += model.generate(prompt, NEW, 1.0, 50, seed=count).shape[1] - PROMPT
    return count / (time.perf_counter() - since)


def served(address: str, clients: int) -> tuple[float, list[float]]:
    """-> tokens per second of all clients together, and the seconds of each request."""
    latencies, tokens, until = list[float](), list[int](), time.perf_counter() + SECONDS
    prompt = list(range(5, 4 + PROMPT))

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(urlsplit(address).netloc)  # kept, as the openai client does
        body = {"prompt": prompt, "max_tokens": NEW, "top_k": 50, "seed": number}
        while time.perf_counter() < until:
            since = time.perf_counter()
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            tokens.append(json.load(connection.getresponse())["usage"]["completion_tokens"])
            latencies.append(time.perf_counter() - since)
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    since = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(tokens) / (time.perf_counter() - since), latencies


if __name__ == "__main__":
    raise SystemExit(main())
