"""Statistical claims at one suite-wide failure rate, and the tests that make them.

Every random test calls `claim` with its p-value. All claims together fail a correct program with probability at most
`FAILURE_RATE` (Bonferroni over `CLAIMS`, an upper bound on their number that the end of the session checks). Seeds are
fixed, so a test that passes once passes always; the rate says how likely a correct program is to be refused at all.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

FAILURE_RATE = 1e-5
CLAIMS = 200
#: Level of one claim.
LEVEL = FAILURE_RATE / CLAIMS

made: list[str] = []


def claim(p_value: float, what: str) -> None:
    """Refuse a null hypothesis whose p-value is below the level of one claim."""
    made.append(what)
    assert p_value >= LEVEL, f"{what}: p-value {p_value:.3g} is below {LEVEL:.3g}"


def chi_square(counts: np.ndarray, probabilities: np.ndarray, *, smallest: float = 10.0) -> float:
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
    return float(stats.chi2.sf(statistic, len(expected) - 1))


def mean_test(values: np.ndarray, expected: np.ndarray, *, smallest: float = 25.0) -> float:
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
    scale, basis = np.linalg.eigh(np.cov(pooled.T))
    rotated = basis.T @ difference
    alive = scale > 1e-12
    if (np.abs(rotated[~alive]) > 1e-6).any():
        return 0.0
    return float(stats.chi2.sf(runs * (rotated[alive] ** 2 / scale[alive]).sum(), int(alive.sum())))


def total_variation_bound(probabilities: np.ndarray, runs: int, *, largest: float) -> float:
    """A bound on the distance between a law and its mean estimate over `runs`, exceeded with probability `LEVEL`.

    Each run gives a non-negative vector of total at most `largest` and of expectation `probabilities`. The expected
    distance is at most `1/2 sum_s sqrt(largest p_s / runs)`; one run moves it by at most `largest / runs`, so
    McDiarmid's inequality adds `largest sqrt(log(1 / LEVEL) / (2 runs))`.
    """
    mean = 0.5 * np.sqrt(largest * np.asarray(probabilities) / runs).sum()
    return float(mean + largest * math.sqrt(math.log(1.0 / LEVEL) / (2 * runs)))
