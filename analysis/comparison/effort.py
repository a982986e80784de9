"""How long a comparison will take: a few tokens of every method say it roughly, finished cells say it better."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from smc_bridge.analysis.comparison.methods import make_method
from smc_bridge.analysis.comparison.settings import Settings
from smc_bridge.analysis.comparison.store import Cell
from smc_bridge.models.pairs import Pair
from smc_bridge.tasks import Task

#: What every method is timed on before the first cell: problems, and tokens of each.
PROBED, LENGTH = 2, 16


class _Short(NamedTuple):
    """The limits of a task, with few tokens."""

    max_new_tokens: int
    lookahead: int
    window: int


def paces(
    methods: Iterable[str], pair: Pair, task: Task, prompts: Sequence[Sequence[int]], settings: Settings
) -> dict[str, float]:
    """Seconds that each method would take for a problem of half the length limit, from the first tokens of a few."""
    limits = _Short(min(LENGTH, task.max_new_tokens), min(LENGTH, task.lookahead), task.window)
    few = prompts[:PROBED]
    found: dict[str, float] = {}
    for name in methods:
        method = make_method(name, pair, limits, temperature=settings.temperature, weight=settings.weight)
        if not found:
            method.decode(few, range(len(few)))  # what is slow only once is not timed
        began = time.perf_counter()
        results = method.decode(few, range(len(few)))
        seconds = time.perf_counter() - began
        found[name] = seconds / sum(result.tokens for result in results) * task.max_new_tokens / 2
    return found


class Clock:
    """Time that is left of a comparison.

    Args:
        work: method and number of problems of every cell that is to be decoded.
        expected: seconds of each method for a problem, of `paces`.
        workers: processes that share the work.
    """

    def __init__(self, work: Iterable[tuple[str, int]], expected: Mapping[str, float], *, workers: int = 1) -> None:
        self.expected, self.workers = expected, workers
        self.waiting: Counter[str] = Counter()
        for method, problems in work:
            self.waiting[method] += problems
        self._problems: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}

    def finished(self, cell: Cell) -> None:
        """Take a cell's time into account."""
        self.waiting[cell.method] -= len(cell.outcomes)
        self._problems[cell.method] += len(cell.outcomes)
        self._seconds[cell.method] = self._seconds.get(cell.method, 0.0) + cell.seconds

    @property
    def left(self) -> float:
        """Seconds: at its own pace of a method that was seen, of another one as much off what was expected as those."""
        expected = sum(self.expected[method] * problems for method, problems in self._problems.items())
        off = sum(self._seconds.values()) / expected if expected else 1.0
        return sum(
            problems * (self._seconds[method] / self._problems[method] if method in self._seconds
                        else off * self.expected[method])
            for method, problems in self.waiting.items()
        ) / self.workers


def about(seconds: float) -> str:
    """A time in words."""
    if seconds < 95:
        return f"about {max(5, 5 * math.ceil(seconds / 5))} s"
    if seconds < 5700:
        return f"about {round(seconds / 60)} minutes"
    return f"about {seconds / 3600:.1f} hours"
