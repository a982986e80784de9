"""Goodness of fit with pooled cells: counts against a law, and means of random vectors against what they should be."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import chdtrc, chdtri, chndtr

Array = npt.NDArray[np.float64]


def chi_square(counts: Array, probabilities: Array, *, smallest: float = 10.0) -> float:
    """p-value of observed counts against a law; cells of expected count below `smallest` are pooled.

    A count in a cell of probability zero refutes the law: the p-value is 0.
    """
    counts, probabilities = np.asarray(counts, dtype=float).ravel(), np.asarray(probabilities, dtype=float).ravel()
    if counts[probabilities == 0.0].any():
        return 0.0
    assert abs(probabilities.sum() - 1.0) < 1e-9, f"the law sums to {probabilities.sum()}"
    order = np.argsort(-probabilities)
    observed, expected = counts[order], probabilities[order] * counts.sum()
    kept = int((expected >= smallest).sum())
    observed = np.append(observed[:kept], observed[kept:].sum())
    expected = np.append(expected[:kept], expected[kept:].sum())
    if expected[-1] < smallest:
        observed = np.append(observed[:-2], observed[-2:].sum())
        expected = np.append(expected[:-2], expected[-2:].sum())
    assert len(expected) > 1, "one cell is left after pooling: draw more"
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(chdtrc(len(expected) - 1, statistic))


def mean_test(values: Array, expected: Array, *, smallest: float = 25.0) -> float:
    """p-value of Hotelling's chi-square that i.i.d. rows `values: [runs, D]` have the mean `expected: [D]`.

    Asymptotic in the runs, so columns of which the rows expect less than `smallest` in total are pooled, and weights
    should not exceed a few. Directions in which the rows do not vary at all must agree to round-off.
    """
    runs, kept = values.shape[0], values.shape[0] * expected >= smallest
    rare = values[:, ~kept].sum(1, keepdims=True)
    pooled = np.concatenate([values[:, kept], rare], axis=1)
    target = np.append(expected[kept], expected[~kept].sum())
    if runs * target[-1] < smallest:
        pooled, target = pooled[:, :-1], target[:-1]
    difference = pooled.mean(0) - target
    scale, basis = np.linalg.eigh(np.atleast_2d(np.cov(pooled.T)))
    rotated = basis.T @ difference
    alive = scale > 1e-12
    if (np.abs(rotated[~alive]) > 1e-6).any():
        return 0.0
    if not alive.any():
        return 1.0
    return float(chdtrc(int(alive.sum()), runs * (rotated[alive] ** 2 / scale[alive]).sum()))


def detectable(deviation: float, runs: int, degrees: int, level: float, *, power: float = 0.99) -> float:
    """Difference of one mean from what it should be that a chi-square test finds with probability `power`.

    Args:
        deviation: standard deviation of one draw in that direction.
        runs: draws.
        degrees: of freedom of the test.
        level: of the test.
    """
    from scipy import optimize  # which takes long to import

    critical = chdtri(degrees, level)
    shift = optimize.brentq(lambda nc: 1.0 - chndtr(critical, degrees, nc) - power, 1e-9, 1e4)
    return float(deviation * np.sqrt(shift / runs))
