"""How far the law of a sampler's output is from the exact law, with a Monte-Carlo error that can be trusted.

For M independent runs with normalised weights `W_m(x)` and evidence `Z_m`, and the exact law p, the bias of the output
law is `b(x) = E[W(x)] - p(x)` and its total variation `1/2 sum |b|`. Two estimates of b:

    direct     mean_m  W_m(x) - p(x)                               of any method, proper or not
    identity   mean_m  -(W_m(x) - p(x)) (Z_m / Z - 1)              of a proper one, since E[(Z_m / Z) W_m] = p

The identity's noise is of the order of 1/N, as the bias, where the direct one's is of the order of N^-1/2.

The plain `1/2 sum |b_hat|` counts noise as distance. So the signs are taken from one half of the runs and summed over
the other, both ways round: `1/2 sum_x sign(b_A(x)) b_B(x)`. That is unbiased where the signs are right and falls short
otherwise: it never overstates the distance in expectation, and is 0 on average for an exact sampler. Where the noise
is larger than the bias it therefore reads low, and a rate fitted there reads high. The two halves' estimates are
positively correlated, so the standard error is the mean of theirs, which is their error together at worst. It needs
some twenty runs to mean anything, and says nothing where all runs agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smc_bridge.analysis.runs import as_runs, require_independent, require_proper
from smc_bridge.estimate import Estimate
from smc_bridge.result import Result

Matrix = npt.NDArray[np.float64]


def posterior_matrix(results: Sequence[Result], exact: Result) -> tuple[Matrix, Matrix]:
    """Normalised weights of every run on the exact law's support, `[M, S + 1]`, and the exact law, `[S + 1]`.

    The last column holds what lies outside the support.

    Raises:
        ValueError: no runs, or the same prompt and seed twice.
    """
    runs = as_runs(results)
    require_independent(runs, "the distance between laws")
    law = exact.posterior()
    column = {value: i for i, value in enumerate(law)}
    weights = np.zeros((len(runs), len(law) + 1))
    for m, run in enumerate(runs):
        for value, share in run.posterior().items():
            weights[m, column.get(value, len(law))] += share
    return weights, np.array([*law.values(), 0.0])


def output_distance(results: Sequence[Result], exact: Result) -> Estimate:
    """Total variation between the output law and the exact one, by the direct estimate; for any method.

    Args:
        results: at least 4 independent runs of one sampler.
        exact: what `oracle` returned.
    """
    weights, law = posterior_matrix(results, exact)
    return _crossed(weights - law)


def output_distance_by_identity(results: Sequence[Result], exact: Result) -> Estimate:
    """Total variation of the output law of a proper method by the identity above; arguments as `output_distance`.

    Raises:
        ValueError: the method is not proper.
    """
    runs = as_runs(results)
    require_proper(runs, "the identity b = -Cov(Z_hat, W)")
    weights, law = posterior_matrix(runs, exact)
    evidence = np.exp(np.array([run.log_evidence for run in runs]) - exact.log_evidence)
    return _crossed(-(weights - law) * (evidence[:, None] - 1.0))


def run_distance(results: Sequence[Result], exact: Result) -> Estimate:
    """Mean over runs of the total variation between *one* run's weighted particles and the exact law."""
    weights, law = posterior_matrix(results, exact)
    each = 0.5 * np.abs(weights - law).sum(axis=1)
    return Estimate.normal(float(each.mean()), float(each.std(ddof=1) / math.sqrt(each.size)), each.size)


def run_rms(results: Sequence[Result], exact: Result) -> Estimate:
    """Root mean square over runs of the Euclidean distance between one run's weighted particles and the exact law.

    Total variation saturates while sequences are rarer than 1/N; the mean square does not: for N equal weights it is
    `(1 - sum p^2) / N` at every N.
    """
    weights, law = posterior_matrix(results, exact)
    each = np.square(weights - law).sum(axis=1)
    root = math.sqrt(each.mean())
    error = float(each.std(ddof=1) / math.sqrt(each.size)) / (2 * root) if root > 0 else 0.0
    return Estimate.normal(root, error, each.size)


def _crossed(terms: Matrix) -> Estimate:
    """`1/2 sum |E terms|` from independent rows `[M, S]` by the two halves."""
    if terms.shape[0] < 4:
        raise ValueError(f"results has {terms.shape[0]} runs: the two halves need at least 2 each")
    halves = (terms[0::2], terms[1::2])
    means, errors = [], []
    for here, there in (halves, halves[::-1]):
        projected = 0.5 * there @ np.sign(here.mean(axis=0))
        means.append(projected.mean())
        errors.append(projected.std(ddof=1) / math.sqrt(projected.size))
    # The projections are positively correlated, for both use both halves: their standard deviations add up at worst.
    return Estimate.normal(float(np.mean(means)), float(np.mean(errors)), len(terms))


@dataclass(frozen=True)
class Rate:
    """A power law of an error in the number of particles or lanes, `value = scale * N ** -exponent`.

    Attributes:
        exponent: with its interval.
        scale: value at N = 1, in the units of the error.
    """

    exponent: Estimate
    scale: float


def fit_rate(counts: Sequence[int], distances: Sequence[Estimate]) -> Rate | None:
    """Weighted least squares of a power law on the natural scale, so that estimates near or below 0 count too.

    Args:
        counts: N or K of each distance, at least two different ones.
        distances: their errors are the weights.
    Returns:
        None for an exact method (no distance differs from 0).
    Raises:
        ValueError: fewer than two counts.
    """
    if len(set(counts)) < 2 or len(counts) != len(distances):
        raise ValueError(f"counts = {list(counts)} for {len(distances)} distances: give two different ones or more")
    values, errors = np.array([d.value for d in distances]), np.array([d.error for d in distances])
    if not (values > 3 * errors).any():
        return None
    from scipy import optimize  # which takes longer to import than to fit

    start = (max(float(values[0]), 1e-6) * counts[0] ** 0.5, 0.5)
    (scale, exponent), covariance = optimize.curve_fit(
        lambda n, c, a: c * n**-a, np.asarray(counts, dtype=np.float64), values, p0=start,
        sigma=np.maximum(errors, 1e-12), absolute_sigma=True,
    )
    return Rate(Estimate.normal(float(exponent), float(math.sqrt(covariance[1, 1])), len(counts)), float(scale))
