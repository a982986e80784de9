"""`study`: a Cartesian experiment, a row for every sampler, point of the source and seed.

Cells are run by `smc_bridge.analysis.runner` and appended to a file as they are done, in whatever order; the rows come
in the order of the axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smc_bridge.analysis.journal import Journal
from smc_bridge.analysis.prices import Cost
from smc_bridge.analysis.runner import Report, run_cells
from smc_bridge.analysis.store import Record, Store, open_store
from smc_bridge.analysis.study.cells import Laboratory, Work, cells
from smc_bridge.analysis.study.checks import is_record
from smc_bridge.analysis.study.config import Config, Prompts
from smc_bridge.analysis.study.frame import to_frame
from smc_bridge.analysis.study.identity import fingerprints
from smc_bridge.analysis.study.plan import MakeIntermediate
from smc_bridge.analysis.study.sources import Problems, find_task, load_elsewhere, load_problems
from smc_bridge.analysis.workers import check_workers
from smc_bridge.commands.models import Models
from smc_bridge.models.extras import need
from smc_bridge.models.pairs import PAIRS, Pair
from smc_bridge.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

#: Version of the file's layout.
FORMAT = 3
KIND = "smc-bridge study"
#: Entries of the header besides the configuration's.
BESIDES = ("kind", "format", "pair", "models", "custom", "problems")


def study(
    config: Config | Mapping[str, Any] | str | Path | None = None, *, path: str | Path | None = None,
    fresh: bool = False, workers: int = 1, pair: Pair | Models | None = None, problems: Task | None = None,
    custom: Mapping[str, MakeIntermediate] | None = None, report: Report | None = None, show: bool = False,
    **arguments: Any,
) -> pd.DataFrame:
    """Run, or continue, a study.

        study(methods=["smc", "smc,kernel=block"], particles=[1, 4, 16], tabular={"alphabets": 3, "lengths": 4})

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
    loaded = load_problems(chosen.source, pair=pair, task=problems)
    check_samplers(chosen, loaded, own)
    header = {"kind": KIND, "format": FORMAT, **chosen.header(), **fingerprints(chosen, loaded, own)}
    plan = cells(chosen)
    file = None if path is None else Path(path)
    with open_store(file, header, argument="--out", noun="study", fresh=fresh, **of_plan(plan)) as store:
        make = partial(Laboratory, chosen, loading(chosen, loaded, pair, problems, workers), own)
        del loaded  # the workers have their own
        records = run_cells(plan, make, store, workers=workers, report=report, show=show)
    return to_frame(records, chosen.cost)


def of_plan(plan: Sequence[Work]) -> dict[str, Any]:
    """Arguments of a store: what names the cells of a plan, and what are records of theirs."""
    keys = [work.key() for work in plan]
    names = list(keys[0])
    sizes = {tuple(key.values()): work.size for key, work in zip(keys, plan, strict=True)}

    def valid(record: Record) -> bool:
        return is_record(record, names, sizes[tuple(record[name] for name in names)])

    return {"keys": keys, "valid": valid}


def loading(
    config: Config, loaded: Problems, pair: Pair | Models | None, task: Task | None, workers: int
) -> Callable[[], Problems]:
    """What gives a process its models and prompts: those that are loaded, or for others the names to load them by."""
    if workers == 1:
        return lambda: loaded
    known = find_task(config.source, task) if isinstance(config.source, Prompts) else None
    return partial(load_elsewhere, config.source, pair, known, None if known is None else PAIRS.get(known.pair))


def as_config(config: Config | Mapping[str, Any] | str | Path | None, arguments: Mapping[str, Any]) -> Config:
    """The configuration, from wherever it comes; ValueError if it comes from two places."""
    if config is None:
        return Config.from_dict(arguments)
    if arguments:
        raise ValueError(f"{next(iter(arguments))} with a config: change the config, or give arguments alone")
    if isinstance(config, Config):
        return config
    return Config.from_dict(config) if isinstance(config, Mapping) else Config.from_toml(Path(config))


def check_samplers(config: Config, problems: Problems, custom: Mapping[str, MakeIntermediate] | None = None) -> None:
    """Make every sampler once, so that what cannot run is refused before any work is done."""
    laboratory = Laboratory(config, lambda: problems, custom)
    seen = set()
    for work in cells(config):
        if work.setting not in seen:
            seen.add(work.setting)
            laboratory.decoder(work)


def load_study(path: str | Path, *, cost: Cost | None = None, argument: str = "path") -> pd.DataFrame:
    """The rows of a saved study, also of one that is not finished; the file is left as it is.

    Args:
        path: of the file.
        cost: prices for the column `cost`.
        argument: what the user typed before the path, for messages.
    Raises:
        ValueError: the file cannot be read, is no study, or has no finished cell.
    """
    records = saved_records(Path(path), argument)
    if not records:
        raise ValueError(f"{argument} = {path}: no part of the study is done; run it first")
    return to_frame(records, cost or Cost())


def saved_records(path: Path, argument: str) -> list[Record]:
    """Records of a saved study in their order; errors as `load_study`."""
    journal = Journal(path, {"kind": KIND, "format": FORMAT}, argument=argument, noun="study")
    head, lines = journal.load()
    try:
        plan = cells(Config.from_dict({k: v for k, v in head.items() if k not in BESIDES}))
    except (ValueError, TypeError) as error:
        raise journal.foreign(path) from error
    store = Store(None, journal.header, noun="study", argument=argument, **of_plan(plan))
    store.take(lines, journal.foreign(path))
    return store.records
