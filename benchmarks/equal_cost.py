"""Equal cost: bias, ESS, KL bound and tokens per forward of each method at one budget, on a tabular and a real pair.

    python -m benchmarks.equal_cost [--budget 48] [--runs 1500] [--prompts 48] [--embedded-budget 160] [--temperature 1]
        [--tokens 128] [--quick] [--threads N] [--seed 0] [--out runs] [--markdown]

Cost of a run is the number of rows that both models scored for it (`smc_bridge.analysis.budget`, `c_D = c_A = 1`):
what a processor pays for, and no clock is involved. Every method gets the largest number of particles N, or of lanes
K, whose mean cost is within the budget. *Tabular pair*: the bias is the total variation of the output's law to the
exact one. *Embedded pair*: the law cannot be listed, so the bias is that of the response's length, against exact
samples of the AR model on the same prompts.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.bias_vs_particles import LENGTH, WINDOW, Method, W, toy_pair
from benchmarks.harness import progress
from benchmarks.problems import embedded
from benchmarks.report import Report, Sheet, execute
from smc_bridge.analysis.bounds import kl_certificate
from smc_bridge.analysis.budget import cost_of, largest_within
from smc_bridge.analysis.estimates import batch_means
from smc_bridge.analysis.exact_law import oracle
from smc_bridge.analysis.law_bias import output_distance, output_distance_by_identity
from smc_bridge.analysis.prices import Cost
from smc_bridge.commands.base import positive, whole
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.presets import smc
from smc_bridge.engine.sampler import Sampler
from smc_bridge.estimate import Estimate
from smc_bridge.kernels.block_verification import BlockVerification
from smc_bridge.kernels.importance import BalanceHeuristic
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.methods.ar import ar_sampling
from smc_bridge.methods.poe_bridge import paper, plain_is, speculative
from smc_bridge.methods.released import released
from smc_bridge.result import Result

COST = Cost(1.0, 1.0, "rows")
#: Exact samples per prompt that the length is compared with.
EXACT = 4
MOST = 256


def methods(temperature: float) -> list[Method]:
    """What is compared, where the target has that temperature."""
    two_temperatures = [0.7 * temperature, 1.3 * temperature]
    return [
        Method("smc, N particles", smc),
        Method("block verification, N", smc, {"kernel": BlockVerification()}),
        Method("tree walk, N", smc, {"kernel": TreeWalk(8)}),
        Method("plain IS, N", plain_is, {"lanes": 1}),
        Method("one particle, K lanes", smc, {"particles": 1}, "lanes"),
        Method("two temperatures, balance, N", smc, {
            "lanes": 2, "weight": BalanceHeuristic(), "proposal_temperature": two_temperatures,
        }),
        Method("plain IS, K lanes", plain_is, size="lanes"),
        Method(f"{paper.__name__}, K lanes", paper, size="lanes"),
        Method(f"{released.__name__}, K lanes", released, size="lanes"),
        Method(f"{speculative.__name__}, N = 1", speculative, size=None),
    ]


@dataclass(frozen=True)
class Figures:
    """One method at the budget; None where a figure does not exist.

    Attributes:
        pair: name of the pair of models.
        method: as it is spelled.
        size: N or K that the budget allows.
        cost: mean cost of a run.
        bias: total variation of the output's law, or bias of the response's length, tokens.
        ess: effective sample size, particles.
        kl: bound on the KL divergence, nats.
        tokens_per_dlm_forward: committed tokens of a particle per forward of the DLM.
    """

    pair: str
    method: str
    size: int
    cost: float
    bias: Estimate
    ess: float | None
    kl: Estimate | None
    tokens_per_dlm_forward: float


def at_budget(
    name: str, pair: Any, options: dict[str, Any], budget: float, *, probe: Callable[[Sampler], list[Result]],
    run: Callable[[Sampler], list[Result]], bias: Callable[[list[Result]], Estimate], advance: Callable[[], None],
) -> list[Figures]:
    """Every method at the largest size whose mean cost, on the runs of `probe`, is within the budget.

    Methods of which a single particle is too dear are left out.
    """
    found = []
    for method in methods(options.get("temperature", 1.0)):
        try:
            size = 1 if method.size is None else largest_within(
                budget, lambda n: cost_of(probe(method.make(pair, n, **options)), COST), most=MOST  # noqa: B023
            )
        except ValueError:
            advance()
            continue
        runs = run(method.make(pair, size, **options))
        proper, sizes = runs[0].proper, [each.ess for each in runs]
        found.append(Figures(
            name, method.name, size, cost_of(runs, COST), bias(runs),
            float(np.mean(sizes)) if proper and len(runs[0].log_weights) > 1 else None,
            kl_certificate(runs) if proper else None,
            sum(each.tokens for each in runs) / sum(each.forwards.dlm_forwards for each in runs),
        ))
        advance()
    return found


def tabular(options: argparse.Namespace, advance: Callable[[], None]) -> list[Figures]:
    """The tabular pair: total variation of the output's law."""
    pair = toy_pair()
    exact = oracle(ARTarget(pair.ar), max_new_tokens=LENGTH)

    def runs_of(sampler: Sampler, count: int, first: int) -> list[Result]:
        return sampler.run([[]] * count, seed=list(range(first, first + count)), max_new_tokens=LENGTH)

    return at_budget(
        "tabular", pair, {"window": WINDOW, "w": W}, options.budget, probe=lambda sampler: runs_of(sampler, 50, 0),
        run=lambda sampler: runs_of(sampler, options.runs, options.seed + 1000), advance=advance,
        bias=lambda runs: (output_distance_by_identity if runs[0].proper else output_distance)(runs, exact),
    )


def real(options: argparse.Namespace, advance: Callable[[], None]) -> list[Figures]:
    """The embedded pair: bias of the response's length against exact samples."""
    pair, task, prompts = embedded(options.prompts)
    common = {
        "window": task.window, "lookahead": task.lookahead, "temperature": options.temperature, "w": 0.3,
    }
    target, limit = smc(pair, 1, **common).target, options.tokens or task.max_new_tokens

    def runs_of(sampler: Sampler, some: Sequence[Sequence[int]]) -> list[Result]:
        return sampler.run(some, seed=options.seed, max_new_tokens=limit, batch=16)

    exact = np.mean([
        [result.tokens for result in ar_sampling(
            target, prompts, seed=options.seed + 1 + i, max_new_tokens=limit, batch=64)]
        for i in range(EXACT)
    ], axis=0)
    return at_budget(
        "embedded", pair, common, options.embedded_budget, probe=lambda sampler: runs_of(sampler, prompts[:4]),
        run=lambda sampler: runs_of(sampler, prompts), advance=advance, bias=lambda runs: batch_means(
            np.asarray([run.drawn_tokens if run.alive else math.nan for run in runs]) - exact
        ),
    )


def measure(options: argparse.Namespace) -> Report:
    """The tables of the tabular and the embedded pair, and a picture."""
    with progress("methods", 2 * len(methods(1.0))) as advance:
        small, large = tabular(options, advance), real(options, advance)

    def error(figures: Figures) -> float:
        """One standard error of a distance, half the interval of a mean."""
        return figures.bias.error if figures.pair == "tabular" else figures.bias.value - figures.bias.low

    def rows(group: Sequence[Figures], form: str) -> list[list[str]]:
        return [
            [
                f.method, str(f.size), f"{f.cost:.0f}", f"{f.bias.value:z{form}} ± {error(f):{form}}",
                "-" if f.ess is None else f"{f.ess:.1f}", "-" if f.kl is None else f.kl.text(),
                f"{f.tokens_per_dlm_forward:.2f}",
            ]
            for f in group
        ]

    head = ["method", "size", "rows scored"]
    tail = ["ESS", "KL bound, nats", "tokens / DLM forward"]
    sheets = [
        Sheet(
            f"Tabular pair, budget {options.budget:g} rows", [*head, "TV of the output's law", *tail],
            rows(small, ".4f"), f"{options.runs} runs; ± one standard error",
        ),
        Sheet(
            f"Embedded pair, budget {options.embedded_budget:g} rows, target temperature {options.temperature:g}",
            [*head, "bias of the length, tokens", *tail], rows(large, ".2f"),
            f"{options.prompts} problems, {EXACT} exact samples each; ± half-width of a 95 % interval",
        ),
    ]

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, 2)
        for ax, group, label in (
            (axes[0], small, "TV of the output's law"), (axes[1], large, "|bias of the length| (tokens)")
        ):
            names = [f.method for f in group]
            ax.barh(names, [abs(f.bias.value) for f in group], xerr=[error(f) for f in group], color="#4477aa")
            ax.set_xlabel(label)
            ax.set_xlim(left=0)
            ax.invert_yaxis()
        axes[0].set_title(f"tabular pair, {options.budget:g} rows", fontsize=9)
        axes[1].set_title(f"embedded pair, {options.embedded_budget:g} rows", fontsize=9)
        axes[1].set_yticklabels([])

    return Report(sheets, {"figures": [*small, *large]}, draw, size=(9.0, 3.8))


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add this benchmark's arguments."""
    parser.add_argument("--budget", type=positive, default=8.0 if quick else 48.0, help="rows, on the tabular pair")
    parser.add_argument("--runs", type=whole(4), default=10 if quick else 1500, help="of each method, tabular pair")
    parser.add_argument(
        "--embedded-budget", type=positive, default=8.0 if quick else 160.0, help="rows, on the embedded pair"
    )
    parser.add_argument(
        "--tokens", type=whole(1), default=16 if quick else None, help="length limit, embedded pair (default: its own)"
    )
    parser.add_argument("--prompts", type=whole(2), default=2 if quick else 48, help="problems, embedded pair")
    parser.add_argument("--temperature", type=positive, default=1.0, help="of the target, embedded pair (default: 1)")


main = partial(execute, "equal_cost", __doc__, configure, measure)

if __name__ == "__main__":
    main()
