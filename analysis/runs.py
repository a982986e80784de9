"""One run or several: what every diagnostic accepts."""

from __future__ import annotations

from collections.abc import Sequence

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


def require_proper(runs: Sequence[Result], purpose: str) -> None:
    """Raise ValueError unless every run is properly weighted, which `purpose` rests on (design 2.3)."""
    for i, run in enumerate(runs):
        if not run.proper:
            raise ValueError(
                f"results[{i}] of method {run.method!r} is not properly weighted ({'; '.join(run.reasons)}), so "
                f"{purpose} does not exist: use a proper method"
            )
