"""Tree nodes: tokens committed against AR nodes verified, for tree walk, token-level rejection and block verification.

    python -m benchmarks.tree_nodes [--nodes 8,16,32,64,128,256] [--lanes 1,4] [--w 0,0.3,0.7]
        [--temperatures 0.2,1] [--blocks 4] [--block 32] [--quick] [--threads N] [--seed 0] [--out runs] [--markdown]

One particle on the embedded pair. A step of the linear kernels verifies K drafts of V = 32 tokens, K * V nodes, of
which one lane survives; a step of tree walk verifies one tree. Counted are the tokens that a step commits and the
tokens or tree nodes that the AR model scores for it: no clock is involved. Repetitions are blocks of problems, the same
ones for all; ratios are taken within a block.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness import over, over_rounds, progress
from benchmarks.problems import add_block_arguments, in_blocks
from benchmarks.report import Report, Sheet, Verdict, execute, several
from smc_bridge.commands.base import positive, share, whole
from smc_bridge.engine.presets import smc
from smc_bridge.engine.sampler import Sampler
from smc_bridge.kernels.block_verification import BlockVerification
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.models.pairs import Pair
from smc_bridge.result import Result

#: V and M of every kernel, tokens.
WINDOW, LOOKAHEAD = 32, 64

#: (tree nodes, lanes of the drafts, wanted ratio of tokens at target temperature 1): of comparable cost.
WANTED = ((32, 1, 1.35), (128, 4, 1.4))


#: Kernels by name: what makes one of a size, the size's name, and the style and name of its curve.
KERNELS: dict[str, tuple[Callable[[int], Kernel], str, str, str]] = {
    "tree": (TreeWalk, "tree, {} nodes", "o-", "tree walk"),
    "rejection": (lambda _: Rejection(), "rejection, K = {}", "s--", "token-level rejection"),
    "block": (lambda _: BlockVerification(), "block, K = {}", "^:", "block verification"),
}


class Case(NamedTuple):
    """A kernel and the size of its step, under one law.

    Attributes:
        kernel: its name.
        size: B, nodes of a tree, or K, drafts.
        w: exponent of the DLM in the product of experts.
        temperature: of the target.
    """

    kernel: str
    size: int
    w: float
    temperature: float

    @property
    def name(self) -> str:
        """Kernel and size, for the tables."""
        return KERNELS[self.kernel][1].format(self.size)

    @property
    def law(self) -> tuple[float, float]:
        """The numbers that fix both laws: w and temperature."""
        return self.w, self.temperature

    def sampler(self, pair: Pair) -> Sampler:
        """One particle with that kernel."""
        kernel, lanes = KERNELS[self.kernel][0](self.size), 1 if self.kernel == "tree" else self.size
        return smc(
            pair, 1, lanes=lanes, w=self.w, kernel=kernel, temperature=self.temperature, window=WINDOW,
            lookahead=LOOKAHEAD,
        )


class Run(NamedTuple):
    """One case on one block of problems.

    Attributes:
        tokens_per_step: committed in a step.
        nodes_per_step: positions of the AR model verified in a step.
        tokens_per_node: tokens committed per AR node verified.
    """

    tokens_per_step: float
    nodes_per_step: float
    tokens_per_node: float

    @classmethod
    def of(cls, results: Sequence[Result]) -> Run:
        """What was counted in the results of a block."""
        tokens = sum(result.tokens for result in results)
        steps = sum(result.forwards.ar_forwards for result in results)
        nodes = sum(result.forwards.ar_tokens for result in results)
        return cls(tokens / steps, nodes / steps, tokens / nodes)


#: By case: a run for each block of problems.
Runs = dict[Case, list[Run]]


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add the arguments of this benchmark."""
    for name, parse, default, small, what in (
        ("--nodes", whole(1), "8,16,32,64,128,256", "32", "budgets of tree walk"),
        ("--lanes", whole(1), "1,4", "1", "drafts K"),
        ("--w", share, "0,0.3,0.7", "0.3", "w of the product of experts"),
        ("--temperatures", positive, "0.2,1", "1", "of the target"),
    ):
        parser.add_argument(
            name, type=several(parse), default=small if quick else default, metavar="x,x,..", help=what
        )
    add_block_arguments(parser, quick)


def measure(options: argparse.Namespace) -> Report:
    """Every kernel under every law."""
    pair, task, blocks = in_blocks(options)
    laws = [(w, temperature) for temperature in options.temperatures for w in options.w]
    sizes = [("tree", nodes) for nodes in options.nodes]
    sizes += [(kernel, lanes) for kernel in ("rejection", "block") for lanes in options.lanes]
    runs: Runs = {Case(*size, *law): [] for law in laws for size in sizes}
    with progress("tree_nodes", len(runs) * len(blocks)) as advance:
        for case, own in runs.items():
            sampler = case.sampler(pair)
            for block in blocks:
                results = sampler.run(block, seed=options.seed, max_new_tokens=task.max_new_tokens)
                own.append(Run.of(results))
                advance()
    comparisons = [
        (tree, linear, over(runs[tree], runs[linear], "tokens_per_step"),
         over(runs[tree], runs[linear], "tokens_per_node"))
        for law in laws for nodes, lanes, _ in WANTED for kernel in ("rejection", "block")
        if (tree := Case("tree", nodes, *law)) in runs and (linear := Case(kernel, lanes, *law)) in runs
    ]
    sheets = [_sheet(runs, law) for law in laws]
    if comparisons:
        sheets.append(Sheet(
            "Tree walk over drafts of comparable cost",
            ("target temperature, w", "tree", "drafts", "tokens / step", "tokens / AR node"),
            [(f"{tree.temperature:g}, {tree.w:g}", tree.name, linear.name, tokens.text(), per_node.text())
             for tree, linear, tokens, per_node in comparisons],
        ))
    verdicts = [
        Verdict(f"{tree.name} over {linear.name}, w = {tree.w:g}, tokens per AR node", per_node.value,
                next(wanted for nodes, _, wanted in WANTED if nodes == tree.size))
        for tree, linear, _, per_node in comparisons if tree.temperature == 1 and linear.kernel == "rejection"
    ]
    return Report(
        sheets, {
            "cells": [
                {**case._asdict(), **{name: over_rounds(own, name) for name in Run._fields}}
                for case, own in runs.items()
            ],
            "comparisons": [
                {"w": tree.w, "temperature": tree.temperature, "tree": tree.name, "drafts": linear.name,
                 "tokens_per_step": tokens, "tokens_per_node": per_node}
                for tree, linear, tokens, per_node in comparisons
            ],
        },
        lambda figure: _draw(figure, runs, laws),
        size=(max(6.4, 3.6 * min(3, len(laws))), 3.3 * -(-len(laws) // 3) + 0.3),
        verdicts=verdicts,
    )


def _sheet(runs: Runs, law: tuple[float, float]) -> Sheet:
    forms = dict.fromkeys(Run._fields, ".3g") | {"nodes_per_step": ".4g"}
    rows = [
        (case.name, *(over_rounds(own, name).text(form) for name, form in forms.items()))
        for case, own in runs.items() if case.law == law
    ]
    columns = ("kernel", "tokens / step", "AR nodes / step", "tokens / AR node")
    return Sheet("Target temperature {1:g}, w = {0:g}".format(*law), columns, rows)


def _draw(figure: Any, runs: Runs, laws: Sequence[tuple[float, float]]) -> None:
    columns = min(3, len(laws))
    grid = figure.subplots(-(-len(laws) // columns), columns, squeeze=False, sharex=True).flatten()
    for ax, law in zip(grid, laws, strict=False):
        for kernel, (_, _, style, label) in KERNELS.items():
            own = [each for case, each in runs.items() if (case.kernel, case.law) == (kernel, law)]
            tokens = [over_rounds(each, "tokens_per_step") for each in own]
            ax.errorbar(
                [over_rounds(each, "nodes_per_step").value for each in own], [s.value for s in tokens],
                yerr=np.transpose([s.bars for s in tokens]), fmt=style, label=label, capsize=2,
            )
        ax.set_xscale("log", base=2)
        ax.set(title="target temperature {1:g}, w = {0:g}".format(*law), xlabel="AR nodes per step",
               ylabel="tokens per step")
        most = max(run.tokens_per_step for case, own in runs.items() if case.law == law for run in own)
        ax.set_ylim(0, 1.08 * most)
    for ax in grid[len(laws):]:
        ax.remove()
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)


main = partial(execute, "tree_nodes", __doc__, configure, measure)

if __name__ == "__main__":
    main()
