from __future__ import annotations

import ast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalam_core.package.runtime.rows import MATRIX_TYPES, Scaled
from tests.conftest import examples
from tests.small_package import python_row

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
ANY_ROW = st.lists(FINITE, min_size=1, max_size=9) | st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=9)


@pytest.mark.parametrize(
    ("dtype", "share"), [("f32", 0.0), ("f16", 0.00022), ("bf16", 0.0018), ("i8", 0.0073), ("q8", 0.0073)]
)
def test_rounding_errors_are_as_documented(dtype: str, share: float) -> None:
    values = np.random.default_rng(0).normal(0, 0.02, (2000, 256)).astype(np.float32)
    error = MATRIX_TYPES[dtype].rounded(values) - values
    assert np.sqrt(np.square(error, dtype=np.float64).mean()) / 0.02 <= share


@pytest.mark.parametrize("dtype", MATRIX_TYPES)
@settings(max_examples=examples(150))
@given(row=ANY_ROW)
def test_storing_a_row_is_idempotent(dtype: str, row: list[float]) -> None:
    """Rounding again changes nothing, both decoders agree, and Python reads the same values."""
    row_type, values = MATRIX_TYPES[dtype], np.array([row, row[::-1]], np.float32)
    rounded = row_type.rounded(values)
    if not np.isfinite(rounded).all():
        assert dtype in ("f16", "bf16")
        return
    lines = row_type.encode(values)
    assert lines.tobytes() == row_type.encode(rounded).tobytes()
    assert lines.shape == (2, row_type.width(len(row)))
    out = np.empty_like(values)
    assert row_type.decode(lines, out) == 2
    assert out.tobytes() == rounded.tobytes()
    for line, expected in zip(lines, rounded, strict=True):
        text = line.tobytes().decode().rstrip("\n")
        assert row_type.parse(text, len(row), pytest.fail).tobytes() == expected.tobytes()
        assert python_row(dtype, ast.literal_eval(text.strip().rstrip(","))).tobytes() == expected.tobytes()
    largest = np.abs(values[0]).max()
    if isinstance(row_type, Scaled) and largest > 1e-35:
        assert np.abs(rounded - values).max() <= largest / 127 * 0.503
        assert np.abs(rounded).max() <= largest


def test_bfloat16_is_rounded_to_nearest_even() -> None:
    """Values of the type are exact; others are rounded to nearest, ties to even."""
    upper = np.arange(1 << 16, dtype=np.uint32)
    upper = upper[(upper & 0x7F80) != 0x7F80]
    bf16 = MATRIX_TYPES["bf16"]

    def rounded(lower: int) -> np.ndarray:
        bits: np.ndarray = bf16.rounded((upper << 16 | lower).view(np.float32)[None]).view(np.uint32)[0]
        return bits >> 16

    assert np.array_equal(rounded(0), upper)
    assert np.array_equal(rounded(0x7FFF), upper)
    assert np.array_equal(rounded(0x8000), upper + (upper & 1))
    assert np.array_equal(rounded(0x8001), upper + 1)


@pytest.mark.parametrize("dtype", ["i8", "q8"])
def test_the_scale_of_a_row_is_its_largest_magnitude_over_127(dtype: str) -> None:
    """A row too small for a scale is stored as zeros."""
    row_type = MATRIX_TYPES[dtype]
    rows = np.array([[0, -0.0], [1.27, -2.54], [1e-37, 1e-38], [2e-36, -1e-36], [3.4e38, -3.4e38]], np.float32)
    texts = [line.tobytes().decode().strip() for line in row_type.encode(rows)]
    scales = [text[1:15] for text in texts]
    assert scales[0] == scales[2] == "0.00000000e+00"
    assert float(scales[1]) == pytest.approx(0.02, rel=2e-5)
    if dtype == "q8":
        assert texts[0] == '(0.00000000e+00, "   0   0"),'
        assert texts[1][15:] == ', "  64-127"),'
    rounded = row_type.rounded(rows)
    assert rounded[0].tobytes() == rounded[2].tobytes() == bytes(8)
    assert rounded[3:] == pytest.approx(rows[3:], rel=0.01)


def test_scales_are_read_as_in_python() -> None:
    random = np.random.default_rng(0)
    scales = (10.0 ** random.uniform(-37, 36, 3000)).astype(np.float32)
    texts = [f"{scale:.8e}" for scale in scales.tolist()] + ["1.17549435e-38", "2.67927900e+36", "9.99999999e-01"]
    lines = "".join(f'        ({text}, " 127"),\n' for text in texts).encode()
    out = np.empty((len(texts), 1), np.float32)
    assert MATRIX_TYPES["q8"].decode(np.frombuffer(lines, np.uint8).reshape(len(texts), -1), out) == len(texts)
    assert np.array_equal(out[:, 0], np.array([float(text) for text in texts]).astype(np.float32) * np.float32(127))
