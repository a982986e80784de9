"""Two frontiers: tokens per DLM forward and accuracy against the KL bound, of the product of experts and of `Clamp`.

    python -m benchmarks.frontier [--w .1,.3,.5,.7,.9] [--betas 2,8,16,64,1000] [--temperatures 0.2,1]
        [--sizes 1:48,4:24,16:12] [--tokens N] [--page docs/benchmarks/frontier.md] [--quick] [--threads N] [--seed 0]
        [--out runs] [--markdown]

The embedded pair with its caches as `load_pair` makes it. `--sizes` gives particles N and the problems of each N, the
first ones, the same for every setting. Tokens per forward are committed tokens of a particle over forwards of the DLM;
accuracy is that of one draw from the weights of each problem; the bound is the certificate's per token
(`smc_bridge.analysis.kl_per_token`), with its bootstrap-t interval. Each setting is kept in `frontier-cells.json` under
`--out` when it was run: a command that is given again goes on where it was stopped. `--page` writes the page, and its
picture beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Machine, progress
from benchmarks.report import Report, Sheet, execute, several
from smc_bridge.analysis.bounds import kl_per_token
from smc_bridge.analysis.estimates import wilson
from smc_bridge.analysis.plots.style import looks
from smc_bridge.commands.base import check_writable, not_negative, share, whole
from smc_bridge.distributions.intermediate import Clamp, Intermediate, ProductOfExperts
from smc_bridge.estimate import Estimate, plain
from smc_bridge.files import write_text
from smc_bridge.intervals import NAME, ratio_interval
from smc_bridge.methods.poe_bridge import smc
from smc_bridge.models.pairs import Pair, load_pair
from smc_bridge.tasks import TASKS, Task

#: Runs that are decoded together.
BATCH = 16
#: Frontiers, and what runs along them.
POE, CLAMP = "PoE", "Clamp"
ALONG = {POE: "w", CLAMP: "beta"}


@dataclass(frozen=True)
class Cell:
    """One setting.

    Attributes:
        temperature: of the target.
        particles: N.
        frontier: `PoE` or `Clamp`.
        at: w or beta.
        tokens: per DLM forward.
        accuracy: share of right answers.
        kl: bound, nats per token.
    """

    temperature: float
    particles: int
    frontier: str
    at: float
    tokens: Estimate
    accuracy: Estimate
    kl: Estimate


def sizes(text: str) -> tuple[int, int]:
    """Argument type: particles and problems, `4:24`."""
    count, sign, problems = text.partition(":")
    if not sign:
        raise argparse.ArgumentTypeError(f"= {text!r}: give particles:problems, as 4:24")
    return whole(1)(count), whole(2)(problems)


def beta(text: str) -> float:
    """Argument type: the beta of `Clamp`."""
    value = not_negative(text)
    if not 1.0 <= value <= 1e30:
        raise argparse.ArgumentTypeError(f"= {text!r}: give a number from 1, which is the target, to 1e30")
    return value


def measured(
    pair: Pair, task: Task, options: argparse.Namespace, *, temperature: float, particles: int, problems: int,
    frontier: str, at: float,
) -> Cell:
    """Decode the first `problems` problems under one setting."""
    intermediate: Intermediate = ProductOfExperts(at) if frontier == POE else Clamp(at)
    sampler = smc(
        pair, particles, intermediate=intermediate, temperature=temperature, window=task.window,
        lookahead=task.lookahead,
    )
    items = task.problems(problems)
    runs = sampler.run(
        [pair.encode(item.prompt).tolist() for item in items], seed=options.seed, batch=BATCH,
        max_new_tokens=options.tokens or task.max_new_tokens,
    )
    tokens = np.array([run.tokens for run in runs], dtype=np.float64)
    forwards = np.array([run.forwards.dlm_forwards for run in runs], dtype=np.float64)
    rate = Estimate(float(tokens.sum() / forwards.sum()), *ratio_interval(tokens, forwards), len(runs), NAME)
    right = sum(
        run.alive and task.grade(run.sample(seed=options.seed), item.answer)
        for run, item in zip(runs, items, strict=True)
    )
    return Cell(temperature, particles, frontier, at, rate, wilson(right, len(runs)), kl_per_token(runs))


def measure(options: argparse.Namespace) -> Report:
    """Every setting, a table for each temperature and N, and the picture."""
    if options.page is not None:
        check_writable(options.page, "--page")
    settings = [
        {"temperature": temperature, "particles": n, "problems": problems, "frontier": frontier, "at": at}
        for temperature, (n, problems) in itertools.product(options.temperatures, options.sizes)
        for frontier, values in ((POE, options.w), (CLAMP, options.betas)) for at in values
    ]
    file = options.out / "frontier-cells.json"
    common = {"seed": options.seed, "tokens": options.tokens}
    known = _read(file, common)
    task = TASKS["arithmetic"]
    pair = load_pair(task.pair)
    with progress("settings", len(settings)) as advance:
        for each in settings:
            if json.dumps(each) not in known:
                known[json.dumps(each)] = plain(asdict(measured(pair, task, options, **each)))
                write_text(file, json.dumps({"common": common, "cells": known}, indent=1))
            advance()
    cells = [_cell(known[json.dumps(each)]) for each in settings]
    sheets = [
        Sheet(
            f"Temperature {temperature:g}, N = {n}, {problems} problems",
            ("intermediate", "tokens / DLM forward", "accuracy", "KL bound, nats / token"), [
                (f"{c.frontier}, {ALONG[c.frontier]} = {c.at:g}", c.tokens.text(), c.accuracy.text(), c.kl.text())
                for c in cells if (c.temperature, c.particles) == (temperature, n)
            ],
        )
        for temperature, (n, problems) in itertools.product(options.temperatures, options.sizes)
    ]
    size = (2.6 * len(options.sizes) + 0.8, 2.3 * 2 * len(options.temperatures))
    report = Report(sheets, {"cells": cells}, lambda figure: draw(figure, cells), size=size)
    if options.page is not None:
        write_page(options.page, report)
    return report


def _read(file: Path, common: dict[str, Any]) -> dict[str, Any]:
    """Cells of an earlier command with the same options, by their settings."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        raise ValueError(f"--out = {file.parent}: {file.name} is no JSON ({error}); remove it") from error
    if found.get("common") != common:
        raise ValueError(f"--out = {file.parent}: {file.name} is of other options, {found.get('common')}; remove it")
    return dict(found["cells"])


def _cell(known: dict[str, Any]) -> Cell:
    """A cell as it was kept; an end that is not finite was kept as null."""

    def estimate(data: dict[str, Any]) -> Estimate:
        low, high = data["low"], data["high"]
        ends = (-np.inf if low is None else low, np.inf if high is None else high)
        return Estimate(data["value"], *ends, data["n"], data["how"], level=data["level"])

    return Cell(**{**known, **{name: estimate(known[name]) for name in ("tokens", "accuracy", "kl")}})


def draw(figure: Any, cells: Sequence[Cell]) -> None:
    """Tokens per forward and accuracy over the bound, a row of both for each temperature, a column for each N."""
    temperatures = list(dict.fromkeys(cell.temperature for cell in cells))
    counts = list(dict.fromkeys(cell.particles for cell in cells))
    rows = list(itertools.product(temperatures, (("tokens", "tokens / DLM forward"), ("accuracy", "accuracy"))))
    axes = figure.subplots(len(rows), len(counts), squeeze=False, sharey="row")
    for (row, (temperature, (name, label))), (column, n) in itertools.product(enumerate(rows), enumerate(counts)):
        ax = axes[row, column]
        for look, frontier in zip(looks(len(ALONG)), ALONG, strict=True):
            own = [c for c in cells if (c.temperature, c.particles, c.frontier) == (temperature, n, frontier)]
            pairs = [(c.kl, getattr(c, name)) for c in own]
            ax.errorbar(
                [1000 * x.value for x, _ in pairs], [y.value for _, y in pairs],
                xerr=1000 * _bars([x for x, _ in pairs]), yerr=_bars([y for _, y in pairs]),
                color=look.color, marker=look.marker, linestyle=look.linestyle, markersize=4, elinewidth=0.6,
                label=f"{frontier}, over {ALONG[frontier]}",
            )
        ax.set_xscale("symlog", linthresh=1.0)
        ax.set_title(f"T = {temperature:g}, N = {n}", fontsize=8)
        ax.tick_params(labelsize=7)
        ax.grid(visible=True, color="0.93")
        if not column:
            ax.set_ylabel(label, fontsize=8)
        if row == len(rows) - 1:
            ax.set_xlabel("KL bound (nats / 1,000 tokens)", fontsize=8)
    axes[0, 0].legend(fontsize=7)


def _bars(found: Sequence[Estimate]) -> Any:
    """Lengths of error bars, `[2, n]`; none where an end is not known."""
    return np.nan_to_num(np.transpose([each.bars for each in found]), posinf=0.0)


def write_page(page: Path, report: Report) -> None:
    """The tables in Markdown, under what they are, and the picture beside them as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=report.size, layout="constrained")
    report.draw(figure)
    picture = page.with_suffix(".png")
    figure.savefig(picture, dpi=150)
    intro = (
        "# The frontier of an intermediate\n\n"
        "Tokens per DLM forward and accuracy against the KL bound per token, of the product of experts over $w$ and of "
        "the acceptance-optimal bridge `Clamp` over $\\beta$ ([theory](../theory.md#9-the-acceptance-optimal-bridge)), "
        "on the embedded pair, N particles: `python -m benchmarks.frontier --page docs/benchmarks/frontier.md`. "
        "Brackets are 95 % intervals over problems (accuracy: Wilson; the others: bootstrap-t).\n\n"
        f"![Tokens per forward and accuracy against the KL bound]({picture.name})"
    )
    tables = "\n\n".join(sheet.markdown() for sheet in report.sheets)
    write_text(page, f"{intro}\n\n{tables}\n\n{Machine.here()}\n")


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add this benchmark's arguments."""
    for name, parse, default, small, text in (
        ("--w", share, ".1,.3,.5,.7,.9", ".3", "of the product of experts"),
        ("--betas", beta, "2,8,16,64,1000", "8", "of Clamp"),
        ("--temperatures", not_negative, "0.2,1", "1", "of the target"),
        ("--sizes", sizes, "1:48,4:24,16:12", "1:2,2:2", "particles and problems of each"),
    ):
        parser.add_argument(
            name, type=several(parse), default=small if quick else default, metavar="x,x,..",
            help=f"{text} (default: {default})",
        )
    parser.add_argument(
        "--tokens", type=whole(1), default=16 if quick else None, help="length limit (default: the task's)"
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page, and its picture beside it")


main = partial(execute, "frontier", __doc__, configure, measure)

if __name__ == "__main__":
    main()
