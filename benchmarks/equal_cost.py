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
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.bias_vs_particles import LENGTH, WINDOW, ToyPair, W
from benchmarks.harness import progress
from benchmarks.report import Report, Sheet, execute
from smc_bridge.analysis.bounds import kl_certificate
from smc_bridge.analysis.budget import cost_of, largest_within
from smc_bridge.analysis.estimates import batch_means
from smc_bridge.analysis.law_bias import output_distance, output_distance_by_identity
from smc_bridge.analysis.oracle import oracle
from smc_bridge.analysis.prices import Cost
from smc_bridge.commands.base import positive, whole
from smc_bridge.engine.sampler import Sampler
from smc_bridge.kernels.block_verification import BlockVerification
from smc_bridge.kernels.importance import BalanceHeuristic
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.methods import poe_bridge as presets
from smc_bridge.methods.ar import ar_sampling
from smc_bridge.methods.released import released
from smc_bridge.models.pairs import load_pair
from smc_bridge.result import Result
from smc_bridge.tasks import TASKS

COST = Cost(1.0, 1.0, "rows")
#: Exact samples per prompt that the length is compared with.
EXACT = 4
MOST = 256

Make = Callable[[Any, int, dict[str, Any]], Sampler]

#: Name of a method, and the sampler of each size: N for the first three, K for the others.
METHODS: dict[str, Make] = {
    "smc, N particles": lambda pair, n, o: presets.smc(pair, n, **o),
    "block verification, N": lambda pair, n, o: presets.smc(pair, n, kernel=BlockVerification(), **o),
    "tree walk, N": lambda pair, n, o: presets.smc(pair, n, kernel=TreeWalk(8), **o),
    "plain IS, N": lambda pair, n, o: presets.plain_is(pair, lanes=1, particles=n, **_without_w(o)),
    "one particle, K lanes": lambda pair, k, o: presets.smc(pair, 1, lanes=k, **o),
    "two temperatures, balance, N": lambda pair, n, o: presets.smc(
        pair, n, lanes=2, weight=BalanceHeuristic(),
        proposal_temperature=[0.7 * o.get("temperature", 1.0), 1.3 * o.get("temperature", 1.0)], **o,
    ),
    "plain IS, K lanes": lambda pair, k, o: presets.plain_is(pair, lanes=k, **_without_w(o)),
    "paper, K lanes": lambda pair, k, o: presets.paper(pair, lanes=k, **o),
    "released, K lanes": lambda pair, k, o: released(pair, lanes=k, **o),
    "speculative, N = 1": lambda pair, n, o: presets.speculative(pair, **_without_w(o)),
}


def _without_w(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "w"}


@dataclass(frozen=True)
class Figures:
    """One method at the budget; None where one does not exist.

    `bias` has its half-width or standard error, `kl` the ends of its interval.
    """

    pair: str
    method: str
    size: int
    cost: float
    bias: tuple[float, float]
    ess: float | None
    kl: tuple[float, float, float | None] | None
    tokens_per_dlm_forward: float


def fitting(make: Callable[[int], Sampler], runs_of: Callable[[Sampler], list[Result]], budget: float) -> int | None:
    """Largest size whose mean cost is within the budget, or None if a single particle is too dear."""
    try:
        return largest_within(budget, lambda size: cost_of(runs_of(make(size)), COST), most=MOST)
    except ValueError:
        return None


def figures(pair: str, method: str, size: int, runs: list[Result], bias: tuple[float, float]) -> Figures:
    """What the runs of one method say, beside its bias."""
    proper = runs[0].proper
    kl = kl_certificate(runs) if proper else None
    weighted = proper and len(runs[0].log_weights) > 1
    sizes = [run.ess for run in runs] if weighted else []
    return Figures(
        pair, method, size, cost_of(runs, COST), bias, float(np.mean(sizes)) if sizes else None,
        None if kl is None else (kl.kl, kl.low, kl.high if kl.has_interval else None),
        sum(run.tokens for run in runs) / sum(run.forwards.dlm_forwards for run in runs),
    )


def tabular(options: argparse.Namespace, advance: Callable[[], None]) -> list[Figures]:
    """The tabular pair: total variation of the output's law."""
    pair = ToyPair.make()
    exact = oracle(presets.speculative(pair).target, max_new_tokens=LENGTH)
    common = {"window": WINDOW, "w": W}

    def runs_of(sampler: Sampler, count: int, first: int) -> list[Result]:
        return sampler.run([[]] * count, seed=list(range(first, first + count)), max_new_tokens=LENGTH)

    found = []
    for name, make in METHODS.items():
        if name.startswith("speculative"):
            size: int | None = 1
        else:
            size = fitting(lambda n: make(pair, n, common), lambda s: runs_of(s, 50, 0), options.budget)  # noqa: B023
        if size is not None:
            runs = runs_of(make(pair, size, common), options.runs, options.seed + 1000)
            measure = output_distance_by_identity if runs[0].proper else output_distance
            distance = measure(runs, exact)
            found.append(figures("tabular", name, size, runs, (distance.value, distance.error)))
        advance()
    return found


def embedded(options: argparse.Namespace, advance: Callable[[], None]) -> list[Figures]:
    """The embedded pair: bias of the response's length against exact samples."""
    pair, task = load_pair("arithmetic"), TASKS["arithmetic"]
    prompts = [pair.encode(item.prompt).tolist() for item in task.problems(options.prompts)]
    common = {
        "window": task.window, "lookahead": task.lookahead, "temperature": options.temperature, "w": 0.3,
    }
    target, limit = presets.smc(pair, 1, **common).target, options.tokens or task.max_new_tokens

    def runs_of(sampler: Sampler, some: Sequence[Sequence[int]]) -> list[Result]:
        return sampler.run(some, seed=options.seed, max_new_tokens=limit, batch=16)

    exact = np.mean([
        [result.tokens for result in ar_sampling(
            target, prompts, seed=options.seed + 1 + i, max_new_tokens=limit, batch=64)]
        for i in range(EXACT)
    ], axis=0)
    found = []
    for name, make in METHODS.items():
        if name.startswith("speculative"):
            size: int | None = 1
        else:
            size = fitting(
                lambda n: make(pair, n, common), lambda s: runs_of(s, prompts[:4]), options.embedded_budget  # noqa: B023
            )
        if size is not None:
            runs = runs_of(make(pair, size, common), prompts)
            lengths = [run.drawn_tokens if run.alive else math.nan for run in runs]
            mean = batch_means(np.asarray(lengths) - exact)
            found.append(figures("embedded", name, size, runs, (mean.value, mean.value - mean.low)))
        advance()
    return found


def _bound(kl: tuple[float, float, float | None] | None) -> str:
    if kl is None:
        return "-"
    value, low, high = kl
    return f"{value:.3g}" if high is None else f"{value:.3g} [{low:.3g}, {high:.3g}]"


def measure(options: argparse.Namespace) -> Report:
    """Both tables and a picture."""
    with progress("methods", 2 * len(METHODS)) as advance:
        small, real = tabular(options, advance), embedded(options, advance)

    def rows(group: Sequence[Figures], form: str) -> list[list[str]]:
        return [
            [
                f.method, str(f.size), f"{f.cost:.0f}", f"{f.bias[0] + 0.0:{form}} ± {f.bias[1]:{form}}",
                "-" if f.ess is None else f"{f.ess:.1f}",
                _bound(f.kl),
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
            [*head, "bias of the length, tokens", *tail], rows(real, ".2f"),
            f"{options.prompts} problems, {EXACT} exact samples each; ± half-width of a 95 % interval",
        ),
    ]

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, 2)
        for ax, group, label in (
            (axes[0], small, "TV of the output's law"), (axes[1], real, "|bias of the length| (tokens)")
        ):
            names = [f.method for f in group]
            ax.barh(names, [abs(f.bias[0]) for f in group], xerr=[f.bias[1] for f in group], color="#4477aa")
            ax.set_xlabel(label)
            ax.set_xlim(left=0)
            ax.invert_yaxis()
        axes[0].set_title(f"tabular pair, {options.budget:g} rows", fontsize=9)
        axes[1].set_title(f"embedded pair, {options.embedded_budget:g} rows", fontsize=9)
        axes[1].set_yticklabels([])

    return Report(sheets, {"figures": [asdict(f) for f in [*small, *real]]}, draw, size=(9.0, 3.8))


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line (module docstring)."""
    execute("equal_cost", __doc__, configure, measure, arguments)


if __name__ == "__main__":
    main()
