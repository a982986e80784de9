"""Cells of a comparison, one method on one batch of problems, and where they are kept (`smc_bridge.analysis.store`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smc_bridge.analysis.store import Store

#: Version of both files' layout.
FORMAT = 2
KIND = "smc-bridge comparison"


@dataclass(frozen=True)
class Outcome:
    """One problem under one method.

    Attributes:
        problem, id: its index in the task, and its name in a file of prompts.
        text: the decoded answer; for a weighted method one draw from the weights. None if every weight was zero.
        correct: whether it is right; None where no answer is known.
        tokens: mean length of the particles.  drawn_tokens: expected length of one that is drawn by weight.
        dlm_forwards, ar_forwards: model calls that served the problem.
        log_evidence: `log Z_hat`, nats; None for methods that are not properly weighted.
        ess: of the final weights; None likewise.
    """

    problem: int
    text: str | None
    correct: bool | None
    tokens: float
    drawn_tokens: float
    dlm_forwards: int
    ar_forwards: int
    log_evidence: float | None
    ess: float | None
    id: str | None = None


@dataclass(frozen=True)
class Cell:
    """One method on one batch of problems; `seconds` of wall time, `particles` N, `exact` as `Result.exact`."""

    method: str
    batch: int
    seconds: float
    particles: int
    outcomes: tuple[Outcome, ...]
    exact: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, where an evidence of minus infinity is a string."""
        data = asdict(self)
        data["outcomes"] = [
            {**outcome, "log_evidence": "-inf" if outcome["log_evidence"] == float("-inf") else outcome["log_evidence"]}
            for outcome in data["outcomes"]
        ]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cell:
        """Inverse of `to_dict`; TypeError, KeyError or ValueError if the data is something else."""
        outcomes = [
            Outcome(**{**o, "log_evidence": None if o["log_evidence"] is None else float(o["log_evidence"])})
            for o in data["outcomes"]
        ]
        return cls(**{**data, "outcomes": tuple(outcomes)})


def open_store(path: Path | None, settings: Mapping[str, Any], *, fresh: bool = False) -> Store[tuple[str, int], Cell]:
    """The store of a comparison: cells by method and batch.

    Args:
        path, settings, fresh: see `Store`.
    Raises:
        ValueError: a file cannot be read, is something else, or belongs to other settings.
    """
    return Store(
        path, {"kind": KIND, "format": FORMAT, **settings}, noun="comparison", read=Cell.from_dict, write=Cell.to_dict,
        key=lambda cell: (cell.method, cell.batch), fresh=fresh,
    )
