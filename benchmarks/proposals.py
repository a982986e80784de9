"""Proposals: tokens committed of a draft, the forwards behind it, and the bound on the distance from the AR law.

    python -m benchmarks.proposals [--proposals marginals,markov,..] [--intermediates target,defensive]
        [--temperatures 0.2,1] [--blocks 4] [--block 8] [--quick] [--threads N] [--seed 0] [--out runs] [--markdown]

One particle, one lane, token-level rejection on the embedded pair (V = 16, M = 32). Marginals are drawn independently
and serve on where a block was accepted whole; learned parts chain them without a forward more; the diffusion model's
own chain rule takes a forward a token; the likeliest path is a point mass. Under the intermediate target all of them
commit the same law. No clock is involved: forwards of the diffusion model and of the AR model are counted. Repetitions
are blocks of problems, the same ones for all. The bound is the mean of Z - 1 - log Z over all problems.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from benchmarks.harness import progress, spread
from benchmarks.problems import add_block_arguments, in_blocks
from benchmarks.report import Report, Sheet, execute, several
from smc_bridge.analysis.bounds import kl_per_token
from smc_bridge.commands.base import one_of, positive
from smc_bridge.engine.presets import smc
from smc_bridge.estimate import Estimate
from smc_bridge.names import INTERMEDIATES, PROPOSALS
from smc_bridge.result import Result

#: V and M, tokens.
WINDOW, LOOKAHEAD = 16, 32


class Cell(NamedTuple):
    """A proposal under one intermediate and temperature: means over blocks of problems.

    Attributes:
        proposal, intermediate: their names.
        temperature: of the target.
        per_draft: committed tokens per draft.
        dlm_forwards, ar_forwards: forwards of either model per committed token.
        bound: on the KL divergence of the output from the AR law, nats per token, with its 95 % interval.
    """

    proposal: str
    intermediate: str
    temperature: float
    per_draft: Estimate
    dlm_forwards: Estimate
    ar_forwards: Estimate
    bound: Estimate


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add the arguments of this benchmark."""
    for name, parse, default, small in (
        ("--proposals", one_of(list(PROPOSALS)), ",".join(PROPOSALS), "marginals,chain"),
        ("--intermediates", one_of(list(INTERMEDIATES)), "target,defensive", "target"),
        ("--temperatures", positive, "0.2,1", "1"),
    ):
        parser.add_argument(
            name, type=several(parse), default=small if quick else default, metavar="x,x,..",
            help=f"that are compared (default: {default})",
        )
    add_block_arguments(parser, quick, block=8)


def measure(options: argparse.Namespace) -> Report:
    """Every proposal under every intermediate and temperature."""
    pair, task, blocks = in_blocks(options)
    kinds = [
        (temperature, intermediate, proposal) for temperature in options.temperatures
        for intermediate in options.intermediates for proposal in options.proposals
    ]
    cells = []
    with progress("proposals", len(kinds) * len(blocks)) as advance:
        for temperature, intermediate, proposal in kinds:
            sampler = smc(
                pair, 1, proposal=proposal, intermediate=intermediate, temperature=temperature, window=WINDOW,
                lookahead=LOOKAHEAD,
            )
            figures, every = [], list[Result]()
            for block in blocks:
                results = sampler.run(block, seed=options.seed, max_new_tokens=task.max_new_tokens)
                every += results
                tokens = sum(result.tokens for result in results)
                drafts = sum(len(result.trace) for result in results)
                forwards = [
                    sum(getattr(result.forwards, name) for result in results) / tokens
                    for name in ("dlm_forwards", "ar_forwards")
                ]
                figures.append((tokens / drafts, *forwards))
                advance()
            per_draft, dlm, ar = map(spread, zip(*figures, strict=True))
            cells.append(Cell(proposal, intermediate, temperature, per_draft, dlm, ar, kl_per_token(every)))
    columns = (
        "proposal", "tokens / draft", "DLM forwards / token", "AR forwards / token", "KL bound, nats / token"
    )
    sheets = [
        Sheet(f"Target temperature {temperature:g}, intermediate {intermediate}", columns, [
            (cell.proposal, *(figure.text() for figure in cell[3:-1]), _bound(cell.bound))
            for cell in cells if (cell.temperature, cell.intermediate) == (temperature, intermediate)
        ])
        for temperature in options.temperatures for intermediate in options.intermediates
    ]
    return Report(
        sheets, {"cells": cells}, lambda figure: _draw(figure, cells),
        spread="median [least, greatest] of the repetitions; of the bound the estimate from all problems and its 95 % "
        "interval",
    )


def _bound(found: Estimate) -> str:
    """Exact draws have a bound of 0, which needs no ends."""
    return "0" if found.high == 0 else found.text(".2g")


def _draw(figure: Any, cells: Sequence[Cell]) -> None:
    ax = figure.subplots()
    for proposal in dict.fromkeys(cell.proposal for cell in cells):
        own = [cell for cell in cells if cell.proposal == proposal]
        ax.scatter([c.dlm_forwards.value for c in own], [c.per_draft.value for c in own], label=proposal)
    ax.set(xlabel="DLM forwards per token", ylabel="tokens committed of a draft", xlim=(0, None), ylim=(0, None))
    ax.legend()


main = partial(execute, "proposals", __doc__, configure, measure)

if __name__ == "__main__":
    main()
