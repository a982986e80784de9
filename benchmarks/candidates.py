"""Intervals of a mean that were compared for the certificate: two-sided ends of many samples at once.

Every candidate is a function of samples `[trials, n]` and gives the low and the high ends, `[trials]`, at level 0.95:

    t                   Student's t
    t of log            Student's t of the mean's logarithm (delta method)
    skewed t            Hall's monotone transformation of t by the sample's skewness (Hall 1992)
    gamma fit           the mean of a gamma law with the sample's mean and variance
    log-normal fit      Cox's interval for the mean of a log-normal law (Zhou & Gao 1997)
    BCa                 bias-corrected and accelerated bootstrap (Efron 1987)
    empirical likelihood    Owen 1988, with the F quantile
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import special, stats

Array = npt.NDArray[np.float64]
Ends = tuple[Array, Array]
LEVEL = 0.95
#: Resamples of the BCa interval.
RESAMPLES = 999


def moments(x: Array) -> tuple[Array, Array, Array]:
    """Mean, standard error and skewness of every sample."""
    mean, spread = x.mean(axis=1), x.std(axis=1)
    third = ((x - mean[:, None]) ** 3).mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        skew = np.where(spread > 0, third / spread**3, 0.0)
    return mean, spread / math.sqrt(x.shape[1] - 1), skew


def _t(n: int) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, n - 1))


def student(x: Array) -> Ends:
    """Student's t interval of the mean."""
    mean, error, _ = moments(x)
    half = _t(x.shape[1]) * error
    return mean - half, mean + half


def student_of_log(x: Array) -> Ends:
    """Student's t of the logarithm of the mean."""
    mean, error, _ = moments(x)
    half = _t(x.shape[1]) * error / mean
    return mean * np.exp(-half), mean * np.exp(half)


def skewed_t(x: Array) -> Ends:
    """Hall's transformation `T + a T^2 / 3 + a^2 T^3 / 27 + a / 6`, `a = skewness / sqrt(n)`, inverted at t's ends."""
    mean, error, skew = moments(x)
    a = np.where(np.abs(skew) < 1e-6, 1e-6, skew) / math.sqrt(x.shape[1])
    above, below = (3 / a * (np.cbrt(1 + a * (y - a / 6)) - 1) for y in (_t(x.shape[1]), -_t(x.shape[1])))
    return mean - above * error, mean - below * error


def gamma_fit(x: Array) -> Ends:
    """Interval under gamma terms: the sum of n gamma variables is one, of n times the shape."""
    mean, error, _ = moments(x)
    with np.errstate(divide="ignore"):
        shape = np.minimum((mean / error) ** 2, 1e9)
    low, high = (shape / special.gammaincinv(shape, p) for p in ((1 + LEVEL) / 2, (1 - LEVEL) / 2))
    return mean * low, mean * high


def log_normal_fit(x: Array) -> Ends:
    """Cox's interval; terms of 0 count as 1e-12."""
    n, logs = x.shape[1], np.log(np.maximum(x, 1e-12))
    centre, variance = logs.mean(axis=1), logs.var(axis=1, ddof=1)
    half = _t(n) * np.sqrt(variance / n + variance**2 / (2 * (n - 1)))
    return np.exp(centre + variance / 2 - half), np.exp(np.minimum(centre + variance / 2 + half, 700.0))


@lru_cache(maxsize=2)
def _counts(n: int) -> Array:
    place = np.random.default_rng(n).integers(n, size=(RESAMPLES, n)) + n * np.arange(RESAMPLES)[:, None]
    return np.bincount(place.ravel(), minlength=RESAMPLES * n).reshape(RESAMPLES, n) / n


def bca(x: Array) -> Ends:
    """Quantiles of resampled means, moved by their bias and acceleration."""
    mean, _, skew = moments(x)
    means = np.sort(x @ _counts(x.shape[1]).T, axis=1)  # [trials, resamples]
    bias = special.ndtri(np.clip((means < mean[:, None]).mean(axis=1), 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    acceleration = skew / (6 * math.sqrt(x.shape[1]))
    ends = []
    for p in ((1 - LEVEL) / 2, (1 + LEVEL) / 2):
        z = bias + special.ndtri(p)
        place = special.ndtr(bias + z / (1 - acceleration * z)) * RESAMPLES
        ends.append(means[np.arange(len(x)), np.clip(place.astype(int), 0, RESAMPLES - 1)])
    return ends[0], ends[1]


def empirical_likelihood(x: Array) -> Ends:
    """Ends of the means `sum w x` with `-2 sum log(n w)` within the F quantile, over weights w."""
    high = _likeliest_end(x)
    return -_likeliest_end(-x), high


def _likeliest_end(x: Array) -> Array:
    """The largest mean: its weights are `w ∝ 1 / (c - x)`, c beyond the largest value, found by bisection."""
    n, top = x.shape[1], x.max(axis=1, keepdims=True)
    bound = float(stats.f.ppf(LEVEL, 1, n - 1))
    scale = np.maximum(x.std(axis=1, keepdims=True), 1e-300)
    low, high = np.full_like(top, -35.0), np.full_like(top, 35.0)
    for _ in range(40):
        middle = (low + high) / 2
        weights = 1 / (top - x + scale * np.exp(middle))
        weights /= weights.sum(axis=1, keepdims=True)
        outside = -2 * np.log(n * weights).sum(axis=1, keepdims=True) > bound
        low, high = np.where(outside, middle, low), np.where(outside, high, middle)
    return np.asarray((weights * x).sum(axis=1))


CANDIDATES: dict[str, Callable[[Array], Ends]] = {
    "t": student, "t of log": student_of_log, "skewed t": skewed_t, "gamma fit": gamma_fit,
    "log-normal fit": log_normal_fit, "BCa": bca, "empirical likelihood": empirical_likelihood,
}
