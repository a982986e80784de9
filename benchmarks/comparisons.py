"""Rows of a table, each of which is one call of `smc-bridge compare`, and the figures that follow from it.

A row is a method with its options, a number of problems and a temperature. What it draws depends on nothing else, so
that rows that are made together are those that the command by itself gives. Each is kept in a file of its own, the one
that the command would write: a benchmark that was interrupted goes on where it was, and a row that is added costs its
own time only.

Rows are shared among processes of one thread each: two threads of one process gain little on small models.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import progress
from smc_bridge.analysis.comparison import Comparison, Row, Settings, compare
from smc_bridge.commands.base import whole
from smc_bridge.models.pairs import Pair, load_pair
from smc_bridge.names import idle
from smc_bridge.registry import Spelled, spelled
from smc_bridge.tasks import TASKS

#: What is decoded.
TASK = "arithmetic"


@dataclass(frozen=True)
class Case:
    """A row to be made.

    Attributes:
        method: as it is spelled.
        n: problems, the first ones of the task.
        temperature: of the target.
        seed: of all draws.
    """

    method: str
    n: int
    temperature: float
    seed: int = 0

    @property
    def arguments(self) -> str:
        """What follows `smc-bridge compare` to make this row alone."""
        return arguments([self])

    @property
    def spelled(self) -> Spelled:
        """What the method means."""
        return spelled(self.method)

    def option(self, name: str) -> Any:
        """The value of an option that the method has, said or by default."""
        return self.spelled.options.get(name, self.spelled.method.option(name).default)

    @property
    def drafts(self) -> int:
        """Drafts of a problem in a step, N K; one of a decoder without particles or lanes."""
        sizes = {option.name for option in self.spelled.method.options} & {"particles", "lanes"}
        return math.prod(int(self.option(name)) for name in sizes)

    def file(self, folder: Path) -> Path:
        """Where the row is kept."""
        temperature = np.format_float_positional(self.temperature, trim="-")
        told = f"{self.method} n={self.n} T={temperature} seed={self.seed}"
        return folder / f"{told.translate(str.maketrans(' /:', '_+-'))}.json"


def arguments(cases: Sequence[Case]) -> str:
    """What follows `smc-bridge compare` to make these rows in one table.

    Raises:
        ValueError: they differ in more than the method.
    """
    if len({(case.n, case.temperature, case.seed) for case in cases}) != 1:
        raise ValueError(f"cases = {cases}: give rows of one number of problems, one temperature and one seed")
    first = cases[0]
    seed = f"--seed {first.seed} " if first.seed else ""
    return f"--n {first.n} --temperature {first.temperature:g} {seed}--methods {','.join(c.method for c in cases)}"


def with_w(method: str, w: float) -> str:
    """The spelling with this w, or as it is where it says one, or reads none."""
    found = spelled(method)
    has = any(option.name == "w" for option in found.method.options) and "w" not in found.options
    unread = "w" in idle(found.options.get("kernel"), found.options.get("intermediate"))
    return f"{method},w={w:g}" if has and not unread else method


@dataclass(frozen=True)
class Figures:
    """What a row gives.

    Attributes:
        case: what it is of.
        row: as `smc-bridge compare` shows it.
        dlm_rows, ar_rows: sequences that a forward of either model was given, by the tokens that came of it: what a run
            costs where a call's time grows with its rows.
        log_evidences: `log Z_hat` of each problem, nats; None without proper weights.
    """

    case: Case
    row: Row
    dlm_rows: float
    ar_rows: float
    log_evidences: tuple[float, ...] | None

    @classmethod
    def of(cls, case: Case, found: Comparison) -> Figures:
        """The figures of a comparison of one method."""
        def every(name: str) -> list[Any]:
            return [value for cell in found.cells for value in cell[name]]

        tokens = sum(every("tokens"))
        proper = all(cell["proper"] for cell in found.cells)
        return cls(
            case, found.rows[0], sum(every("dlm_rows")) / tokens, sum(every("ar_rows")) / tokens,
            tuple(float(z) for z in every("log_evidences")) if proper else None,
        )


@cache
def embedded_pair() -> Pair:
    """The models of every row, loaded once."""
    return load_pair(TASKS[TASK].pair)


def _one(case: Case, folder: Path, fresh: bool) -> Figures:
    """Make a row, or read it from its file."""
    settings = Settings(TASK, case.n, (case.method,), temperature=case.temperature, seed=case.seed)
    file = case.file(folder)
    if fresh:
        file.unlink(missing_ok=True)
    try:
        return Figures.of(case, compare(settings, path=file, pair=embedded_pair()))
    except ValueError as error:
        raise ValueError(f"{file} is no row of today's weights ({error}); delete it, or give --fresh") from error


def single_thread() -> None:
    """What a process that shares work with others does first."""
    torch.set_num_threads(1)


def make_rows(
    cases: Sequence[Case], folder: Path, *, processes: int = 1, fresh: bool = False
) -> dict[Case, Figures]:
    """Every row once.

    Args:
        cases: which; one that stands there twice is made once.
        folder: of their files.
        processes: that share the rows; the dearest begin first.
        fresh: make all of them anew, whatever the files hold.
    Raises:
        ValueError: a file holds something else, such as figures of other weights.
    """
    every = list(dict.fromkeys(cases))
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[Case, Figures] = {}
    with progress("rows", len(every)) as advance:
        if processes == 1:
            for case in every:
                found[case] = _one(case, folder, fresh)
                advance()
            return found
        method = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks
        with ProcessPoolExecutor(processes, mp_context=method, initializer=single_thread) as pool:
            dearest = sorted(every, key=lambda case: case.n * case.drafts, reverse=True)
            waiting = {pool.submit(_one, case, folder, fresh): case for case in dearest}
            try:
                for done in as_completed(waiting):
                    found[waiting[done]] = done.result()
                    advance()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    return {case: found[case] for case in every}


def add_arguments(parser: argparse.ArgumentParser, quick: bool, *, n: int = 200) -> None:
    """Add how many problems, `n` of them unless it is a smoke test, and whether what the files hold counts."""
    parser.add_argument("--n", type=whole(2), default=2 if quick else n, help=f"problems (default: {n})")
    parser.add_argument("--fresh", action="store_true", help="make every row anew, whatever the files in --out hold")
