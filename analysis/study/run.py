"""`study`: a Cartesian experiment, a row for every sampler, point of the source and seed.

Every cell is a pure function of the configuration, so that a study which was killed and begun again, or spread over
processes, gives the same rows as one in a single go, timings aside. Cells are appended to a file as they are done
(`smc_bridge.analysis.journal`), in whatever order; the rows come in the order of the axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smc_bridge.analysis.lock import holding
from smc_bridge.analysis.progress import progress
from smc_bridge.analysis.study.cells import Runner, build_sampler
from smc_bridge.analysis.study.config import Config, Prompts
from smc_bridge.analysis.study.figures import Record
from smc_bridge.analysis.study.frame import to_frame
from smc_bridge.analysis.study.plan import WEIGHTED, MakeIntermediate
from smc_bridge.analysis.study.sources import Problems, find_task, load_elsewhere, load_problems, tabular_pair
from smc_bridge.analysis.study.store import Report, Rows, cell_key, cells
from smc_bridge.analysis.workers import check_workers, map_cells
from smc_bridge.commands.models import Models
from smc_bridge.models.extras import need
from smc_bridge.models.pairs import PAIRS, Pair
from smc_bridge.tasks import Task

if TYPE_CHECKING:
    import pandas as pd


def study(
    config: Config | Mapping[str, Any] | str | Path | None = None, *, path: str | Path | None = None,
    fresh: bool = False, workers: int = 1, pair: Pair | Models | None = None, problems: Task | None = None,
    custom: Mapping[str, MakeIntermediate] | None = None, report: Report | None = None, show: bool = False,
    **arguments: Any,
) -> pd.DataFrame:
    """Run, or continue, a study.

        study(methods=["smc", "plain-is"], particles=[1, 4, 16], tabular={"alphabets": 3, "lengths": 4})

    Args:
        config: a `Config`, the data of one, or a TOML file; or give its entries as `arguments`.
        path: file of the results; what it holds already is not run again, and a file whose intermediates or problems
            of your own were others is refused. None keeps nothing.
        fresh: start anew, whatever study the file holds.
        workers: processes (`smc_bridge.analysis.workers`).
        pair, problems: models (or their names, which every worker loads) and a task of your own instead of those that
            `[task]` names.
        custom: intermediates of your own, name -> function of w, which `intermediates` may then list.
        report: told of every cell that was run, in the order in which cells finish.
        show: progress on standard error.
    Returns:
        A data frame (`smc_bridge.analysis.study.frame`).
    Raises:
        ValueError: an argument is out of range, or the file is something else, has other settings, or is being
            written by another process.
        FileNotFoundError: the pair's weights are not installed.
        MissingExtraError: pandas is not installed; nothing is computed then.
        OSError: of `map_cells`, where the cluster or a worker fails; what is done is kept.
    """
    need("pandas", "studies", extra="analysis")
    chosen = as_config(config, arguments)
    check_workers(workers)
    own = dict(custom or {})
    chosen.axes.check_intermediates(own)
    plan = cells(chosen)
    loaded = load_problems(chosen.source, pair=pair, task=problems)
    check_samplers(chosen, loaded, own)
    file = None if path is None else Path(path)
    with holding(file, argument="--out"):
        store = Rows(file, chosen, loaded, plan, own, fresh=fresh)
        waiting = [work for work in plan if cell_key(work.key()) not in store.records]
        if workers == 1:
            load: Callable[[], Problems] = partial(_given, loaded)
        else:
            known = find_task(chosen.source, problems) if isinstance(chosen.source, Prompts) else None
            entry = None if known is None else PAIRS.get(known.pair)
            load = partial(load_elsewhere, chosen.source, pair, known, entry)
        del loaded  # the workers have their own
        with closing(map_cells(partial(Runner, chosen, load, own), waiting, workers=workers)) as found:
            if show and waiting:
                with progress(len(plan)) as tell:
                    store.take(found, lambda record, done, total: _both(report, tell, record, done, total))
            else:
                store.take(found, report)
    return to_frame([store.records[cell_key(work.key())] for work in plan], chosen.cost)


def as_config(config: Config | Mapping[str, Any] | str | Path | None, arguments: Mapping[str, Any]) -> Config:
    """The configuration, from wherever it comes; ValueError if it comes from two places."""
    if config is None:
        return Config.from_dict(arguments)
    if arguments:
        raise ValueError(f"{next(iter(arguments))} with a config: change the config, or give arguments alone")
    if isinstance(config, Config):
        return config
    return Config.from_dict(config) if isinstance(config, Mapping) else Config.from_toml(Path(config))


def check_samplers(config: Config, problems: Problems, custom: Mapping[str, MakeIntermediate]) -> None:
    """Make every sampler once, so that what cannot run is refused before any work is done."""
    point = config.source.points()[0]
    pair = problems.pair
    if pair is None:
        assert not isinstance(config.source, Prompts)
        pair = tabular_pair(config.source.points()[0], config.source)
    for setting in config.axes.settings():
        if setting.method in WEIGHTED:
            build_sampler(setting, pair, problems.limits(point, config.lookahead, setting.window), custom)


def _given(problems: Problems) -> Problems:
    return problems


def _both(
    report: Report | None, tell: Callable[[int, str, str], None], record: Record, done: int, total: int
) -> None:
    """Tell the progress and the caller."""
    name = " ".join(str(record[key]) for key in ("method", "intermediate") if record[key] is not None)
    tell(done, name, f"{record['runs']} runs in {record['runs'] * record['seconds']:.1f} s")
    if report is not None:
        report(record, done, total)
