"""What a continued training reads, and its schedule."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest

from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.corpus.splits import SCHEMA
from qalam_core.recipe import Continuing, Optimisation
from qalam_core.tokens.shards import documents, flattened, write_shard
from qalam_core.training.continuing import schedule, write_reading
from qalam_core.training.optimizers import learning_rate


def shard_of(path: Path, texts: dict[str, str]) -> pa.RecordBatch:
    """A shard of texts by id."""
    columns = [pa.array(texts), pa.array(texts.values(), pa.large_string()), pa.array(["s"] * len(texts))]
    batch = pa.record_batch(columns, schema=SCHEMA)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(batch)
    return batch


def test_a_document_is_new_if_neither_its_text_nor_its_words_were_read(tmp_path: Path) -> None:
    ids = [f"{number:016x}" for number in (9, 2, 7, 4)]
    read = shard_of(tmp_path / "read.arrow", {ids[0]: "قرأت هذا الكتاب", ids[1]: "ثم ذاك الكتاب"})
    now = {ids[2]: "نص لم يقرأ بعد", ids[0]: "قرأت هذا الكتاب", ids[3]: "ثم ذاك، الكتابَ!"}
    seen = Fingerprints.of([read])
    assert seen.unread(shard_of(tmp_path / "now.arrow", now)).tolist() == [True, False, False]
    assert seen.unread(read).tolist() == [False, False]


def reading(folder: Path, replay: float, least: int = 0, seed: int = 1) -> tuple[list[int], int]:
    """Of 60 documents of 10 tokens in two shards, 20 of them new -> the ids that are read, in order; and tokens."""
    shards = [folder / "a.arrow", folder / "b.arrow"]
    for number, shard in enumerate(shards):
        write_shard(shard, [flattened([[4 + 30 * number + place] * 8 for place in range(30)])], 100, 2, 3)
    new = [np.arange(30) % 3 == 0] * 2
    tokens = write_reading(folder / "out.arrow", shards, new, replay, least, 100, (seed, 5))
    found = [ids.tolist() for ids in documents(folder / "out.arrow")]
    assert all((len(ids), ids[0], ids[-1], len(set(ids))) == (10, 2, 3, 3) for ids in found)
    assert tokens == 10 * len(found)
    return [ids[1] - 4 for ids in found], tokens


@pytest.mark.parametrize(("replay", "least", "tokens"), [(0.0, 0, 200), (0.5, 0, 400), (0.0, 255, 260), (0.9, 0, 600)])
def test_all_that_is_new_is_read_with_a_share_of_the_rest(
    replay: float, least: int, tokens: int, tmp_path: Path
) -> None:
    found, written = reading(tmp_path, replay, least)
    assert written == tokens
    assert len(set(found)) == len(found), "nothing is read twice in one pass"
    assert {place for place in range(60) if place % 30 % 3 == 0} <= set(found)


def test_the_draw_and_its_order_follow_the_seed(tmp_path: Path) -> None:
    one, again, other = (reading(tmp_path, 0.5, seed=seed)[0] for seed in (1, 1, 2))
    assert one == again
    assert set(one) != set(other)
    assert one != sorted(one)


@pytest.mark.parametrize("kind", ["wsd", "cosine"])
@pytest.mark.parametrize("passes", [0.5, 2.0])
def test_a_night_warms_up_and_decays_within_its_passes(kind: Literal["wsd", "cosine"], passes: float) -> None:
    settings = Optimisation(batch_size=8, learning_rate=1.0, schedule=kind, warmup=0.1)
    for tokens in (1, 1000, 10_001, 123_456):
        found = schedule(settings, Continuing(epochs_of_new=passes, rewarm=0.25), tokens, context=16)
        assert found.steps == math.ceil(passes * tokens / 128)
        rates = [learning_rate(found, number) for number in range(found.steps)]
        assert max(rates) == 0.25
        if found.steps > 30:
            assert rates[0] < 0.1
            assert rates[-1] < 0.1
