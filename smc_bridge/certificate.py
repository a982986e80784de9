"""The KL certificate: an upper bound on how far the output's law is from exact AR sampling, from the evidence alone.

For the law r of a sequence drawn from the final weights, Jensen's inequality on the extended space gives
`KL(r || p) <= E[-log Z_hat]` for a target without potential, and `KL <= log Z - E[log Z_hat]` with one (design 2.5).
The mean over runs or prompts estimates the bound; Pinsker's inequality turns it into one on total variation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Certificate:
    """An estimated bound on `KL(r || p)`.

    Attributes:
        kl: mean of `log Z - log Z_hat`, nats; an estimate, which can fall below 0 by chance.
        low, high: confidence interval of that mean by Student's t; infinite for a single run.
        level: its confidence.
        tv: Pinsker's bound `sqrt(KL / 2)` on total variation at `kl`, at most 1.
        runs: evidence estimates that were averaged.
    """

    kl: float
    low: float
    high: float
    level: float
    tv: float
    runs: int

    def __str__(self) -> str:
        if self.runs == 1:
            return f"-log Z_hat = {self.kl:.4f} nats: one term of the mean that bounds KL(output || AR)"
        worst = min(1.0, math.sqrt(max(self.high, 0.0) / 2))
        return (
            f"KL <= {self.kl:.4f} nats, estimated from {self.runs} runs ({self.level:.0%} interval "
            f"[{self.low:.4f}, {self.high:.4f}]); TV <= {worst:.3f} at its upper end"
        )


def certify(log_evidence: Sequence[float], *, log_z: float = 0.0, level: float = 0.95) -> Certificate:
    """Certificate from the evidence estimates of independent runs or prompts.

    Args:
        log_evidence: `log Z_hat` of each run, nats; -inf gives an infinite bound.
        log_z: true `log Z` of the target, 0 without a potential.
        level: confidence of the interval.
    Raises:
        ValueError: no runs, a NaN, or a level outside (0, 1).
    """
    values = log_z - np.asarray(log_evidence, dtype=float)
    if values.size == 0 or np.isnan(values).any():
        raise ValueError(f"log_evidence = {list(log_evidence)[:5]}...: give at least one number and no NaN")
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: give a confidence in (0, 1)")
    mean = float(values.mean())
    low, high = -math.inf, math.inf
    if values.size > 1 and math.isfinite(mean):
        half = float(stats.t.ppf((1 + level) / 2, values.size - 1)) * float(values.std(ddof=1)) / math.sqrt(values.size)
        low, high = mean - half, mean + half
    return Certificate(mean, low, high, level, min(1.0, math.sqrt(max(mean, 0.0) / 2)), int(values.size))
