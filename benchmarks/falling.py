"""How fast a KL bound falls with the number of particles: the slope of its logarithm, with a bootstrap interval.

Far out the bound is half the relative variance of the evidence, which falls as 1/N: slope -1. Where weights vary a lot,
N particles do not cover the target yet and the bound falls more slowly, like log N or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from smc_bridge.certificate import kl_terms
from smc_bridge.estimate import Estimate

RESAMPLES = 1999


def slope_of_bound(evidence: Mapping[int, Sequence[float]], *, seed: int = 0) -> Estimate | None:
    """Slope of log bound on log N by least squares, each N weighted by the relative precision of its bound.

    Args:
        evidence: `log Z_hat` of independent runs, nats, by N.
        seed: of the resamples.
    Returns:
        the slope with the percentile interval of resampled runs (each N by itself: where the same prompts are behind
        all of them it is too wide rather than too narrow). None if there are fewer than two N, or a bound that is 0,
        infinite or without spread.
    """
    terms = {n: kl_terms(runs) for n, runs in evidence.items()}
    means = np.array([each.mean() for each in terms.values()])
    if len(terms) < 2 or not np.isfinite(means).all():
        return None
    errors = np.array([each.std() / np.sqrt(each.size) for each in terms.values()])
    if not ((means > 0) & (errors > 0)).all():
        return None
    x, weights = np.log(list(terms)), (means / errors) ** 2
    rng = np.random.default_rng(seed)
    drawn = np.stack([
        rng.choice(each, (RESAMPLES, each.size)).mean(1) for each in terms.values()
    ], axis=1)  # [resamples, N]
    drawn = drawn[(drawn > 0).all(axis=1)]  # one that met none of a few terms has no logarithm
    found = np.sort(_slope(x, np.log(drawn), weights))
    if not found.size:
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    value = float(_slope(x, np.log(means), weights))
    return Estimate(
        value, min(float(low), value), max(float(high), value), len(terms), "bootstrap", float(found.std())
    )


def _slope(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Of weighted least squares along the last axis of y."""
    share = weights / weights.sum()
    off = x - share @ x
    return np.asarray((y @ (share * off)) / (share @ off**2))
