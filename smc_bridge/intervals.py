"""A confidence interval for a mean, or a ratio of means, of skewed data: the bootstrap-t (Efron 1979; Hall 1988).

Student's interval takes the error of a mean, in standard errors, to be symmetric. For right-skewed data it is not:
where the mean is too low the standard error is too low as well, so that the upper end falls short. The bootstrap-t
reads the law of that studentised error off resamples of the data,

    T* = (m* - m) / se*,    interval [m - se T*_(1 - a/2), m - se T*_(a/2)],

and is accurate to second order. On terms of certificates its upper ends are still too low in up to a tenth of the cases
where 2.5 % are promised, so the upper end takes a fifth of the tail: that is a calibration, and how often it is too low
with it, by the number of runs, is measured by `python -m benchmarks.certificate_coverage`. Nothing can know of values
that no run has shown.

The resamples are the same at every call and the data are sorted first, so the same numbers give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

Array = npt.NDArray[np.float64]

#: What the interval is called where it is printed.
NAME = "bootstrap-t"
RESAMPLES = 1999
#: The resamples show quantiles down to this one; beyond it they are stretched as Student's are.
FINEST = 0.005
#: The upper end takes this part of its tail.
CAUTION = 0.2
#: Counts of resamples of at most this many values are kept.
_KEPT = 1000
#: A resample whose spread is below this share of the data's has none but round-off.
_ROUND_OFF = 1e-12


def ratio_interval(values: Array, over: Array | None = None, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of `E[values] / E[over]`, of the mean of `values` without `over`.

    Args:
        values: `[n]`, independent and finite.
        over: `[n]`, what belongs to each; at least 0, not all 0.
        level: confidence, in (0, 1), of the interval without the caution.
    Returns:
        the two ends. Infinite for a single value, for values without spread, and where resamples without spread (as
        of one large value among equal ones) reach the quantile.
    """
    n = values.size
    over = np.ones(n) if over is None else over
    ratio = float(values.sum() / over.sum())
    residual = values - ratio * over
    scale = float(residual.std())
    if n < 2 or scale <= _ROUND_OFF * float(np.abs(values).max()):
        return -math.inf, math.inf
    order = np.lexsort((over, residual))
    studentised = np.sort(_studentised(residual[order] / scale, over[order] / over.mean()))
    tail = (1 - level) / 2
    error = scale / math.sqrt(n - 1) / float(over.mean())
    above, below = _quantile(-studentised[::-1], tail, n), _quantile(studentised, CAUTION * tail, n)
    return ratio + error * above, ratio - error * below


def _quantile(studentised: Array, tail: float, n: int) -> float:
    """The lower quantile of ascending values, at most 0."""
    shown = max(tail, FINEST)
    stretch = float(stdtrit(n - 1, tail) / stdtrit(n - 1, shown))
    return stretch * min(float(studentised[round(shown * (RESAMPLES + 1)) - 1]), 0.0)


def _studentised(residual: Array, over: Array) -> Array:
    """`T*` of every resample, `[RESAMPLES]`; infinite where a resample that is off has no spread."""
    moments = np.stack([residual, over, residual * residual, residual * over, over * over], axis=1)  # [n, 5]
    sums = np.concatenate([counts @ moments for counts in _resamples(residual.size)])
    error, total, square, product, own = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = error / total
        spread = square - 2 * shift * product + shift * shift * own  # sum of squared residuals of the resample
        spread = np.where(spread <= _ROUND_OFF * residual.size, 0.0, spread)
        found = error / np.sqrt(spread * residual.size / (residual.size - 1))
    # Neither off nor spread: a resample of one value that equals the mean.
    return np.asarray(np.where(np.isnan(found), 0.0, found))


def _resamples(n: int) -> Iterator[npt.NDArray[np.uint8]]:
    """How often each of n values occurs in each resample, in parts `[.., n]`."""
    if n <= _KEPT:
        yield _counts(n)
        return
    rng, part = np.random.default_rng(n), max(1, 2_000_000 // n)
    for start in range(0, RESAMPLES, part):
        yield _drawn(rng, min(part, RESAMPLES - start), n)


@lru_cache(maxsize=16)
def _counts(n: int) -> npt.NDArray[np.uint8]:
    return _drawn(np.random.default_rng(n), RESAMPLES, n)


def _drawn(rng: np.random.Generator, resamples: int, n: int) -> npt.NDArray[np.uint8]:
    place = rng.integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(place.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.uint8)
