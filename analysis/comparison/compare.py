"""`compare`: decode the same problems with several methods, and put their figures into one table.

The work is cut into cells, one method on one batch of problems. Batches do not depend on interruptions, and the draws
of a problem depend on the seed and on its prompt only, so that a comparison which was interrupted and continued gives
the same figures as one in a single go, timings aside.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.comparison.methods import Method, check_methods, make_method
from analysis.comparison.settings import Settings, fingerprint
from analysis.comparison.store import Cell, Outcome, Store
from analysis.comparison.table import Row, summarise
from models.pairs import Pair, load_pair
from smc_bridge.result import Result
from smc_bridge.tasks import TASKS, Item, Task

#: Told of every finished cell, with how many are done and how many there are.
Report = Callable[[Cell, int, int], None]


@dataclass(frozen=True)
class Comparison:
    """What a comparison found: its settings, one row a method, and the cells behind them."""

    settings: Settings
    rows: list[Row]
    cells: list[Cell]


def answer_seed(seed: int, problem: int) -> int:
    """Seed of the draw that picks a problem's answer among the weighted particles."""
    return int.from_bytes(hashlib.blake2b(f"answer|{seed}|{problem}".encode(), digest_size=8).digest(), "little")


def compare(
    settings: Settings, *, path: Path | None = None, fresh: bool = False, pair: Pair | None = None,
    task: Task | None = None, report: Report | None = None,
) -> Comparison:
    """Run, or continue, a comparison.

    Args:
        settings: see `Settings`.
        path: file that holds the comparison; unfinished work is kept beside it. None keeps nothing.
        fresh: start anew, whatever the files hold.
        pair: models; by default the task's.
        task: problems and grading; by default the one that the settings name.
        report: told of every cell that was decoded.
    Raises:
        ValueError: an argument is out of range, or the file is something else or has other settings.
        FileNotFoundError: the pair's weights are not installed.
    """
    check_methods(settings.methods)
    if task is None:
        if settings.task not in TASKS:
            raise ValueError(f"task = {settings.task!r}: choose from {', '.join(TASKS)}")
        task = TASKS[settings.task]
    items = task.problems(settings.n)
    pair = load_pair(task.pair) if pair is None else pair
    prompts = [_prompt(pair, task, item) for item in items]
    store = Store(path, {**settings.to_dict(), "models": fingerprint(pair)}, fresh=fresh)
    cells = [(name, batch) for name in settings.methods for batch in range(settings.batches)]
    waiting = [cell for cell in cells if cell not in store.cells]
    methods: dict[str, Method] = {}
    for name, batch in waiting:
        if name not in methods:
            methods[name] = make_method(
                name, pair, task, temperature=settings.temperature, weight=settings.weight, seed=settings.seed
            )
        chosen = settings.problems(batch)
        began = time.perf_counter()
        results = methods[name].decode([prompts[i] for i in chosen])
        seconds = time.perf_counter() - began
        outcomes = tuple(
            _outcome(task, items[i], i, result, weighted=methods[name].weighted, seed=settings.seed)
            for i, result in zip(chosen, results, strict=True)
        )
        cell = Cell(name, batch, seconds, len(results[0].sequences), outcomes)
        store.add(cell)
        if report is not None:
            report(cell, len(store.cells), len(cells))
    done = [store.cells[cell] for cell in cells]
    rows = [summarise(name, [cell for cell in done if cell.method == name]) for name in settings.methods]
    if waiting:
        store.finish({"rows": [row.to_dict() for row in rows]})
    return Comparison(settings, rows, done)


def _prompt(pair: Pair, task: Task, item: Item) -> list[int]:
    ids: list[int] = pair.encode(item.prompt).tolist()
    if pair.max_length is not None and len(ids) + task.max_new_tokens + task.window > pair.max_length:
        raise ValueError(
            f"task = {task.name!r}: a prompt of {len(ids)} tokens with max_new_tokens = {task.max_new_tokens} passes "
            f"the {pair.max_length} tokens of the pair {pair.name!r}; shorten the limit"
        )
    return ids


def _outcome(task: Task, item: Item, problem: int, result: Result, *, weighted: bool, seed: int) -> Outcome:
    alive = max(result.log_weights) > -float("inf")
    text: Any = result.sample(seed=answer_seed(seed, problem)) if alive else None
    proper = weighted and result.proper
    return Outcome(
        problem=problem, text=text, correct=text is not None and task.grade(text, item.answer), tokens=result.tokens,
        dlm_forwards=result.forwards.dlm_forwards, ar_forwards=result.forwards.ar_forwards,
        log_evidence=result.log_evidence if proper else None, ess=(result.ess if alive else 0.0) if proper else None,
    )
