"""The shape of an upper tail: a generalised Pareto law fitted to the largest values (Zhang & Stephens 2009).

The fit is a quasi-Bayesian mean over the scale parameter, regularised towards shape 0.5 by ten observations' worth
(Vehtari, Simpson, Gelman, Yao & Gabry 2024). The r-th moment of the values exists for `k < 1/r`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: Fewer values than this leave no tail of five.
LEAST = 25


def tail_size(n: int) -> int:
    """How many of n values the tail is."""
    return math.floor(3 * math.sqrt(n)) if n > 225 else n // 5


def pareto_shape(exceedances: Array) -> float:
    """Shape k of a generalised Pareto law on [0, inf) from `exceedances: [n]`, ascending.

    NaN where a quarter of them is 0 (ties at the lower end), so that the fit has no scale.
    """
    n = exceedances.size
    quartile = exceedances[int(n / 4 + 0.5) - 1]
    if not quartile > 0:
        return math.nan
    grid = 30 + int(math.sqrt(n))
    # theta = k / scale, with the sign of Zhang & Stephens; their prior puts its grid around the first quartile.
    theta = 1 / exceedances[-1] + (1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3 * quartile)
    shape = np.log1p(-theta[:, None] * exceedances).mean(axis=1)
    profile = n * (np.log(-theta / shape) - shape - 1)
    weight = np.exp(profile - profile.max())
    mean = float(theta @ weight / weight.sum())
    return float((n * np.log1p(-mean * exceedances).mean() + 5) / (n + 10))


def tail_shape(values: Array) -> float:
    """Shape k of the upper tail of `values: [n]`; NaN for fewer than 25 and where ties leave no fit."""
    if values.size < LEAST:
        return math.nan
    ordered, tail = np.sort(values), tail_size(values.size)
    return pareto_shape(ordered[-tail:] - ordered[-tail - 1])
