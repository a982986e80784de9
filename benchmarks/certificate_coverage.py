"""Certificate coverage: how often its interval holds the bound, by the number of runs, on several programs.

    python -m benchmarks.certificate_coverage [--programs a,b,..] [--counts 10,30,100,200,500] [--trials 2000]
        [--runs 1000] [--fresh] [--quick] [--threads N] [--seed 0] [--out runs] [--markdown]

Each program runs often, on the embedded pair over the held-out problems and on tabular pairs from an empty prompt. The
evidence of these runs is a *pool*, kept in `certificate_pools.jsonl`; independent samples of n are drawn from it, each
becomes a certificate, and the truth is the mean over the pool, of the plain terms `-log Z_hat` or of those that are
never negative, `Z_hat - 1 - log Z_hat`, whichever has the smaller standard error; of the plain ones where even the pool
falls short of `E[Z_hat] = 1` by Student's interval. An *upper miss* is an upper end below
the truth, the error that makes a certificate claim too much (nominal 2.5 %). `t of -log Z` is Student's interval of the
plain terms, held against their own mean in the pool; the others are those of `benchmarks.candidates`, of the terms that
are never negative, held against theirs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.candidates import CANDIDATES, LEVEL, Array, student
from benchmarks.harness import progress
from benchmarks.pools import PROGRAMS, Pools, pools
from benchmarks.report import Report, Sheet, Verdict, execute, several
from smc_bridge.certificate import FEW, certify
from smc_bridge.commands.base import one_of, whole
from smc_bridge.intervals import NAME

#: Upper misses wanted from `FEW` runs on.
WANTED = 0.05

#: Those that the aim is about.
AIMED = ("embedded-cold", "embedded-light", "mixture")


@dataclass(frozen=True)
class Cell:
    """One interval of one program at one number of runs.

    Attributes:
        program: its name.
        interval: its name.
        count: runs.
        covered, above, below: shares of intervals that hold the truth, end below it (upper misses), begin above it.
        width: median upper end by the truth; infinite where half of the intervals have none.
        warned: share of certificates that warn; NaN for other intervals.
        unwarned_above: upper misses among those that do not; NaN if there are none.
    """

    program: str
    interval: str
    count: int
    covered: float
    above: float
    below: float
    width: float
    warned: float = math.nan
    unwarned_above: float = math.nan

    @classmethod
    def of(cls, program: str, interval: str, count: int, low: Array, high: Array, truth: float, **more: float) -> Cell:
        """The figures from the ends of all samples' intervals."""
        above, below = high < truth, low > truth
        return cls(
            program, interval, count, float(np.mean(~above & ~below)), float(above.mean()), float(below.mean()),
            float(np.median(high)) / truth, **more,
        )


def study(program: str, pool: Array, count: int, trials: int) -> list[Cell]:
    """All intervals on `trials` samples of `count` runs."""
    truth = float(_positive(pool).mean())
    evidence = np.random.default_rng(count).choice(pool, (trials, count))
    terms = _positive(evidence)
    plain = student(-evidence)
    cells = [Cell.of(program, "t of -log Z", count, *plain, -float(pool.mean()))]
    with np.errstate(all="ignore"):
        cells += [Cell.of(program, name, count, *ends(terms), truth) for name, ends in CANDIDATES.items()]
    found = [certify(list(row), level=LEVEL) for row in evidence]
    low, high = (np.array([getattr(each, end) for each in found]) for end in ("low", "high"))
    warned = np.array([bool(each.warnings) or not each.has_interval for each in found])
    short = float(student(np.expm1(pool)[None])[1].item()) < 0.0  # even the pool does not see E[Z] = 1
    bound = -float(pool.mean()) if short or _positive(pool).std() > pool.std() else truth
    silent = high[~warned] < bound
    cells.append(Cell.of(
        program, NAME, count, low, high, bound, warned=float(warned.mean()),
        unwarned_above=float(silent.mean()) if silent.size else math.nan,
    ))
    return cells


def _positive(evidence: Array) -> Array:
    """`Z - 1 - log Z`."""
    return np.asarray(np.expm1(evidence) - evidence)


def measure(options: argparse.Namespace) -> Report:
    """Make the pools, draw samples from them, and tabulate how often each interval holds the bound."""
    every = pools(
        options.programs, options.out, runs=options.runs, tabular=options.tabular, seed=options.seed,
        fresh=options.fresh,
    )
    cells: list[Cell] = []
    with progress("certificates", len(every) * len(options.counts)) as advance:
        for name, pool in every.items():
            for count in options.counts:
                cells.extend(study(name, pool, count, options.trials))
                advance()
    worst = {
        name: max((c.above for c in cells if c.program == name and c.interval == NAME and c.count >= FEW), default=None)
        for name in AIMED
    }
    verdicts = [
        Verdict(f"upper misses from {FEW} runs on, {PROGRAMS[name][0]}", value, WANTED, least=False)
        for name, value in worst.items() if value is not None
    ]
    sheets = [_pool_sheet(every), _certificate_sheet(cells, every)]
    sheets += [_candidate_sheet(name, cells, options.counts) for name in every]
    data = {"cells": cells, "pools": {name: len(pool) for name, pool in every.items()}}
    return Report(sheets, data, partial(_draw, cells=cells, names=list(every)), size=(9.0, 4.4), verdicts=verdicts)


def _pool_sheet(every: Pools) -> Sheet:
    rows = []
    for name, pool in every.items():
        terms = _positive(pool)
        tenth = np.sort(terms)[-math.ceil(pool.size / 10):].sum() / terms.sum()
        rows.append((
            PROGRAMS[name][0], str(pool.size), f"{terms.mean():.3g}", f"{-pool.mean():.3g}", f"{terms.std():.3g}",
            f"{pool.std():.3g}", f"{float(stats.skew(terms)):.1f}", f"{tenth:.0%}", f"{float(stats.skew(-pool)):.1f}",
        ))
    return Sheet("Pools", (
        "program", "runs", "mean of the terms, nats", "of -log Z", "sd of the terms", "of -log Z", "skewness",
        "of the mean in the largest tenth", "skewness of -log Z",
    ), rows, "terms: Z - 1 - log Z")


def _certificate_sheet(cells: Sequence[Cell], every: Pools) -> Sheet:
    rows = [
        (
            PROGRAMS[cell.program][0], str(cell.count), f"{cell.covered:.1%}", f"{cell.above:.1%}",
            f"{cell.below:.1%}", f"{cell.width:.2g}", f"{cell.warned:.0%}",
            "-" if math.isnan(cell.unwarned_above) else f"{cell.unwarned_above:.1%}",
        )
        for cell in cells if cell.interval == NAME
    ]
    return Sheet(f"The certificate's interval ({NAME}), level {LEVEL:.0%}", (
        "program", "runs", "coverage", "upper misses", "lower misses", "median upper end / truth", "warned",
        "upper misses without a warning",
    ), rows, "an upper end that does not exist counts as infinite, and as warned")


def _candidate_sheet(name: str, cells: Sequence[Cell], counts: Sequence[int]) -> Sheet:
    own = [cell for cell in cells if cell.program == name]
    rows = []
    for interval in dict.fromkeys(cell.interval for cell in own):
        by_count = {cell.count: cell for cell in own if cell.interval == interval}
        rows.append((interval, *(f"{by_count[n].covered:.1%} / {by_count[n].above:.1%}" for n in counts)))
    return Sheet(
        f"Coverage / upper misses: {PROGRAMS[name][0]}", ("interval", *(f"n = {n}" for n in counts)), rows,
    )


def _draw(figure: Any, *, cells: Sequence[Cell], names: Sequence[str]) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    for ax, interval in zip(axes, ("t of -log Z", NAME), strict=True):
        for i, name in enumerate(names):
            own = [cell for cell in cells if cell.program == name and cell.interval == interval]
            ax.plot(
                [cell.count for cell in own], [100 * cell.above for cell in own], marker="osD^vP*X"[i % 8],
                markersize=4, color=f"C{i}", label=PROGRAMS[name][0],
            )
        ax.axhline(100 * (1 - LEVEL) / 2, color="black", linestyle=":", linewidth=1)
        ax.set_xscale("log")
        ax.set_xlabel("runs of a certificate")
        ax.set_title(interval, fontsize=10)
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("upper misses (%; dotted: nominal)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add this benchmark's arguments."""
    parser.add_argument(
        "--programs", type=several(one_of(PROGRAMS)), default="embedded-cold,mixture" if quick else ",".join(PROGRAMS),
        metavar="a,b,..", help=f"of {', '.join(PROGRAMS)}",
    )
    parser.add_argument(
        "--counts", type=several(whole(2)), default="5,10" if quick else "10,30,100,200,500", metavar="n,n,..",
        help="runs of a certificate",
    )
    parser.add_argument("--trials", type=whole(2), default=20 if quick else 2000, help="certificates of each size")
    parser.add_argument("--runs", type=whole(2), default=4 if quick else 1000, help="of a pool, embedded pair")
    parser.add_argument(
        "--tabular", type=whole(2), default=200 if quick else 20_000, help="of a pool, tabular pairs"
    )
    parser.add_argument("--fresh", action="store_true", help="run every program anew, whatever the file holds")


main = partial(execute, "certificate_coverage", __doc__, configure, measure)

if __name__ == "__main__":
    main()
