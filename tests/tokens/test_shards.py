from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qalam_core.errors import TrainingError
from qalam_core.tokens.shards import Batches, documents, flat, write_shard


def shard(path: Path, lengths: list[int], vocab_size: int = 8000) -> Path:
    """Documents of the given lengths; the tokens of the shard count upwards from 10."""
    ids, counts = np.arange(10, 10 + sum(lengths)), np.array(lengths)
    batches = [(ids[: lengths[0]], counts[:1]), (ids[lengths[0] :], counts[1:])]
    assert write_shard(path, batches, vocab_size, 2, 3) == (len(lengths), sum(lengths) + 2 * len(lengths))
    return path


def test_a_shard_is_a_view_of_its_file(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.arrow", [3, 0, 2])
    assert flat(path).tolist() == [2, 10, 11, 12, 3, 2, 3, 2, 13, 14, 3]
    assert [document.tolist() for document in documents(path)] == [[2, 10, 11, 12, 3], [2, 3], [2, 13, 14, 3]]
    assert not flat(path).flags.owndata
    assert flat(path).dtype == np.uint16


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    assert flat(shard(tmp_path / "a.arrow", [3], vocab_size=65_536)).dtype == np.uint16
    assert flat(shard(tmp_path / "b.arrow", [3], vocab_size=65_537)).dtype == np.uint32


def test_an_empty_shard(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.arrow", [], 100, 2, 3)
    assert flat(tmp_path / "a.arrow").tolist() == []
    assert list(documents(tmp_path / "a.arrow")) == []


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("tokens")
    return [shard(folder / "a.arrow", [50] * 20), shard(folder / "b.arrow", [30] * 11)]


@given(step=st.integers(0, 500), seed=st.integers(0, 2**32 - 1))
def test_a_batch_depends_on_seed_and_step_alone(shards: list[Path], step: int, seed: int) -> None:
    walked = Batches(shards, 4, 16, seed)
    for before in range(max(0, step - 3), step):
        walked[before]
    assert np.array_equal(walked[step], Batches(shards, 4, 16, seed)[step])


def test_windows_are_contiguous_in_one_shard(shards: list[Path]) -> None:
    batches = Batches(shards, 4, 16, seed=3)
    streams = [flat(path).tolist() for path in shards]
    for step in range(batches.per_epoch):
        for row in batches[step].tolist():
            assert len(row) == 17
            assert any(row == stream[i : i + 17] for stream in streams for i in range(len(stream) - 16))


def test_an_epoch_sees_each_window_once(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.arrow", [1000])
    batches = Batches([path], 4, 16, seed=1)
    for epoch in range(3):
        firsts = [row[0] for step in range(batches.per_epoch) for row in batches[epoch * batches.per_epoch + step]]
        assert len(set(firsts)) == len(firsts) == batches.per_epoch * 4
        assert len(firsts) >= (1002 // 16 - 1) // 4 * 4


def test_epochs_differ(shards: list[Path]) -> None:
    batches = Batches(shards, 4, 16, seed=3)
    assert not np.array_equal(batches[0], batches[batches.per_epoch])


def test_a_corpus_smaller_than_a_batch_still_fills_it(tmp_path: Path) -> None:
    batches = Batches([shard(tmp_path / "a.arrow", [62])], 32, 16, seed=1)
    assert batches[0].shape == (32, 17)


def test_the_shortest_usable_shard(tmp_path: Path) -> None:
    assert Batches([shard(tmp_path / "a.arrow", [30])], 1, 16, seed=1)[0].shape == (1, 17)
    with pytest.raises(TrainingError, match=r"longest has 31; lower model\.max_seq_len"):
        Batches([shard(tmp_path / "b.arrow", [29])], 1, 16, seed=1)
