"""Blocks: how many tokens a lane commits, how many of them the draft had right, and why blocks end.

A block of length L with `accepted = L` was taken from the draft whole (window, length limit or end of sequence); with
`accepted = L - 1` its last token is the kernel's correction at the first refusal.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from smc_bridge.analysis.runs import Runs, as_runs
from smc_bridge.result import Result


@dataclass(frozen=True)
class BlockStatistics:
    """Means over the blocks of runs.

    Attributes:
        blocks: number of blocks.
        tokens: mean length, tokens per block; NaN without blocks, as the others.
        accepted: mean number of the draft's own tokens in a block.
        acceptance: share of committed tokens that are the draft's own.
        corrected: share of blocks that end with a correction.
        lengths: how many blocks have each length.
    """

    blocks: int
    tokens: float
    accepted: float
    acceptance: float
    corrected: float
    lengths: dict[int, int]


def block_statistics(results: Runs, *, survivors: bool = False) -> BlockStatistics:
    """Acceptance and block lengths, pooled over runs, steps, particles and lanes.

    Args:
        results: runs with a trace.
        survivors: count only the blocks that were committed, each as often as it survived, rather than those of every
            lane. Selection by weight makes the two differ.
    """
    pairs = [pair for run in as_runs(results) for pair in (_committed(run) if survivors else _offered(run))]
    count = len(pairs)
    tokens = sum(length for length, _ in pairs)
    accepted = sum(own for _, own in pairs)
    refused = sum(own < length for length, own in pairs)
    histogram = Counter(length for length, _ in pairs)
    return BlockStatistics(
        count,
        tokens / count if count else math.nan,
        accepted / count if count else math.nan,
        accepted / tokens if tokens else math.nan,
        refused / count if count else math.nan,
        dict(sorted(histogram.items())),
    )


def _offered(run: Result) -> Iterator[tuple[int, int]]:
    """(length, accepted) of every lane of every particle that grew."""
    return ((length, accepted) for record in run.trace for length, accepted, _ in record.grown())


def _committed(run: Result) -> Iterator[tuple[int, int]]:
    """(length, accepted) of every survivor's block."""
    for record in run.trace:
        for ancestor, lane in zip(record.ancestors, record.lanes, strict=True):
            if record.length[ancestor][lane] > 0:
                yield record.length[ancestor][lane], record.accepted[ancestor][lane]
