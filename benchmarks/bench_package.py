"""What a package costs to write, load and look into, beside safetensors and the original's format.
Takes a parameter count, gives a table with ratios measured in this very run, a fresh process each, best of N.
`--check` exits with 1 when a stated target is missed.

    python -m benchmarks.bench_package [--params 20e6] [--runs 5] [--check]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DIM, LAYERS, CONTEXT = 256, 6, 512

# Each loader ends with every value in memory and touched, as one dict of arrays. Peaks are of the whole
# process, less that of the same interpreter with the same imports before it loads.
LOADERS = {
    "ours, f32 (load_weights)": """
        from qalam_core.package.runtime import reader, settings
        def load(folder):
            config = settings.read_config(folder / "f32" / "config.py")
            return reader.read_weights(folder / "f32", reader.tensor_shapes(config))""",
    "ours, f32, without pybase64": """
        sys.modules["pybase64"] = None
        from qalam_core.package.runtime import reader, settings
        def load(folder):
            config = settings.read_config(folder / "f32" / "config.py")
            return reader.read_weights(folder / "f32", reader.tensor_shapes(config))""",
    "ours, f16 (load_weights)": """
        from qalam_core.package.runtime import reader, settings
        def load(folder):
            config = settings.read_config(folder / "f16" / "config.py")
            return reader.read_weights(folder / "f16", reader.tensor_shapes(config))""",
    "ours, f32 (read: words, digests, code checks)": """
        from qalam_core.package import read
        def load(folder):
            return read(folder / "f32").weights""",
    "safetensors.numpy": """
        from safetensors.numpy import load_file
        def load(folder):
            return load_file(folder / "model.safetensors")""",
    "original (import, base64, zlib)": """
        import base64, importlib.util, zlib
        def load(folder):
            spec = importlib.util.spec_from_file_location("original", folder / "original.py")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return {name: np.frombuffer(zlib.decompress(base64.b64decode(text)), np.float32).reshape(shape)
                    for name, (text, shape) in module.WEIGHTS.items()}""",
}
CHILD = """
import json, resource, sys, time
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=float, default=20e6)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return measure(Path(folder), int(options.params), options.runs, options.check)


def example(parameters: int) -> tuple[dict[str, int | str | bool], dict[str, np.ndarray]]:
    from qalam_core.package.runtime.reader import tensor_shapes

    body = LAYERS * (12 * DIM * DIM + 13 * DIM) + CONTEXT * DIM + 2 * DIM
    config: dict[str, int | str | bool] = {
        "VOCAB_SIZE": max(100, (parameters - body) // DIM), "DIM": DIM, "NUM_HEADS": 8, "NUM_LAYERS": LAYERS,
        "MAX_SEQ_LEN": CONTEXT, "TIED": True, "ACTIVATION": "gelu",
    }  # fmt: skip
    random = np.random.default_rng(0)
    shapes = tensor_shapes(config)
    return config, {name: random.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}


def write_original(path: Path, weights: dict[str, np.ndarray]) -> None:
    import base64
    import zlib

    with path.open("w") as file:
        file.write("WEIGHTS = {\n")
        for name, tensor in weights.items():
            text = base64.b64encode(zlib.compress(tensor.tobytes(), 9)).decode()
            file.write(f'    "{name}": ("{text}", {tensor.shape}),\n')
        file.write("}\n")


def measure(folder: Path, parameters: int, runs: int, check: bool) -> int:
    from safetensors.numpy import save_file

    from qalam_core.package import Vocabulary, read_tensor_row, write

    config, weights = example(parameters)
    raw = sum(tensor.nbytes for tensor in weights.values())
    specials = ("<PAD>", "<UNK>", "<START>", "<END>")
    count = int(config["VOCAB_SIZE"])
    words = (*specials, *(f"كلمة{index}" for index in range(count - 4)))
    vocabulary = Vocabulary("word", words, (), (), "{}\n")
    writers = {
        "ours, f32": lambda: write(
            folder / "f32", config=config, vocabulary=vocabulary, weights=weights, card="#", provenance={}
        ),
        "ours, f16": lambda: write(
            folder / "f16",
            config=config,
            vocabulary=vocabulary,
            weights=weights,
            card="#",
            provenance={},
            dtype="f16",
        ),
        "safetensors.numpy": lambda: save_file(weights, folder / "model.safetensors"),
        "original (zlib level 9, base64)": lambda: write_original(folder / "original.py", weights),
    }
    print(f"{sum(tensor.size for tensor in weights.values()):,} parameters, {raw / 1e6:.1f} MB of float32\n")
    print(f"{'write':48}{'seconds':>9}{'MB':>8}{'of raw':>8}")
    written: dict[str, float] = {}
    for name, writer in writers.items():
        before = size_of(folder)
        times = []
        for _ in range(1 if "original" in name else runs):  # the original takes seconds, so noise is small
            shutil.rmtree(folder / name[-3:], ignore_errors=True)
            start = time.perf_counter()
            writer()
            times.append(time.perf_counter() - start)
        written[name] = min(times)
        size = size_of(folder) - before
        print(f"{name:48}{written[name]:9.3f}{size / 1e6:8.1f}{size / raw:8.2f}")

    best: dict[str, float] = {}
    peak: dict[str, float] = {}
    totals: dict[str, float] = {}
    for _ in range(runs):  # interleaved, so that a busy moment hits every peer
        for name, loader in LOADERS.items():
            seconds, memory, totals[name] = child(loader, folder)
            best[name] = min(best.get(name, seconds), seconds)
            peak[name] = min(peak.get(name, memory), memory)
    peer, original = best["safetensors.numpy"], best["original (import, base64, zlib)"]
    print(f"\n{'load, best of ' + str(runs):48}{'seconds':>9}{'x peer':>8}{'faster':>8}{'memory':>8}")
    for name in LOADERS:
        faster = original / best[name]
        print(f"{name:48}{best[name]:9.3f}{best[name] / peer:8.2f}{faster:7.1f}x{peak[name] / raw:8.2f}")
    print("(x peer: of safetensors.numpy; faster: than the original; memory: peak growth / raw tensors)\n")
    f32_totals = [value for name, value in totals.items() if "f16" not in name]
    assert max(f32_totals) - min(f32_totals) < 1e-6, "the loaders disagree"

    seeks = []
    for index in np.random.default_rng(1).integers(0, count, 50):
        start = time.perf_counter()
        row = read_tensor_row(folder / "f32", "embedding.weight", int(index))
        seeks.append(time.perf_counter() - start)
        assert np.array_equal(row, weights["embedding.weight"][index])
    seek = float(np.median(seeks))
    print(f"one row by seek, median of 50: {seek * 1e3:.3f} ms\n")

    ours = "ours, f32 (load_weights)"
    writing = written["original (zlib level 9, base64)"] / written["ours, f32"]
    targets = [
        ("load f32 against safetensors.numpy", best[ours] / peer, "at most", 3.0),
        ("peak memory against raw tensors", peak[ours] / raw, "at most", 1.3),
        ("load, times faster than the original", original / best[ours], "at least", 5.0),
        ("write, times faster than the original", writing, "at least", 5.0),
        ("row seek in ms", seek * 1e3, "at most", 1.0),
    ]  # fmt: skip
    missed = 0
    for name, value, way, limit in targets:
        good = value <= limit if way == "at most" else value >= limit
        missed += not good
        print(f"{'met   ' if good else 'MISSED'}  {name:40}{value:8.2f}  {way} {limit}")
    return 1 if check and missed else 0


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def child(loader: str, folder: Path) -> tuple[float, float, float]:
    script = CHILD.format(loader="\n".join(line[8:] for line in loader.split("\n")))
    done = subprocess.run([sys.executable, "-B", "-c", script, str(folder)], check=True, capture_output=True, text=True)
    seconds, memory, total = json.loads(done.stdout)
    return seconds, memory, total


if __name__ == "__main__":
    sys.exit(main())
