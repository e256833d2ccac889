"""What a package costs to use: import, load_model and generate, by numpy and by torch, a fresh process each.

    python -m benchmarks.bench_generate [--block llama] [--check]

A model of 21 million random weights, written as a package, copied and imported where qalam_core cannot be.
A prompt of 64 tokens is continued by 100, greedily, for a batch of 1 and of 8. The peer is a greedy loop in torch
with a KV cache and nothing else, made here of the loaded model's own layers, in eager mode.
Targets: at batch 1, numpy gives at least 1.5 times (with the block of Llama 1.4 times) and torch's own `generate` at
least 0.9 times the peer's tokens per second; the logits of one forward pass are within 1e-4; the tokens are the same,
except where torch's two largest logits are within 1e-4 of each other.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench_package import example_words
from benchmarks.targets import judged
from qalam_core.package import ModelConfig, write

SHAPE: dict[str, Any] = {
    "vocab_size": 32_000, "dim": 256, "num_heads": 8, "num_layers": 6, "max_seq_len": 512, "tied": False,
}  # fmt: skip
CONFIGS = {
    "original": ModelConfig(**SHAPE),
    "llama": ModelConfig(
        **SHAPE, block="llama", num_kv_heads=8, head_dim=32, hidden_dim=672, rope_base=10_000.0, norm_epsilon=1e-6,
        qk_norm=True,
    ),
}  # fmt: skip
PROMPT, NEW, BATCHES, RUNS = 64, 100, (1, 8), 3
FASTER, CLOSE = {"original": 1.5, "llama": 1.4}, 1e-4
AS_FAST = 0.9
PEER, OWN = "torch, KV cache", "torch, generate"

CHILD = """
import importlib, json, sys, time
from pathlib import Path

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "qalam_core":
            raise ImportError("a package must not need the project that wrote it")

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

task = json.loads(sys.argv[1])
scratch = Path(task["scratch"])
sys.dont_write_bytecode = True
sys.meta_path.insert(0, Absent())
sys.path.insert(0, str(scratch))
answer = {"seconds": {}}

since = time.perf_counter()
package = importlib.import_module("measured")
if task["backend"] == "torch":
    import torch
answer["import"] = time.perf_counter() - since
before = peak()
since = time.perf_counter()
model = package.load_model(backend=task["backend"])[0]
answer["load"] = time.perf_counter() - since
answer["peak"], answer["grown"] = peak(), peak() - before
assert task["backend"] == "torch" or "torch" not in sys.modules

import numpy as np
prompts = np.load(scratch / "prompts.npy")

def own(ids, new):
    ids = torch.from_numpy(ids) if task["backend"] == "torch" else ids
    return np.asarray(model.generate(ids, max_new_tokens=new, temperature=0))

def with_cache(ids, new):
    with torch.inference_mode():
        ids = torch.from_numpy(ids)
        (B, T), H, D = ids.shape, model.num_heads, model.dim // model.num_heads
        caches = torch.empty(model.num_layers, 2, B, H, T + new, D)
        start, latest = 0, ids
        for _ in range(new):
            end = start + latest.shape[1]
            llama = not hasattr(model, "pos_embedding")
            x = model.embedding(latest)
            if llama:
                cosines, sines = model._rotary(start, end)
                def turned(part):
                    first, second = part.chunk(2, -1)
                    return part * cosines + torch.cat((-second, first), -1) * sines
            else:
                x = x + model.pos_embedding[start:end]
            for block, cache in zip(model.blocks, caches):
                if llama:
                    normed = block.ln1(x)
                    q, k, v = (part(normed).view(B, -1, H, D) for part in (block.q, block.k, block.v))
                    q, k = (turned(part.transpose(1, 2)) for part in (block.q_norm(q), block.k_norm(k)))
                    v = v.transpose(1, 2)
                else:
                    q, k, v = block.qkv(block.ln1(x)).view(B, -1, 3, H, D).permute(2, 0, 3, 1, 4)
                cache[0, :, :, start:end], cache[1, :, :, start:end] = k, v
                mix = torch.nn.functional.scaled_dot_product_attention(
                    q, cache[0, :, :, :end], cache[1, :, :, :end], is_causal=start == 0)
                x = x + block.out(mix.transpose(1, 2).reshape(B, -1, model.dim))
                normed = block.ln2(x)
                if llama:
                    x = x + block.down(torch.nn.functional.silu(block.gate(normed)) * block.up(normed))
                else:
                    x = x + block.fc2(torch.nn.functional.gelu(block.fc1(normed), approximate=block.approximate))
            latest = model.lm_head(model.ln_out(x[:, -1])).argmax(-1, keepdim=True)
            ids, start = torch.cat([ids, latest], 1), end
        return ids.numpy()

ways = {"numpy": own, "torch, KV cache": with_cache, "torch, generate": own}
for name, batch in task["measured"]:
    ways[name](prompts[:batch], 2)
    since = time.perf_counter()
    ids = ways[name](prompts[:batch], task["new"])
    answer["seconds"][f"{name}, {batch}"] = time.perf_counter() - since
    np.save(scratch / f"{name}, {batch}.npy", ids)

if task["logits"]:  # torch's top two, at every step that numpy took, and one forward pass of both
    rows = np.load(scratch / task["logits"])[:, :-1]
    if task["backend"] == "numpy":
        np.save(scratch / "numpy.logits.npy", model(rows[:1])[0])
    else:
        with torch.inference_mode():
            logits = [model(torch.from_numpy(row[None]))[0][0] for row in rows]
        np.save(scratch / "torch.logits.npy", logits[0][None].numpy())
        tops = torch.stack([row[-task["new"]:].topk(2).values for row in logits]).numpy()
        np.save(scratch / "gaps.npy", tops[..., 0] - tops[..., 1])
print(json.dumps(answer))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    parser.add_argument("--block", choices=CONFIGS, default="original")
    asked = parser.parse_args()
    config = CONFIGS[asked.block]
    weights = example(config)
    raw = sum(tensor.nbytes for tensor in weights.values())
    load = os.getloadavg()[0]
    print(f"{raw // 4:,} parameters, {raw / 1e6:.1f} MB of float32; {os.cpu_count()} cores, load {load:.1f} before\n")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        vocabulary = example_words(config.vocab_size)
        write(scratch / "written", config=config, vocabulary=vocabulary, weights=weights, card="#", provenance={})
        shutil.copytree(scratch / "written", scratch / "measured")
        prompts = np.random.default_rng(1).integers(4, config.vocab_size, (max(BATCHES), PROMPT))
        np.save(scratch / "prompts.npy", prompts)
        speeds = measure(scratch, raw)
        ours, theirs = (np.load(scratch / f"{backend}.logits.npy") for backend in ("numpy", "torch"))
        difference = float(np.abs(ours - theirs).max())
        differing = {way: sum(differ(scratch, way, batch) for batch in BATCHES) for way in ("numpy", PEER, OWN)}
    targets: list[tuple[str, float, str, float]] = [
        ("tokens/s at batch 1, numpy / torch with a KV cache", speeds["numpy, 1"] / speeds[f"{PEER}, 1"],
         "at least", FASTER[asked.block]),
        ("tokens/s at batch 1, torch's generate / the loop", speeds[f"{OWN}, 1"] / speeds[f"{PEER}, 1"],
         "at least", AS_FAST),
        ("logits of one forward pass, largest difference", difference, "at most", CLOSE),
        *((f"rows that leave numpy's tokens, {way}", count, "at most", 0) for way, count in differing.items()),
    ]  # fmt: skip
    return judged(targets, asked.check)


def example(config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """Random weights of a size that keeps logits near 1; <END> is never the likeliest, so that nothing stops early."""
    random = np.random.default_rng(0)
    weights = {
        name: random.normal(len(shape) == 1 and name.endswith("weight"), 0.0625, shape).astype(np.float32)
        for name, shape in config.tensor_shapes().items()
    }
    weights["lm_head.weight"][3] = 0
    return weights


def measure(scratch: Path, raw: int) -> dict[str, float]:
    """Prints the two tables; gives tokens per second by "way, batch"."""
    seconds: dict[str, float] = {}
    costs: dict[str, dict[str, float]] = {"numpy": {}, "torch": {}}
    for turn in range(RUNS):  # interleaved, so that a busy moment hits every peer
        for backend, best in costs.items():
            ways = ["numpy"] if backend == "numpy" else [PEER, OWN]
            measured = [(way, batch) for way in ways for batch in BATCHES]
            answer = child(scratch, backend, measured, f"numpy, {max(BATCHES)}.npy" if not turn else "")
            for name, value in answer.pop("seconds").items():
                seconds[name] = min(seconds.get(name, value), value)
            for name, value in answer.items():
                best[name] = min(best.get(name, value), value)
    print(f"{f'best of {RUNS}':24}{'import s':>10}{'load s':>10}{'peak MB':>10}{'grown by':>10}{'of raw':>8}")
    for backend, best in costs.items():
        print(
            f"{backend:24}{best['import']:10.2f}{best['load']:10.2f}{best['peak'] / 1e6:10.0f}"
            f"{best['grown'] / 1e6:10.0f}{best['grown'] / raw:8.2f}"
        )
    print("(import: with the backend's library, no bytecode kept; peak: of the whole process, after load_model)\n")
    speeds = {name: int(name.split(", ")[-1]) * NEW / value for name, value in seconds.items()}
    heads = "".join(f"{f'batch {batch}':>12}{'x peer':>8}" for batch in BATCHES)
    print(f"{'tokens/s':24}{heads}")
    for way in ("numpy", PEER, OWN):
        figures = [(speeds[f"{way}, {batch}"], speeds[f"{PEER}, {batch}"]) for batch in BATCHES]
        print(f"{way:24}" + "".join(f"{speed:12.1f}{speed / peer:8.2f}" for speed, peer in figures))
    print()
    return speeds


def differ(scratch: Path, way: str, batch: int) -> int:
    """Rows that leave the tokens of numpy's largest batch at a step where torch had one clear favourite."""
    ours = np.load(scratch / f"numpy, {max(BATCHES)}.npy")[:batch, PROMPT:]
    theirs = np.load(scratch / f"{way}, {batch}.npy")[:, PROMPT:]
    assert ours.shape == theirs.shape == (batch, NEW)
    gaps, others = np.load(scratch / "gaps.npy"), ours != theirs
    # after the first step that differs, nothing can be compared
    return sum(bool(gaps[row, others[row].argmax()] > CLOSE) for row in range(batch) if others[row].any())


def child(scratch: Path, backend: str, measured: list[tuple[str, int]], logits: str) -> dict[str, Any]:
    task = {"scratch": str(scratch), "backend": backend, "measured": measured, "new": NEW, "logits": logits}
    command = [sys.executable, "-I", "-c", CHILD, json.dumps(task)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


if __name__ == "__main__":
    sys.exit(main())
