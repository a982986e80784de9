"""The file of a study: cells are appended as they are done (`smc_bridge.analysis.journal`), and read again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smc_bridge.analysis.comparison.settings import fingerprint
from smc_bridge.analysis.journal import Journal
from smc_bridge.analysis.prices import Cost
from smc_bridge.analysis.study import identity
from smc_bridge.analysis.study.cells import Work
from smc_bridge.analysis.study.checks import is_record
from smc_bridge.analysis.study.config import Block, Config, Prompts, Tabular
from smc_bridge.analysis.study.figures import Record
from smc_bridge.analysis.study.frame import to_frame
from smc_bridge.analysis.study.plan import MakeIntermediate
from smc_bridge.analysis.study.sources import Problems

if TYPE_CHECKING:
    import pandas as pd

#: Version of the file's layout.
FORMAT = 2
KIND = "smc-bridge study"
#: Entries of the header besides the configuration's.
BESIDES = ("kind", "format", "pair", "models", "custom", "problems")

#: Told of every finished cell, with how many are done and how many there are.
Report = Callable[[Record, int, int], None]


def cell_key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What names a cell, hashable; 1 and 1.0 are one value."""
    return tuple(sorted(
        (name, value if value is None or isinstance(value, str | int | float) else repr(value))
        for name, value in record.items()
    ))


def run_count(config: Config, work: Work) -> int:
    """Runs behind a cell."""
    if isinstance(work.point, Block):
        assert isinstance(config.source, Prompts)
        return len(config.source.problems(work.point.block))
    assert isinstance(config.source, Tabular)
    return config.source.runs


def read_records(
    records: Iterable[Record], config: Config, plan: Iterable[Work], foreign: Exception
) -> dict[tuple[Any, ...], Record]:
    """Records by their cell, the first one of each; `foreign` is raised unless all belong to the plan."""
    planned = {cell_key(work.key()): work for work in plan}
    found: dict[tuple[Any, ...], Record] = {}
    for record in records:
        names = next(iter(planned.values())).key()
        key = cell_key({name: record.get(name) for name in names})
        if key not in planned or not is_record(record, list(names), run_count(config, planned[key])):
            raise foreign
        found.setdefault(key, record)
    return found


class Rows:
    """Finished cells, on disk too.

    Args:
        path: of the file, or None to keep them in memory.
        plan: all cells of the study.
        custom: intermediates by name besides ours.
        fresh: drop what the file holds.
    Raises:
        ValueError: the file cannot be read, is something else, or belongs to another study.
    """

    def __init__(
        self, path: Path | None, config: Config, problems: Problems, plan: list[Work],
        custom: Mapping[str, MakeIntermediate], *, fresh: bool,
    ) -> None:
        self.records: dict[tuple[Any, ...], Record] = {}
        self.total = len(plan)
        self.names = list(plan[0].key())
        self.journal: Journal | None = None
        if path is None:
            return
        self.journal = Journal(path, header(config, problems, custom), argument="--out", noun="study")
        if fresh:
            self.journal.clear()
            return
        self.records = read_records(self.journal.resume(), config, plan, self.journal.foreign(path))

    def take(self, found: Iterable[tuple[int, Record]], report: Report | None) -> None:
        """Keep cells as they come, from (index, record) pairs."""
        for _, record in found:
            if self.journal is not None:
                self.journal.append(record)
            self.records[cell_key({name: record[name] for name in self.names})] = record
            if report is not None:
                report(record, len(self.records), self.total)


def header(config: Config, problems: Problems, custom: Mapping[str, MakeIntermediate]) -> dict[str, Any]:
    """First line of the file: the configuration, and fingerprints of what it only names."""
    return {
        "kind": KIND, "format": FORMAT, **config.header(),
        "pair": problems.identity, "models": "" if problems.pair is None else fingerprint(problems.pair),
        "custom": identity.intermediates(config, problems, custom), "problems": identity.prompts(config, problems),
    }


def cells(config: Config) -> list[Work]:
    """All cells in the order of the rows: settings, then points of the source, then seeds."""
    return [
        Work(setting, point, seed)
        for setting in config.axes.settings() for point in config.source.points() for seed in config.axes.seeds
    ]


def load_study(path: str | Path, *, cost: Cost | None = None, argument: str = "path") -> pd.DataFrame:
    """The rows of a saved study, also of one that is not finished; the file is left as it is.

    Args:
        path: of the file.
        cost: prices for the column `cost`.
        argument: what the user typed before the path, for messages.
    Raises:
        ValueError: the file cannot be read, is no study, or has no finished cell.
    """
    journal = Journal(Path(path), {"kind": KIND, "format": FORMAT}, argument=argument, noun="study")
    head, records = journal.load()
    try:
        config = Config.from_dict({k: v for k, v in head.items() if k not in BESIDES})
    except (ValueError, TypeError) as error:
        raise journal.foreign(journal.path) from error
    plan = cells(config)
    found = read_records(records, config, plan, journal.foreign(journal.path))
    rows = [found[key] for key in (cell_key(work.key()) for work in plan) if key in found]
    if not rows:
        raise ValueError(f"{argument} = {path}: no part of the study is done; run it first")
    return to_frame(rows, cost or Cost())
