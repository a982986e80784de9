"""Finished work on disk: cells (one method on one batch of problems) are appended as they are done.

While a comparison runs, `FILE.partial` holds one JSON object a line: the settings, then cells in the order in which
they came. A line that an interruption cut short is dropped. When every cell is there, `FILE` is written atomically and
the partial file removed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
    """One method on one batch of problems; `seconds` of wall time, `particles` N."""

    method: str
    batch: int
    seconds: float
    particles: int
    outcomes: tuple[Outcome, ...]

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
        self.partial = None if path is None else path.with_name(path.name + ".partial")
        self.settings = {"kind": KIND, "format": FORMAT, **settings}
        self.cells: dict[tuple[str, int], Cell] = {}
        if path is None or self.partial is None:
            return
        if fresh:
            if path.exists() and _parse(path, _read(path)).get("kind") != KIND:
                raise ValueError(_foreign(path))
            # A finished FILE stays until the new one replaces it whole.
            self.partial.unlink(missing_ok=True)
        elif self.partial.exists():
            self._resume(self.partial)
        elif path.exists():
            data = _parse(path, _read(path))
            self._check(path, data)
            self._load(path, data.get("cells", ()))

    def add(self, cell: Cell) -> None:
        """Keep a finished cell, on disk too."""
        if self.partial is not None:
            new = not self.partial.exists()
            if new:
                self.partial.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(self.settings)] if new else []
            with self.partial.open("a", encoding="utf-8") as file:
                file.write("".join(line + "\n" for line in [*lines, json.dumps(cell.to_dict(), allow_nan=False)]))
                file.flush()
                os.fsync(file.fileno())
        self.cells[cell.method, cell.batch] = cell

    def finish(self, summary: Mapping[str, Any], cells: Sequence[Cell]) -> None:
        """Write FILE whole, with a summary for readers and the cells in order, and remove the partial file."""
        if self.path is not None and self.partial is not None:
            data = {**self.settings, **summary, "cells": [cell.to_dict() for cell in cells]}
            write_text(self.path, json.dumps(data, allow_nan=False))
            self.partial.unlink(missing_ok=True)

    def _resume(self, path: Path) -> None:
        """Load a partial file, and cut off a last line that was not finished."""
        text = _read(path)
        whole = text[: text.rfind("\n") + 1]
        lines = whole.splitlines()
        if not lines:
            if text and not json.dumps(self.settings).startswith(text):
                raise ValueError(_foreign(path))
            path.unlink()
            return
        self._check(path, _parse(path, lines[0]))
        self._load(path, [_parse(path, line) for line in lines[1:]])
        if whole != text:
            write_text(path, whole)

    def _check(self, path: Path, data: Mapping[str, Any]) -> None:
        if data.get("kind") != KIND or data.get("format") != FORMAT:
            raise ValueError(_foreign(path))
        different = [name for name, value in self.settings.items() if data.get(name) != value]
        if different:
            name = different[0]
            raise ValueError(
                f"--json = {path}: holds a comparison with {name} = {_short(data.get(name))} rather than "
                f"{_short(self.settings[name])}; start anew with --fresh, or give another file"
            )

    def _load(self, path: Path, cells: Any) -> None:
        try:
            for data in cells:
                cell = Cell.from_dict(data)
                self.cells.setdefault((cell.method, cell.batch), cell)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(_foreign(path)) from error


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _foreign(path: Path) -> str:
    return f"--json = {path}: is not a saved comparison; give another file"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--json = {path}: cannot be read ({error.strerror}); give another file") from error
    except UnicodeDecodeError as error:
        raise ValueError(_foreign(path)) from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(_foreign(path)) from error
    if not isinstance(data, dict):
        raise ValueError(_foreign(path))
    return data
