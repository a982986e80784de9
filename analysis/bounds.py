"""Bounds on the divergence from exact AR sampling, from several runs.

`KL(r || p) <= log Z - E[log Z_hat]` for the law r of one sequence drawn from a run's weights (docs/theory, section 7).
Over prompts the mean bounds the mean divergence. Independent runs give a confidence interval, the one of
`smc_bridge.certificate` for every bound.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from smc_bridge.analysis.runs import Runs, as_runs, require_proper
from smc_bridge.certificate import Certificate, certify, kl_terms, terms_interval
from smc_bridge.estimate import Estimate
from smc_bridge.intervals import NAME
from smc_bridge.result import Result


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
    return certify(
        [run.log_evidence for run in runs], log_z=_true_log_z(runs, log_z), level=level,
        exact=all(run.exact for run in runs),
    )


def kl_per_token(results: Runs, *, log_z: float | None = None, level: float = 0.95) -> Estimate:
    """The certificate divided by the mean length of a sequence drawn from r, `E[sum_k W_k length_k]`, nats per token.

    That is the length under a run's weights, not the mean over its particles. Arguments and errors as `kl_certificate`.
    """
    runs = as_runs(results)
    return ratio_per_token(
        [run.log_evidence for run in runs], [run.drawn_tokens for run in runs], log_z=_true_log_z(runs, log_z),
        level=level, exact=all(run.exact for run in runs),
    )


def ratio_per_token(
    log_evidence: Sequence[float] | npt.NDArray[np.float64], tokens: Sequence[float] | npt.NDArray[np.float64], *,
    log_z: float | None = None, level: float = 0.95, exact: bool = False,
) -> Estimate:
    """The bound by the mean length over independent runs, nats per token, with its interval.

    Args:
        log_evidence, log_z, level, exact: as `smc_bridge.certify`.
        tokens: expected length of what belongs to each run, `Result.drawn_tokens` for `-log Z_hat`.
    Raises:
        ValueError: as `smc_bridge.certify`, lengths of another number of runs, or lengths that are all 0.
    """
    terms, lengths = kl_terms(log_evidence, log_z=log_z), np.asarray(tokens, dtype=np.float64)
    if terms.size != lengths.size or not lengths.sum() > 0:
        raise ValueError(f"{terms.size} runs with {lengths.sum():g} tokens: a bound per token needs at least one")
    low, high = terms_interval(
        terms, lengths, spread_of=log_evidence, level=level, signed=log_z is not None, exact=exact
    )
    ratio = 0.0 if exact else float(terms.sum() / lengths.sum())
    return Estimate(ratio, low, high, int(terms.size), NAME, level=level)


def _true_log_z(runs: list[Result], log_z: float | None) -> float | None:
    """None without a potential, where `log Z = 0` and the terms of the certificate are never negative."""
    require_proper(runs, "its certificate")
    if not any(run.has_potential for run in runs):
        return log_z
    if log_z is None:
        raise ValueError("log_z is missing: with a potential the bound is log Z - E[log Z_hat]")
    return log_z
