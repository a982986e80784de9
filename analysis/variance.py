"""Variance of the weights, final and along the run.

Two scales. The *relative variance* `Var(w) / mean(w)^2 = N / ESS - 1` estimates the chi-square divergence between the
sampler's law and the target, the factor that multiplies the Monte-Carlo error. The *variance of the log weights* grows
by addition from token to token, so it is the one to follow along the sequence and to divide by tokens; for log-normal
weights the two are tied by `1 + Var(w) / mean(w)^2 = exp(Var(log w))`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from smc_bridge.analysis.effective_size import LogWeights, as_log_weights, ess
from smc_bridge.analysis.runs import Runs, as_runs
from smc_bridge.result import Result


def weight_variance(log_weights: LogWeights) -> float:
    """Relative variance `Var(w) / mean(w)^2` of `log_weights: [N]` (divisor N); 0 for equal weights.

    Returns:
        between 0 and N - 1; NaN if every weight is zero.
    """
    size = ess(log_weights)
    return len(as_log_weights(log_weights)) / size - 1.0 if size > 0 else math.nan


def log_weight_variance(log_weights: LogWeights) -> float:
    """Sample variance (divisor N - 1) of `log_weights: [N]`, nats squared.

    Returns:
        NaN for one particle; inf if some but not all weights are zero, NaN if all are.
    """
    return _sample_variance(as_log_weights(log_weights).numpy())


def log_weights_before_selection(result: Result) -> npt.NDArray[np.float64]:
    """Carried log weight of every particle before the selection of every step, `[steps, N]`, nats.

    The log weight after the step before, plus the log-mean of what the particle's K lanes earned.
    """
    before = np.zeros(len(result.log_weights))
    rows = []
    for record in result.trace:
        earned = np.asarray(record.log_increments, dtype=np.float64)  # [N, K]
        rows.append(before + np.logaddexp.reduce(earned, axis=1) - math.log(earned.shape[1]))
        before = np.asarray(record.log_weights, dtype=np.float64)
    return np.array(rows).reshape(len(rows), len(result.log_weights))


def log_weight_variance_per_step(result: Result) -> list[float]:
    """Sample variance over particles of the carried log weights before the selection of every step, nats squared.

    It falls back to what one step adds wherever the step before resampled. Values at the edges as
    `log_weight_variance`.
    """
    return [_sample_variance(row) for row in log_weights_before_selection(result)]


def log_weight_variance_per_token(results: Runs) -> float:
    """What one committed token adds to the variance of the log weight, nats squared per token.

    If tokens contributed independently with mean `mu` and variance `s2`, a block of L tokens would earn `d` with
    `E[(d - mu L)^2] = s2 L`. So over the blocks b of all lanes, steps and runs the estimate is
    `s2 = sum_b (d_b - mu L_b)^2 / sum_b L_b` with the drift per token `mu = sum_b d_b / sum_b L_b`.

    Returns:
        NaN if no lane grew; inf if a lane has weight zero.
    """
    grown = [lane for run in as_runs(results) for record in run.trace for lane in record.grown()]
    if not grown:
        return math.nan
    tokens, _, d = np.array(grown, dtype=np.float64).T
    if np.isinf(d).any():
        return math.inf
    drift = d.sum() / tokens.sum()
    return float(np.square(d - drift * tokens).sum() / tokens.sum())


def _sample_variance(log_weights: npt.NDArray[np.float64]) -> float:
    dead = np.isneginf(log_weights)
    if log_weights.size < 2 or dead.all():
        return math.nan
    return math.inf if dead.any() else float(log_weights.var(ddof=1))
