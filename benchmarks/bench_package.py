"""What a package costs to write, load and read rows from, in every storage type, compared with its peers.
Takes a parameter count, prints tables with ratios measured in this run, in a fresh process each, best of N.
`--check` exits with 1 when a stated target is missed.

    python -m benchmarks.bench_package [--params 20e6] [--runs 5] [--check]
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from itertools import islice, product
from pathlib import Path

import numpy as np

from qalam_core.package import ModelConfig, Vocabulary, read_tensor_rows, write
from qalam_core.package.runtime.architecture import SPECIALS
from qalam_core.package.runtime.rows import MATRIX_TYPES

CONTEXT = 512
ORIGINAL = "original (zlib 9, base64)"
# type -> (most bytes of weights files, most root mean square of the rounding / standard deviation)
LIMITS = {
    "f32": (1.38, 0.0),
    "f16": (0.70, 0.00022),
    "bf16": (0.70, 0.0018),
    "i8": (0.38, 0.0078),
    "q8": (1.06, 0.0078),
}

# Each loader ends with every value in memory and touched, as one dict of arrays. Peaks are of the whole
# process, less that of the same interpreter with the same imports before it loads.
OURS = """
        from qalam_core.package.runtime.data_reader import read_config
        from qalam_core.package.runtime.weights_reader import read_weights
        def load(folder):
            config = read_config(folder / "{dtype}" / "config.py")
            return read_weights(folder / "{dtype}", config.tensor_shapes())"""
LOADERS = {
    **{f"ours, {dtype}": OURS.replace("{dtype}", dtype) for dtype in MATRIX_TYPES},
    "ours, f32, without pybase64": '\n        sys.modules["pybase64"] = None' + OURS.replace("{dtype}", "f32"),
    "ours, f32, read (words, digests, code)": """
        from qalam_core.package import read
        def load(folder):
            return read(folder / "f32").weights""",
    "safetensors.numpy": """
        from safetensors.numpy import load_file
        def load(folder):
            return load_file(folder / "model.safetensors")""",
    "torch.load (weights_only)": """
        import torch
        def load(folder):
            loaded = torch.load(folder / "model.pt", weights_only=True)
            return {name: tensor.numpy() for name, tensor in loaded.items()}""",
    "npz": """
        def load(folder):
            with np.load(folder / "model.npz") as file:
                return {name: file[name] for name in file.files}""",
    ORIGINAL: """
        import base64, importlib.util, zlib
        def load(folder):
            spec = importlib.util.spec_from_file_location("original", folder / "original.py")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return {name: np.frombuffer(zlib.decompress(base64.b64decode(text)), np.float32).reshape(shape)
                    for name, (text, shape) in module.WEIGHTS.items()}""",
}
CHILD = """
import json, sys, time
from pathlib import Path
import numpy as np
{loader}
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
start = time.perf_counter()
weights = load(Path(sys.argv[1]))
total = sum(float(tensor.sum()) for tensor in weights.values())
seconds = time.perf_counter() - start
print(json.dumps([seconds, peak() - before, total]))
"""

Target = tuple[str, float, str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=float, default=20e6)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    config, weights = example(int(options.params))
    raw = sum(tensor.nbytes for tensor in weights.values())
    print(f"{sum(tensor.size for tensor in weights.values()):,} parameters, {raw / 1e6:.1f} MB of float32\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        targets = [
            *measure_writing(folder, config, weights, raw, options.runs),
            *measure_loading(folder, raw, options.runs),
            *measure_rows(folder, weights),
        ]
    missed = 0
    for name, value, way, limit in targets:
        good = value <= limit if way == "at most" else value >= limit
        missed += not good
        print(f"{'met   ' if good else 'MISSED'}  {name:44}{value:9.4g}  {way} {limit}")
    return 1 if options.check and missed else 0


def example(parameters: int) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """An untied model of about so many parameters, with normal weights."""
    dim, layers = (256, 6) if parameters < 40e6 else (512, 12)
    body = layers * (12 * dim * dim + 13 * dim) + CONTEXT * dim + 2 * dim
    config = ModelConfig(
        vocab_size=max(100, (parameters - body) // dim // 2), dim=dim, num_heads=8, num_layers=layers,
        max_seq_len=CONTEXT, tied=False,
    )  # fmt: skip
    random = np.random.default_rng(0)
    return config, {
        name: random.normal(0, 0.02, shape).astype(np.float32) for name, shape in config.tensor_shapes().items()
    }


def example_words(count: int) -> Vocabulary:
    letters = ("".join(word) for word in product("ابتثجحخدذرزسشصضطظعغفقكلمنهوي", repeat=4))
    return Vocabulary("word", (*SPECIALS, *islice(letters, count - len(SPECIALS))), (), ())


def write_original(path: Path, weights: dict[str, np.ndarray]) -> None:
    with path.open("w") as file:
        file.write("WEIGHTS = {\n")
        for name, tensor in weights.items():
            text = base64.b64encode(zlib.compress(tensor.tobytes(), 9)).decode()
            file.write(f'    "{name}": ("{text}", {tensor.shape}),\n')
        file.write("}\n")


def measure_writing(
    folder: Path, config: ModelConfig, weights: dict[str, np.ndarray], raw: int, runs: int
) -> list[Target]:
    import torch
    from safetensors.numpy import save_file

    vocabulary = example_words(config.vocab_size)
    tensors = {name: torch.from_numpy(tensor) for name, tensor in weights.items()}

    def ours(dtype: str) -> None:
        write(
            folder / dtype, config=config, vocabulary=vocabulary, weights=weights, card="#", provenance={}, dtype=dtype
        )

    writers: dict[str, tuple[str, Callable[[], object]]] = {
        **{f"ours, {dtype}": (dtype, lambda dtype=dtype: ours(dtype)) for dtype in MATRIX_TYPES},  # type: ignore[misc]
        "safetensors.numpy": ("model.safetensors", lambda: save_file(weights, folder / "model.safetensors")),
        "torch.save": ("model.pt", lambda: torch.save(tensors, folder / "model.pt")),
        "npz": ("model.npz", lambda: np.savez(folder / "model.npz", allow_pickle=False, **weights)),
        ORIGINAL: ("original.py", lambda: write_original(folder / "original.py", weights)),
    }
    best: dict[str, float] = {}
    for turn in range(runs):  # interleaved, so that a busy moment hits every peer
        for name, (target, writer) in writers.items():
            if name == ORIGINAL and turn:  # it takes seconds, so that noise is small
                continue
            shutil.rmtree(folder / target, ignore_errors=True)
            start = time.perf_counter()
            writer()
            seconds = time.perf_counter() - start
            best[name] = min(best.get(name, seconds), seconds)
    print(f"{f'write, best of {runs}':42}{'seconds':>9}{'faster':>8}{'MB':>8}{'of raw':>8}{'weights':>9}")
    sizes = {}
    for name, (target, _) in writers.items():
        files = list((folder / target).glob("*")) or [folder / target]
        size = sum(path.stat().st_size for path in files)
        sizes[name] = sum(path.stat().st_size for path in files if target not in MATRIX_TYPES or "weights" in path.name)
        print(
            f"{name:42}{best[name]:9.3f}{best[ORIGINAL] / best[name]:7.1f}x{size / 1e6:8.1f}{size / raw:8.3f}"
            f"{sizes[name] / raw:9.3f}"
        )
    print("(faster: than the original; of raw: the whole folder / raw tensors; weights: its weights files alone)\n")
    return [
        ("write f32, times faster than the original", best[ORIGINAL] / best["ours, f32"], "at least", 10.0),
        *((f"weights files / raw tensors, {dtype}", sizes[f"ours, {dtype}"] / raw, "at most", limit)
          for dtype, (limit, _) in LIMITS.items()),
    ]  # fmt: skip


def measure_loading(folder: Path, raw: int, runs: int) -> list[Target]:
    best: dict[str, float] = {}
    peak: dict[str, float] = {}
    totals: dict[str, float] = {}
    for _ in range(runs):  # interleaved, so that a busy moment hits every peer
        for name, loader in LOADERS.items():
            seconds, memory, totals[name] = child(loader, folder)
            best[name] = min(best.get(name, seconds), seconds)
            peak[name] = min(peak.get(name, memory), memory)
    peer, ours = "safetensors.numpy", "ours, f32"
    print(f"{f'load, best of {runs}':42}{'seconds':>9}{'x peer':>8}{'faster':>8}{'memory':>8}")
    for name in LOADERS:
        faster = best[ORIGINAL] / best[name]
        print(f"{name:42}{best[name]:9.3f}{best[name] / best[peer]:8.2f}{faster:7.1f}x{peak[name] / raw:8.2f}")
    print(f"(x peer: of {peer}; faster: than the original; memory: peak growth / raw tensors)\n")
    exact = [value for name, value in totals.items() if not name.endswith(tuple(set(MATRIX_TYPES) - {"f32"}))]
    assert max(exact) - min(exact) < 1e-6, "the loaders disagree"
    return [
        ("load f32 / safetensors.numpy", best[ours] / best[peer], "at most", 1.5),
        ("peak memory f32 / raw tensors", peak[ours] / raw, "at most", 1.15),
        ("load f32, times faster than the original", best[ORIGINAL] / best[ours], "at least", 8.0),
        ("peak memory f32 / the original's", peak[ours] / peak[ORIGINAL], "at most", 0.25),
    ]


def measure_rows(folder: Path, weights: dict[str, np.ndarray]) -> list[Target]:
    """One row by seek, and what the rounding of each type costs."""
    from qalam_core.package.runtime.weights_reader import read_weights

    shapes = {name: tensor.shape for name, tensor in weights.items()}
    targets: list[Target] = []
    print(f"{'type':42}{'seek ms':>9}{'rounding, rms / std':>22}")
    for dtype, (_, most) in LIMITS.items():
        loaded = read_weights(folder / dtype, shapes)
        times = []
        for index in np.random.default_rng(1).integers(0, len(weights["lm_head.weight"]), 50):
            start = time.perf_counter()
            row = read_tensor_rows(folder / dtype, "lm_head.weight", int(index), int(index) + 1)  # the last tensor
            times.append(time.perf_counter() - start)
            assert np.array_equal(row[0], loaded["lm_head.weight"][index])
        seek = float(np.median(times)) * 1e3
        error = weights["embedding.weight"] - loaded["embedding.weight"]
        share = float(np.sqrt(np.square(error, dtype=np.float64).mean()) / weights["embedding.weight"].std())
        print(f"{dtype:42}{seek:9.3f}{share:21.4%}")
        targets += [
            (f"row seek in ms, {dtype}", seek, "at most", 1.0),
            (f"rounding, rms / std, {dtype}", share, "at most", most),
        ]
    print("(seek: the last tensor, median of 50)\n")
    return targets


def child(loader: str, folder: Path) -> tuple[float, float, float]:
    script = CHILD.format(loader="\n".join(line[8:] for line in loader.split("\n")))
    done = subprocess.run([sys.executable, "-B", "-c", script, str(folder)], check=True, capture_output=True, text=True)
    seconds, memory, total = json.loads(done.stdout)
    return seconds, memory, total


if __name__ == "__main__":
    sys.exit(main())
