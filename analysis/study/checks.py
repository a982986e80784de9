"""Whether a record that was read from a file can be one that a study wrote: its figures, their kinds and ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from smc_bridge.analysis.store import Record
from smc_bridge.analysis.study.figures import ANSWERS, DISTANCES, FIGURES, FORWARDS

#: Relative round-off of sums.
_ROUND_OFF = 1e-6


def is_record(record: Record, names: Sequence[str], runs: int) -> bool:
    """Whether data is a record with the key columns `names`, of so many runs."""
    if set(record) != {*names, *FIGURES} or not all(isinstance(record[name], bool) for name in ("proper", "exact")):
        return False
    if isinstance(record["runs"], bool) or record["runs"] != runs or not _number(record["sequences"], 1):
        return False
    return (
        _weights(record, runs) and _lengths(record, runs) and _answers(record, runs)
        and all(_estimate(record, name) for name in DISTANCES)
    )


def _number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """A finite number in a range, up to round-off at its upper end."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and low <= value <= high * (1 + _ROUND_OFF)


def _numbers(values: Any, runs: int, low: float = -math.inf, high: float = math.inf) -> bool:
    """A number in a range for every run."""
    return isinstance(values, list) and len(values) == runs and all(_number(each, low, high) for each in values)


def _weights(record: Record, runs: int) -> bool:
    """Evidence and ESS, which proper methods have, and no others."""
    evidence, ess = record["log_evidences"], record["ess"]
    if not record["proper"]:
        return evidence is None and ess is None
    return (
        isinstance(evidence, list) and len(evidence) == runs and all(z == "-inf" or _number(z) for z in evidence)
        and _numbers(ess, runs, 0, record["sequences"])
    )


def _lengths(record: Record, runs: int) -> bool:
    """Tokens, model calls, seconds and shares."""
    if not all(_numbers(record[name], runs, 0) for name in ("run_tokens", "tokens", *FORWARDS)):
        return False
    blocks, acceptance = record["tokens_per_block"], record["acceptance"]
    return (
        _number(record["seconds"], 0) and (blocks is None or _number(blocks, 0))
        and (acceptance is None or _number(acceptance, 0, 1))
    )


def _answers(record: Record, runs: int) -> bool:
    """Texts, verdicts and names of the prompts of a task, or none of them."""
    texts, correct, ids = (record[name] for name in ANSWERS)
    if texts is None:
        return correct is None and ids is None
    return all(isinstance(each, list) and len(each) == runs for each in (texts, correct, ids)) and all(
        each is None or isinstance(each, bool) for each in correct
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
