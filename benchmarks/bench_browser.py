"""What a model costs as a page: bytes, time until it can write, tokens per second in headless Chromium.

    python -m benchmarks.bench_browser [--check] [PACKAGE ...]

Models of the demo's shape, in both blocks, with random weights, stored as i8; or the packages that are named. Each is
opened several times in a fresh Chromium and writes greedily: within its context, and 200 tokens, which is beyond the
demo's context of 128, where all positions shift and the window is read again for each token, as numpy does.
Targets: a page has at most 3 MB, can write after at most 2 s, and writes at least 100 tokens/s within its context; the
200 tokens are numpy's.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bench_generate import example
from benchmarks.bench_package import example_words
from benchmarks.targets import Target, judged
from qalam_core.package import ModelConfig, read, write
from qalam_core.package.interop.browser_page import export_page
from qalam_core.package.interop.storage import convert
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from tests.browsers import CHROMIUM, probe

SHAPE: dict[str, Any] = {"vocab_size": 4096, "dim": 128, "num_heads": 4, "num_layers": 2, "max_seq_len": 128}
CONFIGS = {
    "original": ModelConfig(**SHAPE),
    "original, untied": ModelConfig(**SHAPE, tied=False),
    "llama": ModelConfig(
        **SHAPE, block="llama", num_kv_heads=4, head_dim=32, hidden_dim=352, rope_base=10_000.0, norm_epsilon=1e-6,
        qk_norm=True,
    ),
}  # fmt: skip
RUNS, WITHIN, BEYOND = 3, 100, 200
MOST_MB, MOST_SECONDS, LEAST_SPEED = 3, 2, 100

PROBE = f"""
const ready = Number(status.dataset.seconds);
const begin = [opened.tokenizer.roles.START];
const timed = (count) => {{
  const since = performance.now();
  const ids = [...generate(opened.model, begin, -1, count, 0)];
  return [ids, count / (performance.now() - since) * 1000];
}};
timed(20);  // the compiler has seen it then
const [, within] = timed({WITHIN});
const [ids, beyond] = timed({BEYOND});
found({{ ready, within, beyond, ids }});
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    parser.add_argument("packages", nargs="*", type=Path, metavar="PACKAGE")
    asked = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("chromium was not found; install it, or put it on PATH")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; best of {RUNS}\n")
    heads = f"tokens/s, {WITHIN}", f"tokens/s, {BEYOND}", f"numpy's, {BEYOND}"
    print(f"{'':24}{'parameters':>12}{'MB':>8}{'ready s':>10}" + "".join(f"{head:>16}" for head in heads))
    targets: list[Target] = []
    with tempfile.TemporaryDirectory() as name:
        packages = {str(path): path for path in asked.packages} or random_packages(Path(name))
        for title, package in packages.items():
            targets += measured(title[-24:], package, Path(tempfile.mkdtemp(dir=name)))
    print()
    return judged(targets, asked.check)


def random_packages(folder: Path) -> dict[str, Path]:
    for title, config in CONFIGS.items():
        weights = example(ModelConfig(**{**config.arguments(), "block": config.block, "tied": False}))
        weights = {name: weights[name] for name in config.tensor_shapes()}
        write(folder / title, config=config, vocabulary=example_words(config.vocab_size), weights=weights, card="# x",
              provenance={})  # fmt: skip
    return {title: folder / title for title in CONFIGS}


def measured(title: str, package: Path, folder: Path) -> list[Target]:
    """Print a row; -> its targets."""
    page = folder / "model.html"
    export_page(package, page, "i8")
    convert(package, folder / "i8", "i8")
    stored = read(folder / "i8")
    model = NumpyTransformer(stored.config, stored.weights)
    model.end_id = -1
    since = time.perf_counter()
    ids = model.generate([[stored.vocabulary.specials.start]], BEYOND, 0)[0, 1:].tolist()
    numpy_speed = BEYOND / (time.perf_counter() - since)
    found = [probe(page, folder, PROBE) for _ in range(RUNS)]
    ready = min(one["ready"] for one in found)
    within, beyond = (max(one[name] for one in found) for name in ("within", "beyond"))
    size = page.stat().st_size / 1e6
    print(
        f"{title:24}{stored.config.parameters:12,}{size:8.2f}{ready:10.2f}{within:16.0f}{beyond:16.0f}{numpy_speed:16.0f}"
    )
    return [
        (f"{title}, MB", size, "at most", MOST_MB),
        (f"{title}, seconds until it can write", ready, "at most", MOST_SECONDS),
        (f"{title}, tokens/s within the context", within, "at least", LEAST_SPEED),
        (f"{title}, tokens that are not numpy's", sum(one["ids"] != ids for one in found), "at most", 0),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
