"""`compare`: a study whose axis is the methods, on the problems of one task; its summary is a table, a row a method.

Batches do not depend on interruptions, and the draws of a problem depend on the seed and on its prompt only (and on how
often the prompt stood before it), so that a comparison which was interrupted and continued, or spread over processes,
gives the figures of a single go, timings aside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smc_bridge.analysis.comparison.settings import Settings
from smc_bridge.analysis.comparison.table import Row, render, summarise
from smc_bridge.analysis.runner import Clock, Report, run_cells, waiting
from smc_bridge.analysis.store import Record, open_store
from smc_bridge.analysis.study.cells import Laboratory, Work, cells
from smc_bridge.analysis.study.identity import fingerprints
from smc_bridge.analysis.study.plan import make_decoder
from smc_bridge.analysis.study.run import check_samplers, loading, of_plan
from smc_bridge.analysis.study.sources import Limits, Problems, load_problems
from smc_bridge.analysis.workers import check_workers
from smc_bridge.commands.models import Models
from smc_bridge.decode import decode
from smc_bridge.display import PrintedTable, headed
from smc_bridge.entry_points import reason_of
from smc_bridge.models.extras import need
from smc_bridge.models.pairs import Pair
from smc_bridge.registry import METHODS, spelled
from smc_bridge.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

#: Version of the file's layout.
FORMAT = 5
KIND = "smc-bridge comparison"
#: What every method is timed on before the first cell: problems, and tokens of each.
PROBED, LENGTH = 2, 16
#: Tokens that a method decodes to show that it runs on a pair at all.
TRIED = 2
#: Told of a method that is left out, and why.
LeftOut = Callable[[str, str], None]


def default_methods() -> tuple[str, ...]:
    """Spellings of all methods, those that each shows where nobody chooses."""
    return tuple(text for name in sorted(METHODS) for text in METHODS[name].examples)


@dataclass(frozen=True, repr=False)
class Comparison:
    """What a comparison found.

    Attributes:
        settings: everything but the models that it depends on.
        rows: one for each method.
        cells: records of the cells behind them.
    """

    settings: Settings
    rows: list[Row]
    cells: list[Record]

    def __repr__(self) -> str:
        s = self.settings
        return headed(
            f"Comparison on {s.n} problems of {s.task!r}: {s.shared}",
            [f"methods {', '.join(s.methods)}", "figures in .frame(), .table() and .rows"],
        )

    def table(self, task: str | None = None) -> PrintedTable:
        """The rows as a table that prints itself; `task` is what its title calls the task, by default its name."""
        s = self.settings
        return render(self.rows, title=f"{task or s.task}: {s.n} problems, {s.shared}")

    def frame(self) -> pd.DataFrame:
        """A data frame with a row for each method: the fields of `Row`, intervals as `NAME`, `NAME_low`, `NAME_high`.

        What does not apply to a method is NaN.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        need("pandas", "data frames", extra="analysis")
        import pandas as pd

        return pd.DataFrame([row.flat() for row in self.rows])


def compare(
    settings: Settings, *, path: Path | None = None, fresh: bool = False, pair: Pair | Models | None = None,
    task: Task | None = None, workers: int = 1, report: Report | None = None, show: bool = False,
    estimate: Callable[[float], None] | None = None, left_out: LeftOut | None = None,
) -> Comparison:
    """Run, or continue, a comparison.

    Args:
        settings: see `Settings`.
        path: file that holds the comparison; unfinished work is kept beside it. None keeps nothing.
        fresh: start anew, whatever the files hold.
        pair: models, or what loads them (every worker its own); by default the task's.
        task: problems and grading; by default the one that the settings name.
        workers: processes (`smc_bridge.analysis.workers`), each with its own copy of the models. They do not enter the
            figures, except that the last bits of a float32 sum may depend on the threads of a process.
        report: told of every record that was made, in the order in which cells finish.
        show: progress on standard error.
        estimate: told before the first cell how many seconds all of them will take, by a few tokens of each method.
        left_out: told of every method that cannot run on the pair, and the reason; the comparison is then that of the
            others. Without it the first such method is an error.
    Raises:
        ValueError: an argument is out of range, a method cannot run on the pair, or the file is something else, has
            other settings, or is being written by another process.
        FileNotFoundError: the pair's weights are not installed.
        OSError: of `map_cells`, where the cluster or a worker fails; what is done is kept.
    """
    config = settings.study()
    check_workers(workers)
    loaded = load_problems(config.source, pair=pair, task=task)
    if left_out is not None:
        settings = replace(settings, methods=runnable(settings, loaded, left_out))
        config = settings.study()
    check_samplers(config, loaded)
    plan = cells(config)
    header = {"kind": KIND, "format": FORMAT, **settings.to_dict(), **fingerprints(config, loaded, {})}
    kept = open_store(path, header, argument="--json", noun="comparison", fresh=fresh, whole=True, **of_plan(plan))
    with kept as store:
        clock, todo = None, waiting(plan, store)
        if estimate is not None and todo:
            clock = Clock(todo, paces(todo, loaded), workers=workers)
            estimate(clock.left)
        make = partial(Laboratory, config, loading(config, loaded, pair, task, workers))
        del loaded  # the workers have their own
        records = run_cells(plan, make, store, workers=workers, report=report, show=show, clock=clock)
        by_method = {name: [r for r in records if r["method"] == name] for name in settings.methods}
        rows = [
            summarise(name, own, targets=spelled(name).method.targets) for name, own in by_method.items()
        ]
        store.finish({"rows": [row.to_dict() for row in rows]})
    return Comparison(settings, rows, records)


def runnable(settings: Settings, problems: Problems, left_out: LeftOut) -> tuple[str, ...]:
    """The methods that decode a few tokens of the first problem on this pair.

    Raises:
        ValueError: there is none.
    """
    pair, task = problems.pair, problems.task
    assert pair is not None
    assert task is not None
    found = []
    for setting in settings.study().axes.settings():
        try:
            decoder = make_decoder(setting, pair, task)
            decode(decoder, problems.prompts[:1], max_new_tokens=min(TRIED, task.max_new_tokens))
        except Exception as error:  # whatever it is, the method does not run here
            told = isinstance(error, ValueError | ImportError)  # in words for people
            left_out(setting.method, " ".join(str(error).split()) if told else reason_of(error))
        else:
            found.append(setting.method)
    if not found:
        raise ValueError("methods: none of them can run on this pair; give other models, or methods by name")
    return tuple(found)


def paces(todo: Sequence[Work], problems: Problems) -> dict[str, float]:
    """Seconds that each sampler would take for a problem of half the length limit, from the first tokens of a few."""
    pair, task = problems.pair, problems.task
    assert pair is not None
    assert task is not None
    few = problems.prompts[:PROBED]
    limits = Limits(min(LENGTH, task.max_new_tokens), min(LENGTH, task.lookahead), task.window)
    found: dict[str, float] = {}
    for work in todo:
        if work.label in found:
            continue
        decoder = make_decoder(work.setting, pair, limits)

        def short(decoder: Any = decoder) -> tuple[float, float]:
            began = time.perf_counter()
            results = decode(decoder, few, seed=range(len(few)), max_new_tokens=limits.max_new_tokens)
            return time.perf_counter() - began, sum(result.tokens for result in results)

        if not found:
            short()  # what is slow only once is not timed
        seconds, tokens = short()
        found[work.label] = seconds / tokens * task.max_new_tokens / 2
    return found
