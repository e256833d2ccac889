from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pytest

from qalam_core.corpus.prepare import CorpusFacts, SplitCounts
from qalam_core.corpus.sample import sample
from qalam_core.pipeline.vocab import Vocab, VocabFacts
from qalam_core.progress import Progress
from qalam_core.store import Artifact, Identity, Store
from tests.conftest import sentences, tiny_recipe

TEXTS = sentences(300)


def shards(folder: Path, texts: list[str], per_shard: int, per_batch: int = 7) -> list[Path]:
    """Corpus shards; an id is a function of its text, as in a corpus."""
    folder.mkdir()
    paths = []
    for start in range(0, len(texts), per_shard):
        path = folder / f"train-{start:05d}.arrow"
        table = pa.table({
            "id": [f"{random.Random(text).getrandbits(64):016x}" for text in texts[start : start + per_shard]],
            "text": pa.array(texts[start : start + per_shard], pa.large_string()),
        })  # fmt: skip
        with ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, per_batch)
        paths.append(path)
    return paths


def drawn(paths: list[Path], limit: int, seed: int = 1) -> list[str]:
    return [text for batch in sample(paths, limit, seed) for text in batch.to_pylist()]


@pytest.mark.parametrize("limit", [500, 5_000, 20_000])
def test_a_sample_is_near_its_limit_and_never_above(tmp_path: Path, limit: int) -> None:
    texts = drawn(shards(tmp_path / "a", TEXTS, 100), limit)
    size = sum(len(text.encode()) for text in texts)
    assert limit - max(len(text.encode()) for text in TEXTS) < size <= limit


def test_a_sample_depends_on_texts_and_seed_alone(tmp_path: Path) -> None:
    shuffled = random.Random(5).sample(TEXTS, len(TEXTS))
    one, two = shards(tmp_path / "a", TEXTS, 100), shards(tmp_path / "b", shuffled, 37, 11)
    assert sorted(drawn(one, 9_000)) == sorted(drawn(two, 9_000))
    assert sorted(drawn(one, 9_000)) != sorted(drawn(one, 9_000, seed=2))


def test_a_smaller_sample_is_part_of_a_larger_one(tmp_path: Path) -> None:
    paths = shards(tmp_path / "a", TEXTS, 100)
    assert set(drawn(paths, 2_000)) < set(drawn(paths, 9_000))


def test_a_sample_larger_than_the_split_is_the_split(tmp_path: Path) -> None:
    assert drawn(shards(tmp_path / "a", TEXTS, 100), 1 << 30) == TEXTS


def test_a_text_longer_than_the_limit_is_drawn_alone(tmp_path: Path) -> None:
    assert len(drawn(shards(tmp_path / "a", TEXTS, 100), 1)) == 1


def test_memory_of_a_sample_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of candidates is cut to the size of the sample as it grows."""
    lengths = []
    argsort = np.argsort

    def noted(values: np.ndarray, **options: Any) -> np.ndarray:
        lengths.append(len(values))
        return argsort(values, **options)

    monkeypatch.setattr(np, "argsort", noted)
    drawn(shards(tmp_path / "a", TEXTS, 100), 2_000)
    assert len(lengths) > 3
    assert max(lengths) < 60


MADE = Identity(stage="prepare", version=0, settings={}, inputs={})


@dataclass(frozen=True)
class Made:
    """A stage that makes a corpus whose training split has these texts."""

    texts: tuple[str, ...]
    identity: Identity = MADE
    resumable: tuple[str, ...] = ()

    def run(self, out: Path, progress: Progress) -> CorpusFacts:
        for path in shards(out / "made", list(self.texts), 4_000, 1_000):
            path.rename(out / path.name)
        (out / "made").rmdir()
        size, count = sum(len(text.encode()) for text in self.texts), len(self.texts)
        train = SplitCounts(documents=count, characters=sum(map(len, self.texts)), bytes=size, shards=3)
        return CorpusFacts(read=count, kept=count, repaired=0, rejected={}, sources={}, splits={"train": train})


def test_limit_and_seed_matter_only_for_a_true_sample(store: Store) -> None:
    texts = tuple(f"{text} {number}" for number in range(30) for text in TEXTS)
    size = sum(len(text.encode()) for text in texts)
    assert size > 1_000_000
    corpus = store.build(Made(texts))

    def vocab(seed: int, megabytes: int) -> Artifact:
        recipe = tiny_recipe(Path("x"), tokenizer={"sample_mb": megabytes}).model_copy(update={"seed": seed})
        return store.build(Vocab.of(recipe, corpus))

    assert vocab(1, 2) == vocab(2, 3)
    assert vocab(1, 2).facts(VocabFacts).bytes == size
    assert len({vocab(1, 2).digest, vocab(1, 1).digest, vocab(2, 1).digest}) == 3
    assert 990_000 < vocab(1, 1).facts(VocabFacts).bytes <= 1_000_000
