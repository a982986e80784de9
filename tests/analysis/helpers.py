"""Results and traces made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from smc_bridge.result import Result
from smc_bridge.trace import StepRecord

INF = math.inf


def make_result(
    log_weights: Sequence[float], sequences: Sequence[Sequence[int]] | None = None, **fields: Any
) -> Result:
    """A result with one-token sequences 0, 1, 2, .. unless others are given."""
    tokens = [[i] for i in range(len(log_weights))] if sequences is None else [list(s) for s in sequences]
    return Result(prompt=[], sequences=tokens, log_weights=list(log_weights), **fields)


def make_record(**fields: Any) -> StepRecord:
    """A record of one step; N and K follow from `length`."""
    length = fields["length"]
    particles = len(length)
    defaults: dict[str, Any] = {
        "ancestors": list(range(particles)), "lanes": [0] * particles, "accepted": length,
        "log_increments": [[0.0] * len(row) for row in length], "log_weights": [0.0] * particles,
        "ess": float(particles), "resampled": False, "log_evidence": 0.0, "dlm_rows": 1, "ar_rows": particles,
    }
    return StepRecord(**{**defaults, **fields})


def two_step_trace() -> list[StepRecord]:
    """Three particles with two lanes: the first step selects (0, 0, 2), in the second particle 1 is done."""
    return [
        make_record(
            length=[[3, 1], [2, 2], [4, 4]], accepted=[[3, 0], [1, 2], [3, 4]],
            log_increments=[[0.5, -0.5], [-1.0, -INF], [0.25, 0.0]], ancestors=[0, 0, 2], lanes=[0, 1, 1],
            log_weights=[0.1, 0.1, 0.1], resampled=True, ess=2.5,
        ),
        make_record(
            length=[[2, 1], [0, 0], [1, 1]], accepted=[[2, 0], [0, 0], [0, 1]],
            log_increments=[[0.2, 0.4], [0.0, 0.0], [-0.3, -0.1]], ancestors=[0, 1, 2], lanes=[1, 0, 0],
            log_weights=[0.4, 0.1, -0.1], ess=2.9,
        ),
    ]
