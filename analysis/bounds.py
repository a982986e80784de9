"""Bounds on the divergence from exact AR sampling, from several runs.

`KL(r || p) <= log Z - E[log Z_hat]` for the law r of one sequence drawn from a run's weights (design 2.5). Over prompts
the mean bounds the mean divergence. Independent runs give a confidence interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from analysis.runs import Runs, as_runs, require_proper
from smc_bridge.certificate import Certificate, certify
from smc_bridge.result import Result


@dataclass(frozen=True)
class TokenBound:
    """A bound on KL per token.

    Attributes:
        kl: `sum (log Z - log Z_hat) / sum tokens`, nats per token.
        low, high: confidence interval of that ratio (delta method, Student's t); infinite for a single run.
        level: its confidence.
        tokens: mean length that was divided by, tokens.
        runs: number of runs.
    """

    kl: float
    low: float
    high: float
    level: float
    tokens: float
    runs: int


def kl_certificate(results: Runs, *, log_z: float | None = None, level: float = 0.95) -> Certificate:
    """Certificate over independent runs (other seeds) or prompts.

    Args:
        results: runs of a proper method.
        log_z: true `log Z`; needed only with a potential (same for all runs).
        level: confidence of the interval.
    Raises:
        ValueError: no runs, an improper method, a potential without its `log_z`, or a level outside (0, 1).
    """
    runs = as_runs(results)
    return certify([run.log_evidence for run in runs], log_z=_true_log_z(runs, log_z), level=level)


def kl_per_token(results: Runs, *, log_z: float | None = None, level: float = 0.95) -> TokenBound:
    """The certificate divided by the mean length of a sequence drawn from r, `E[sum_k W_k length_k]`.

    That is the length under a run's weights, not the mean over its particles. Arguments and errors as `kl_certificate`.
    """
    runs = as_runs(results)
    excess = _true_log_z(runs, log_z) - np.array([run.log_evidence for run in runs])
    return ratio_per_token(excess, [run.drawn_tokens for run in runs], level=level)


def ratio_per_token(
    nats: Sequence[float] | npt.NDArray[np.float64], tokens: Sequence[float] | npt.NDArray[np.float64], *,
    level: float = 0.95,
) -> TokenBound:
    """`sum nats / sum tokens` over independent runs, with its interval by the delta method.

    Args:
        nats: one term of the bound per run, nats; inf gives an infinite bound.
        tokens: expected length of what the term bounds, `Result.drawn_tokens` for `-log Z_hat`.
        level: confidence, in (0, 1).
    Raises:
        ValueError: a level out of range, no runs, or lengths that are all 0.
    """
    excess, lengths = np.asarray(nats, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: give a confidence in (0, 1)")
    if excess.size == 0 or excess.size != lengths.size or not lengths.sum() > 0:
        raise ValueError(f"{excess.size} runs with {lengths.sum():g} tokens: a bound per token needs at least one")
    mean = float(lengths.mean())
    ratio = float(excess.mean()) / mean
    if excess.size < 2 or not math.isfinite(ratio):
        return TokenBound(ratio, -math.inf, math.inf, level, mean, int(excess.size))
    spread = float((excess - ratio * lengths).std(ddof=1)) / math.sqrt(excess.size) / mean
    half = float(stats.t.ppf((1 + level) / 2, excess.size - 1)) * spread
    return TokenBound(ratio, ratio - half, ratio + half, level, mean, int(excess.size))


def _true_log_z(runs: list[Result], log_z: float | None) -> float:
    require_proper(runs, "its certificate")
    if log_z is None and any(run.has_potential for run in runs):
        raise ValueError("log_z is missing: with a potential the bound is log Z - E[log Z_hat]")
    return log_z or 0.0
