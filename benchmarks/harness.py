"""What every benchmark shares: the machine it ran on, interleaved repetitions, and a figure with its spread.

A machine is never as quiet as one would like, and its speed drifts. So nothing here is compared across runs: all cases
of a comparison run in turn within each round, in an order that rotates, and a ratio is taken within a round. What is
reported is the median over rounds with the least and the greatest.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from smc_bridge.estimate import Estimate

T = TypeVar("T")
C = TypeVar("C")

#: The repository.
HERE = Path(__file__).resolve().parent.parent
#: Told that one unit of work is done.
Advance = Callable[[], None]


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """Name of the processor, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return found or platform.processor() or platform.machine()


@dataclass(frozen=True)
class Machine:
    """Where a benchmark ran.

    Attributes:
        cpu: its name.
        cores: that the process may use.
        threads: of torch.
        device: where the models ran: `cpu`, or the accelerator's name.
        torch, python: versions.
        load: mean number of runnable processes over the minute before the start; None where the system does not say.
    """

    cpu: str
    cores: int
    threads: int
    device: str
    torch: str
    python: str
    load: float | None

    @classmethod
    def here(cls) -> Machine:
        """The machine that this process runs on, as it is now."""
        return cls(
            cpu=cpu_name(), cores=cores(), threads=torch.get_num_threads(),
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", torch=torch.__version__,
            python=platform.python_version(),
            load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        )

    def __str__(self) -> str:
        device = "" if self.device == "cpu" else f"{self.device}, "
        load = "" if self.load is None else f", load {self.load:g} at the start"
        return (
            f"{device}{self.cpu}, {self.cores} cores, torch {self.torch} with {self.threads} threads, "
            f"Python {self.python}{load}"
        )


def own_file(name: str, packages: Collection[str]) -> Path | None:
    """A source file from the repository's root if it is of one of its packages, else None."""
    file = Path(name)  # an environment may lie in the repository too
    inside = file.relative_to(HERE) if file.is_relative_to(HERE) else None
    return inside if inside is not None and inside.parts[0] in packages else None


def spread(values: Sequence[float]) -> Estimate:
    """Repetitions of one figure: their median, the least and the greatest.

    Raises:
        ValueError: there is none.
    """
    if not values:
        raise ValueError("values is empty: repeat the measurement at least once")
    return Estimate(statistics.median(values), min(values), max(values), len(values), "least and greatest")


def ratios(above: Sequence[float], below: Sequence[float]) -> Estimate:
    """Ratio within each round, `above[i] / below[i]`."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def over_rounds(runs: Sequence[Any], figure: str) -> Estimate:
    """A figure of the runs of all rounds, by its name."""
    return spread([getattr(run, figure) for run in runs])


def over(above: Sequence[Any], below: Sequence[Any], figure: str) -> Estimate:
    """Ratio of a figure, by its name, within each round of runs."""
    return ratios([getattr(run, figure) for run in above], [getattr(run, figure) for run in below])


def clock() -> float:
    """Time in seconds, after the accelerator has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds that `work` takes, and what it returns."""
    began = clock()
    value = work()
    return clock() - began, value


def interleaved(
    cases: Mapping[str, Callable[[], T]], rounds: int, *, warmup: int = 1, advance: Advance = lambda: None
) -> dict[str, list[T]]:
    """Run every case once in each round; each round starts with another case.

    Args:
        cases: by name; what a case returns is its measurement.
        rounds: how often each is measured.
        warmup: runs of each case beforehand whose measurements are thrown away.
    Returns:
        measurements of each case, by round.
    """
    names = list(cases)
    for _ in range(warmup):
        for name in names:
            cases[name]()
    found: dict[str, list[T]] = {name: [] for name in names}
    for _, name in turns(names, rounds):
        found[name].append(cases[name]())
        advance()
    return found


def turns(cases: Sequence[C], rounds: int) -> Iterator[tuple[int, C]]:
    """Every case once in each round, with the number of the round; each round starts with another case."""
    for i in range(rounds):
        turn = i % len(cases)
        for case in [*cases[turn:], *cases[:turn]]:
            yield i, case


@contextmanager
def progress(name: str, total: int) -> Iterator[Advance]:
    """A bar on standard error while a benchmark runs; nothing where that is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    shown = sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bar:
        task = bar.add_task(name, total=total)
        yield lambda: bar.advance(task)
