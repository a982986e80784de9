"""Bounds on the divergence from exact AR sampling, from several runs.

`KL(r || p) <= log Z - E[log Z_hat]` for the law r of one sequence drawn from a run's weights (design 2.5). Over prompts
the mean bounds the mean divergence. Independent runs give a confidence interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
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
        tokens: mean length of a run's sequences, tokens.
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
    """The certificate divided by the mean length of the sequences. Arguments and errors as `kl_certificate`."""
    runs = as_runs(results)
    whole = kl_certificate(runs, log_z=log_z, level=level)
    tokens = np.array([run.tokens for run in runs])
    mean = float(tokens.mean())
    ratio = whole.kl / mean
    if len(runs) < 2 or not math.isfinite(ratio):
        return TokenBound(ratio, -math.inf, math.inf, level, mean, len(runs))
    excess = _true_log_z(runs, log_z) - np.array([run.log_evidence for run in runs])
    spread = float((excess - ratio * tokens).std(ddof=1)) / math.sqrt(len(runs)) / mean
    half = float(stats.t.ppf((1 + level) / 2, len(runs) - 1)) * spread
    return TokenBound(ratio, ratio - half, ratio + half, level, mean, len(runs))


def _true_log_z(runs: list[Result], log_z: float | None) -> float:
    require_proper(runs, "its certificate")
    if log_z is None and any(run.has_potential for run in runs):
        raise ValueError("log_z is missing: with a potential the bound is log Z - E[log Z_hat]")
    return log_z or 0.0
