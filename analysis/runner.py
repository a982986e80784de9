"""One runner for every experiment: cells that are not done yet are run, here or on several processes, and kept.

A cell is a pure function of what names it, so that work which was interrupted and continued, or spread over processes,
leaves the records of a single go, timings aside. What the cells are, and what is made of their records, is the
experiment's own: `smc_bridge.analysis.study`, `comparison` and `certified` are three.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any, Protocol, TypeVar

from smc_bridge.analysis.progress import progress
from smc_bridge.analysis.store import Record, Store
from smc_bridge.analysis.workers import map_cells

#: Told of every record that was made, with how many are there and how many there will be.
Report = Callable[[Record, int, int], None]


class Cell(Protocol):
    """A part of an experiment's work, which one process does in one go."""

    @property
    def label(self) -> str:
        """Kind of the work, for the progress; cells of one label take about as long for each run."""
        ...

    @property
    def size(self) -> int:
        """How many runs the cell makes."""
        ...

    def key(self) -> dict[str, Any]:
        """The entries of the cell's record that name it."""
        ...


C = TypeVar("C", bound=Cell)


class Stopped(KeyboardInterrupt):
    """Ctrl-C in the middle: `done` of `total` records are in the store (0 if none of them is new)."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__()
        self.done, self.total = done, total


def waiting(cells: Sequence[C], store: Store) -> list[C]:
    """The cells that have no record."""
    return [cell for cell in cells if cell.key() not in store]


def run_cells(
    cells: Sequence[C], make: Callable[[], Callable[[C], Record]], store: Store, *, workers: int = 1,
    report: Report | None = None, show: bool = False, clock: Clock | None = None,
) -> list[Record]:
    """Run the cells that the store lacks, and give the records of all in their order.

    Args:
        make: gives what runs a cell, once in every process; a record has the entries of `key()` and `seconds` a run.
        workers: processes (`smc_bridge.analysis.workers`).
        report: told of every record, in the order in which cells finish.
        show: progress on standard error.
        clock: that knows the pace of cells beforehand.
    Raises:
        Stopped: Ctrl-C; what is done is in the store.
        OSError: of `map_cells`, where the cluster or a worker fails; what is done is in the store.
    """
    todo = waiting(cells, store)
    clock = clock or Clock(todo, workers=workers)
    begun = len(store)
    try:
        with ExitStack() as stack:
            found = stack.enter_context(closing(map_cells(make, todo, workers=workers)))
            tell = stack.enter_context(progress(len(cells), left=clock.text)) if show and todo else None
            for index, record in found:
                cell = todo[index]
                store.add(record)
                clock.finished(cell.label, cell.size, cell.size * record["seconds"])
                if tell is not None:
                    tell(len(store), cell.label, f"{cell.size} runs in {cell.size * record['seconds']:.1f} s")
                if report is not None:
                    report(record, len(store), len(cells))
    except KeyboardInterrupt as stop:
        raise Stopped(len(store) if len(store) > begun else 0, len(cells)) from stop
    return store.records


class Clock:
    """Time that is left: finished cells say it, and before them what was expected.

    Args:
        cells: that are to be run.
        expected: seconds of each label for a run.
        workers: processes that share the work.
    """

    def __init__(self, cells: Iterable[Cell], expected: Mapping[str, float] | None = None, *, workers: int = 1) -> None:
        self.expected, self.workers = expected or {}, workers
        self.waiting: Counter[str] = Counter()
        for cell in cells:
            self.waiting[cell.label] += cell.size
        self._runs: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def finished(self, label: str, runs: int, seconds: float) -> None:
        """Take a cell's time into account."""
        self.waiting[label] -= runs
        self._runs[label] += runs
        self._seconds[label] += seconds

    @property
    def left(self) -> float:
        """Time that is left, seconds; NaN while neither a cell has finished nor seconds were expected.

        A label that was seen goes at its own pace; another one is as much off what was expected as those that were.
        Without expectations it goes at the pace of all that were seen.
        """
        return sum(runs * self._pace(label) for label, runs in self.waiting.items() if runs) / self.workers

    def _pace(self, label: str) -> float:
        if self._runs[label]:
            return self._seconds[label] / self._runs[label]
        expected = sum(self.expected.get(seen, 1.0) * runs for seen, runs in self._runs.items())
        off = sum(self._seconds.values()) / expected if expected else 1.0 if self.expected else math.nan
        return off * self.expected.get(label, 1.0)

    def text(self) -> str:
        """Time that is left, in words; empty while nothing is known."""
        return "" if math.isnan(self.left) else f"{about(self.left)} left"


def about(seconds: float) -> str:
    """A time in words, rounded for a reader."""
    if seconds < 95:
        return f"about {max(5, 5 * math.ceil(seconds / 5))} s"
    if seconds < 5700:
        return f"about {round(seconds / 60)} minutes"
    return f"about {seconds / 3600:.1f} hours"
