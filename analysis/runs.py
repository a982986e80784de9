"""One run or several: what every diagnostic accepts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from smc_bridge.models.arguments import is_list, said
from smc_bridge.result import Result
from smc_bridge.streams import first_repeat

#: One run, or independent runs.
Runs = Result | Sequence[Result]


def as_runs(results: Runs, *, name: str = "results") -> list[Result]:
    """The runs as a list; `name` is the argument that holds them.

    Raises:
        ValueError: there is none, or something else.
    """
    if isinstance(results, Result):
        return [results]
    if not is_list(results):
        raise ValueError(f"{name} = {said(results)}: give a Result, or a list of them")
    runs = list(results)
    if not runs:
        raise ValueError(f"{name} is empty: give at least one Result")
    wrong = next((i for i, run in enumerate(runs) if not isinstance(run, Result)), None)
    if wrong is not None:
        raise ValueError(f"{name}[{wrong}] = {said(runs[wrong])}: give a Result")
    return runs


def require_proper(runs: Sequence[Result], purpose: str, *, retained: bool = False) -> None:
    """Refuse runs that `purpose` cannot rest on.

    Args:
        runs: must be properly weighted, finished, and independent of each other.
        purpose: for the message.
        retained: whether they must be conditional runs, rather than free ones.
    Raises:
        ValueError: an improper method, a run that was interrupted, one of the other kind, a conditional run without
            weight (its retained sequence was impossible), or the same prompt and seed twice (the same run twice, which
            would make an interval too narrow).
    """
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
    require_independent(runs, purpose)


def require_independent(runs: Sequence[Result], purpose: str, *, name: str = "results") -> None:
    """Refuse a run that is there twice: `purpose` takes runs for independent, and two of one prompt and seed are equal.

    Results that do not know their seed (made by hand) are taken at their word.

    Args:
        runs: of one method, or of several.
        purpose, name: for the message; `name` is the argument that held the runs.
    Raises:
        ValueError: the same method, prompt and seed twice.
    """
    origins = enumerate(map(_origin, runs))
    repeat = first_repeat([i if origin is None else (runs[i].method, origin) for i, origin in origins])
    if repeat is not None:
        again, first = repeat
        raise ValueError(
            f"{name}[{again}] repeats prompt and seed of {name}[{first}] (seed {runs[again].settings['seed']}), so "
            f"{purpose} would count it twice: give every repetition its own seed, seed=range(n)"
        )


def require_apart(results: Sequence[Result], exact: Sequence[Result], purpose: str) -> None:
    """Refuse runs that are held against each other and have the same random numbers.

    Raises:
        ValueError: a run among `results` and one among `exact` of one stream (`smc_bridge.streams`), prompt and seed.
    """
    known = {_origin(run): i for i, run in enumerate(results)}
    for i, run in enumerate(exact):
        origin = _origin(run)
        if origin is not None and origin in known:
            raise ValueError(
                f"exact[{i}] has prompt and seed of results[{known[origin]}] (seed {run.settings['seed']}), so "
                f"{purpose} would compare equal draws: give other seeds"
            )


def _origin(run: Result) -> tuple[Any, ...] | None:
    """What the draws of a run come from, if it knows."""
    if "seed" not in run.settings:
        return None
    return run.settings.get("stream"), tuple(run.prompt), run.settings["seed"]
