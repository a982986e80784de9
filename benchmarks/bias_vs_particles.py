"""Bias against particles: does the law of the output approach the AR law as the budget grows, and how fast?

    python -m benchmarks.bias_vs_particles [--runs 1000] [--seed 0] [--particles 1 2 4 8 16 32 64]
        [--markdown] [--json FILE]

On a pair of tabular models, whose 31 sequences have known probabilities, every method runs many times at every number
of particles N (or lanes K, for the methods that keep one particle). Distances to the exact law:

- *TV of the output law*: of one sequence drawn from one run's weights; estimated directly;
- the same by the identity `bias = -Cov(Z_hat, W)`, which holds for proper methods only and is far more precise;
- *TV of one run*: of one run's weighted particles, mean over runs; and its root mean square distance, which does not
  saturate while sequences are rarer than 1/N.

The bias of a proper method falls like 1/N and the error of one run like N^-1/2. `released` is not proper: more lanes do
not bring it closer. Errors are one standard error. With K lanes and one particle a run returns a single sequence, so
its own distance says nothing, and its bias is measured with more noise, which bends the fitted exponent up.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from smc_bridge.analysis.law_bias import (
    Distance,
    Rate,
    fit_rate,
    output_distance,
    output_distance_by_identity,
    run_distance,
    run_rms,
)
from smc_bridge.analysis.oracle import oracle
from smc_bridge.commands.base import console
from smc_bridge.distributions.intermediate import ProductOfExperts
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import always
from smc_bridge.files import write_text
from smc_bridge.kernels.block_verification import BlockVerification
from smc_bridge.kernels.gumbel import GumbelCoupling
from smc_bridge.kernels.importance import BalanceHeuristic
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.methods.poe_bridge import plain_is, smc, speculative
from smc_bridge.methods.released import Argmax, ReleasedRejection, ReleasedScore, released
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.tables import print_table

#: Length limit and window of the toy, and the exponent of the DLM in the product of experts.
LENGTH, WINDOW, W = 4, 3, 0.5
COUNTS = (1, 2, 4, 8, 16, 32, 64)
#: Rates are fitted from here on: below, terms of higher order in 1/N still count.
FIT_FROM = 8


@dataclass(frozen=True)
class ToyPair:
    """Three tokens, one of which ends the sequence, and marginals with an error of 0.7 nats."""

    ar: TabularAR
    dlm: TabularDLM

    @classmethod
    def make(cls) -> ToyPair:
        """The pair of this benchmark."""
        ar = TabularAR.random(3, LENGTH, seed=1, eos_id=1)
        return cls(ar, TabularDLM(ar, noise=0.7, seed=2))


@dataclass(frozen=True)
class Method:
    """A sampler for every N, or for every K if `lanes`."""

    name: str
    make: Callable[[ToyPair, int], Sampler]
    lanes: bool = False


def _released_rule(pair: ToyPair, k: int) -> Sampler:
    """The rules of the released code on the same laws as the proper methods here: one temperature for all lanes."""
    return Sampler(
        DLMProposal(pair.dlm), ARTarget(pair.ar), ProductOfExperts(W), ReleasedRejection(k), weight=ReleasedScore(),
        resampler=Argmax(), trigger=always, particles=1, lanes=k, window=WINDOW,
    )


METHODS = (
    Method("rejection to PoE", lambda pair, n: smc(pair, n, w=W, window=WINDOW)),
    Method("block verification", lambda pair, n: smc(pair, n, w=W, window=WINDOW, kernel=BlockVerification())),
    Method("gumbel coupling", lambda pair, n: smc(pair, n, w=W, window=WINDOW, kernel=GumbelCoupling())),
    Method("tree walk", lambda pair, n: smc(pair, n, w=W, window=WINDOW, kernel=TreeWalk(4))),
    Method("plain IS", lambda pair, n: plain_is(pair, lanes=1, particles=n, window=WINDOW)),
    Method("speculative", lambda pair, n: speculative(pair, particles=n, window=WINDOW)),
    Method(
        "two lanes, balance",
        lambda pair, n: smc(
            pair, n, lanes=2, w=W, window=WINDOW, proposal_temperature=[0.7, 1.3], weight=BalanceHeuristic()
        ),
    ),
    Method("K lanes, proper weights", lambda pair, k: smc(pair, 1, lanes=k, w=W, window=WINDOW), lanes=True),
    Method("K lanes, released rule", _released_rule, lanes=True),
    Method("released", lambda pair, k: released(pair, lanes=k, window=WINDOW), lanes=True),
)


@dataclass(frozen=True)
class Cell:
    """One method at one budget. `identity` is None for improper methods; `one_run` and `rms` for one particle."""

    method: str
    proper: bool
    lanes: bool
    count: int
    runs: int
    output: Distance
    identity: Distance | None
    one_run: Distance | None
    rms: Distance | None


def measure(
    methods: Sequence[Method] = METHODS, counts: Sequence[int] = COUNTS, *, runs: int = 1000, seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> list[Cell]:
    """Run every method at every budget on the toy.

    Args:
        methods, counts: which.
        runs: independent runs of each.
        seed: of the first run; other values give disjoint runs.
        advance: called after every cell.
    """
    pair = ToyPair.make()
    exact = oracle(ARTarget(pair.ar), max_new_tokens=LENGTH)
    seeds = [seed * runs + i for i in range(runs)]
    cells = []
    for method in methods:
        for count in counts:
            sampler = method.make(pair, count)
            results = sampler.run([[]] * runs, seed=seeds, max_new_tokens=LENGTH)
            cells.append(
                Cell(
                    method.name, sampler.proper, method.lanes, count, runs, output_distance(results, exact),
                    output_distance_by_identity(results, exact) if sampler.proper else None,
                    None if method.lanes else run_distance(results, exact),
                    None if method.lanes else run_rms(results, exact),
                )
            )
            advance()
    return cells


@dataclass(frozen=True)
class Rates:
    """Power laws fitted to one method: bias, and one run's error in total variation and in mean square.

    None where the distance is 0 throughout or was not measured.
    """

    bias: Rate | None
    one_run: Rate | None
    rms: Rate | None


def rates(cells: Sequence[Cell]) -> dict[str, Rates]:
    """Fits to every method with at least two budgets from `FIT_FROM` on; the bias by the identity if there is one."""
    out = {}
    for name in dict.fromkeys(cell.method for cell in cells):
        used = [cell for cell in cells if cell.method == name and cell.count >= FIT_FROM]
        if len(used) < 2:
            continue
        out[name] = Rates(
            _fit([(cell.count, cell.identity or cell.output) for cell in used]),
            _fit([(cell.count, cell.one_run) for cell in used]),
            _fit([(cell.count, cell.rms) for cell in used]),
        )
    return out


def _fit(points: Sequence[tuple[int, Distance | None]]) -> Rate | None:
    measured = [(count, distance) for count, distance in points if distance is not None]
    return fit_rate([count for count, _ in measured], [distance for _, distance in measured]) if measured else None


def tables(cells: Sequence[Cell], fitted: dict[str, Rates]) -> list[Table]:
    """The distances, one table each with the fitted exponent in the last column."""
    counts = sorted({cell.count for cell in cells})
    out = []
    for title, attribute, rate in (
        ("TV of the output law (direct)", "output", "bias"),
        ("TV of the output law by -Cov(Z, W) (proper methods): the bias", "identity", "bias"),
        ("TV of one run's weighted particles", "one_run", "one_run"),
        ("Root mean square distance of one run's weighted particles", "rms", "rms"),
    ):
        table = Table(title=f"{title}; in 1/1000, ± one standard error")
        table.add_column("method")
        for count in counts:
            table.add_column(f"N = {count}", justify="right")
        table.add_column(f"falls like N^-a from {FIT_FROM}", justify="right")
        for name in dict.fromkeys(cell.method for cell in cells):
            own = [cell for cell in cells if cell.method == name]
            distances = {cell.count: getattr(cell, attribute) for cell in own}
            if all(distance is None for distance in distances.values()):
                continue
            # Proper methods have their exponent where it is measured best, beside the identity.
            shown = attribute != "output" or not own[0].proper
            exponent = _exponent(getattr(fitted.get(name), rate, None)) if shown else ""
            table.add_row(name, *(_thousandths(distances.get(count)) for count in counts), exponent)
        out.append(table)
    return out


def markdown(cells: Sequence[Cell], fitted: dict[str, Rates]) -> str:
    """The bias (by the identity where there is one), and both exponents, as a Markdown table."""
    counts = sorted({cell.count for cell in cells})
    head = ["TV of the output law, 1/1000", *(f"N = {n}" for n in counts), "bias ~ N^-a", "error of one run ~ N^-a"]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for name in dict.fromkeys(cell.method for cell in cells):
        best = {cell.count: cell.identity or cell.output for cell in cells if cell.method == name}
        fit = fitted.get(name)
        rows.append([
            name, *(_thousandths(best[n]) for n in counts), _exponent(fit.bias if fit else None),
            _exponent(fit.rms if fit else None),
        ])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _thousandths(distance: Distance | None) -> str:
    if distance is None:
        return ""
    value = round(1000 * distance.value, 1) + 0.0  # no negative zero
    return f"{value:.1f} ± {1000 * distance.error:.1f}"


def _exponent(rate: Rate | None) -> str:
    return "–" if rate is None else f"a = {rate.exponent:.2f} ± {rate.error:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line (module docstring)."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bias_vs_particles", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--runs", type=int, default=1000, help="independent runs of each method at each budget")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--particles", type=int, nargs="+", default=list(COUNTS), help="budgets N (or K)")
    parser.add_argument("--markdown", action="store_true", help="print one table in Markdown instead")
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    options = parser.parse_args(arguments)
    if options.runs < 4:
        parser.error(f"--runs {options.runs}: give at least 4")
    if min(options.particles) < 1:
        parser.error(f"--particles {options.particles}: give whole numbers of at least 1")
    torch.set_num_threads(1)  # the toy's tensors are too small to share
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("bias_vs_particles", total=len(METHODS) * len(options.particles))
        cells = measure(
            METHODS, options.particles, runs=options.runs, seed=options.seed, advance=lambda: progress.advance(task)
        )
    fitted = rates(cells)
    if options.markdown:
        print(markdown(cells, fitted))
    else:
        out = console(sys.stdout)
        for table in tables(cells, fitted):
            print_table(out, table)
        out.print(
            f"{options.runs} runs of each, seed {options.seed}; methods named 'K lanes' and 'released' keep one "
            "particle, and N is their number of lanes."
        )
    if options.json:
        data = {
            "runs": options.runs, "seed": options.seed, "cells": [asdict(cell) for cell in cells],
            "rates": {name: asdict(pair) for name, pair in fitted.items()},
        }
        try:
            write_text(options.json, json.dumps(data, indent=1))
        except ValueError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
