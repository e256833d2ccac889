"""With which tokenizer a small model is best, at equal compute, on text of another source than it was trained on.

    python -m benchmarks.bench_tokenizers [--corpus PATH] [--other PATH] [--steps 600] [--seeds 1 2]

For each tokenizer one model of the `small` shape is trained on --corpus and measured on two texts it has not seen:
held-out documents of the same corpus ("same"), and of --other ("other"). Both are paths as a recipe's sources have
them; by default the demo corpus is trained on, and "other" is skipped. A larger vocabulary makes each step more
expensive, so it gets fewer steps: the number of multiplications by weights is the same for all. Bits per byte
count the spelling of unknown words; a word vocabulary does not pay for white space, so its figure is slightly too
low. A vocabulary that the corpus is too small for is skipped.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from benchmarks.texts import DEMO
from qalam_core.arabic import NORMALISATIONS
from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.corpus.sources import resolve
from qalam_core.corpus.splits import read_split, read_texts
from qalam_core.errors import RecipeError
from qalam_core.evaluation.evaluate import evaluate
from qalam_core.evaluation.results import Report
from qalam_core.pipeline.build import InPlace, ingested, read_by, tokenized
from qalam_core.pipeline.export import PACKAGE, Export
from qalam_core.pipeline.prepare import Prepare, shards_of
from qalam_core.pipeline.tokenize import TOKENS, of_split
from qalam_core.pipeline.train import Train
from qalam_core.recipe import Model, Recipe
from qalam_core.store import Store
from qalam_core.tokens.shards import flat
from qalam_core.training.spec import WEIGHTS

TOKENIZERS = (("word", 8000), ("word", 32000), ("bpe", 4000), ("bpe", 8000), ("bpe", 16000), ("bpe", 32000))
DOCUMENTS = 200  # of each text that is measured


def cost(model: Model, vocab_size: int) -> int:
    """Multiplications per token in one pass over the weights: the blocks' matrices and the head."""
    return 12 * model.num_layers * model.dim**2 + vocab_size * model.dim


def recipe_for(corpus: str, algorithm: str, vocab_size: int, steps: int, seed: int) -> Recipe:
    return Recipe.parse({
        "name": "tokenizers", "seed": seed, "corpus": {"sources": [{"path": corpus}]},
        "tokenizer": {"algorithm": algorithm, "vocab_size": vocab_size},
        "train": {"steps": steps, "validate_every": steps},
    })  # fmt: skip


def held_out(store: Store, recipe: Recipe, name: str) -> list[tuple[str, str]]:
    """The first documents of a corpus's test split, under `name`."""
    corpus = store.build(Prepare.of(recipe, ingested(recipe, resolve(recipe.corpus.sources), InPlace(store))))
    found = (
        text for shard in read_split(corpus.path, "test") for batch in read_texts(shard)
        for text in batch.column("text").to_pylist()
    )  # fmt: skip
    return [(name, text) for text in islice(found, DOCUMENTS)]


def measure(store: Store, recipe: Recipe, test: Sequence[tuple[str, str]]) -> Report:
    documents = ingested(recipe, resolve(recipe.corpus.sources), InPlace(store))
    corpus, tokenizer, tokens, _ = tokenized(recipe, documents, InPlace(store))
    checkpoint = store.build(Train.of(recipe, tokenizer, tokens))
    *_, seen = read_by(corpus, None, InPlace(store))
    package = store.build(Export.of(recipe, corpus, tokenizer, checkpoint, seen, None))
    some = of_split(tokens, "train")[0].path / TOKENS  # for the baselines, which are not shown
    report, _ = evaluate(
        package.path / PACKAGE, checkpoint.path / WEIGHTS, test, [flat(some)],
        read_texts(shards_of(corpus, "train")[0].path), seen=Fingerprints.load(seen.path), seed=recipe.seed,
        prompts=recipe.gate.prompts, confidence=recipe.gate.confidence, storage=recipe.package.dtype,
        normalisation=NORMALISATIONS[recipe.corpus.normalisation],
    )  # fmt: skip
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default=DEMO, help="what to train on")
    parser.add_argument("--other", default="", help="text of another source")
    parser.add_argument("--steps", type=int, default=600, help="of the model with 8,000 BPE entries")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    asked = parser.parse_args()
    model = Model()
    names = ("same", "other") if asked.other else ("same",)
    print(f"{'tokenizer':12}{'steps':>7}" + "".join(
        f"{f'{name}: unknown':>16}{'tokens/word':>13}{'bits/byte':>11}" for name in names))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        test = held_out(store, recipe_for(asked.corpus, "bpe", 8000, 1, 1), "same")
        if asked.other:
            test += held_out(store, recipe_for(asked.other, "bpe", 8000, 1, 1), "other")
        for algorithm, vocab_size in TOKENIZERS:
            steps = round(asked.steps * cost(model, 8000) / cost(model, vocab_size))
            try:
                reports = [
                    measure(store, recipe_for(asked.corpus, algorithm, vocab_size, steps, seed), test)
                    for seed in asked.seeds
                ]
            except RecipeError as error:
                print(f"{algorithm} {vocab_size:,}: {error}")
                continue
            line = f"{f'{algorithm} {vocab_size:,}':12}{steps:7}"
            for name in names:
                slices = [report.sources[name] for report in reports]
                bits = statistics.mean(one.bits_per_byte.model for one in slices)
                line += f"{slices[0].unknown_rate:16.1%}{slices[0].tokens_per_word:13.2f}{bits:11.4f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
