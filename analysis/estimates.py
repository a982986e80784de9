"""How uncertain an estimate is: from the genealogy of one run, or from several runs.

*One run.* Particles that descend from different first particles (their *Eve index* E) are nearly independent, those
with a common one are not. With `theta = sum_k W_k f(x_k)` and `S_e = sum_{k: E_k = e} W_k (f(x_k) - theta)`,

    Chan & Lai 2013:       Var(theta) ~ sum_e S_e^2,
    Lee & Whiteley 2018:   the same times (N / (N - 1))^(n + 1) after n resamplings,

and for the evidence `Var(Z_hat / Z) ~ 1 - (N / (N - 1))^(n + 1) sum_{E_i != E_j} W_i W_j`. Both rest on multinomial
resampling and on many families. Other schemes keep more families than multinomial draws would, which the factor above
does not know: the evidence's variance is then too small and often negative, so runs that resampled by another scheme
are refused. With few families (tens are few) all three are too small in most runs; once all particles have a common Eve
the estimate is *degenerate*: 0 for theta, 1 for the evidence. Where there are several runs, use those instead.

*Several runs.* Batch means: independent estimates are averaged, with Student's interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

from smc_bridge.analysis.genealogy import ancestral_lines
from smc_bridge.analysis.runs import require_proper
from smc_bridge.describe import describe
from smc_bridge.engine.resampling import Multinomial
from smc_bridge.estimate import Estimate
from smc_bridge.models.arguments import confidence, whole_number
from smc_bridge.result import Result

#: What made an interval of a mean.
STUDENT = "Student"
#: What the settings of a run call the scheme that the formulas are derived for.
MULTINOMIAL = describe(Multinomial())


@dataclass(frozen=True)
class GenealogyVariance:
    """Variance of one run's estimates, from its genealogy.

    Attributes:
        estimate: `theta`.
        chan_lai, lee_whiteley: variance of `theta`.
        evidence: relative variance of `Z_hat` (Lee & Whiteley); it can be negative by chance.
        families: first particles that have a descendant of positive weight; of fewer than some tens the variances are
            too small in most runs.
        degenerate: whether there is one family only, so that the variances mean nothing.
    """

    estimate: float
    chan_lai: float
    lee_whiteley: float
    evidence: float
    families: int
    degenerate: bool


def eve_indices(result: Result) -> npt.NDArray[np.int64]:
    """The first particle from which each final one descends, `[N]`."""
    lines = ancestral_lines(result)
    return lines[0] if len(lines) else np.arange(len(result.log_weights), dtype=np.int64)


def genealogy_variance(result: Result, f: Callable[[Any], float]) -> GenealogyVariance:
    """Variance of the estimate of `E_p[f]` and of the evidence, from one run.

    Args:
        result: a run of at least two particles of a proper method.
        f: function of a value (text, or token ids without a tokenizer).
    Raises:
        ValueError: one particle, an improper method, no particle of positive weight, or a run that resampled by a
            scheme other than multinomial (as far as its settings say).
    """
    require_proper([result], "a variance of its weighted estimate")
    particles = len(result.log_weights)
    if particles < 2:
        raise ValueError(f"result has {particles} particle: the genealogy compares at least 2; use more particles")
    resamplings = sum(record.resampled for record in result.trace)
    scheme = str(result.settings.get("resampler", MULTINOMIAL))
    if resamplings and scheme != MULTINOMIAL:
        raise ValueError(
            f"result was resampled by {scheme}: its genealogy gives a variance for multinomial resampling only; use "
            "resampler=Multinomial(), or batch_means over several runs"
        )
    weights = result.weights
    values = np.array([f(v) if w > 0 else 0.0 for v, w in zip(result.values, weights, strict=True)])
    theta = float(weights @ values)
    eves = eve_indices(result)
    sums = np.bincount(eves, weights * (values - theta), minlength=particles)
    masses = np.bincount(eves, weights, minlength=particles)
    factor = (particles / (particles - 1)) ** (resamplings + 1)
    chan_lai = float(np.square(sums).sum())
    apart = 1.0 - float(np.square(masses).sum())  # sum over pairs with different Eves
    families = int((masses > 0).sum())
    return GenealogyVariance(theta, chan_lai, factor * chan_lai, 1.0 - factor * apart, families, families == 1)


def batch_means(
    values: Sequence[float] | npt.NDArray[np.float64], *, batches: int | None = None, level: float = 0.95
) -> Estimate:
    """Mean of `values`, of which `n` are independent, with Student's interval over batches of consecutive ones.

    Args:
        values: estimates in the order they were made; those of one batch may depend on each other.
        batches: how many of equal size (a remainder at the end is left out); by default each value is its own.
        level: confidence, in (0, 1).
    Raises:
        ValueError: no values, more batches than values, or a level out of range.
    """
    array = np.asarray(values, dtype=np.float64)
    count = array.size if batches is None else whole_number("batches", batches)
    if array.size == 0 or not 1 <= count <= array.size:
        raise ValueError(f"batches = {count} of {array.size} values: give 1 to {array.size}")
    level = confidence(level)
    means = array[: array.size // count * count].reshape(count, -1).mean(1)
    value = float(means.mean())
    if count == 1:
        return Estimate(value, -math.inf, math.inf, 1, STUDENT, level=level)
    error = float(means.std(ddof=1) / math.sqrt(count))
    half = float(stdtrit(count - 1, (1 + level) / 2)) * error
    return Estimate(value, value - half, value + half, count, STUDENT, error, level)


def wilson(right: int, n: int, *, level: float = 0.95) -> Estimate:
    """Share `right / n` with Wilson's score interval (1927)."""
    z = float(ndtri((1 + level) / 2))
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Estimate(share, min(share, centre - half), max(share, centre + half), n, "Wilson", level=level)
