"""`StepRecord`: what one step did to the particles of one prompt, as plain lists that go to JSON and to plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StepRecord:
    """One step of one prompt, N particles with K lanes each.

    Attributes:
        ancestors: particle that each survivor descends from, `[N]`.
        lanes: lane that each survivor took, `[N]`.
        length: tokens that each lane offered to commit, `[N][K]`; 0 for particles that were done.
        accepted: how many of them were the draft's own, `[N][K]`.
        log_increments: log weight that each lane earned, nats, `[N][K]`.
        log_weights: carried log weights after the step, nats, `[N]`.
        ess: effective sample size before selection, particles.
        resampled: whether particles interacted.
        log_evidence: `log Z` after the step, nats.
        dlm_rows, ar_rows: rows of this prompt that each model scored in this step.
        drafts, blocks: token ids, `[N][K][..]`; kept only if the run was asked for them. `drafts` is empty for kernels
            without a linear draft.
    """

    ancestors: list[int]
    lanes: list[int]
    length: list[list[int]]
    accepted: list[list[int]]
    log_increments: list[list[float]]
    log_weights: list[float]
    ess: float
    resampled: bool
    log_evidence: float
    dlm_rows: int
    ar_rows: int
    drafts: list[list[list[int]]] | None = None
    blocks: list[list[list[int]]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Fields by name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> StepRecord:
        """Inverse of `to_dict`."""
        return cls(**fields)
