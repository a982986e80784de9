"""Finished work on disk: cells (one method on one batch of problems) are appended as they are done.

While a comparison runs, `FILE.partial` holds one JSON object a line: the settings, then cells in the order in which
they came. A line that an interruption cut short is dropped. When every cell is there, `FILE` is written atomically and
the partial file removed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from analysis.journal import Journal
from smc_bridge.result import write_text

#: Version of both files' layout.
FORMAT = 1
KIND = "smc-bridge comparison"


@dataclass(frozen=True)
class Outcome:
    """One problem under one method.

    Attributes:
        problem: its index in the task.
        text: the decoded answer; for a weighted method one draw from the weights. None if every weight was zero.
        correct: whether it is right.
        tokens: mean length of the particles.
        dlm_forwards, ar_forwards: model calls that served the problem.
        log_evidence: `log Z_hat`, nats; None for methods that are not properly weighted.
        ess: of the final weights; None likewise.
    """

    problem: int
    text: str | None
    correct: bool
    tokens: float
    dlm_forwards: int
    ar_forwards: int
    log_evidence: float | None
    ess: float | None


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


class Store:
    """The two files of a comparison.

    Args:
        path: FILE, or None to keep everything in memory.
        settings: plain data that must equal what the files were written with.
        fresh: start anew; what a saved comparison in the files holds is not used.
    Raises:
        ValueError: a file cannot be read, is something else, or belongs to other settings.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.path = path
        self.settings = {"kind": KIND, "format": FORMAT, **settings}
        self.cells: dict[tuple[str, int], Cell] = {}
        self.journal: Journal | None = None
        if path is None:
            return
        partial = path.with_name(path.name + ".partial")
        self.journal = journal = Journal(partial, self.settings, argument="--json", noun="comparison")
        if fresh:
            if path.exists() and journal.parse(path, journal.read(path)).get("kind") != KIND:
                raise journal.foreign(path)
            # A finished FILE stays until the new one replaces it whole.
            partial.unlink(missing_ok=True)
        elif partial.exists():
            self._load(partial, journal.resume())
        elif path.exists():
            data = journal.parse(path, journal.read(path))
            journal.check(path, data)
            self._load(path, data.get("cells", ()))

    def add(self, cell: Cell) -> None:
        """Keep a finished cell, on disk too."""
        if self.journal is not None:
            self.journal.append(cell.to_dict())
        self.cells[cell.method, cell.batch] = cell

    def finish(self, summary: Mapping[str, Any], cells: Sequence[Cell]) -> None:
        """Write FILE whole, with a summary for readers and the cells in order, and remove the partial file."""
        if self.path is not None and self.journal is not None:
            data = {**self.settings, **summary, "cells": [cell.to_dict() for cell in cells]}
            write_text(self.path, json.dumps(data, allow_nan=False))
            self.journal.path.unlink(missing_ok=True)

    def _load(self, path: Path, cells: Any) -> None:
        try:
            for data in cells:
                cell = Cell.from_dict(data)
                self.cells.setdefault((cell.method, cell.batch), cell)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            assert self.journal is not None
            raise self.journal.foreign(path) from error
