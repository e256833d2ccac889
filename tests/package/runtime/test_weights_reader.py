from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qalam_core.package.runtime import weights_reader as reader
from qalam_core.package.runtime.rows import MATRIX_TYPES
from qalam_core.package.seek import read_rows
from tests.conftest import examples
from tests.small_package import (
    CONFIG,
    FRAGMENTS,
    TINY,
    check_it_means_what_python_means,
    random_tensors,
    save_shards,
    shard_texts,
    tiny_texts,
    weights,
    without_blocks,
)

SHAPES = CONFIG.tensor_shapes()


def test_tensors_may_be_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["qalam_core.package.write"], "SHARD_LIMIT", 2000)
    values = dict(reversed(weights().items()))
    save_shards(tmp_path, shard_texts(values, "f32"))
    loaded = reader.read_weights(tmp_path, SHAPES)
    assert list(loaded) == list(SHAPES)
    for name, tensor in values.items():
        assert np.array_equal(loaded[name], tensor)
        assert np.array_equal(read_rows(tmp_path, SHAPES, name, 3, 4), tensor[3:4])


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 3, 1, 2, 4, 5, 6], r'weights_001\.py:6: "embedding.weight" has 5 of 12 rows; its next part belongs here'),
        ([0, 2, 1, 3, 4, 5, 6], r'weights_001\.py:5: "embedding.weight" continues at row 5 of 12, not 10 \+ 2'),
        ([1, 0, 2, 3, 4, 5, 6], r'weights\.py:5: "embedding.weight" continues at row 0 of 12, not 5 \+ 5'),
        ([0, 0, 1, 2, 3, 4, 5], r'weights_001\.py:6: "embedding.weight" continues at row 5 of 12, not 0 \+ 5'),
        ([0, 1, 2, 3, 4, 5, 6, 0], r'weights_007\.py:6: "embedding.weight" continues at row 12 of 12, not 0 \+ 5'),
        ([0, 1, 2, 3, 5, 6], r'weights_004\.py:6: "pos_embedding" has 5 of 10 rows; its next part belongs here'),
        ([0, 1, 2, 3, 4, 5], r'weights_005\.py:0: "ln_out.bias" has 0 of 8 rows; a part is missing'),
    ],
)
def test_parts_out_of_order_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: list[int], message: str
) -> None:
    monkeypatch.setattr(sys.modules["qalam_core.package.write"], "SHARD_LIMIT", 800)
    shapes = without_blocks(CONFIG)
    texts = shard_texts(random_tensors(shapes), "f32")
    assert len(texts) == 7
    save_shards(tmp_path, [texts[index] for index in order])
    with pytest.raises(reader.FormatError, match=message):
        reader.read_weights(tmp_path, shapes)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return tiny_texts(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("dtype", MATRIX_TYPES)
@settings(max_examples=examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_accepted_text_means_the_same_as_in_python(
    tmp_path: Path, tiny: dict[str, bytes], dtype: str, data: st.DataObject
) -> None:
    text = tiny[dtype]
    assert check_it_means_what_python_means(tmp_path, text)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.sampled_from([0, 0, 1, 1, 2, 8, 39]))
        text = text[:at] + data.draw(st.sampled_from([b"", *FRAGMENTS])) + text[at + cut :]
    check_it_means_what_python_means(tmp_path, text)


@pytest.mark.parametrize("dtype", MATRIX_TYPES)
def test_a_comment_before_every_row_takes_linear_time(tmp_path: Path, dtype: str) -> None:
    shapes = without_blocks(replace(TINY, vocab_size=3000))
    values = random_tensors(shapes)
    save_shards(tmp_path, shard_texts(values, dtype))
    text = re.sub(
        '^        (?=["(])', "        # x\n        ", (tmp_path / "weights.py").read_text(), flags=re.MULTILINE
    )
    (tmp_path / "weights.py").write_bytes(text.encode())
    taken = []
    original = reader.Lines.peek

    def counting(self: reader.Lines, size: int) -> memoryview:
        taken.append(min(size, self.left))
        return original(self, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader.Lines, "peek", counting)
        result = reader.read_weights(tmp_path, shapes)
    assert np.array_equal(result["embedding.weight"], MATRIX_TYPES[dtype].rounded(values["embedding.weight"]))
    assert sum(taken) < 8 * len(text)
