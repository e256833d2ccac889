"""Confidence intervals for a ratio of two sums over documents, such as nats over bytes, also when documents are few, or
a few of them have most of the bytes.

With weights w = bottom / sum(bottom) and ratios r = top / bottom, the estimate is R = sum(w r). Its variance is the
jackknife's, sum((w (r - R) / (1 - w))^2): what leaving out each document would change, so that a document with most of
the weight widens the interval by its difference from the others. The interval is that of Student's t for log R. A
variance that is a sum of parts v has (sum v)^2 / sum v^2 - 1 degrees of freedom: the smaller number, of the parts above
and of those that documents of equal noise would have, w^2. Documents are assumed to be independent; tokens of one are
not.

Sources: MacKinnon and White, Some Heteroskedasticity-consistent Covariance Matrix Estimators (1985), for the variance,
their HC3; Satterthwaite, An Approximate Distribution of Estimates of Variance Components (1946), for the degrees of
freedom; Kish, Survey Sampling (1965), for the effective number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PLACES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_STEPS = 60  # of bisection: more than the bits of a float
_P_STEPS = 30
_normal = NormalDist().inv_cdf


@dataclass(frozen=True)
class Estimate:
    """The ratio of two sums over documents; `error` and `freedom` are NaN for fewer than two documents."""

    ratio: float
    error: float  # standard error of the ratio's logarithm
    freedom: float  # degrees of freedom of the error
    effective: float  # number of documents of equal weight that would say as much
    noise: float = 0.0  # a further independent standard error, which is known

    def interval(self, confidence: float) -> tuple[float, float]:
        """The central interval; NaN when there is none."""
        width = min(self.width((1 + confidence) / 2), 700.0)  # exp(700) is a finite float
        return self.ratio * math.exp(-width), self.ratio * math.exp(width)

    def probability_above(self, ratio: float) -> float:
        """The p-value of the hypothesis that the true ratio is at most `ratio`: small when it is surely larger."""
        difference = math.log(self.ratio / ratio) if self.ratio > 0 else math.nan
        if not math.isfinite(difference + self.width(0.5)):
            return math.nan
        low, high = 0.0, 0.5
        if difference <= 0:
            return 1.0  # no smaller than half, which is all that a test needs
        for _ in range(_P_STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.width(1 - middle) <= difference else (middle, high)
        return high

    def width(self, probability: float) -> float:
        """How far above the estimate the true logarithm is at most, with this probability; NaN without evidence."""
        if not (math.isfinite(self.ratio) and self.ratio > 0 and math.isfinite(self.error)):
            return math.nan
        freedom = float(f"{self.freedom:.3g}")  # so that quantiles are computed once; they differ by 1e-5 at most
        # each part by its own quantile: a sum of variances with common degrees of freedom could shrink when noise grows
        return math.hypot(t_quantile(probability, freedom) * self.error, _normal(probability) * self.noise)


def estimate(
    top: Sequence[float] | NDArray[Any], bottom: Sequence[float] | NDArray[Any], noise: float = 0.0
) -> Estimate:
    """sum(top) / sum(bottom), of one value per document each; NaN where a value is not finite.

    `noise` is a standard error of the ratio's logarithm, besides that of the choice of documents.
    """
    top_N, bottom_N = np.asarray(top, np.float64), np.asarray(bottom, np.float64)
    assert top_N.shape == bottom_N.shape
    total = bottom_N.sum()
    if not (np.isfinite(top_N).all() and np.isfinite(bottom_N).all() and total > 0):
        return Estimate(math.nan, math.nan, math.nan, 0.0)
    ratio = top_N.sum() / total
    weight_N = bottom_N / total
    squares = (weight_N**2).sum()
    if len(top_N) < 2 or ratio <= 0 or weight_N.max() >= 1:
        return Estimate(float(ratio), math.nan, math.nan, float(1 / squares))
    residual_N = (top_N / total - ratio * weight_N) / (1 - weight_N)
    variance = (residual_N**2).sum()
    if variance < 1e-24 * ratio**2:  # what rounding leaves of equal ratios
        return Estimate(float(ratio), 0.0, 1.0, float(1 / squares), noise)
    freedom = min(squares**2 / (weight_N**4).sum(), variance**2 / (residual_N**4).sum()) - 1
    return Estimate(float(ratio), math.sqrt(variance) / ratio, max(1.0, float(freedom)), float(1 / squares), noise)


def intervals(
    tops: Sequence[Sequence[float] | NDArray[Any]],
    bottoms: Sequence[Sequence[float] | NDArray[Any]],
    confidence: float,
) -> list[tuple[float, float]]:
    """The central interval of sum(top) / sum(bottom) for each pair of rows; NaN for one document."""
    return [estimate(top, bottom).interval(confidence) for top, bottom in zip(tops, bottoms, strict=True)]


def effective(sizes: Sequence[float] | NDArray[Any]) -> float:
    """The effective number of documents of these sizes, (sum b)^2 / sum b^2: n when they are equal."""
    size_N = np.asarray(sizes, np.float64)
    squares = float((size_N**2).sum())
    return float(size_N.sum()) ** 2 / squares if squares > 0 else 0.0


@lru_cache(maxsize=4096)
def t_quantile(probability: float, freedom: float) -> float:
    """A quantile of Student's t, for probabilities from 0.5 on, and any real number of degrees of freedom from 1 on."""
    low, high = 0.0, min(math.pi / 2, 40 / math.sqrt(freedom))  # the peak is narrow when there are many
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 + _central(middle, freedom) < probability else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _central(angle: float, freedom: float) -> float:
    """P(0 < t < sqrt(freedom) tan(angle)): the integral of C cos(x)^(freedom - 1) from 0 to `angle`."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    values = np.cos((_PLACES + 1) * angle / 2) ** (freedom - 1)
    return float(scale * angle / 2 * (_WEIGHTS * values).sum())
