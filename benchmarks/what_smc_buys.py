"""What particles, lanes and bridges buy: KL bound, ESS, accuracy and speed on the embedded pair.

    python -m benchmarks.what_smc_buys [--n 200] [--threads N] [--seed 0] [--fresh] [--quick]
        [--page docs/benchmarks/what_smc_buys.md] [--out runs] [--markdown]

Every row is a call of `smc-bridge compare`, whose arguments stand in its first column; rows with many drafts have
fewer problems. The rows are those of `benchmarks/tables.toml`: a line there is a row here. Each is kept in a file under
`OUT/rows`, so that a second call goes on where the first one was. Processes of one thread share them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.comparisons import Case, Figures, add_arguments, make_rows, with_w
from benchmarks.harness import HERE
from benchmarks.problems import TABLES
from benchmarks.report import Report, Sheet, execute
from smc_bridge.analysis.plots import plot_against_particles, plot_frontier
from smc_bridge.certificate import FEW, kl_terms
from smc_bridge.estimate import Estimate
from smc_bridge.intervals import NAME, ratio_interval

PAGE: Path = HERE / "docs" / "benchmarks" / f"{Path(__file__).stem}.md"
TABLE: dict[str, Any] = TABLES[PAGE.stem]
GRID, WARM, BRIDGES = "Particles N and lanes K", "Particles N, at temperature 1", "Bridges"
#: The bridge that a method has unless it says another.
POE = "poe"
#: x, y, low, high; or N, x, y, low, high.
Lines = dict[str, tuple[Sequence[float], ...]]


class Made(NamedTuple):
    """The rows of every table.

    Attributes:
        tables: by title.
        figures: of every row.
    """

    tables: Mapping[str, Sequence[Case]]
    figures: Mapping[Case, Figures]

    def of(self, title: str) -> list[Figures]:
        """The rows of a table."""
        return [self.figures[case] for case in self.tables[title]]


def tables(n: int, seed: int, *, quick: bool = False) -> dict[str, list[Case]]:
    """The rows of every table, those with many drafts of fewer problems."""
    bridges, cold, warm = TABLE["bridges"], float(TABLE["temperature"]), float(TABLE["warm"]["temperature"])
    methods = {
        GRID: (cold, _sizes(TABLE["grid"])), WARM: (warm, _sizes(TABLE["warm"])),
        **{title: (cold, every) for title, every in TABLE["tables"].items()},
        BRIDGES: (cold, [
            size + ("" if law == POE else f",intermediate={law}")
            for law in bridges["intermediates"] for size in _sizes(bridges)
        ]),
    }
    ws = TABLE["w"][:1] if quick else TABLE["w"]
    found = {}
    for title, (temperature, every) in methods.items():
        spellings = dict.fromkeys(with_w(method, w) for w in ws for method in every)
        cases = [Case(text, n, temperature, seed) for text in spellings]
        if quick:
            few = [case for case in cases if case.drafts <= TABLE["quick"]]
            cases = list(dict.fromkeys([*few[:2], few[-1]]))
        found[title] = [Case(case.method, max(2, round(_share(case) * n)), temperature, seed) for case in cases]
    return found


def _sizes(told: Mapping[str, Any]) -> list[str]:
    """`smc` of every N and K of a table, of so many drafts at most."""
    return [
        f"smc-{size}" if lanes == 1 else f"smc-{size}x{lanes}"
        for lanes in told["lanes"] for size in told["particles"] if size * lanes <= told.get("most", math.inf)
    ]


def _share(case: Case) -> float:
    """Share of the problems that a row has."""
    return next(float(share) for most, share in TABLE["share"].items() if case.drafts <= int(most))


def lines_of(figures: Sequence[Figures]) -> dict[str, list[Figures]]:
    """Rows that differ in N alone, by what they have in common."""
    found: dict[str, list[Figures]] = {}
    for each in figures:
        options, case = each.case.spelled.options, each.case
        law = options.get("intermediate", POE)
        parts = ["PoE" if law == POE else str(law)]
        parts += [f"{name} = {options[name]:g}" for name in ("w", "beta") if name in options]
        parts += [f"K = {case.option('lanes')}"] if case.option("lanes") > 1 else []
        found.setdefault(", ".join(parts), []).append(each)
    return found


def measure(options: argparse.Namespace) -> Report:
    """The tables, how bounds fall, and the pictures of the first and the last table."""
    plan = tables(options.n, options.seed, quick=options.quick)
    made = Made(plan, make_rows(
        [case for cases in plan.values() for case in cases], options.out / "rows", processes=options.threads,
        fresh=options.fresh,
    ))
    sheets = [_sheet(title, made.of(title)) for title in plan]
    fallen = {
        **lines_of(made.of(GRID)), **{f"{name}, temperature 1": line for name, line in lines_of(made.of(WARM)).items()},
    }
    sheets.insert(2, _falling(fallen))
    data = {"rows": [
        {"command": f"smc-bridge compare {case.arguments}", **vars(found)} for case, found in made.figures.items()
    ]}
    return Report(
        sheets, data, partial(_draw, made), size=(10.0, 4.4),
        spread=f"target temperature {TABLE['temperature']:g} where no other is said; in brackets 95 % intervals, of "
        f"bounds those of certificate.md, †: of fewer than {FEW} runs, where the upper end is too low more often than "
        f"it says; tokens/s: of one process of one thread, {options.threads} at a time",
        picture="KL bound against particles; tokens per DLM forward against KL bound, over particles of one lane",
    )


def _sheet(title: str, figures: Sequence[Figures]) -> Sheet:
    columns = (
        "smc-bridge compare", "KL bound, nats / sequence", "nats / token", "ESS", "accuracy, %", "tokens / DLM forward",
        "AR rows / token", "DLM rows / token", "tokens/s",
    )
    return Sheet(title, columns, [_cells(each) for each in figures])


def _cells(each: Figures) -> list[str]:
    row = each.row
    few = "" if each.case.n >= FEW else " †"
    ess = "-" if row.ess is None or row.particles == 1 else f"{row.ess:.2f} of {row.particles}"
    return [
        f"`{each.case.arguments}`", *("-" if bound is None else bound.text() + few for bound in (
            row.nats, row.nats_per_token)), ess,
        "-" if row.accuracy is None else row.accuracy.times(100).text(".1f"),
        "-" if row.tokens_per_dlm_forward is None else row.tokens_per_dlm_forward.text(".2f"),
        f"{each.ar_rows:.2f}", f"{each.dlm_rows:.2f}", f"{row.tokens_per_second:.0f}",
    ]


def falls(before: Sequence[float], after: Sequence[float]) -> Estimate | None:
    """Ratio of two bounds per sequence, that of `after` over that of `before`, on the problems that both have.

    Args:
        before, after: `log Z_hat` of the first problems of the task, nats.
    Returns:
        the ratio with its bootstrap-t interval over problems; None where a bound is infinite, or the first one 0.
    """
    shared = min(len(before), len(after))
    under, over = (kl_terms(each[:shared]) for each in (before, after))
    if not (np.isfinite(under).all() and np.isfinite(over).all() and under.any()):
        return None
    low, high = ratio_interval(over, under)
    return Estimate(float(over.sum() / under.sum()), max(low, 0.0), high, shared, NAME)


def _falling(lines: Mapping[str, Sequence[Figures]]) -> Sheet:
    """Ratios of bounds, each N over the one before it."""
    counts = sorted({each.case.option("particles") for line in lines.values() for each in line})
    steps = list(pairwise(counts))
    rows = []
    for name, line in lines.items():
        of = {each.case.option("particles"): each.log_evidences for each in line if each.log_evidences is not None}
        found = [falls(of[a], of[b]) if a in of and b in of else None for a, b in steps]
        rows.append([name, *("-" if ratio is None else ratio.text(".2f") for ratio in found)])
    return Sheet(
        "How the bound per sequence falls", ("bridge", *(f"N = {b} over N = {a}" for a, b in steps)), rows,
        "Ratios on the problems that both rows have. Where the bound falls as 1/N they are "
        + ", ".join(f"{a / b:g} (N = {b})" for a, b in steps) + ".",
    )


def _draw(made: Made, figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    grid: Lines = {
        name: _with_bounds([each.case.option("particles") for each in line], line, "nats")
        for name, line in lines_of(made.of(GRID)).items()
    }
    plot_against_particles(grid, ax=left)
    left.set(ylabel=f"KL bound, temperature {TABLE['temperature']:g} (nats per sequence)")
    bridges: Lines = {}
    for name, line in lines_of([each for each in made.of(BRIDGES) if each.case.option("lanes") == 1]).items():
        particles = [each.case.option("particles") for each in line]
        counts, bounds, low, high = _with_bounds(particles, line, "nats_per_token")
        tokens = [each.row.tokens_per_dlm_forward for each in line]
        bridges[name] = (counts, bounds, [each.value for each in tokens if each is not None], low, high)
    plot_frontier(bridges, right, along="N")
    right.set(ylabel=f"tokens per DLM forward, temperature {TABLE['temperature']:g}")


def _with_bounds(counts: Sequence[float], line: Sequence[Figures], name: str) -> tuple[Sequence[float], ...]:
    """Counts, bounds, and the ends of their intervals, NaN where there are none."""
    found: list[Estimate] = [getattr(each.row, name) for each in line]
    ends = [(bound.low, bound.high) if bound.has_interval else (np.nan, np.nan) for bound in found]
    return (counts, [bound.value for bound in found], *map(list, zip(*ends, strict=True)))


main = partial(execute, PAGE.stem, __doc__, add_arguments, measure, page=PAGE, shared=True)

if __name__ == "__main__":
    main()
