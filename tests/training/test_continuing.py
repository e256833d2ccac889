"""What a continued training reads, and its schedule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.corpus.splits import SCHEMA
from qalam_core.errors import RecipeError
from qalam_core.recipe import Continuing, Optimisation, Recipe
from qalam_core.tokens.shards import documents, flattened, write_shard
from qalam_core.training.continuing import schedule, write_reading
from qalam_core.training.optimizers import learning_rate, steps_before_decay
from tests.conftest import tiny_recipe


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


@pytest.mark.parametrize("decay", [0.1, 0.3, 0.45, 0.9])
def test_all_is_read_at_the_constant_rate_and_the_decay_comes_on_top(decay: float) -> None:
    settings = Optimisation(steps=1000, batch_size=8, learning_rate=1.0, decay=decay)
    for tokens in (1, 1000, 10_001, 123_456):
        found = schedule(settings, Continuing(epochs_of_new=2.0, constant=0.25), tokens, context=16)
        before = steps_before_decay(found)
        assert before == -(-2 * tokens // 128)
        assert found.steps - before == max(1, round(before * decay / (1 - decay)))
        rates = [learning_rate(found, number) for number in range(found.steps)]
        assert rates[:before] == [0.25] * before
        assert rates[-1] < 0.25 or found.steps - before == 1


def test_cosine_warms_up_again_within_the_passes() -> None:
    settings = Optimisation(batch_size=8, learning_rate=1.0, schedule="cosine", warmup=0.1)
    found = schedule(settings, Continuing(epochs_of_new=0.5, constant=1.0), 25_600, context=16)
    assert found.steps == steps_before_decay(found) == 100
    assert [learning_rate(found, number) for number in (0, 9)] == pytest.approx([0.1, 1.0])


@pytest.mark.parametrize(("key", "value"), [("patience", 2), ("decay", 0.95)])
def test_a_recipe_without_a_state_to_continue_from_is_refused(key: str, value: float) -> None:
    with pytest.raises(RecipeError, match=f'{key} .*"continue"'):
        tiny_recipe(Path("x"), train={"start": "continue", key: value})
    assert isinstance(tiny_recipe(Path("x"), train={"start": "champion", key: value}), Recipe)
