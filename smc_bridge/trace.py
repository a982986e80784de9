"""`StepRecord`: what one step did to the particles of one prompt, as plain lists that go to JSON and to plots.

A run keeps its steps as tensors; a `Trace` turns them into records when somebody reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload


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
        fresh: particles that were drafted by a forward of this very step, `[N]`, where others draw from the marginals
            of an earlier one; None of a proposal whose laws do not outlive a draft.
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
    fresh: list[bool] | None = None
    drafts: list[list[list[int]]] | None = None
    blocks: list[list[list[int]]] | None = None

    def grown(self) -> Iterator[tuple[int, int, float]]:
        """Length and accepted tokens of the block of every lane that grew, and the log weight that it earned, nats."""
        lanes = zip(self.length, self.accepted, self.log_increments, strict=True)
        for lane in (each for rows in lanes for each in zip(*rows, strict=True)):
            if lane[0] > 0:
                yield lane

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> StepRecord:
        """The record that `to_dict` made the data of."""
        return cls(**fields)


class Trace(Sequence[StepRecord]):
    """The steps of one prompt: a list of records that is made when it is first read.

    Args:
        steps: how many.
        make: gives the records; called once.
    """

    def __init__(self, steps: int, make: Callable[[], list[StepRecord]]) -> None:
        self._steps = steps
        self._make: Callable[[], list[StepRecord]] | None = make
        self._records: list[StepRecord] = []

    @property
    def records(self) -> list[StepRecord]:
        """All records, made now if they were not read before."""
        if self._make is not None:
            self._records, self._make = self._make(), None
        return self._records

    def __len__(self) -> int:
        return self._steps

    @overload
    def __getitem__(self, index: int) -> StepRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[StepRecord]: ...

    def __getitem__(self, index: int | slice) -> StepRecord | list[StepRecord]:
        return self.records[index]

    def __eq__(self, other: object) -> bool:
        return self.records == (other.records if isinstance(other, Trace) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self.records)

    def __reduce__(self) -> tuple[type[list[StepRecord]], tuple[list[StepRecord]]]:
        """Copies, also those that go to another process, are plain lists."""
        return list, (self.records,)
