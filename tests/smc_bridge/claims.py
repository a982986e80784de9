"""Statistical claims at one suite-wide failure rate, and the tests that make them.

Every random test calls `claim` with its p-value. All claims together fail a correct program with probability at most
`FAILURE_RATE` (Bonferroni over `CLAIMS`, an upper bound on their number that the end of the session checks). Seeds are
fixed, so a test that passes once passes always; the rate says how likely a correct program is to be refused at all.
"""

from __future__ import annotations

import math

import numpy as np

from smc_bridge.testing.statistics import chi_square, mean_test

__all__ = ["CLAIMS", "FAILURE_RATE", "LEVEL", "chi_square", "claim", "made", "mean_test", "total_variation_bound"]

FAILURE_RATE = 1e-5
CLAIMS = 200
#: Level of one claim.
LEVEL = FAILURE_RATE / CLAIMS

made: list[str] = []


def claim(p_value: float, what: str) -> None:
    """Refuse a null hypothesis whose p-value is below the level of one claim."""
    made.append(what)
    assert p_value >= LEVEL, f"{what}: p-value {p_value:.3g} is below {LEVEL:.3g}"


def total_variation_bound(probabilities: np.ndarray, runs: int, *, largest: float) -> float:
    """A bound on the distance between a law and its mean estimate over `runs`, exceeded with probability `LEVEL`.

    Each run gives a non-negative vector of total at most `largest` and of expectation `probabilities`. The expected
    distance is at most `1/2 sum_s sqrt(largest p_s / runs)`; one run moves it by at most `largest / runs`, so
    McDiarmid's inequality adds `largest sqrt(log(1 / LEVEL) / (2 runs))`.
    """
    mean = 0.5 * np.sqrt(largest * np.asarray(probabilities) / runs).sum()
    return float(mean + largest * math.sqrt(math.log(1.0 / LEVEL) / (2 * runs)))
