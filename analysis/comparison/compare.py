"""`compare`: decode the same problems with several methods, and put their figures into one table.

The work is cut into cells, one method on one batch of problems. Batches do not depend on interruptions, and the draws
of a problem depend on the seed and on its prompt only (and on how often the prompt stood before it), so that a
comparison which was interrupted and continued gives the same figures as one in a single go, and one that was spread
over processes the same as one in this process, timings aside.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from smc_bridge.analysis.comparison.cells import Decoder, Work, decoder_elsewhere
from smc_bridge.analysis.comparison.effort import Clock, paces
from smc_bridge.analysis.comparison.methods import check_methods, make_method
from smc_bridge.analysis.comparison.settings import Settings, fingerprint, problems_fingerprint
from smc_bridge.analysis.comparison.store import Cell, open_store
from smc_bridge.analysis.comparison.table import Row, render, summarise
from smc_bridge.analysis.lock import holding
from smc_bridge.analysis.workers import check_workers, map_cells
from smc_bridge.commands.models import Models
from smc_bridge.display import PrintedTable, block
from smc_bridge.models.extras import need
from smc_bridge.models.pairs import PAIRS, Pair, load_pair
from smc_bridge.streams import seeds_apart
from smc_bridge.tasks import TASKS, Task, encode_prompts

if TYPE_CHECKING:
    import pandas as pd

#: Told of every finished cell, with how many are done and how many there are.
Report = Callable[[Cell, int, int], None]


@dataclass(frozen=True, repr=False)
class Comparison:
    """What a comparison found: its settings, one row a method, and the cells behind them."""

    settings: Settings
    rows: list[Row]
    cells: list[Cell]

    def __repr__(self) -> str:
        s = self.settings
        return block(
            f"Comparison on {s.n} problems of {s.task!r}: target temperature {s.temperature:g}, w = {s.weight:g}, "
            f"seed {s.seed}",
            [f"methods {', '.join(s.methods)}", "figures in .frame(), .table() and .rows"],
        )

    def table(self, task: str | None = None) -> PrintedTable:
        """The rows as a table that prints itself; `task` is what its title calls the task, by default its name."""
        s = self.settings
        return render(self.rows, title=(
            f"{task or s.task}: {s.n} problems, target temperature {s.temperature:g}, w = {s.weight:g}, seed {s.seed}"
        ))

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
    task: Task | None = None, workers: int = 1, report: Report | None = None,
    estimate: Callable[[Clock], None] | None = None,
) -> Comparison:
    """Run, or continue, a comparison.

    Args:
        settings: see `Settings`.
        path: file that holds the comparison; unfinished work is kept beside it. None keeps nothing.
        fresh: start anew, whatever the files hold.
        pair: models, or what loads them (every worker its own); by default the task's.
        task: problems and grading; by default the one that the settings name.
        workers: processes (`smc_bridge.analysis.workers`), each with its own copy of the models. They do not enter
        the figures,
            except that the last bits of a float32 sum may depend on the threads of a process.
        report: told of every cell that was decoded, in the order in which cells finish.
        estimate: told before the first cell how long all of them will take, by a few tokens of each method.
    Raises:
        ValueError: an argument is out of range, or the file is something else, has other settings, or is
            being written by another process.
        FileNotFoundError: the pair's weights are not installed.
        OSError: of `map_cells`, where the cluster or a worker fails; what is done is kept.
    """
    check_methods(settings.methods)
    check_workers(workers)
    if task is None:
        if settings.task not in TASKS:
            raise ValueError(f"task = {settings.task!r}: choose from {', '.join(TASKS)}")
        task = TASKS[settings.task]
    items = task.problems(settings.n)
    loaded = load_pair(task.pair) if pair is None else pair.load() if isinstance(pair, Models) else pair
    prompts = encode_prompts(loaded, task, items)
    seeds = seeds_apart(prompts, settings.seed)
    with holding(path, argument="--json"):
        header = {
            **settings.to_dict(), "pair": pair.identity if isinstance(pair, Models) else "",
            "models": fingerprint(loaded), "problems": problems_fingerprint(task, items, prompts),
        }
        store = open_store(path, header, fresh=fresh)
        cells = [(name, batch) for name in settings.methods for batch in range(settings.batches)]
        waiting = []
        for name, batch in cells:
            if (name, batch) not in store.cells:
                chosen = settings.problems(batch)
                waiting.append(Work(
                    name, batch, tuple(items[i] for i in chosen), tuple(prompts[i] for i in chosen),
                    tuple(seeds[i] for i in chosen),
                ))
        methods = dict.fromkeys(work.method for work in waiting)
        for name in methods:
            # What cannot run is refused before any work is done.
            make_method(name, loaded, task, temperature=settings.temperature, weight=settings.weight)
        if estimate is not None and waiting:
            expected = paces(methods, loaded, task, prompts, settings)
            estimate(Clock([(work.method, len(work.items)) for work in waiting], expected, workers=workers))
        if workers == 1:
            make = partial(Decoder, settings, task, loaded)
        else:
            make = partial(decoder_elsewhere, settings, task, pair, PAIRS.get(task.pair))
        del loaded  # the workers have their own
        with closing(map_cells(make, waiting, workers=workers)) as found:
            for _, cell in found:
                store.add(cell)
                if report is not None:
                    report(cell, len(store.cells), len(cells))
        done = [store.cells[cell] for cell in cells]
        rows = [summarise(name, [cell for cell in done if cell.method == name]) for name in settings.methods]
        store.finish({"rows": [row.to_dict() for row in rows]}, done)
    return Comparison(settings, rows, done)
