"""What a cell's runs give: the figures that a study saves, one flat record a cell.

The evidence of every run and the expected length of a sequence drawn from it are kept, so that bounds can be pooled
over seeds and prompts afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from smc_bridge.analysis.bias import run_bias
from smc_bridge.analysis.law_bias import Distance, output_distance, output_distance_by_identity, run_distance
from smc_bridge.analysis.lengths import block_statistics
from smc_bridge.result import Result

#: A line of the saved study.
Record = dict[str, Any]

#: Model calls, means over runs.
FORWARDS = ("dlm_forwards", "dlm_rows", "ar_forwards", "ar_rows", "ar_tokens")
#: Every figure of a record, besides its key.
FIGURES = (
    "runs", "proper", "exact", "log_evidences", "run_tokens", "ess", "tokens", "tokens_per_block", "acceptance",
    *FORWARDS, "seconds", "tv", "tv_error", "run_tv", "run_tv_error", "bias", "bias_error", "accuracy",
)
#: Runs from which a total variation can be estimated with an error that means something.
LEAST_RUNS = 20
#: Round-off of a distance that is 0.
_ROUND_OFF = 1e-12


def figures(results: Sequence[Result]) -> Record:
    """Evidence, weights, lengths and model calls of independent runs; None where a figure does not exist."""
    proper = all(run.proper for run in results)
    blocks = block_statistics(results) if all(len(run.trace) for run in results) else None
    return {
        "runs": len(results), "proper": proper, "exact": all(run.exact for run in results),
        "log_evidences": [_written(run.log_evidence) for run in results] if proper else None,
        "run_tokens": [run.drawn_tokens for run in results],
        "ess": _mean([run.ess for run in results]) if proper else None,
        "tokens": _mean([run.tokens for run in results]),
        "tokens_per_block": None if blocks is None else _finite(blocks.tokens),
        "acceptance": None if blocks is None else _finite(blocks.acceptance),
        **{name: _mean([getattr(run.forwards, name) for run in results]) for name in FORWARDS},
    }


def distances(results: Sequence[Result], exact: Result | None) -> Record:
    """Distances from an exact law, with standard errors.

    None without such a law, with too few runs or a dead one, and where the runs do not differ.

    `tv` is the total variation between target and output law (of one draw from a run's weights), by the identity
    `b = -Cov(Z_hat, W)` for a proper method and directly for another (`smc_bridge.analysis.law_bias`); `run_tv` that
    between the target and a single run's particles; `bias` that of a run's estimate of the probability of the
    likeliest sequence.
    """
    names = ("tv", "run_tv", "bias")
    dead = not all(run.alive for run in results)
    if exact is None or dead or len(results) < LEAST_RUNS:
        return {key: None for name in names for key in (name, f"{name}_error")}
    proper = all(run.proper for run in results)
    law = output_distance_by_identity(results, exact) if proper else output_distance(results, exact)
    found = dict(zip(names, (law, run_distance(results, exact), _mode_bias(results, exact, proper)), strict=True))
    # Runs that all agree have no spread to judge a distance by, unless there is none.
    known = {name: abs(each.value) <= _ROUND_OFF or each.error > 0 for name, each in found.items()}
    return {
        key: value if known[name] else None for name, each in found.items()
        for key, value in ((name, each.value), (f"{name}_error", each.error))
    }


def _mode_bias(results: Sequence[Result], exact: Result, proper: bool) -> Distance:
    """Bias of the estimated probability of the target's likeliest sequence."""
    mode, truth = next(iter(exact.posterior().items()))

    def indicator(value: Any) -> float:
        return float(value == mode)

    if proper:
        found = run_bias(results, indicator)
        return Distance(found.bias, found.error)
    each = np.array([run.expectation(indicator) for run in results])
    return Distance(float(each.mean() - truth), float(each.std(ddof=1) / math.sqrt(each.size)))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _written(log_evidence: float) -> float | str:
    """JSON has no minus infinity."""
    return "-inf" if log_evidence == -math.inf else log_evidence
