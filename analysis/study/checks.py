"""Whether a record that was read from a file can be one that a study wrote: its figures, their kinds and ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from smc_bridge.analysis.study.figures import FIGURES, FORWARDS, Record

#: Relative round-off of sums.
_ROUND_OFF = 1e-6
#: Figures that every cell has, at least 0.
_COUNTS = (*FORWARDS, "tokens", "seconds")
_ESTIMATES = ("tv", "run_tv", "bias")


def is_record(record: Record, names: Sequence[str], runs: int) -> bool:
    """Whether data is a record with the key columns `names`, of so many runs."""
    if set(record) != {*names, *FIGURES} or not all(isinstance(record[name], bool) for name in ("proper", "exact")):
        return False
    if isinstance(record["runs"], bool) or record["runs"] != runs:
        return False
    return _weights(record, runs) and _lengths(record, runs) and all(_estimate(record, name) for name in _ESTIMATES)


def _number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """A finite number in a range, up to round-off at its upper end."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and low <= value <= high * (1 + _ROUND_OFF)


def _weights(record: Record, runs: int) -> bool:
    """Evidence and ESS, which proper methods have, and no others."""
    evidence, ess = record["log_evidences"], record["ess"]
    if not record["proper"]:
        return evidence is None and ess is None
    return (
        isinstance(evidence, list) and len(evidence) == runs and all(z == "-inf" or _number(z) for z in evidence)
        and _number(ess, 0, record.get("particles") or 1)
    )


def _lengths(record: Record, runs: int) -> bool:
    """Tokens, model calls, seconds and shares."""
    tokens = record["run_tokens"]
    if not (isinstance(tokens, list) and len(tokens) == runs and all(_number(each, 0) for each in tokens)):
        return False
    if not all(_number(record[name], 0) for name in _COUNTS):
        return False
    blocks = record["tokens_per_block"]
    return (blocks is None or _number(blocks, 0)) and all(
        record[name] is None or _number(record[name], 0, 1) for name in ("acceptance", "accuracy")
    )


def _estimate(record: Record, name: str) -> bool:
    """A distance with its standard error, or neither."""
    value, error = record[name], record[f"{name}_error"]
    if value is None or error is None:
        return value is error
    if not (_number(value) and _number(error, 0)):
        return False
    if name == "run_tv":
        return _number(value, 0, 1)
    if not record["proper"]:
        return _number(abs(value), 0, 1)
    if name == "bias":
        return True
    # By the identity b = -Cov(Z_hat, W) (`smc_bridge.analysis.law_bias`), no farther than Z_hat goes from 1.
    far = max(abs(math.expm1(min(float(z), 700.0))) for z in record["log_evidences"])
    return _number(abs(value), 0, far + _ROUND_OFF)
