"""What each storage type costs in quality and in size: bits per byte of one model, stored in all of them.

    python -m benchmarks.bench_storage [--steps N] [--check]

The demo recipe, trained for a number of steps, exported as f32, f16, bf16, i8 and q8, and evaluated from the
package on the held-out split. Targets: f16 within 0.001 bits per byte of f32, bf16 within 0.005, i8 and q8
within 0.02.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from qalam_core.arabic import NORMALISATIONS
from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.corpus.splits import read_split, read_texts
from qalam_core.evaluation.evaluate import evaluate
from qalam_core.package.interop.storage import convert
from qalam_core.pipeline.build import build
from qalam_core.pipeline.export import PACKAGE
from qalam_core.pipeline.tokenize import TOKENS, of_split
from qalam_core.recipe import Recipe
from qalam_core.runs import TrainFacts
from qalam_core.store import Store
from qalam_core.tokens.shards import flat
from qalam_core.training.spec import WEIGHTS

ALLOWED: dict[str, float] = {"f32": 0.0, "f16": 0.001, "bf16": 0.005, "i8": 0.02, "q8": 0.02}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="training steps; the recipe's own are 800")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = parser.parse_args()
    path = Path(__file__).parent.parent / "deployments" / "recipes" / "demo.toml"
    recipe = Recipe.load(path, [f"train.steps={arguments.steps}", "gate.beat_unigram=0"])
    missed = False
    with tempfile.TemporaryDirectory() as root:
        artifacts = build(recipe, Store(Path(root) / "store")).artifacts
        made = {artifact.stage: artifact for artifact in artifacts}
        corpus, checkpoint = made["prepare"].path, made["train"]
        test = [
            pair for shard in read_split(corpus, "test") for batch in read_texts(shard)
            for pair in zip(batch.column("source").to_pylist(), batch.column("text").to_pylist(), strict=True)
        ]  # fmt: skip
        shards = of_split([artifact for artifact in artifacts if artifact.stage == "tokenize"], "train")
        train = [flat(shard.path / TOKENS) for shard in shards]
        original = made["export"].path / PACKAGE
        exact = raw = 0.0
        print(f"{'type':<6}{'bits/byte':>11}{'against f32':>13}{'weights':>12}{'of raw float32':>16}")
        for dtype, allowed in ALLOWED.items():
            folder = original if dtype == "f32" else Path(root) / dtype
            if dtype != "f32":
                convert(original, folder, dtype)
            texts = (batch for shard in read_split(corpus, "train") for batch in read_texts(shard))
            report, _ = evaluate(
                folder, checkpoint.path / WEIGHTS, test, train, texts, seen=Fingerprints.load(made["seen"].path),
                seed=recipe.seed, prompts=recipe.gate.prompts, confidence=recipe.gate.confidence, storage=dtype,
                normalisation=NORMALISATIONS[recipe.corpus.normalisation],
            )  # fmt: skip
            size = sum(file.stat().st_size for file in folder.glob("weights*.py"))
            if dtype == "f32":
                exact, raw = report.bits_per_byte.model, checkpoint.facts(TrainFacts).parameters * 4
            worse = report.bits_per_byte.model - exact
            missed |= worse > allowed or not report.integrity.intact
            print(f"{dtype:<6}{exact + worse:>11.4f}{worse:>+13.5f}{size / 1e6:>9.2f} MB{size / raw:>16.3f}")
    return int(arguments.check and missed)


if __name__ == "__main__":
    sys.exit(main())
