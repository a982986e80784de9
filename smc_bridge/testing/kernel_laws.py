"""The exact law of a kernel: its own code, run on every outcome of its draws on small tables of laws.

What a kernel promises (docs/theory.md, section 3), each with the number that must come out:

    sum_L g(x_{1:L}, L) / pi(x_{1:L}) = 1    along every path: the block is a randomised stopping of pi
    g(x_{1:L}, L) = exp(log_density)         its closed form is the law of its moves
    joint law of two rows = product          rows are not coupled (condition C8)
    1 <= L <= the end of the block           progress (condition C7)

The first one is all that the importance weight needs. A kernel that draws continuous variables cannot be enumerated:
its closed form is held against the first promise, and draws against its closed form.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from smc_bridge.blocks import Horizon, Move
from smc_bridge.distributions.table import Dense
from smc_bridge.kernels.importance import AcceptAll
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.prefix import PAD
from smc_bridge.proposals.protocol import Draft
from smc_bridge.randomness import PromptSource, Source
from smc_bridge.testing.enumeration import NotEnumerableError, outcomes
from smc_bridge.testing.finding import ROUND_OFF, Finding
from smc_bridge.testing.kernel_tables import PAIRED, TABLES, Block, KernelTable
from smc_bridge.testing.statistics import chi_square, detectable

#: Probability of every (block, how many of its tokens are the draft's own).
KernelLaw = dict[tuple[Block, int], float]
#: Draws where nothing can be enumerated.
DRAWS = 10_000


class IllegalMoveError(ValueError):
    """A kernel commits what is no block, no tokens at all for instance (condition C7)."""


def call_kernel(
    kernel: Kernel, q: Tensor, pi: Tensor, draft: Tensor, source: Source, horizon: Horizon
) -> Move:
    """One call of a kernel on R rows, laws `[R, V, A]`; every enumeration of this package calls it here."""
    return kernel(Draft(draft, Dense(q), horizon.window), Dense(pi), source=source, horizon=horizon)


def move(kernel: Kernel, table: KernelTable, source: Source, *, rows: int = 1) -> Move:
    """Draft (or build the tree) and commit, as a step of the engine does it."""
    q, horizon = table.log_q.expand(rows, -1, -1), table.horizon(rows)
    if isinstance(kernel, TreeWalk):
        return _walk(kernel, table, source, rows)
    draft = source.categorical(q)
    return call_kernel(kernel, q, table.along(draft), draft, source, horizon)


def _walk(kernel: TreeWalk, table: KernelTable, source: Source, rows: int) -> Move:
    """All rows walk on one tree."""
    tree = kernel.tree(Dense(table.log_q[None]), horizon=table.horizon(1))
    prefixes: list[Block] = [()]
    for parent, token, real in zip(
        tree.parents[0].tolist(), tree.tokens[0].tolist(), tree.real[0].tolist(), strict=True
    ):
        prefixes.append((*prefixes[parent], token) if real else ())
    laws = torch.stack([table.after(prefix) for prefix in prefixes])
    found, _ = kernel.walk(
        tree, Dense(laws[None]), walks=rows, source=source, window=len(table.log_pi), horizon=table.horizon(1)
    )
    return found


def committed(found: Move, table: KernelTable) -> list[tuple[Block, int]]:
    """Block and accepted count of every row.

    Raises:
        IllegalMoveError: a row breaks the rules of a move; the message says how.
    """
    rows = []
    for block, length, accepted in zip(*(part.tolist() for part in found), strict=True):
        tokens = tuple(block[:length])
        if not 1 <= length <= table.window or any(table.ends(tokens[:i]) for i in range(1, length)):
            raise IllegalMoveError(f"commits {length} tokens of {block}: commit from 1 to where the block must end")
        if not 0 <= length - accepted <= 1:
            raise IllegalMoveError(f"says that {accepted} of {length} tokens are the draft's own: all but one at least")
        if min(tokens) < 0 or any(token != PAD for token in block[length:]):
            raise IllegalMoveError(f"commits {block} of length {length}: give tokens, and PAD = {PAD} past the length")
        rows.append((tokens, accepted))
    return rows


def kernel_outcomes(
    kernel: Kernel, table: KernelTable, *, rows: int = 1
) -> Iterator[tuple[float, list[tuple[Block, int]]]]:
    """Probability, and (block, accepted) of every row, for every outcome of the kernel's draws.

    Raises:
        NotEnumerableError: it draws a continuous variable.
        IllegalMoveError: it commits what is no block.
    """
    for probability, found in outcomes(lambda source: move(kernel, table, source, rows=rows)):
        yield probability, committed(found, table)


def kernel_law(kernel: Kernel, table: KernelTable) -> KernelLaw:
    """The exact law of (block, accepted) of one row; of the first one, where a kernel couples several.

    Raises:
        NotEnumerableError, IllegalMoveError: as `kernel_outcomes`.
    Example:
        >>> from smc_bridge.kernels.rejection import Rejection
        >>> from smc_bridge.testing import kernel_table
        >>> law = kernel_law(Rejection(), kernel_table(3, 2))
        >>> round(sum(law.values()), 12)
        1.0
    """
    law: KernelLaw = defaultdict(float)
    for probability, found in kernel_outcomes(kernel, table, rows=_coupled(kernel)):
        law[found[0]] += probability
    if abs(math.fsum(law.values()) - 1.0) > ROUND_OFF:
        raise NotEnumerableError(f"probabilities sum to {math.fsum(law.values())}: draw through `source` alone")
    return dict(law)


def block_law(law: KernelLaw) -> dict[Block, float]:
    """The law of the block (and so of its length) alone, summed over accepted counts."""
    blocks: dict[Block, float] = defaultdict(float)
    for (block, _), probability in law.items():
        blocks[block] += probability
    return dict(blocks)


def kernel_density(kernel: Kernel, table: KernelTable, blocks: Sequence[Block]) -> list[float]:
    """The kernel's closed form `exp(log_density)` of each block."""
    width = len(table.log_pi)
    block = torch.tensor([[*b, *[PAD] * (width - len(b))] for b in blocks])
    length = torch.tensor([len(b) for b in blocks])
    q = table.log_q.expand(len(blocks), -1, -1)
    found: list[float] = kernel.log_density(
        q, table.along(block), block, length, horizon=table.horizon(len(blocks))
    ).exp().tolist()
    return found


def stopping_gap(blocks: dict[Block, float], table: KernelTable) -> tuple[float, str]:
    """How far a law of blocks is from a randomised stopping of pi: the largest deviation, and where it is."""
    lost = sum(probability for block, probability in blocks.items() if table.mass(block) == 0.0)
    worst = (lost, f"blocks that pi excludes have probability {lost:.12g}, must be 0")
    for path in table.paths():
        if table.mass(path) == 0.0:
            continue
        prefixes = [path[:n] for n in range(1, len(path) + 1)]
        total = sum(blocks.get(prefix, 0.0) / table.mass(prefix) for prefix in prefixes)
        if abs(total - 1.0) > worst[0]:
            worst = (abs(total - 1.0), f"sum_L g / pi along {path} is {total:.12g}, must be 1")
    return worst


def kernel_findings(
    kernel: Kernel, *, tables: Iterable[KernelTable] | None = None, tolerance: float = ROUND_OFF, level: float = 1e-4
) -> list[Finding]:
    """Every promise of the module docstring, tried on tables; one `Finding` each.

    Args:
        kernel: any; `AcceptAll` is lossless for q only, and is tried with `pi = q`.
        tables: where, by default on `TABLES`.
        tolerance: greatest gap of an enumeration that is put down to round-off.
        level: probability with which a right kernel is refused if it draws continuous variables.
    """
    used = tuple(TABLES if tables is None else tables)
    pair = PAIRED
    if isinstance(kernel, AcceptAll):
        used, pair = tuple(table.drafting_alone() for table in used), pair.drafting_alone()
    name = f"kernel {type(kernel).__name__}"
    try:
        found = [finding for table in used for finding in _exact(kernel, table, name, tolerance)]
        return [*found, _rows(kernel, pair, name, tolerance)]
    except NotEnumerableError:
        share = level / (len(used) + 1)
        found = [finding for table in used for finding in _drawn(kernel, table, name, tolerance, share)]
        return [*found, _drawn_rows(kernel, pair, name, share)]
    except IllegalMoveError as error:
        return [Finding("progress", f"{name} {error}", 1.0, True)]


def _exact(kernel: Kernel, table: KernelTable, name: str, tolerance: float) -> list[Finding]:
    blocks = block_law(kernel_law(kernel, table))
    gap, where = stopping_gap(blocks, table)
    stopping = Finding("stopping identity", f"{name}: {where} ({table.name})", gap, gap > tolerance)
    try:
        every = table.blocks()
        density = dict(zip(every, kernel_density(kernel, table, every), strict=True))
    except TypeError as error:  # a baseline that is not proper has no law in closed form
        return [stopping, Finding("log_density", f"{name}: {error}", 0.0, kernel.proper, biases=False)]
    worst = max(density, key=lambda b: abs(density[b] - blocks.get(b, 0.0)))
    gap = abs(density[worst] - blocks.get(worst, 0.0))
    text = (
        f"{name}: log_density gives block {worst} the probability {density[worst]:.12g}, its moves have "
        f"{blocks.get(worst, 0.0):.12g} ({table.name})"
    )
    return [stopping, Finding("log_density", text, gap, gap > tolerance, biases=False)]


def _rows(kernel: Kernel, table: KernelTable, name: str, tolerance: float) -> Finding:
    """Two rows at a time against the product of their laws."""
    joint: dict[tuple[Block, Block], float] = defaultdict(float)
    for probability, found in kernel_outcomes(kernel, table, rows=max(2, _coupled(kernel))):
        joint[found[0][0], found[1][0]] += probability
    each: list[dict[Block, float]] = [defaultdict(float), defaultdict(float)]
    for pair, probability in joint.items():
        for law, block in zip(each, pair, strict=True):
            law[block] += probability
    product = {(a, b): each[0][a] * each[1][b] for a, b in itertools.product(*each)}
    worst = max(product, key=lambda pair: abs(joint.get(pair, 0.0) - product[pair]))
    found_there = joint.get(worst, 0.0)
    gap = abs(found_there - product[worst])
    text = f"{name}: two rows commit {worst} with probability {found_there:.12g}, independent ones with "
    return Finding("rows", f"{text}{product[worst]:.12g} (C8)", gap, gap > tolerance)


def _drawn(kernel: Kernel, table: KernelTable, name: str, tolerance: float, level: float) -> list[Finding]:
    """The closed form against the stopping identity, and draws against the closed form."""
    every = table.blocks()
    density = dict(zip(every, kernel_density(kernel, table, every), strict=True))
    gap, where = stopping_gap(density, table)
    text = f"{name}: {where}, by log_density ({table.name})"
    closed = Finding("stopping identity", text, gap, gap > tolerance, biases=False)
    if closed.wrong:
        return [closed]
    counts = dict.fromkeys(every, 0)
    for block, _ in committed(move(kernel, table, _source(DRAWS), rows=DRAWS), table):
        counts[block] += 1
    text = f"{name}: log_density against the moves"
    return [closed, _against("log_density", text, list(counts.values()), list(density.values()), table, level)]


def _drawn_rows(kernel: Kernel, table: KernelTable, name: str, level: float) -> Finding:
    """Pairs of rows against the product of the closed form."""
    every = table.blocks()
    density = kernel_density(kernel, table, every)
    place = {block: i for i, block in enumerate(every)}
    counts = np.zeros((len(every), len(every)))
    drawn = committed(move(kernel, table, _source(2 * DRAWS), rows=2 * DRAWS), table)
    for (first, _), (second, _) in zip(drawn[::2], drawn[1::2], strict=True):
        counts[place[first], place[second]] += 1
    product = [a * b for a, b in itertools.product(density, repeat=2)]
    text = f"{name}: two rows against independent ones (C8)"
    return _against("rows", text, counts.ravel().tolist(), product, table, level)


def _against(
    claim: str, text: str, counts: Sequence[float], law: Sequence[float], table: KernelTable, level: float
) -> Finding:
    observed, expected = np.array(counts, dtype=float), np.array(law)
    p_value = chi_square(observed, expected)
    shares = observed / observed.sum()
    worst = int(np.abs(shares - expected).argmax())
    least = detectable(float(np.sqrt(expected * (1 - expected)).max()), DRAWS, len(expected) - 1, level)
    return Finding(
        claim,
        f"{text} of {DRAWS:,} draws ({table.name}): share {shares[worst]:.5f} where {expected[worst]:.5f} is expected, "
        f"p = {p_value:.2g} at level {level:.2g}; a gap of {least:.2g} is found with probability 0.99",
        abs(shares[worst] - expected[worst]), p_value < level,
    )


def _source(rows: int) -> Source:
    return PromptSource([torch.Generator().manual_seed(2)], rows)


def _coupled(kernel: Kernel) -> int:
    """Rows that a kernel draws together: its lanes, if it says so."""
    return int(getattr(kernel, "lanes", 1))
