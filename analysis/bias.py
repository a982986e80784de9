"""Bias of self-normalised estimates.

A run estimates `E_p[f]` by `theta = sum_k W_k f(x_k)`, a ratio of two unbiased sums, so it is biased by O(1/N).

*From many runs.* `E[Z_hat theta] = Z E_p[f]` exactly and `E[Z_hat] = Z` (docs/theory, Theorem 2), hence

    bias = E[theta] - E_p[f] = - Cov(Z_hat / Z, theta),

and the sample covariance estimates it without bias, with an error that falls as fast as the bias itself. Neither the
exact answer nor more than two runs are needed.

*From one run*, if its particles never interacted, or from several runs pooled into one ratio: the jackknife
(Quenouille 1949, Miller 1974). With `theta_(-i)` the estimate without unit i,

    bias = (n - 1) (mean_i theta_(-i) - theta),     se^2 = (n - 1) / n sum_i (theta_(-i) - mean)^2.

Its expectation is `(n - 1) (bias of n - 1 units - bias of n units)`, the bias up to O(1/n^2). The delta method expands
the ratio to second order instead: `bias ~ - sum_k W_k^2 (f_k - theta)`, `se^2 ~ sum_k W_k^2 (f_k - theta)^2`.

*Against exact samples.* Ancestral samples of the AR model are always at hand (`ar_sampling`): the difference of means
has an interval on any model, whatever the method, proper or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from smc_bridge.analysis.estimates import batch_means
from smc_bridge.analysis.runs import Runs, as_runs, require_apart, require_independent, require_proper
from smc_bridge.estimate import Estimate
from smc_bridge.models.arguments import confidence
from smc_bridge.result import Result

#: What makes the interval of a difference.
WELCH = "Welch"


@dataclass(frozen=True)
class Bias:
    """An estimate with its bias.

    Attributes:
        estimate: the self-normalised estimate as it stands; of the jackknife and the delta method with its standard
            error.
        bias: estimated `E[estimate] - truth`; of `run_bias` with its standard error.
    """

    estimate: Estimate
    bias: Estimate

    @property
    def corrected(self) -> float:
        """The estimate with its bias taken off, `estimate - bias`."""
        return self.estimate.value - self.bias.value


def run_bias(results: Sequence[Result], f: Callable[[Any], float], *, log_z: float | None = None) -> Bias:
    """Bias of *one* run's estimate of `E_p[f]`, from independent runs of one sampler on one prompt.

    Args:
        results: at least two runs.
        f: function of a value (text, or token ids without a tokenizer).
        log_z: true `log Z` of the target; needed only with a potential.
    Raises:
        ValueError: fewer than two runs, an improper method, or a potential without its `log_z`.
    """
    runs = as_runs(results)
    require_proper(runs, "the identity bias = -Cov(Z_hat, theta)")
    if len(runs) < 2:
        raise ValueError(f"results has {len(runs)} run: the covariance needs at least 2")
    if log_z is None and any(run.has_potential for run in runs):
        raise ValueError("log_z is missing: with a potential the evidence must be divided by the true Z")
    alive = [run for run in runs if run.alive]
    if len(alive) < len(runs):
        raise ValueError(f"{len(runs) - len(alive)} of {len(runs)} runs have no particle of positive weight: use more")
    theta = np.array([run.expectation(f) for run in runs])
    evidence = np.exp(np.array([run.log_evidence for run in runs]) - (log_z or 0.0))
    products = -(theta - theta.mean()) * (evidence - evidence.mean()) * len(runs) / (len(runs) - 1)
    error = float(products.std(ddof=1) / math.sqrt(len(runs)))
    return Bias(batch_means(theta), Estimate.normal(float(products.mean()), error, len(runs)))


def jackknife_bias(results: Runs, f: Callable[[Any], float]) -> Bias:
    """Jackknife of the self-normalised estimate of `E_p[f]`.

    Args:
        results: one run whose particles never interacted (units are its particles), or independent runs of one prompt
            (units are runs, pooled by their evidence).
        f: function of a value (text, or token ids without a tokenizer).
    Raises:
        ValueError: fewer than two units, one run that resampled, an improper method, or no unit of positive weight.
    """
    return jackknife_ratio(*_units(results, f))


def _units(
    results: Runs, f: Callable[[Any], float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Log weight and value of every independent unit: runs, or the particles of a run that never resampled."""
    runs = as_runs(results)
    require_proper(runs, "the bias of its weighted estimate")
    if len(runs) > 1:
        log_weights = np.array([run.log_evidence for run in runs])
        values = np.array([run.expectation(f) if run.alive else 0.0 for run in runs])
        return log_weights, values
    run = runs[0]
    if any(record.resampled for record in run.trace):
        raise ValueError("results is one run that resampled, so its particles are not independent: give several runs")
    dead = [w == -math.inf for w in run.log_weights]
    return np.asarray(run.log_weights), np.array([0.0 if d else f(v) for d, v in zip(dead, run.values, strict=True)])


def jackknife_ratio(log_weights: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> Bias:
    """Jackknife of `sum w_i v_i / sum w_i`.

    Args:
        log_weights: `[n]`, nats; -inf is legal.
        values: `[n]`, ignored where the weight is zero.
    Raises:
        ValueError: fewer than two units, or fewer than two of positive weight.
    """
    if log_weights.size < 2:
        raise ValueError(f"{log_weights.size} unit: the jackknife leaves one out and needs at least 2")
    if np.isfinite(log_weights).sum() < 2:
        raise ValueError("fewer than 2 units have positive weight: leaving one out leaves nothing; use more particles")
    usable = np.where(log_weights > -math.inf, values, 0.0)
    everyone = np.ones(log_weights.size, dtype=bool)

    def estimate(kept: npt.NDArray[np.bool_]) -> float:
        # Scaled by its own largest weight: without a dominant unit the others would vanish beside it.
        weights = np.exp(log_weights[kept] - log_weights[kept].max())
        return float((weights * usable[kept]).sum() / weights.sum())

    left_out = np.array([estimate(np.arange(log_weights.size) != i) for i in range(log_weights.size)])
    return jackknife(estimate(everyone), left_out)


def delta_bias(results: Runs, f: Callable[[Any], float]) -> Bias:
    """Delta method for the self-normalised estimate of `E_p[f]`; arguments, units and errors as `jackknife_bias`."""
    return delta_ratio(*_units(results, f))


def delta_ratio(log_weights: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> Bias:
    """Delta method for `sum w_i v_i / sum w_i`; arguments as `jackknife_ratio`.

    Raises:
        ValueError: fewer than two units, or none of positive weight.
    """
    if log_weights.size < 2 or not np.isfinite(log_weights).any():
        raise ValueError(f"{np.isfinite(log_weights).sum()} units of positive weight: the delta method needs 2 units")
    weights = np.exp(log_weights - log_weights.max())
    weights = weights / weights.sum()
    usable = np.where(weights > 0, values, 0.0)
    theta = float(weights @ usable)
    residual = usable - theta
    error = math.sqrt(float(np.square(weights * residual).sum()))
    return _of_one(theta, -float(np.square(weights) @ residual), error, log_weights.size)


def bias_against_samples(
    results: Sequence[Result], exact: Sequence[Result], f: Callable[[Any], float], *, level: float = 0.95
) -> Estimate:
    """Bias of one run's estimate of `E_p[f]` against exact samples of the target.

    The mean of the method's estimates minus that of the exact values, with Welch's interval (1947); `n` counts the
    smaller sample.

    Args:
        results: independent runs of any method on one prompt.
        exact: independent exact samples of the target on that prompt (`ar_sampling` with several seeds).
        f: function of a value (text, or token ids without a tokenizer).
        level: confidence, in (0, 1).
    Raises:
        ValueError: fewer than two of either, a run of weight zero, a level out of range, or runs that are not
            independent: the same prompt and seed twice, or in both if both are a sampler's (ancestral samples have
            random numbers of their own).
    """
    level = confidence(level)
    results, exact = as_runs(results), as_runs(exact, name="exact")
    if len(results) < 2 or len(exact) < 2:
        raise ValueError(f"{len(results)} results and {len(exact)} exact samples: give at least 2 of each")
    purpose = "the interval of the difference"
    require_independent(results, purpose)
    require_independent(exact, purpose, name="exact")
    require_apart(results, exact, purpose)
    left = np.array([run.expectation(f) for run in results])
    right = np.array([run.expectation(f) for run in exact])
    parts = left.var(ddof=1) / left.size, right.var(ddof=1) / right.size
    difference, spread = float(left.mean() - right.mean()), float(sum(parts))
    n = min(left.size, right.size)
    if spread == 0:
        # f was the same throughout: samples that do not vary bound nothing, however equal the means are.
        return Estimate(difference, -math.inf, math.inf, n, WELCH, level=level)
    freedom = spread**2 / (parts[0] ** 2 / (left.size - 1) + parts[1] ** 2 / (right.size - 1))
    half = float(stdtrit(freedom, (1 + level) / 2)) * math.sqrt(spread)
    return Estimate(difference, difference - half, difference + half, n, WELCH, math.sqrt(spread), level)


def jackknife(estimate: float, left_out: npt.NDArray[np.float64]) -> Bias:
    """Jackknife of any statistic from its values without each unit, `left_out: [n]`."""
    n = left_out.size
    mean = float(left_out.mean())
    error = math.sqrt((n - 1) / n * float(np.square(left_out - mean).sum()))
    return _of_one(estimate, (n - 1) * (mean - estimate), error, n)


def _of_one(estimate: float, bias: float, error: float, n: int) -> Bias:
    """An estimate with its error, and a bias that the data say nothing about the error of."""
    return Bias(Estimate.normal(estimate, error, n), Estimate(bias, -math.inf, math.inf, n, "none"))
