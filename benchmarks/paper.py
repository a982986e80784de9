"""The paper's ablations (arXiv 2606.08048) on the embedded pair, each beside the paper's own figures.

    python -m benchmarks.paper [--n 200] [--threads N] [--seed 0] [--fresh] [--quick]
        [--page docs/benchmarks/paper.md] [--out runs] [--markdown]

The rows, and the paper's figures, are those of `benchmarks/tables.toml`; under each table stands the `smc-bridge
compare` that makes it. Models, tasks and machine differ, so shape is compared with shape: in parentheses a figure by
that of the first row of its column. Rows are kept and shared among processes as in `benchmarks.what_smc_buys`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.comparisons import Case, Figures, add_arguments, arguments, make_rows
from benchmarks.harness import HERE
from benchmarks.pages import error_bars
from benchmarks.problems import TABLES
from benchmarks.report import Report, Sheet, Verdict, execute
from smc_bridge.analysis.plots.style import BLUE, GREEN, RED
from smc_bridge.estimate import Estimate

NAME = Path(__file__).stem
#: Figures of the paper, as the table names them, and as the columns do.
THEIRS = {"accuracy": "accuracy, %", "tokens_per_step": "tokens / step", "tokens_per_second": "tokens/s"}


class Part(NamedTuple):
    """One table at one temperature.

    Attributes:
        told: its entry in `tables.toml`.
        temperature: of the target.
        cases: its rows.
    """

    told: dict[str, Any]
    temperature: float
    cases: list[Case]


def parts(n: int, seed: int, *, quick: bool = False) -> list[Part]:
    """Every table; of a smoke test two rows of each, at its first temperature."""
    found = []
    for told in TABLES[NAME]["tables"]:
        rows = told["rows"][:2] if quick else told["rows"]
        for temperature in told["temperatures"][:1] if quick else told["temperatures"]:
            found.append(Part(
                {**told, "rows": rows}, temperature, [Case(row["method"], n, temperature, seed) for row in rows]
            ))
    return found


def measure(options: argparse.Namespace) -> Report:
    """All tables, and the sweep over w as a picture."""
    every = parts(options.n, options.seed, quick=options.quick)
    made = make_rows(
        [case for part in every for case in part.cases], options.out / "rows", processes=options.threads,
        fresh=options.fresh,
    )
    figures = [[made[case] for case in part.cases] for part in every]
    sheets = [_sheet(part, rows) for part, rows in zip(every, figures, strict=True)]
    aims = [] if options.quick else _aims(made)
    drawn = [(part, rows) for part, rows in zip(every, figures, strict=True) if part.told.get("drawn")]
    data = {"tables": [
        {"title": sheet.title, "command": f"smc-bridge compare {arguments(part.cases)}", "rows": [
            {**vars(row), "theirs": told} for row, told in zip(rows, part.told["rows"], strict=True)
        ]} for sheet, part, rows in zip(sheets, every, figures, strict=True)
    ]}
    return Report(
        [*sheets, *([_met(aims)] if aims else [])], data, partial(_draw, drawn), size=(9.6, 3.8),
        spread=f"{options.n} problems; in brackets 95 % intervals, in parentheses ratios to the first figure of the "
        f"column; tokens/s: of one process of one thread, {options.threads} at a time",
        picture="Tokens per DLM forward, accuracy and KL bound over w, and the paper's points",
        verdicts=[verdict for aim in aims for verdict in aim.verdicts],
    )


class Aim(NamedTuple):
    """A figure that the embedded pair was made for.

    Attributes:
        claim: which, and at which temperature.
        seen: the figure.
        shown: the same with its interval, which a ratio of two rows has not.
        wanted: the least and the most.
    """

    claim: str
    seen: float
    shown: str
    wanted: tuple[float, float]

    @property
    def verdicts(self) -> list[Verdict]:
        """Its bounds, those that are any."""
        low, high = self.wanted
        found = [Verdict(self.claim, self.seen, low)] if low > 0 else []
        return found + ([Verdict(self.claim, self.seen, high, least=False)] if np.isfinite(high) else [])


def _aims(made: Mapping[Case, Figures]) -> list[Aim]:
    """What was wanted, beside the rows' figures."""
    rows = {(case.method, case.temperature): figures.row for case, figures in made.items()}
    found = []
    for told in TABLES[NAME]["aims"]:
        temperature = told.get("temperature", 0.2)
        seen: Estimate = getattr(rows[told["method"], temperature], told["figure"])
        base = getattr(rows[told["over"], temperature], told["figure"]).value if "over" in told else None
        found.append(Aim(
            f"{told['claim']}; temperature {temperature:g}", seen.value if base is None else seen.value / base,
            seen.text(".3g") if base is None else f"{seen.value / base:.3g}", tuple(told["wanted"]),
        ))
    return found


def _met(aims: Sequence[Aim]) -> Sheet:
    """The aims as a table."""
    return Sheet("What the embedded pair was made for", ("figure", "seen", "wanted", "met"), [
        [aim.claim, aim.shown, " to ".join(f"{end:g}" for end in aim.wanted if np.isfinite(end)) + (
            "" if np.isfinite(aim.wanted[1]) else " or more"), "yes" if all(v.met for v in aim.verdicts) else "no"]
        for aim in aims
    ])


def _sheet(part: Part, figures: Sequence[Figures]) -> Sheet:
    """A table with the paper's figures behind ours, as far as it has any."""
    told = part.told["rows"]
    rows = [each.row for each in figures]
    columns: dict[str, list[str]] = {
        "method": [f"`{case.method}`" for case in part.cases],
        "accuracy, %": _ratios([row.accuracy and row.accuracy.times(100) for row in rows], ".1f"),
        "tokens / DLM forward": _ratios([row.tokens_per_dlm_forward for row in rows], ".2f"),
        "tokens/s": _ratios([row.tokens_per_second for row in rows], ".0f"),
        "KL bound, nats / token": ["-" if row.nats_per_token is None else row.nats_per_token.text() for row in rows],
    }
    beside = part.temperature == part.told["temperatures"][0]  # theirs are of one temperature, and stand once
    for name, head in THEIRS.items():
        if beside and any(name in row for row in told):
            columns[f"{part.told['theirs']}: {head}"] = _ratios([row.get(name) for row in told], ".2f")
    note = f"`smc-bridge compare {arguments(part.cases)}`"
    return Sheet(
        f"{part.told['title']}; target temperature {part.temperature:g}", tuple(columns),
        list(zip(*columns.values(), strict=True)), "\n\n".join(filter(None, [note, part.told.get("note")])),
    )


def _ratios(values: Sequence[Estimate | float | None], form: str) -> list[str]:
    """Every figure with its ratio to the first one that there is, which has none."""
    first: float | None = None
    cells = []
    for value in values:
        if value is None:
            cells.append("-")
            continue
        plain = value.value if isinstance(value, Estimate) else value
        text = value.text(form) if isinstance(value, Estimate) else format(value, form)
        cells.append(text if not first else f"{text} ({plain / first:.2f})")
        first = plain if first is None else first
    return cells


def _draw(drawn: Sequence[tuple[Part, Sequence[Figures]]], figure: Any) -> None:
    """Tokens per forward, accuracy and KL bound over w, with the paper's points."""
    axes = figure.subplots(1, 3)
    columns = (
        ("tokens_per_dlm_forward", "tokens_per_step", 1.0, "tokens per DLM forward"),
        ("accuracy", "accuracy", 100.0, "accuracy (%)"), ("nats_per_token", "", 1.0, "KL bound (nats per token)"),
    )
    for ax, (ours, theirs, factor, name) in zip(axes, columns, strict=True):
        for (part, figures), colour, marker in zip(drawn, (BLUE, GREEN), "os", strict=False):
            ws = [case.option("w") for case in part.cases]
            found = [getattr(each.row, ours).times(factor) for each in figures]
            ax.errorbar(
                ws, [each.value for each in found], yerr=error_bars(found), color=colour, marker=marker, markersize=4,
                capsize=2, label=f"here, temperature {part.temperature:g}",
            )
        told = [(row["method"], row[theirs]) for row in drawn[0][0].told["rows"] if theirs in row]
        ax.plot(
            [Case(method, 1, 1.0).option("w") for method, _ in told], [value for _, value in told], linestyle="none",
            marker="D", markersize=6, markerfacecolor="none", markeredgecolor=RED, markeredgewidth=1.5,
            label="HumanEval, the paper's models",
        )
        ax.set(xlabel="w, exponent on the diffusion model", ylabel=name)
        ax.set_ylim(bottom=0)
        ax.grid(visible=True, color="0.93")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)


PAGE: Path = HERE / "docs" / "benchmarks" / f"{NAME}.md"
main = partial(execute, NAME, __doc__, add_arguments, measure, page=PAGE, shared=True)

if __name__ == "__main__":
    main()
