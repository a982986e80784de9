"""What a cell's runs give: the figures that are saved, one flat record a cell.

What belongs to a run stands in a list with an entry for each, so that means and bounds can be pooled over seeds and
prompts afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from smc_bridge.analysis.bias import run_bias
from smc_bridge.analysis.law_bias import output_distance, output_distance_by_identity, run_distance
from smc_bridge.analysis.lengths import block_statistics
from smc_bridge.analysis.store import Record
from smc_bridge.estimate import Estimate
from smc_bridge.result import Result

#: Model calls of a run.
FORWARDS = ("dlm_forwards", "dlm_rows", "ar_forwards", "ar_rows", "ar_tokens")
#: Figures with an entry for every run, which the rows of a study average.
PER_RUN = ("ess", "tokens", *FORWARDS)
#: Answers to the prompts of a task, an entry for each.
ANSWERS = ("texts", "correct", "ids")
#: Distances from an exact law, each with its standard error.
DISTANCES = ("tv", "run_tv", "bias")
#: Every figure of a record, besides its key.
FIGURES = (
    "runs", "sequences", "proper", "exact", "log_evidences", "run_tokens", *PER_RUN, "tokens_per_block", "acceptance",
    "seconds", *(name + end for name in DISTANCES for end in ("", "_error")), *ANSWERS,
)
#: Runs from which a total variation can be estimated with an error that means something.
LEAST_RUNS = 20
#: Round-off of a distance that is 0.
_ROUND_OFF = 1e-12


def figures(results: Sequence[Result]) -> Record:
    """Evidence, weights, lengths and model calls of independent runs; None where a figure does not exist.

    `tokens` is the mean length of a run's particles, `run_tokens` the expected one of a sequence drawn by weight.
    """
    proper = all(run.proper for run in results)
    blocks = block_statistics(results) if all(len(run.trace) for run in results) else None
    return {
        "runs": len(results), "sequences": len(results[0].sequences), "proper": proper,
        "exact": all(run.exact for run in results),
        "log_evidences": [_written(run.log_evidence) for run in results] if proper else None,
        "run_tokens": [run.drawn_tokens for run in results],
        "ess": [run.ess for run in results] if proper else None,
        "tokens": [run.tokens for run in results],
        "tokens_per_block": None if blocks is None else _finite(blocks.tokens),
        "acceptance": None if blocks is None else _finite(blocks.acceptance),
        **{name: [getattr(run.forwards, name) for run in results] for name in FORWARDS},
    }


def distances(results: Sequence[Result], exact: Result | None) -> Record:
    """Distances from an exact law, with standard errors.

    None without such a law, with too few runs or a dead one, and where the runs do not differ.

    `tv` is the total variation between target and output law (of one draw from a run's weights), by the identity
    `b = -Cov(Z_hat, W)` for a proper method and directly for another (`smc_bridge.analysis.law_bias`); `run_tv` that
    between the target and a single run's particles; `bias` that of a run's estimate of the probability of the
    likeliest sequence.
    """
    dead = not all(run.alive for run in results)
    if exact is None or dead or len(results) < LEAST_RUNS:
        return {key: None for name in DISTANCES for key in (name, f"{name}_error")}
    proper = all(run.proper for run in results)
    law = output_distance_by_identity(results, exact) if proper else output_distance(results, exact)
    found = dict(zip(DISTANCES, (law, run_distance(results, exact), _mode_bias(results, exact, proper)), strict=True))
    # Runs that all agree have no spread to judge a distance by, unless there is none.
    known = {name: abs(each.value) <= _ROUND_OFF or each.error > 0 for name, each in found.items()}
    return {
        key: value if known[name] else None for name, each in found.items()
        for key, value in ((name, each.value), (f"{name}_error", each.error))
    }


def _mode_bias(results: Sequence[Result], exact: Result, proper: bool) -> Estimate:
    """Bias of the estimated probability of the target's likeliest sequence."""
    mode, truth = next(iter(exact.posterior().items()))

    def indicator(value: Any) -> float:
        return float(value == mode)

    if proper:
        return run_bias(results, indicator).bias
    each = np.array([run.expectation(indicator) for run in results])
    return Estimate.normal(float(each.mean() - truth), float(each.std(ddof=1) / math.sqrt(each.size)), each.size)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _written(log_evidence: float) -> float | str:
    """JSON has no minus infinity."""
    return "-inf" if log_evidence == -math.inf else log_evidence
