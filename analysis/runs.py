"""One run or several: what every diagnostic accepts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from smc_bridge.result import Result

#: One run, or independent runs.
Runs = Result | Sequence[Result]


def as_runs(results: Runs) -> list[Result]:
    """The runs as a list.

    Raises:
        ValueError: there is none.
    """
    runs = [results] if isinstance(results, Result) else list(results)
    if not runs:
        raise ValueError("results is empty: give at least one Result")
    return runs


def require_proper(runs: Sequence[Result], purpose: str, *, retained: bool = False) -> None:
    """Refuse runs that `purpose` cannot rest on (design 2.3, 2.5).

    Args:
        runs: must be properly weighted, finished, and independent of each other.
        purpose: for the message.
        retained: whether they must be conditional runs, rather than free ones.
    Raises:
        ValueError: an improper method, a run that was interrupted, one of the other kind, a conditional run without
            weight (its retained sequence was impossible), or the same prompt and seed twice (the same run twice, which
            would make an interval too narrow).
    """
    seen: dict[tuple[Any, ...], int] = {}
    for i, run in enumerate(runs):
        if not run.proper:
            raise ValueError(
                f"results[{i}] of method {run.method!r} is not properly weighted ({'; '.join(run.reasons)}), so "
                f"{purpose} does not exist: use a proper method"
            )
        if not run.complete:
            raise ValueError(f"results[{i}] was interrupted, so {purpose} does not exist: run it to its end")
        if bool(run.settings.get("retained")) != retained:
            kind, wanted = ("a free run", "conditional") if retained else ("a conditional run", "free")
            raise ValueError(f"results[{i}] is {kind}, so {purpose} does not exist: give {wanted} runs")
        if retained and run.log_evidence == -math.inf:
            raise ValueError(
                f"results[{i}] has log_evidence = -inf, so its retained sequence was impossible and {purpose} does not "
                "exist: run it again in float32, or without truncation of the target"
            )
        if "seed" in run.settings:
            first = seen.setdefault((run.method, tuple(run.prompt), run.settings["seed"]), i)
            if first != i:
                raise ValueError(
                    f"results[{i}] repeats prompt and seed of results[{first}], so {purpose} would count it twice: "
                    "give every repetition its own seed"
                )
