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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.harness import Advance, progress, ratios, spread
from benchmarks.problems import add_block_arguments, embedded
from benchmarks.report import Report, Sheet, Verdict, execute, several
from smc_bridge.commands.base import positive, share, whole
from smc_bridge.kernels.block_verification import BlockVerification
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.methods.poe_bridge import smc
from smc_bridge.models.pairs import Pair
from smc_bridge.tasks import Task

#: V and M of every kernel, tokens.
WINDOW, LOOKAHEAD = 32, 64

#: (tree nodes, lanes of the drafts, wanted ratio of tokens at target temperature 1): of comparable cost.
WANTED = ((32, 1, 1.35), (128, 4, 1.4))


@dataclass(frozen=True)
class Shape:
    """A kernel and the size of its step.

    Attributes:
        kernel: its name.
        size: B, nodes of a tree, or K, drafts.
    """

    kernel: str
    size: int

    @property
    def name(self) -> str:
        """Kernel and size, for the tables."""
        return f"tree, {self.size} nodes" if self.kernel == "tree" else f"{self.kernel}, K = {self.size}"

    def make(self) -> tuple[Kernel, int]:
        """The kernel, and the number of lanes."""
        if self.kernel == "tree":
            return TreeWalk(self.size), 1
        return (Rejection() if self.kernel == "rejection" else BlockVerification()), self.size


@dataclass(frozen=True)
class Cell:
    """One kernel under one law, a value for each block of problems.

    Attributes:
        shape: kernel and size.
        w: exponent of the DLM in the product of experts.
        temperature: of the target.
        tokens: committed in a step.
        nodes: positions of the AR model verified in a step.
    """

    shape: Shape
    w: float
    temperature: float
    tokens: list[float]
    nodes: list[float]

    @property
    def per_node(self) -> list[float]:
        """Tokens committed per AR node verified."""
        return [tokens / nodes for tokens, nodes in zip(self.tokens, self.nodes, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "kernel": self.shape.kernel, "size": self.shape.size, "w": self.w, "temperature": self.temperature,
            "tokens_per_step": spread(self.tokens).plain(), "nodes_per_step": spread(self.nodes).plain(),
            "tokens_per_node": spread(self.per_node).plain(),
        }


def measure_cell(
    shape: Shape, pair: Pair, task: Task, blocks: Sequence[Sequence[Sequence[int]]], *, w: float, temperature: float,
    seed: int, advance: Advance,
) -> Cell:
    """Decode every block and count."""
    kernel, lanes = shape.make()
    sampler = smc(
        pair, 1, lanes=lanes, w=w, kernel=kernel, temperature=temperature, window=WINDOW, lookahead=LOOKAHEAD,
    )
    tokens, nodes = [], []
    for block in blocks:
        results = sampler.run(block, seed=seed, max_new_tokens=task.max_new_tokens)
        steps = sum(result.forwards.ar_forwards for result in results)
        tokens.append(sum(result.tokens for result in results) / steps)
        nodes.append(sum(result.forwards.ar_tokens for result in results) / steps)
        advance()
    return Cell(shape, w, temperature, tokens, nodes)


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
    pair, task, prompts = embedded(options.blocks * options.block)
    blocks = [prompts[i : i + options.block] for i in range(0, len(prompts), options.block)]
    shapes = [
        *(Shape("tree", nodes) for nodes in options.nodes),
        *(Shape(kernel, lanes) for kernel in ("rejection", "block") for lanes in options.lanes),
    ]
    laws = [(w, temperature) for temperature in options.temperatures for w in options.w]
    with progress("tree_nodes", len(laws) * len(shapes) * len(blocks)) as advance:
        cells = [
            measure_cell(
                shape, pair, task, blocks, w=w, temperature=temperature, seed=options.seed, advance=advance,
            )
            for w, temperature in laws for shape in shapes
        ]
    found = {(cell.shape, cell.w, cell.temperature): cell for cell in cells}
    comparisons = [
        (tree, linear, ratios(tree.tokens, linear.tokens), ratios(tree.per_node, linear.per_node))
        for w, temperature in laws for nodes, lanes, _ in WANTED for kernel in ("rejection", "block")
        if (tree := found.get((Shape("tree", nodes), w, temperature)))
        and (linear := found.get((Shape(kernel, lanes), w, temperature)))
    ]
    sheets = [_sheet(cells, w, temperature) for w, temperature in laws]
    if comparisons:
        sheets.append(Sheet(
            "Tree walk over drafts of comparable cost",
            ("target temperature, w", "tree", "drafts", "tokens / step", "tokens / AR node"),
            [(f"{tree.temperature:g}, {tree.w:g}", tree.shape.name, linear.shape.name, tokens.text(), per_node.text())
             for tree, linear, tokens, per_node in comparisons],
        ))
    verdicts = [
        Verdict(f"{tree.shape.name} over {linear.shape.name}, w = {tree.w:g}, tokens per AR node", per_node.value,
                next(wanted for nodes, _, wanted in WANTED if nodes == tree.shape.size))
        for tree, linear, _, per_node in comparisons if tree.temperature == 1 and linear.shape.kernel == "rejection"
    ]
    return Report(
        sheets, {
            "cells": [cell.to_dict() for cell in cells],
            "comparisons": [
                {"w": tree.w, "temperature": tree.temperature, "tree": tree.shape.name, "drafts": linear.shape.name,
                 "tokens_per_step": tokens.plain(), "tokens_per_node": per_node.plain()}
                for tree, linear, tokens, per_node in comparisons
            ],
        },
        lambda figure: _draw(figure, cells, laws),
        size=(max(6.4, 3.6 * min(3, len(laws))), 3.3 * -(-len(laws) // 3) + 0.3),
        verdicts=verdicts,
    )


def _sheet(cells: Sequence[Cell], w: float, temperature: float) -> Sheet:
    rows = [
        (cell.shape.name, spread(cell.tokens).text(), spread(cell.nodes).text(".4g"),
         spread(cell.per_node).text())
        for cell in cells if (cell.w, cell.temperature) == (w, temperature)
    ]
    columns = ("kernel", "tokens / step", "AR nodes / step", "tokens / AR node")
    return Sheet(f"Target temperature {temperature:g}, w = {w:g}", columns, rows)


def _draw(figure: Any, cells: Sequence[Cell], laws: Sequence[tuple[float, float]]) -> None:
    columns = min(3, len(laws))
    grid = figure.subplots(-(-len(laws) // columns), columns, squeeze=False, sharex=True).flatten()
    marks = {"tree": ("o-", "tree walk"), "rejection": ("s--", "token-level rejection"),
             "block": ("^:", "block verification")}
    for ax, (w, temperature) in zip(grid, laws, strict=False):
        for kernel, (style, label) in marks.items():
            own = [c for c in cells if (c.shape.kernel, c.w, c.temperature) == (kernel, w, temperature)]
            tokens = [spread(cell.tokens) for cell in own]
            ax.errorbar(
                [spread(cell.nodes).value for cell in own], [s.value for s in tokens],
                yerr=np.transpose([s.bars for s in tokens]), fmt=style, label=label, capsize=2,
            )
        ax.set_xscale("log", base=2)
        ax.set(title=f"target temperature {temperature:g}, w = {w:g}", xlabel="AR nodes per step",
               ylabel="tokens per step")
        ax.set_ylim(0, 1.08 * max(max(c.tokens) for c in cells if (c.w, c.temperature) == (w, temperature)))
    for ax in grid[len(laws):]:
        ax.remove()
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line (module docstring)."""
    execute("tree_nodes", __doc__, configure, measure, arguments)


if __name__ == "__main__":
    main()
