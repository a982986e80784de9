"""Scaling: time per step and peak memory against every size of the program, one at a time around a base point.

    python -m benchmarks.scaling [--factors P,N,K,V,S,prompt] [--steps 8] [--repetitions 3] [--kernel drafts|tree]
        [--quick] [--threads N] [--seed 0] [--out runs] [--markdown]

P prompts, N particles, K lanes, V tokens in the window, S tokens committed before the steps that are timed (given, and
others for every particle, so that none share a forward's row), and the tokens of the prompt. On the embedded pair,
whose laws are kept from ending (the end of sequence is banned), so that every particle takes part in every step.
Exponents are slopes of log time (or memory) on log size by least squares, with one standard error. Memory is the peak
from the start of the run to its last step, models' weights excluded.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch

from benchmarks.harness import interleaved, progress, spread, timed
from benchmarks.memory import peak_bytes
from benchmarks.problems import embedded
from benchmarks.report import Report, Sheet, Verdict, execute, plus_minus, several
from smc_bridge.commands.base import one_of, whole
from smc_bridge.distributions.intermediate import ProductOfExperts
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.state import SMCState
from smc_bridge.estimate import Estimate
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.models.ends import ends_of
from smc_bridge.models.pairs import Pair
from smc_bridge.proposals.mean_field import DLMProposal

LOOKAHEAD, NODES = 64, 64
#: Time per step: sublinear in N up to 8, at most linear in S (attention is linear in S for every token scored).
N_UP_TO, WANTED_N, WANTED_S = 8, 1.0, 1.0


@dataclass(frozen=True)
class Point:
    """Sizes of one measurement.

    Attributes:
        P, N, K, V: prompts, particles, lanes and window.
        S: tokens of its own that every particle has committed.
        prompt: length of a prompt, tokens.
    """

    P: int = 2
    N: int = 2
    K: int = 2
    V: int = 32
    S: int = 32
    prompt: int = 64


FACTORS: dict[str, tuple[int, ...]] = {
    "P": (1, 2, 4, 8, 16), "N": (1, 2, 4, 8, 16), "K": (1, 2, 4, 8), "V": (8, 16, 32, 64),
    "S": (32, 64, 128, 256, 512), "prompt": (32, 64, 128, 256, 512),
}
QUICK: dict[str, tuple[int, ...]] = {
    "P": (1, 2), "N": (1, 2), "K": (1, 2), "V": (4, 8), "S": (2, 4), "prompt": (8, 16),
}


def slope(sizes: Sequence[float], values: Sequence[float]) -> Estimate:
    """Exponent of a power law by least squares of log value on log size; of two points its error is NaN.

    Raises:
        ValueError: fewer than two sizes, or a value that is not positive.
    """
    if len(set(sizes)) < 2 or min(*sizes, *values) <= 0:
        raise ValueError(f"sizes = {list(sizes)}, values = {list(values)}: give at least two, and positive values")
    x, y = np.log(sizes), np.log(values)
    x = x - x.mean()
    exponent = float((x * y).sum() / (x * x).sum())
    residual = y - y.mean() - exponent * x
    spare = len(x) - 2
    error = math.sqrt(float((residual**2).sum()) / spare / float((x * x).sum())) if spare else math.nan
    return Estimate.normal(exponent, error, len(x))


class Bench:
    """Runs the program at any point of sizes, and times it."""

    def __init__(self, pair: Pair, prompts: Sequence[Sequence[int]], *, kernel: str, steps: int, seed: int) -> None:
        self.pair, self.kernel, self.steps, self.seed = pair, kernel, steps, seed
        self.text = list(chain.from_iterable(prompts))

    def sampler(self, point: Point) -> Sampler:
        """The program with the sizes of a point."""
        banned = ends_of(self.pair.ar.eos_id)
        return Sampler(
            proposal=DLMProposal(self.pair.dlm, lookahead=max(LOOKAHEAD, point.V), banned_ids=banned),
            target=ARTarget(self.pair.ar, banned_ids=banned), intermediate=ProductOfExperts(0.3),
            kernel=TreeWalk(NODES) if self.kernel == "tree" else Rejection(), particles=point.N, lanes=point.K,
            window=point.V,
        )

    def prompts(self, point: Point) -> list[list[int]]:
        """P different prompts of the wanted length, cut from the problems' own text."""
        return [
            [self.text[(37 * i + j) % len(self.text)] for j in range(point.prompt)] for i in range(point.P)
        ]

    @torch.inference_mode()
    def begin(self, sampler: Sampler, point: Point) -> SMCState:
        """A state after one step, before which S tokens of its own were committed to every particle.

        They are given, not sampled: no two particles share a prefix, which is the worst case for the DLM's forwards.
        """
        limit = point.S + (self.steps + 2) * point.V
        state = sampler.start(self.prompts(point), seed=self.seed, max_new_tokens=limit)
        rows = state.prefix.length.numel()
        given = torch.tensor([
            [self.text[(53 * row + 7 * point.prompt + j) % len(self.text)] for j in range(point.S)]
            for row in range(rows)
        ])
        given = given.to(state.prefix.length.device)
        count = torch.full_like(state.prefix.length, point.S)
        sampler.proposal.commit(state.drafts, None, given, count, torch.zeros_like(state.prefix.done))
        state.ar.commit(given, count)
        state.prefix = state.prefix.extend(given, count, ends=(), limit=state.limit)
        return sampler.step(state)

    @torch.inference_mode()
    def go_on(self, sampler: Sampler, state: SMCState) -> None:
        """Run the steps that are timed."""
        for _ in range(self.steps):
            if state.active().numel():  # a particle far ahead of the others may reach the limit
                state = sampler.step(state)

    def seconds(self, point: Point) -> float:
        """Mean time of a step at the point, seconds."""
        sampler = self.sampler(point)
        state = self.begin(sampler, point)
        return timed(lambda: self.go_on(sampler, state))[0] / self.steps

    def memory(self, point: Point) -> int:
        """Peak of a whole run up to the last step, bytes."""
        sampler = self.sampler(point)
        return peak_bytes(lambda _: self.go_on(sampler, self.begin(sampler, point)), prepare=lambda: None)


@dataclass(frozen=True)
class Curve:
    """Time and memory along one factor.

    Attributes:
        factor: name of the size that varies (`Point`).
        sizes: its values.
        seconds: of a step at each.
        bytes: peak memory at each.
    """

    factor: str
    sizes: tuple[int, ...]
    seconds: list[Estimate]
    bytes: list[int]

    @property
    def time_slope(self) -> Estimate:
        """Exponent of the time per step."""
        return slope(self.sizes, [spread.value for spread in self.seconds])

    @property
    def memory_slope(self) -> Estimate:
        """Exponent of the peak memory."""
        return slope(self.sizes, self.bytes)


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add the arguments of this benchmark."""
    parser.add_argument("--factors", type=several(one_of(FACTORS)), default=tuple(FACTORS), metavar="P,N,..",
                        help="default: all")
    parser.add_argument("--steps", type=whole(1), default=1 if quick else 8, help="that are timed at a point")
    parser.add_argument("--repetitions", type=whole(1), default=1 if quick else 3, help="of every point")
    parser.add_argument("--kernel", type=one_of(("drafts", "tree")), default="drafts", help="token-level rejection of "
                        f"K drafts, or a tree of {NODES} nodes (default: drafts)")


def measure(options: argparse.Namespace) -> Report:
    """Every factor on its own, all sizes of it in turn."""
    pair, _, prompts = embedded(32)
    bench = Bench(pair, prompts, kernel=options.kernel, steps=options.steps, seed=options.seed)
    base = Point(P=1, N=1, K=1, S=2, prompt=8, V=4) if options.quick else Point()
    sizes = {name: (QUICK if options.quick else FACTORS)[name] for name in options.factors}
    curves = []
    with progress("scaling", options.repetitions * sum(map(len, sizes.values()))) as advance:
        for name, values in sizes.items():
            points = {str(value): replace(base, **{name: value}) for value in values}
            found = interleaved(
                {key: lambda point=point: bench.seconds(point) for key, point in points.items()},  # type: ignore[misc]
                options.repetitions, warmup=0 if options.quick else 1, advance=advance,
            )
            curves.append(Curve(
                name, values, [spread(found[str(value)]) for value in values],
                [bench.memory(points[str(value)]) for value in values],
            ))
    return Report(
        [*(_sheet(curve, base) for curve in curves), _summary(curves)],
        {"base": base, "kernel": options.kernel, "curves": [
            {**vars(curve), "time_exponent": curve.time_slope, "memory_exponent": curve.memory_slope}
            for curve in curves
        ]},
        lambda figure: _draw(figure, curves), size=(10.5, 0.4 + 3.3 * math.ceil(len(curves) / 3)),
        verdicts=verdicts(curves),
    )


def verdicts(curves: Sequence[Curve]) -> list[Verdict]:
    """The exponents that the project wants."""
    out = []
    for curve in curves:
        if curve.factor == "N":
            kept = [i for i, size in enumerate(curve.sizes) if size <= N_UP_TO]
            found = slope([curve.sizes[i] for i in kept], [curve.seconds[i].value for i in kept])
            claim = f"exponent of time per step in N up to {N_UP_TO}"
            out.append(Verdict(claim, found.value, WANTED_N, least=False))
        if curve.factor == "S":
            out.append(Verdict("exponent of time per step in S", curve.time_slope.value, WANTED_S, least=False))
    return out


def _sheet(curve: Curve, base: Point) -> Sheet:
    others = ", ".join(f"{name} = {value}" for name, value in asdict(base).items() if name != curve.factor)
    rows = [
        (str(size), s.times(1000).text(), f"{peak / 2**20:.1f}")
        for size, s, peak in zip(curve.sizes, curve.seconds, curve.bytes, strict=True)
    ]
    rows.append(("exponent", plus_minus(curve.time_slope, ".2f"), plus_minus(curve.memory_slope, ".2f")))
    return Sheet(f"{curve.factor}, at {others}", (curve.factor, "ms per step", "peak memory, MiB"), rows)


def _summary(curves: Sequence[Curve]) -> Sheet:
    """The exponents of all factors, and how time grows over the last doubling, where fixed costs weigh least."""
    rows = []
    for curve in curves:
        last = slope(curve.sizes[-2:], [spread.value for spread in curve.seconds[-2:]])
        rows.append((
            curve.factor, f"{curve.sizes[0]} to {curve.sizes[-1]}",
            *(plus_minus(each, ".2f") for each in (curve.time_slope, last, curve.memory_slope)),
        ))
    columns = ("factor", "sizes", "exponent of time", "of time, last two sizes", "exponent of memory")
    return Sheet("Exponents", columns, rows)


def _draw(figure: Any, curves: Sequence[Curve]) -> None:
    grid = figure.subplots(math.ceil(len(curves) / 3), min(3, len(curves)), squeeze=False).flatten()
    names = {"S": "S, committed tokens", "prompt": "prompt, tokens", "V": "V, tokens"}
    for ax, curve in zip(grid, curves, strict=False):
        milliseconds = [s.times(1000) for s in curve.seconds]
        error = np.transpose([s.bars for s in milliseconds])
        lines = [
            ax.errorbar(curve.sizes, [s.value for s in milliseconds], yerr=error, marker="o", capsize=2),
            *ax.plot(curve.sizes, [peak / 2**20 for peak in curve.bytes], marker="s", linestyle="--"),
        ]
        ax.set(
            xscale="log", yscale="log", xlabel=names.get(curve.factor, curve.factor), ylabel="ms per step; MiB",
            title=f"exponents: time {plus_minus(curve.time_slope, '.2f')},\n"
            f"memory {plus_minus(curve.memory_slope, '.2f')}",
        )
        ax.title.set_fontsize("medium")
        ax.set_xticks(curve.sizes, [str(size) for size in curve.sizes])
        ax.minorticks_off()
        ax.grid(alpha=0.25)
    figure.legend(lines, ["time per step, ms", "peak memory, MiB"], loc="outside upper center", ncols=2)
    for ax in grid[len(curves):]:
        ax.remove()


main = partial(execute, "scaling", __doc__, configure, measure)

if __name__ == "__main__":
    main()
