"""Proposal cache: what an approximate cache of the diffusion model saves per forward, and costs in acceptance.

    python -m benchmarks.proposal_cache [--caches none,prefix,window] [--window 32]
        [--methods paper,smc-4,tree-32] [--temperature 0.2] [--blocks 4] [--block 16] [--batch 4] [--quick]
        [--threads N] [--seed 0] [--out runs] [--markdown]

The proposal may come from stale states: the law that was sampled is the law that is scored (condition C4 of
docs/theory.md), so the weights stay proper, but a worse proposal is refused sooner. For every cache of the DLM session:
milliseconds of a DLM forward (all that the session does for it), tokens per DLM forward, and what is left of it in
tokens per second. Repetitions are blocks of problems, the same ones for all; ratios to `none` are taken within a block.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.harness import progress, ratios, spread, timed, turns
from benchmarks.problems import TABLES, add_block_arguments, add_law_arguments, decoder, embedded, methods
from benchmarks.replay import Tape, observe
from benchmarks.report import Report, Sheet, execute, several
from smc_bridge.commands.base import one_of, whole
from smc_bridge.decode import decode
from smc_bridge.estimate import Estimate
from smc_bridge.models.pairs import Pair

CACHES = ("none", "prefix", "window")


def with_cache(pair: Pair, cache: Any, *, window: int) -> Pair:
    """The pair with another cache in its DLM session; `window` is what "window" shows of a prefix, tokens."""
    dlm: Any = pair.dlm
    return replace(pair, dlm=dlm.with_cache(cache, window=window if cache == "window" else None))


@dataclass(frozen=True)
class Run:
    """One method with one cache on one block of problems.

    Attributes:
        forward: seconds of a DLM forward.
        tokens: tokens per DLM forward.
        rate: tokens per second.
    """

    forward: float
    tokens: float
    rate: float


@dataclass(frozen=True)
class Cell:
    """One method with one cache, beside the same method without a cache.

    Attributes:
        method: as it is spelled.
        cache: its name.
        runs, plain: with and without the cache, one for each block of problems.
    """

    method: str
    cache: str
    runs: list[Run]
    plain: list[Run]

    def over_blocks(self, figure: str) -> Estimate:
        """A figure of `Run` over the blocks of problems."""
        return spread([getattr(run, figure) for run in self.runs])

    def over_none(self, figure: str) -> Estimate:
        """A figure of `Run` over the blocks of problems, divided by its value without a cache."""
        return ratios([getattr(run, figure) for run in self.runs], [getattr(run, figure) for run in self.plain])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        figures = {"forward": "dlm_forward_seconds", "tokens": "tokens_per_dlm_forward", "rate": "tokens_per_second"}
        return {
            "method": self.method, "cache": self.cache,
            **{name: self.over_blocks(figure).plain() for figure, name in figures.items()},
            **{f"{name}_over_none": self.over_none(figure).plain() for figure, name in figures.items()},
        }


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add the arguments of this benchmark."""
    parser.add_argument("--caches", type=several(one_of(CACHES)), default=CACHES, metavar="a,b,..", help="of "
                        f"{', '.join(CACHES)}; none is always there")
    parser.add_argument(
        "--methods", type=methods, default=TABLES["proposal_cache"]["quick" if quick else "methods"],
        metavar="a,b,..", help="such as draft with the diffusion model",
    )
    parser.add_argument("--window", type=whole(1), default=32, help="tokens of a prefix that the cache 'window' shows")
    add_law_arguments(parser, 16 if quick else None)
    add_block_arguments(parser, quick, block=16)
    parser.add_argument("--batch", type=whole(1), default=4, help="prompts in work at a time")


def measure(options: argparse.Namespace) -> Report:
    """Every method with every cache on every block."""
    kinds = tuple(dict.fromkeys(("none", *options.caches)))
    pair, task, prompts = embedded(options.blocks * options.block)
    pairs = {cache: with_cache(pair, cache, window=options.window) for cache in kinds}

    def run(method: str, cache: str, part: Sequence[Sequence[int]]) -> Run:
        tape = Tape(keep=False)
        program = decoder(method, observe(pairs[cache], tape), task, temperature=options.temperature)
        limit = options.tokens or task.max_new_tokens
        seconds, results = timed(
            lambda: decode(program, part, seed=options.seed, max_new_tokens=limit, batch=options.batch)
        )
        if not tape.forwards("dlm"):
            raise ValueError(f"--methods = {method}: uses no diffusion model; choose others")
        tokens = sum(result.tokens for result in results)
        forwards = sum(result.forwards.dlm_forwards for result in results)
        return Run(tape.seconds("dlm") / tape.forwards("dlm"), tokens / forwards, tokens / seconds)

    runs: dict[tuple[str, str], list[Run]] = {(m, c): [] for m in options.methods for c in kinds}
    with progress("proposal_cache", options.blocks * len(runs)) as advance:
        for block, (method, cache) in turns(list(runs), options.blocks):
            part = prompts[block * options.block : (block + 1) * options.block]
            if block == 0:
                run(method, cache, part[:1])  # the first call of all is slow
            runs[method, cache].append(run(method, cache, part))
            advance()
    found = [Cell(method, cache, own, runs[method, "none"]) for (method, cache), own in runs.items()]
    return Report(
        [_sheet(found, options)], {"cells": [cell.to_dict() for cell in found]},
        lambda figure: _draw(figure, found, options.methods, kinds), size=(9.6, 3.6),
    )


def _sheet(cells: Sequence[Cell], options: argparse.Namespace) -> Sheet:
    rows = [
        (
            f"{cell.method}, {cell.cache}", cell.over_blocks("forward").times(1000).text(),
            cell.over_none("forward").text(), cell.over_blocks("tokens").text(), cell.over_none("tokens").text(),
            cell.over_none("rate").text(),
        )
        for cell in cells
    ]
    columns = (
        "method, cache", "ms / DLM forward", "over none", "tokens / DLM forward", "over none", "tokens/s over none"
    )
    title = (
        f"{options.blocks} blocks of {options.block} problems, {options.batch} at a time, target temperature "
        f"{options.temperature:g}"
    )
    return Sheet(title, columns, rows)


def _draw(figure: Any, cells: Sequence[Cell], methods: Sequence[str], kinds: Sequence[str]) -> None:
    axes = figure.subplots(1, 3)
    place = np.arange(len(methods))
    titles = (("forward", "ms per DLM forward"), ("tokens", "tokens per DLM forward"), ("rate", "tokens per second"))
    for ax, (figure_name, title) in zip(axes, titles, strict=True):
        for i, cache in enumerate(kinds):
            scale = 1000 if figure_name == "forward" else 1
            own = [cell.over_blocks(figure_name).times(scale) for cell in cells if cell.cache == cache]
            width = 0.8 / len(kinds)
            ax.bar(
                place + (i - (len(kinds) - 1) / 2) * width, [s.value for s in own], width, label=cache,
                yerr=np.transpose([s.bars for s in own]), error_kw={"lw": 0.8},
            )
        ax.set_xticks(place, methods)
        ax.set_ylabel(title)
    axes[0].legend(title="cache", fontsize="small")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line (module docstring)."""
    execute("proposal_cache", __doc__, configure, measure, arguments)


if __name__ == "__main__":
    main()
