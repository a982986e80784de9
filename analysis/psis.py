"""Pareto k-hat: how heavy the tail of the importance weights is (Vehtari, Simpson, Gelman, Yao & Gabry 2024).

The largest weights are fitted by a generalised Pareto law of shape k. The r-th moment of the weights exists for
`k < 1/r`: below 0.5 the variance is finite and plain averages behave; above 0.7 the number of draws that an estimate
needs grows beyond reason; at 1 or more not even the mean exists. The fit is that of `smc_bridge.pareto`.
Weights of the sampler are bounded above wherever the intermediate dominates, and then k-hat says how far a run of this
size is from noticing the bound.

Some samples have no fit, and get an answer all the same:

- *too few weights* (a tail of at least 5 is a fifth of 25), or fewer positive ones than a tail: `k = nan`;
- *no tail*, because all weights in it are equal (all weights one in speculative decoding, or one value copied by
  resampling): `k = -inf`, the shape of a bounded law that ends at once;
- *ties*: a quarter of the tail or more stands at its lower end and something lies above it, so that the scale of the
  fit is 0: `k = nan`. One heavy weight above equal ones is of this kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from smc_bridge.analysis.effective_size import LogWeights, as_log_weights
from smc_bridge.models.extras import need
from smc_bridge.pareto import LEAST, pareto_shape, tail_size

#: Above this k-hat, estimates of this sample should not be trusted.
RELIABLE = 0.7


@dataclass(frozen=True)
class ParetoK:
    """Shape of the weights' tail.

    Attributes:
        k: estimated shape; NaN or -inf where there is no fit.
        tail: number of weights that were fitted.
        reason: why there is no fit, or None.
    """

    k: float
    tail: int
    reason: str | None = None

    @property
    def reliable(self) -> bool:
        """Whether `k` is known and at most 0.7."""
        return self.k <= RELIABLE

    def __str__(self) -> str:
        return f"k-hat = {self.k:.2f} ({self.tail} tail weights)" if self.reason is None else f"no k-hat: {self.reason}"


def pareto_k(log_weights: LogWeights) -> ParetoK:
    """Shape of the upper tail of `log_weights: [N]` (nats, -inf legal), from independent draws.

    Raises:
        ValueError: NaN or +inf.
    """
    values = as_log_weights(log_weights).numpy()
    if values.size < LEAST:
        return ParetoK(math.nan, 0, f"{values.size} weights are too few, {LEAST} are needed")
    positive = int(np.isfinite(values).sum())
    if positive == 0:
        return ParetoK(math.nan, 0, "every weight is zero")
    tail = tail_size(values.size)
    if positive < tail:
        return ParetoK(math.nan, 0, f"{positive} of {values.size} weights are positive, a tail needs {tail}")
    ordered = np.sort(values)
    if ordered[-tail] == ordered[-1]:
        return ParetoK(-math.inf, tail, "the largest weights are equal, there is no tail")
    largest, cutoff = np.exp(ordered[-tail:] - ordered[-1]), math.exp(ordered[-tail - 1] - ordered[-1])
    # The fit divides by the first quartile of what exceeds the cutoff, which round-off can take to 0 as well.
    if largest[int(tail / 4 + 0.5) - 1] <= cutoff:
        return ParetoK(math.nan, tail, "the tail has ties, and larger weights above them")
    return ParetoK(pareto_shape(largest - cutoff), tail)


def smoothed_log_weights(log_weights: LogWeights) -> npt.NDArray[np.float64]:
    """Normalised log weights with the tail replaced by the fitted quantiles (Pareto smoothing), `[N]`, nats.

    Where there is no fit, the normalised log weights as they are. Smoothing trades variance for a little bias.

    Raises:
        ImportError: arviz-stats (extra `analysis`) is not installed. ValueError: NaN or +inf.
    """
    values = as_log_weights(log_weights).numpy()
    if pareto_k(values).reason is not None:
        return np.asarray(values - np.logaddexp.reduce(values))
    # `psislw` takes log-likelihoods, that is, negated log weights.
    return np.asarray(_stats().psislw(-values)[0])


def _stats() -> Any:
    need("arviz_stats.base", "smoothed weights", extra="analysis")
    from arviz_stats.base import array_stats  # type: ignore[attr-defined]

    return array_stats
