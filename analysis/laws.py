"""Laws of sequences compared with each other: total variation and KL between runs and the exact answer.

Two laws can be read off many runs. The *output law* `r` is that of one sequence drawn from one run's weights; it is
estimated by the mean of the runs' normalised weights and differs from the target by the bias that the KL certificate
bounds. The *weighted law* `mean_m Z_m W_m` is unbiased for the target of a proper method (docs/theory, Theorem 2): what
is left of its distance is Monte-Carlo noise. Both estimates are of finite samples, so their distance from the target is
on average larger than that of the law itself, by about `sqrt(cells / runs)`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from smc_bridge.analysis.runs import Runs, as_runs, require_independent
from smc_bridge.models.arguments import real_number
from smc_bridge.result import Result

#: Probability of each sequence (or text); masses need not sum to 1.
Measure = Mapping[Hashable, float]


def output_law(results: Runs) -> dict[Hashable, float]:
    """Estimate of the law of a sequence drawn from a run's weights; for one run its posterior.

    Raises:
        ValueError: no runs, or the same prompt and seed twice.
    """
    runs = as_runs(results)
    require_independent(runs, "the mean law")
    return _mean([run.posterior() for run in runs], [1.0 / len(runs)] * len(runs))


def weighted_law(results: Runs, *, log_z: float = 0.0) -> dict[Hashable, float]:
    """Unbiased estimate of the target's law, `mean_m (Z_m / Z) W_m`; it need not sum to 1.

    Args:
        results: independent runs.
        log_z: true `log Z`, 0 without a potential.
    Raises:
        ValueError: no runs, or the same prompt and seed twice.
    """
    runs = as_runs(results)
    require_independent(runs, "the weighted law")
    log_z = real_number("log_z", log_z)
    alive = [run for run in runs if run.alive]
    shares = [math.exp(run.log_evidence - log_z) / len(runs) for run in alive]
    return _mean([run.posterior() for run in alive], shares)


def total_variation(results: Runs | Measure, exact: Result | Measure) -> float:
    """`1/2 sum_x |r(x) - p(x)|` between the output law and an exact one.

    Args:
        results: runs (their output law is taken), or a law.
        exact: what `oracle` returned, or a law.
    Example:
        >>> total_variation({"a": 0.75, "b": 0.25}, {"a": 0.5, "c": 0.5})
        0.5
    """
    r, p = _law(results), _law(exact)
    return 0.5 * sum(abs(r.get(x, 0.0) - p.get(x, 0.0)) for x in {**r, **p})


def kl(results: Runs | Measure, exact: Result | Measure) -> float:
    """`KL(r || p) = sum_x r(x) log (r(x) / p(x))`, nats; inf where r has mass and p has none. Arguments as above."""
    r, p = _law(results), _law(exact)
    if any(mass > 0 and p.get(x, 0.0) <= 0 for x, mass in r.items()):
        return math.inf
    return float(np.sum([mass * math.log(mass / p[x]) for x, mass in r.items() if mass > 0]))


def _law(given: Runs | Measure) -> Measure:
    return given if isinstance(given, Mapping) else output_law(given)


def _mean(laws: Sequence[Mapping[Hashable, float]], shares: Sequence[float]) -> dict[Hashable, float]:
    total: dict[Hashable, float] = {}
    for law, share in zip(laws, shares, strict=True):
        for value, mass in law.items():
            total[value] = total.get(value, 0.0) + share * mass
    return total
