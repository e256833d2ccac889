from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qalam_core.errors import TrainingError
from qalam_core.tokens.shards import Batches, Labels, Mixture, documents, flat, labels, write_shard


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


def labelled(path: Path, of_source: dict[str, int], length: int = 14) -> Path:
    """Documents of `length` + 2 tokens, so many of each source, with ids from 100."""
    names = [name for name, count in of_source.items() for _ in range(count)]
    ids = np.arange(100, 100 + len(names), dtype=np.uint64)
    encoded = [(np.arange(len(names) * length), np.full(len(names), length))]
    write_shard(path, encoded, 70_000, 2, 3, Labels.of(ids, pa.array(names, pa.string())))
    return path


@pytest.fixture(name="mixed", scope="module")
def _mixed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("mixed")
    return [
        labelled(folder / "a.arrow", {"news": 30, "web": 41}),
        labelled(folder / "b.arrow", {"verses": 23, "web": 9}),
    ]


def visits(batches: Batches, epochs: int) -> Counter[tuple[int, int]]:
    """How often each window was visited, by shard and place, counted by its first token less the offset."""
    found: Counter[tuple[int, int]] = Counter()
    for epoch in range(epochs):
        offsets, order = batches._start(epoch)
        assert len(order) == batches.windows
        for window in order.tolist():
            shard = int(np.searchsorted(batches._first, window, side="right")) - 1
            found[shard, window - int(batches._first[shard])] += 1
        assert offsets.max() < 16
    return found


def test_labels_are_those_that_were_written(mixed: list[Path], tmp_path: Path) -> None:
    first, second = map(labels, mixed)
    assert first.names == ("news", "web")
    assert np.array_equal(first.ids, np.arange(100, 171))
    both = Labels.joined([first, second])
    assert [both.names[place] for place in both.sources] == ["news"] * 30 + ["web"] * 41 + ["verses"] * 23 + ["web"] * 9
    assert both.take(np.array([71])).ids.tolist() == [100]
    plain = labels(shard(tmp_path / "plain.arrow", [3, 2]))
    assert (plain.names, plain.ids.tolist()) == (("",), [0, 0])


WEIGHTS = st.dictionaries(
    st.sampled_from(["news", "web", "verses"]), st.sampled_from([0.1, 0.34, 0.5, 1.0, 1.7, 2.0, 3.25])
)


@given(weights=WEIGHTS, seed=st.integers(0, 2**32 - 1), epochs=st.integers(1, 7))
def test_a_window_is_read_as_often_as_its_source_weighs(
    mixed: list[Path], weights: dict[str, float], seed: int, epochs: int
) -> None:
    """Documents have as many tokens as a window, so that window n is document n's."""
    batches = Batches(mixed, 4, 16, seed, Mixture(weights))
    counts = visits(batches, epochs)
    for number, path in enumerate(mixed):
        of = labels(path)
        for name in of.names:
            weight = weights.get(name, 1.0)
            members = [(number, place) for place in range(len(of.ids) - 1) if of.names[of.sources[place]] == name]
            found = [counts[window] for window in members]
            assert max(found) - min(found) <= 1  # a fraction goes round
            assert abs(np.mean(found) - weight * epochs) <= epochs / len(members) + 1


@given(weights=WEIGHTS, step=st.integers(0, 300), seed=st.integers(0, 2**32 - 1))
def test_a_mixed_batch_depends_on_seed_and_step_alone(
    mixed: list[Path], weights: dict[str, float], step: int, seed: int
) -> None:
    walked = Batches(mixed, 4, 16, seed, Mixture(weights))
    for before in range(max(0, step - 3), step):
        walked[before]
    assert np.array_equal(walked[step], Batches(mixed, 4, 16, seed, Mixture(weights))[step])


def test_weights_of_1_are_no_mixture(mixed: list[Path]) -> None:
    plain, same = Batches(mixed, 4, 16, 5), Batches(mixed, 4, 16, 5, Mixture({"news": 1.0, "web": 1.0}))
    assert plain.per_epoch == same.per_epoch
    for step in range(2 * plain.per_epoch):
        assert np.array_equal(plain[step], same[step])


@given(weights=WEIGHTS, steps=st.integers(1, 200))
def test_what_was_read_is_what_the_batches_had(mixed: list[Path], weights: dict[str, float], steps: int) -> None:
    batches = Batches(mixed, 4, 16, 9, Mixture(weights))
    expected: Counter[str] = Counter({"news": 0, "web": 0, "verses": 0})
    of_window = [of.names[of.sources[place]] for of in map(labels, mixed) for place in range(len(of.ids) - 1)]
    for step in range(steps):
        epoch, place = divmod(step, batches.per_epoch)
        for window in batches._chosen(batches._start(epoch)[1], place).tolist():
            expected[of_window[window]] += 16
    found = batches.read(steps)
    assert {name: read for name, (_, read) in found.items()} == expected
    assert {name: tokens for name, (tokens, _) in found.items()} == {"news": 480, "verses": 368, "web": 800}
    assert sum(expected.values()) == steps * 4 * 16


def test_documents_that_stand_for_others_are_read_more_often(mixed: list[Path]) -> None:
    copies = np.array([101, 105, 160], np.uint64), np.array([2, 9, 3], np.int32)
    assert Mixture({"web": 0.5}, copies).of(labels(mixed[0]))[[0, 1, 5, 30, 60]].tolist() == [1, 2, 4, 0.5, 1]
    counts = visits(Batches(mixed[:1], 4, 16, 3, Mixture({}, copies)), 4)
    assert {place: count for (_, place), count in counts.items() if count != 4} == {1: 8, 5: 16, 60: 8}
    nothing = np.zeros(0, np.uint64), np.zeros(0, np.int32)
    assert np.array_equal(Batches(mixed, 4, 16, 3, Mixture({}, nothing))[7], Batches(mixed, 4, 16, 3)[7])


def test_a_small_weight_is_not_none(tmp_path: Path) -> None:
    """In time every window of the source is read."""
    path = labelled(tmp_path / "few.arrow", {"news": 8, "web": 5})
    counts = visits(Batches([path], 4, 16, 1, Mixture({"news": 0.001})), 8)
    assert [counts[0, place] for place in range(8)] == [1] * 8
    assert Batches([path], 4, 16, 1, Mixture({"news": 0.001})).read(8)["news"] > (0, 0)
