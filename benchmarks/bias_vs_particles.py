"""Bias against particles: does the law of the output approach the AR law as the budget grows, and how fast?

    python -m benchmarks.bias_vs_particles [--particles 1,2,4,8,16,32,64] [--runs 1000] [--quick] [--threads N]
        [--seed 0] [--out runs] [--markdown]

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.harness import Advance, progress
from benchmarks.report import Report, Sheet, execute, plus_minus, several
from smc_bridge.analysis.exact_law import oracle
from smc_bridge.analysis.law_bias import (
    Rate,
    fit_rate,
    output_distance,
    output_distance_by_identity,
    run_distance,
    run_rms,
)
from smc_bridge.commands.base import whole
from smc_bridge.distributions.intermediate import ProductOfExperts
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.presets import smc
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import always
from smc_bridge.estimate import Estimate
from smc_bridge.kernels.block_verification import BlockVerification
from smc_bridge.kernels.gumbel import GumbelCoupling
from smc_bridge.kernels.importance import BalanceHeuristic
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.methods.poe_bridge import plain_is, speculative
from smc_bridge.methods.released import Argmax, ReleasedRejection, ReleasedScore, released
from smc_bridge.models.protocols import ModelPair
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.testing.tabular import TabularPair

#: Length limit and window of the toy, and the exponent of the DLM in the product of experts.
LENGTH, WINDOW, W = 4, 3, 0.5
COUNTS = (1, 2, 4, 8, 16, 32, 64)
#: Rates are fitted from here on: below, terms of higher order in 1/N still count.
FIT_FROM = 8


def toy_pair() -> TabularPair:
    """Three tokens, one of which ends the sequence, and marginals with an error of 0.7 nats."""
    ar = TabularAR.random(3, LENGTH, seed=1, eos_id=1)
    return TabularPair(TabularDLM(ar, noise=0.7, seed=2), ar)


class Method(NamedTuple):
    """A sampler at every budget.

    Attributes:
        name: for the tables.
        preset: makes the sampler of a pair.
        options: of the preset.
        size: the option that is the budget, N or K; None where there is none.
    """

    name: str
    preset: Callable[..., Sampler]
    options: Mapping[str, Any] = MappingProxyType({})
    size: str | None = "particles"

    def make(self, pair: ModelPair, budget: int, **shared: Any) -> Sampler:
        """The sampler of a budget with options that all methods share, w of those that have one."""
        if self.preset in (plain_is, speculative):
            shared = {name: value for name, value in shared.items() if name != "w"}
        own = {} if self.size is None else {self.size: budget}
        return self.preset(pair, **{**shared, **self.options, **own})


def _released_rule(pair: TabularPair, *, lanes: int, w: float, window: int) -> Sampler:
    """The rules of the released code on the same laws as the proper methods here: one temperature for all lanes."""
    return Sampler(
        DLMProposal(pair.dlm), ARTarget(pair.ar), ProductOfExperts(w), ReleasedRejection(lanes), weight=ReleasedScore(),
        resampler=Argmax(), trigger=always, particles=1, lanes=lanes, window=window,
    )


METHODS = (
    Method("rejection to PoE", smc),
    Method("block verification", smc, {"kernel": BlockVerification()}),
    Method("gumbel coupling", smc, {"kernel": GumbelCoupling()}),
    Method("tree walk", smc, {"kernel": TreeWalk(4)}),
    Method("plain IS", plain_is, {"lanes": 1}),
    Method(speculative.__name__, speculative),
    Method("two lanes, balance", smc, {
        "lanes": 2, "proposal_temperature": [0.7, 1.3], "weight": BalanceHeuristic(),
    }),
    Method("K lanes, proper weights", smc, {"particles": 1}, "lanes"),
    Method("K lanes, released rule", _released_rule, size="lanes"),
    Method(released.__name__, released, {"w": 0.3}, "lanes"),
)


#: The distances of a cell, what is said of each, and the exponent that goes with it.
DISTANCES = {
    "output": ("TV of the output law (direct)", "bias"),
    "identity": ("TV of the output law by -Cov(Z, W) (proper methods): the bias", "bias"),
    "one_run": ("TV of one run's weighted particles", "one_run"),
    "rms": ("Root mean square distance of one run's weighted particles", "rms"),
}


@dataclass(frozen=True)
class Cell:
    """One method at one budget.

    Attributes:
        method: its name.
        proper: whether its weights are proper.
        lanes: whether `count` is K rather than N.
        count: N or K.
        runs: independent runs behind the figures.
        output: total variation of the output's law.
        identity: the same by the covariance identity; None for improper methods.
        one_run, rms: distance of one run's weighted particles, in total variation and in mean square; None for one
            particle.
    """

    method: str
    proper: bool
    lanes: bool
    count: int
    runs: int
    output: Estimate
    identity: Estimate | None
    one_run: Estimate | None
    rms: Estimate | None

    @property
    def bias(self) -> Estimate:
        """Total variation of the output's law: by the identity where there is one."""
        return self.identity or self.output


def cells_of(
    methods: Sequence[Method] = METHODS, counts: Sequence[int] = COUNTS, *, runs: int = 1000, seed: int = 0,
    advance: Advance = lambda: None,
) -> list[Cell]:
    """Run every method at every budget on the toy.

    Args:
        methods, counts: which.
        runs: independent runs of each.
        seed: of the first run; other values give disjoint runs.
        advance: called after every cell.
    """
    pair = toy_pair()
    exact = oracle(ARTarget(pair.ar), max_new_tokens=LENGTH)
    seeds = [seed * runs + i for i in range(runs)]
    cells = []
    for method in methods:
        lanes = method.size == "lanes"
        for count in counts:
            sampler = method.make(pair, count, w=W, window=WINDOW)
            results = sampler.run([[]] * runs, seed=seeds, max_new_tokens=LENGTH)
            cells.append(Cell(
                method.name, sampler.proper, lanes, count, runs, output_distance(results, exact),
                output_distance_by_identity(results, exact) if sampler.proper else None,
                None if lanes else run_distance(results, exact), None if lanes else run_rms(results, exact),
            ))
            advance()
    return cells


def rates(cells: Sequence[Cell]) -> dict[str, dict[str, Rate | None]]:
    """Power laws of every method with at least two budgets from `FIT_FROM` on: `bias`, and `one_run`'s error in total
    variation and in mean square, `rms`; None where the distance is 0 throughout or was not measured."""
    out = {}
    for name, own in _by_method(cells).items():
        used = [cell for cell in own if cell.count >= FIT_FROM]
        if len(used) >= 2:
            out[name] = {what: _fit(used, what) for what in ("bias", "one_run", "rms")}
    return out


def _fit(cells: Sequence[Cell], what: str) -> Rate | None:
    measured = {cell.count: distance for cell in cells if (distance := getattr(cell, what)) is not None}
    return fit_rate(list(measured), list(measured.values())) if measured else None


def measure(options: argparse.Namespace) -> Report:
    """The bias with both exponents, then every distance."""
    with progress("bias_vs_particles", len(METHODS) * len(options.particles)) as advance:
        cells = cells_of(METHODS, options.particles, runs=options.runs, seed=options.seed, advance=advance)
    fitted = rates(cells)
    note = (
        f"{options.runs} runs of each, ± one standard error; methods of K lanes keep one particle, and N is their "
        "number of lanes"
    )
    counts = [f"N = {n}" for n in options.particles]
    rows = [
        (name, *(_thousandths(cell.bias) for cell in own), _exponent(fitted, name, "bias"),
         _exponent(fitted, name, "rms"))
        for name, own in _by_method(cells).items()
    ]
    head = ("TV of the output law, 1/1000", *counts, "bias ~ N^-a", "error of one run ~ N^-a")
    sheets = [Sheet("Bias", head, rows, note)]
    for name, (title, rate) in DISTANCES.items():
        rows = [
            # Proper methods have their exponent where it is measured best, beside the identity.
            (method, *(_thousandths(getattr(cell, name)) for cell in own),
             "" if name == "output" and own[0].proper else _exponent(fitted, method, rate))
            for method, own in _by_method(cells).items() if any(getattr(cell, name) is not None for cell in own)
        ]
        sheets.append(Sheet(f"{title}, 1/1000", ("method", *counts, f"~ N^-a from {FIT_FROM}"), rows))
    data = {"cells": cells, "rates": fitted}
    return Report(sheets, data, lambda figure: _draw(figure, cells), size=(7.2, 4.8))


def _by_method(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    return {name: [cell for cell in cells if cell.method == name] for name in dict.fromkeys(c.method for c in cells)}


def _thousandths(distance: Estimate | None) -> str:
    return "" if distance is None else plus_minus(distance.times(1000), ".1f")


def _exponent(fitted: dict[str, dict[str, Rate | None]], method: str, what: str) -> str:
    rate = fitted.get(method, {}).get(what)
    return "–" if rate is None else f"a = {plus_minus(rate.exponent, '.2f')}"


def _draw(figure: Any, cells: Sequence[Cell]) -> None:
    ax = figure.subplots()
    for i, (name, own) in enumerate(_by_method(cells).items()):
        shown = [cell for cell in own if cell.bias.value > 0]
        ax.errorbar(
            [cell.count for cell in shown], [cell.bias.value for cell in shown],
            yerr=[cell.bias.error for cell in shown], marker="osD^v"[i % 5], color=f"C{i}", capsize=2, label=name,
        )
    ax.set(xscale="log", yscale="log", xlabel="particles N, or lanes K", ylabel="TV of the output's law")
    ax.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize=8)


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add this benchmark's arguments."""
    parser.add_argument(
        "--particles", type=several(whole(1)), default="8,16" if quick else ",".join(map(str, COUNTS)),
        metavar="N,N,..", help="budgets N (or K)",
    )
    parser.add_argument(
        "--runs", type=whole(4), default=8 if quick else 1000, help="independent runs of each method at each budget"
    )


main = partial(execute, "bias_vs_particles", __doc__, configure, measure)

if __name__ == "__main__":
    main()
