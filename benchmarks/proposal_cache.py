"""Proposal cache: what an approximate cache of the diffusion model saves per forward, and costs in acceptance.

    python -m benchmarks.proposal_cache [--caches none,prefix] [--methods paper,smc-4,tree-32]
        [--temperature 0.2] [--blocks 4] [--block 16] [--batch 4] [--quick]
        [--threads N] [--seed 0] [--out runs] [--markdown]

The proposal may come from stale states: the law that was sampled is the law that is scored (condition C4 of
docs/theory.md), so the weights stay proper, but a worse proposal is refused sooner. For every cache of the DLM session:
milliseconds of a DLM forward (all that the session does for it), tokens per DLM forward, and what is left of it in
tokens per second. Repetitions are blocks of problems, the same ones for all; ratios to `none` are taken within a block.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from benchmarks.harness import over, over_rounds, progress, timed, turns
from benchmarks.problems import TABLES, add_block_arguments, add_law_arguments, decoder, in_blocks, methods
from benchmarks.replay import Tape, observe
from benchmarks.report import Report, Sheet, bars, execute, several
from smc_bridge.commands.base import one_of, whole
from smc_bridge.decode import decode
from smc_bridge.models.pairs import Pair

CACHES = ("none", "prefix")


def with_cache(pair: Pair, cache: Any) -> Pair:
    """The pair with another cache in its DLM session."""
    dlm: Any = pair.dlm
    return replace(pair, dlm=dlm.with_cache(cache))


class Run(NamedTuple):
    """One method with one cache on one block of problems.

    Attributes:
        dlm_forward_seconds: seconds of a DLM forward.
        tokens_per_dlm_forward: committed tokens by forwards of the DLM.
        tokens_per_second: of wall time.
    """

    dlm_forward_seconds: float
    tokens_per_dlm_forward: float
    tokens_per_second: float


#: By method and cache: a run for each block of problems.
Runs = dict[tuple[str, str], list[Run]]


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add the arguments of this benchmark."""
    parser.add_argument("--caches", type=several(one_of(CACHES)), default=CACHES, metavar="a,b,..", help="of "
                        f"{', '.join(CACHES)}; none is always there")
    parser.add_argument(
        "--methods", type=methods, default=TABLES["proposal_cache"]["quick" if quick else "methods"],
        metavar="a,b,..", help="such as draft with the diffusion model",
    )
    add_law_arguments(parser, 16 if quick else None)
    add_block_arguments(parser, quick, block=16)
    parser.add_argument("--batch", type=whole(1), default=4, help="prompts in work at a time")


def measure(options: argparse.Namespace) -> Report:
    """Every method with every cache on every block."""
    kinds = tuple(dict.fromkeys(("none", *options.caches)))
    pair, task, blocks = in_blocks(options)
    pairs = {cache: with_cache(pair, cache) for cache in kinds}

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

    runs: Runs = {(m, c): [] for m in options.methods for c in kinds}
    with progress("proposal_cache", options.blocks * len(runs)) as advance:
        for block, (method, cache) in turns(list(runs), options.blocks):
            if block == 0:
                run(method, cache, blocks[0][:1])  # the first call of all is slow
            runs[method, cache].append(run(method, cache, blocks[block]))
            advance()
    cells = [
        {
            "method": method, "cache": cache, **{name: over_rounds(own, name) for name in Run._fields},
            **{f"{name}_over_none": over(own, runs[method, "none"], name) for name in Run._fields},
        }
        for (method, cache), own in runs.items()
    ]
    return Report([_sheet(cells, options)], {"cells": cells}, lambda figure: _draw(figure, runs), size=(9.6, 3.6))


def _sheet(cells: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> Sheet:
    rows = [
        (
            f"{cell['method']}, {cell['cache']}", cell["dlm_forward_seconds"].times(1000).text(),
            *(cell[name].text() for name in (
                "dlm_forward_seconds_over_none", "tokens_per_dlm_forward", "tokens_per_dlm_forward_over_none",
                "tokens_per_second_over_none",
            )),
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


def _draw(figure: Any, runs: Runs) -> None:
    axes = figure.subplots(1, len(Run._fields))
    names, kinds = (tuple(dict.fromkeys(part)) for part in zip(*runs, strict=True))
    scales = (("ms per DLM forward", 1000), ("tokens per DLM forward", 1), ("tokens per second", 1))
    for ax, name, (title, scale) in zip(axes, Run._fields, scales, strict=True):
        bars(ax, names, {
            cache: [over_rounds(runs[method, cache], name).times(scale) for method in names] for cache in kinds
        })
        ax.set_ylabel(title)
    axes[0].legend(title="cache", fontsize="small")


main = partial(execute, "proposal_cache", __doc__, configure, measure)

if __name__ == "__main__":
    main()
