"""The bootstrap: confidence intervals for a ratio of sums over documents, such as nats over bytes.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile intervals), and
Koehn, Statistical Significance Tests for Machine Translation Evaluation (EMNLP 2004), for pairing by document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
SEED = 20_040_701  # fixed, so that the same figures give the same interval
MAX_UNITS = 10_000  # more documents are first summed into so many random groups, to bound the time
_DRAWS = 1 << 21  # documents drawn at a time: about 50 MB


def intervals(
    tops: Sequence[Sequence[float] | NDArray[Any]],
    bottoms: Sequence[Sequence[float] | NDArray[Any]],
    confidence: float,
    resamples: int = RESAMPLES,
) -> list[tuple[float, float]]:
    """For each pair of rows, the central interval with `confidence` of the resampled sum(top) / sum(bottom).

    Rows have one value per document, in the same order. A resample draws the same documents for all rows, which makes
    two models comparable. A value that is not finite makes its interval NaN.

    Shapes: K pairs of rows, N documents (or groups of them), R resamples.
    """
    top_KN, bottom_KN = np.array(tops, np.float64), np.array(bottoms, np.float64)
    assert top_KN.shape == bottom_KN.shape and top_KN.shape[1] > 0
    random = np.random.default_rng(SEED)
    units = top_KN.shape[1]
    if units > MAX_UNITS:
        bag_N = random.permutation(units) % MAX_UNITS
        units = MAX_UNITS
        top_KN, bottom_KN = (
            np.array([np.bincount(bag_N, row, minlength=units) for row in rows]) for rows in (top_KN, bottom_KN)
        )
    at_once = max(1, _DRAWS // units)
    ratios = np.empty((len(top_KN), resamples))
    for begin in range(0, resamples, at_once):
        rows = min(at_once, resamples - begin)
        drawn = random.integers(0, units, (rows, units)) + np.arange(rows)[:, None] * units
        counts_RN = np.bincount(drawn.reshape(-1), minlength=rows * units).reshape(rows, units).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios[:, begin : begin + rows] = (top_KN @ counts_RN.T) / (bottom_KN @ counts_RN.T)
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    ratios[~(np.isfinite(top_KN) & np.isfinite(bottom_KN)).all(1)] = np.nan
    low_K, high_K = np.quantile(ratios, ends, axis=1)
    return list(zip(low_K.tolist(), high_K.tolist(), strict=True))
