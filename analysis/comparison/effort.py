"""How long a comparison will take: a short probe says how fast the models are here, finished cells say it better."""

from __future__ import annotations

import math
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.comparison.methods import make_method
from analysis.comparison.settings import Settings
from analysis.comparison.store import Cell
from models.pairs import Pair
from smc_bridge.tasks import Task

#: Time per problem of methods beside that of `dlm-1`, rounded from the embedded pair's table in the README.
COSTS = {"ar": 0.06, "dlm-all": 0.03, "plain-is": 0.08, "speculative": 0.17, "released": 0.24, "paper": 0.22,
         "tree-walk": 0.18}
#: Of a method that is not known.
TYPICAL = 0.3
#: The probe: method, problems, and tokens of each.
PROBE, PROBED, LENGTH = "dlm-8", 4, 32


def relative_cost(method: str) -> float:
    """Time per problem of a method beside that of `dlm-1`, roughly."""
    if match := re.fullmatch(r"dlm-(\d+)(-\w+)?", method):
        return 1.0 / int(match[1])
    if match := re.fullmatch(r"smc-(\d+)(?:x(\d+))?", method):
        particles, lanes = int(match[1]), int(match[2] or 1)
        return 0.1 + particles * (0.07 + 0.017 * (lanes - 1))
    return COSTS.get(method, TYPICAL)


@dataclass(frozen=True)
class _Short:
    """The limits of a task, with few tokens."""

    max_new_tokens: int
    lookahead: int
    window: int


def probe(pair: Pair, task: Task, prompts: Sequence[Sequence[int]], settings: Settings) -> float:
    """Seconds that `dlm-1` would take for a problem of half the length limit, from a few tokens of a few problems."""
    limits = _Short(min(LENGTH, task.max_new_tokens), min(LENGTH, task.lookahead), task.window)
    method = make_method(PROBE, pair, limits, temperature=settings.temperature, weight=settings.weight)
    few = prompts[:PROBED]
    method.decode(few[:1], [settings.seed])
    began = time.perf_counter()
    found = method.decode(few, range(len(few)))
    tokens = sum(result.tokens for result in found)
    return (time.perf_counter() - began) / tokens * task.max_new_tokens / 2 / relative_cost(PROBE)


class Clock:
    """Time that is left of a comparison.

    Args:
        work: method and number of problems of every cell that is to be decoded.
        unit: seconds of `dlm-1` for a problem, of `probe`.
        workers: processes that share the work.
    """

    def __init__(self, work: Sequence[tuple[str, int]], unit: float, *, workers: int = 1) -> None:
        self.waiting: dict[str, int] = defaultdict(int)
        for method, problems in work:
            self.waiting[method] += problems
        self.unit, self.workers = unit, workers
        self._seconds: dict[str, float] = defaultdict(float)
        self._problems: dict[str, int] = defaultdict(int)

    def finished(self, cell: Cell) -> None:
        """Take a cell's time into account."""
        self.waiting[cell.method] -= len(cell.outcomes)
        self._seconds[cell.method] += cell.seconds
        self._problems[cell.method] += len(cell.outcomes)
        # What is costly tells most about what is still to come.
        work = sum(relative_cost(method) * problems for method, problems in self._problems.items())
        self.unit = sum(self._seconds.values()) / work

    @property
    def left(self) -> float:
        """Seconds: at its own pace of a method that was seen, at that of all others else."""
        each = {
            method: self._seconds[method] / self._problems[method] if self._problems[method]
            else self.unit * relative_cost(method)
            for method in self.waiting
        }
        return sum(problems * each[method] for method, problems in self.waiting.items()) / self.workers


def about(seconds: float) -> str:
    """A time in words."""
    if seconds < 95:
        return f"about {max(5, 5 * math.ceil(seconds / 5))} s"
    if seconds < 5700:
        return f"about {round(seconds / 60)} minutes"
    return f"about {seconds / 3600:.1f} hours"
