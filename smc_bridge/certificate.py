"""The KL certificate: an upper bound on how far the output's law is from exact AR sampling, from the evidence alone.

For the law r of a sequence drawn from the final weights, Jensen's inequality on the extended space gives
`KL(r || p) <= E[-log Z_hat]` for a target without potential, and `KL <= log Z - E[log Z_hat]` with one (docs/theory,
section 7). Pinsker's inequality turns the bound into one on total variation. It is about the law of the whole output;
others call a test of the local KL at each acceptance a certificate (arXiv 2606.30265), which is something else.

The expectation is estimated by the mean over runs or prompts. Without a potential `E[Z_hat] = 1`, so the terms
`Z_hat - 1 - log Z_hat >= 0` have that mean as well, are never negative, and mostly vary less. They are skewed to the
right: most runs have a term near 0 and a few carry the mean. Where the runs fall short of `E[Z_hat] = 1` by more than
chance, they miss the rare, large values that it rests on (plain importance sampling over many tokens), and those terms
would be up to 1 nat too low: then the plain ones, `-log Z_hat`, are averaged. The interval is a bootstrap-t
(`smc_bridge.intervals`), and with it goes what shows how much it can be trusted: no interval is valid whatever the tail
is like.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from smc_bridge.estimate import Estimate
from smc_bridge.intervals import NAME, ratio_interval
from smc_bridge.models.arguments import confidence, real_between, said
from smc_bridge.pareto import tail_shape

Array = npt.NDArray[np.float64]

#: Evidence, nats, and differences of it below this are round-off of the models' forwards.
ROUND_OFF = 1e-6
#: The same of the evidence of weights that are one by construction, nats: round-off of whole sequences.
EXACT = 1e-3
#: With fewer runs upper ends were too low more often than 5 % (docs/benchmarks/certificate.md).
FEW = 100
#: A tail of a greater shape makes averages converge too slowly to be trusted.
HEAVY = 0.7
#: What was measured with fewer, on the worst of eight programs.
MEASURED = "of 30, up to 16% of upper ends were too low, of 10 up to 31%"


@dataclass(frozen=True, kw_only=True)
class Certificate(Estimate):
    """An estimated bound on `KL(r || p)`, nats: the mean of the terms, with its interval.

    The interval is `[0, inf)` where the runs give none, `(-inf, inf)` with a potential.

    Attributes:
        distinct: how many different values the terms have; 1 if they differ by round-off only.
        skew: skewness of the terms; NaN without spread.
        share: part of the mean that the largest tenth of the terms carries; NaN where a term is negative, and for a
            mean of 0.
        k_hat: Pareto shape of the terms' upper tail (`smc_bridge.pareto`); NaN without a fit.
        exact: whether every weight is one by construction, so that the bound is 0 and needs no estimate.
    """

    distinct: int
    skew: float = math.nan
    share: float = math.nan
    k_hat: float = math.nan
    exact: bool = False

    @property
    def kl(self) -> float:
        """The estimated bound on `KL(r || p)`, nats: the field `value`."""
        return self.value

    @property
    def runs(self) -> int:
        """How many terms were averaged, one per run: the field `n`."""
        return self.n

    @property
    def tv(self) -> float:
        """Pinsker's bound `sqrt(KL / 2)` on total variation at the upper end, at most 1."""
        return min(1.0, math.sqrt(max(self.high, 0.0) / 2))

    @property
    def warnings(self) -> list[str]:
        """Why the upper end may be too low more often than its level says, one reason an entry."""
        if self.exact or not self.has_interval:
            return []
        found = []
        if self.runs < FEW:
            found.append(f"{self.runs} runs are fewer than {FEW} ({MEASURED})")
        if self.k_hat > HEAVY:
            found.append(f"k-hat {self.k_hat:.1f} > {HEAVY}: rarer, larger terms may be missing")
        return found

    @property
    def terms(self) -> str:
        """One line on the terms: how many, how skewed, and how much of their mean the largest tenth carries."""
        parts = [f"{self.runs} runs, {self.distinct} distinct value{'' if self.distinct == 1 else 's'}"]
        if not math.isnan(self.share):
            parts.append(f"the largest tenth carry {self.share:.0%}")
        if not math.isnan(self.skew):
            parts.append(f"skewness {self.skew:.1f}")
        parts.append("no k-hat" if math.isnan(self.k_hat) else f"k-hat {self.k_hat:.1f}")
        return ", ".join(parts)

    def __str__(self) -> str:
        if self.exact:
            return "KL = 0: every weight is one by construction"
        if math.isinf(self.kl):
            return f"no bound: the evidence of one of {self.runs} runs is zero"
        if self.runs == 1:
            return f"{self.kl:.4f} nats: one term of the mean that bounds KL(output || AR)"
        if self.distinct == 1:
            return (
                f"KL bound {self.kl:.4f} nats in all of {self.runs} runs (1 distinct value): no interval, equal runs "
                "do not show what others would"
            )
        if not self.has_interval:
            return f"KL bound {self.kl:.4f} nats: no upper end at {self.level:.0%} from {self.terms}"
        told = f"; the upper end may be too low: {'; '.join(self.warnings)}" if self.warnings else ""
        return (
            f"KL <= {self.kl:.4f} nats, estimated from {self.terms} ({self.level:.0%} bootstrap-t interval "
            f"[{self.low:.4f}, {self.high:.4f}]); TV <= {self.tv:.3f} at its upper end{told}"
        )


def certify(
    log_evidence: Sequence[float], *, log_z: float | None = None, level: float = 0.95, exact: bool = False
) -> Certificate:
    """Certificate from the evidence estimates of independent runs or prompts.

    Args:
        log_evidence: `log Z_hat` of each run, nats; -inf gives an infinite bound.
        log_z: true `log Z` of a target with potential; None without one, where it is 0.
        level: confidence of the interval.
        exact: every weight is one by construction (`Result.exact`). Evidence that is 0 in all runs that were seen is
            no proof of it.
    Raises:
        ValueError: no runs, a NaN, a level outside (0, 1), or `exact` with evidence that is not 0.
    Example:
        >>> from smc_bridge import smc
        >>> from smc_bridge.testing import tabular_pair
        >>> runs = smc(tabular_pair(), particles=4).run([[]] * 200, seed=range(200), max_new_tokens=3)
        >>> bound = certify([run.log_evidence for run in runs])
        >>> bound.low < bound.kl < bound.high < 0.01
        True
    """
    terms = kl_terms(log_evidence, log_z=log_z)
    return certificate_of(terms, spread_of=log_evidence, level=level, signed=log_z is not None, exact=exact)


def kl_terms(log_evidence: Sequence[float] | Array, *, log_z: float | None = None) -> Array:
    """What a certificate is the mean of, `[n]`, nats: `Z_hat - 1 - log Z_hat`, or the plain terms `log Z - log Z_hat`.

    The plain ones with a potential, and without one (`log Z = 0`) where runs miss large values of `Z_hat`; their mean
    is positive there too.

    Raises:
        ValueError: no runs, or what are no numbers: NaN and +inf are none.
    """
    try:
        values = np.asarray(log_evidence, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        values = np.empty(0)
    if values.ndim != 1 or values.size == 0 or np.isnan(values).any() or (values == math.inf).any():
        raise ValueError(f"log_evidence = {said(log_evidence)}: give a list of at least one number and no NaN")
    if log_z is not None:
        largest = float(np.finfo(np.float64).max)
        return np.asarray(real_between("log_z", log_z, -largest, largest, remedy="give a finite number") - values)
    with np.errstate(over="ignore", invalid="ignore"):  # beyond 700 nats a term is infinite, as a float
        excess = np.expm1(values)
        if _falls_short(excess):
            return -values
        # A term is at least 0, but for round-off.
        return np.asarray(np.maximum(excess - values, 0.0))


def _falls_short(excess: Array) -> bool:
    """Whether runs fall short of `E[excess] = 0`: Student's 95 % interval of their mean ends below it."""
    n = excess.size
    if n < 2:
        return False
    half = float(stdtrit(n - 1, 0.975)) * float(excess.std(ddof=1)) / math.sqrt(n)
    return float(excess.mean()) + half < -ROUND_OFF


def certificate_of(
    terms: Array, *, spread_of: Sequence[float] | Array, level: float = 0.95, signed: bool = False, exact: bool = False
) -> Certificate:
    """Certificate from its terms.

    Args:
        terms: one per run, nats; inf gives an infinite bound.
        spread_of: one number per run that tells runs apart: the evidence, for terms near 0 are nearly equal.
        level: confidence, in (0, 1).
        signed: whether terms can be negative (those of a target with potential).
        exact: see `certify`.
    """
    runs, level = int(terms.size), confidence(level)
    low, high = terms_interval(terms, spread_of=spread_of, level=level, signed=signed, exact=exact)
    kl = 0.0 if exact else float(terms.mean())
    alike = exact or (math.isfinite(kl) and _alike(spread_of))
    found = Certificate(
        value=kl, low=low, high=high, n=runs, how=NAME, level=level, exact=exact,
        distinct=1 if alike else int(np.unique(np.asarray(spread_of)).size),
    )
    if alike or not math.isfinite(kl):
        return found
    tenth = np.sort(terms)[-math.ceil(runs / 10) :]
    share = math.nan if kl == 0 or terms.min() < 0 else float(tenth.sum() / terms.sum())
    return replace(found, skew=_skewness(terms), share=share, k_hat=tail_shape(terms))


def terms_interval(
    terms: Array, over: Array | None = None, *, spread_of: Sequence[float] | Array, level: float = 0.95,
    signed: bool = False, exact: bool = False,
) -> tuple[float, float]:
    """Interval of the mean of certificate terms, or of `E[terms] / E[over]`: the one of every bound that is printed.

    It contains the estimate, and nothing below 0 unless terms are `signed`; runs of one evidence give none, however
    much they differ in `over`. Arguments as `certificate_of`.

    Raises:
        ValueError: a level outside (0, 1), or `exact` with evidence that is not 0.
    """
    level = confidence(level)
    if exact:
        worst = float(np.abs(np.asarray(spread_of)).max())
        if worst > EXACT:
            raise ValueError(
                f"exact = True with log Z = {worst:.3g} nats off 0: weights are not one, whatever the intermediate "
                "says of itself"
            )
        return 0.0, 0.0
    none = (-math.inf if signed else 0.0), math.inf
    if not np.isfinite(terms).all() or _alike(spread_of):
        return none
    low, high = ratio_interval(terms, over, level=level)
    return max(low, none[0]), high


def _skewness(values: Array) -> float:
    centred = values - values.mean()
    with np.errstate(invalid="ignore"):
        return float((centred**3).mean() / (centred**2).mean() ** 1.5)


def _alike(values: Sequence[float] | Array) -> bool:
    """Whether runs do not differ; one run does not."""
    return float(np.ptp(np.asarray(values, dtype=np.float64))) <= ROUND_OFF
