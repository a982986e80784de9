"""Laws of decoders of canvases, by enumeration: the real decoder on every outcome of its draws, many at a time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch

from smc_bridge.canvas import decoder as canvas_decoder
from smc_bridge.canvas.decoder import Canvas
from smc_bridge.canvas.denoising import Denoiser
from smc_bridge.canvas.denoising_state import DenoisingState
from smc_bridge.canvas.state import extent
from smc_bridge.decode import decode
from smc_bridge.models.ends import ends_of
from smc_bridge.randomness import Source
from smc_bridge.requests import Request
from smc_bridge.streams import Role
from smc_bridge.testing.branches import Branches, BranchingResampler
from smc_bridge.testing.enumeration import outcomes
from smc_bridge.testing.frontier import SequenceLaw

#: Outcomes that run at a time.
BATCH = 2_000


#: Told the probability of an outcome, its N sequences and their log weights.
Visit = Callable[[float, list[tuple[int, ...]], list[float]], None]


def every_outcome(decoder: Denoiser, limit: int, visit: Visit) -> int:
    """Run a decoder on the empty prompt for every outcome of its draws; `visit` is told of each.

    Returns:
        how many there are.
    """
    request = Request(0, [], 0, Role.DLM)
    waiting = [(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, dtype=torch.long))]
    total, mass = 0, 0.0
    if hasattr(decoder, "resampler"):
        decoder.resampler = BranchingResampler(decoder.resampler)
    while waiting:
        path, known = waiting.pop()
        if len(known) > BATCH:
            waiting.append((path[BATCH:], known[BATCH:]))
            path, known = path[:BATCH], known[:BATCH]
        branches = Branches(path.clone(), known)

        def source(
            state: DenoisingState, seats: Sequence[int], each: int, *, of_places: bool = True, own: Branches = branches
        ) -> Source:
            return own.source(torch.tensor(seats, dtype=torch.long), each)

        decoder.source = source  # type: ignore[method-assign]
        with torch.inference_mode():
            state = decoder.open([request] * len(known), limit)
            while len(decoder.finished(state)) < len(known):
                state = decoder.step(state)
        count, _ = extent(state.canvas, ends_of(decoder.proposal.model.eos_id))
        rows = zip(state.canvas.tolist(), count.tolist(), strict=True)
        every = [tuple(canvas[:n]) for canvas, n in rows]
        own = branches.log_probability.exp().tolist()
        for run, (probability, weights) in enumerate(zip(own, state.tilt.log_weights.tolist(), strict=True)):
            mass += probability
            visit(probability, every[run * decoder.particles :][: decoder.particles], weights)
        total += len(known)
        run, more, prescribed = branches.others()
        if run.numel():
            waiting.append((more, prescribed))
    assert abs(mass - 1.0) < 1e-9, f"outcomes have mass {mass}"
    return total


def output_law(decoder: Denoiser, limit: int) -> SequenceLaw:
    """The law of the one sequence that a decoder of one canvas puts out."""
    law: dict[Any, float] = defaultdict(float)

    def visit(probability: float, sequences: list[tuple[int, ...]], log_weights: list[float]) -> None:
        [sequence] = sequences
        law[sequence] += probability

    every_outcome(decoder, limit, visit)
    return dict(law)


def weighted_law(decoder: Denoiser, limit: int) -> tuple[SequenceLaw, int]:
    """`E[1/N sum_n w_n 1{x_n = s}]` of every sequence s, and how many outcomes there are."""
    law: dict[Any, float] = defaultdict(float)

    def visit(probability: float, sequences: list[tuple[int, ...]], log_weights: list[float]) -> None:
        for sequence, log_weight in zip(sequences, log_weights, strict=True):
            law[sequence] += probability * math.exp(log_weight) / len(sequences)

    outcomes = every_outcome(decoder, limit, visit)
    return dict(law), outcomes


def canvas_law(decoder: Canvas, limit: int) -> SequenceLaw:
    """The law of a canvas' continuation of the empty prompt, under a rule that decides before tokens are drawn."""
    law: dict[Any, float] = defaultdict(float)

    def run(source: Any) -> tuple[int, ...]:
        with mock.patch.object(canvas_decoder, "inverse_cdf", lambda log_q, uniform: source.categorical(log_q)):
            [result] = decode(decoder, [[]], max_new_tokens=limit)
        return tuple(result.sequences[0])

    for probability, sequence in outcomes(run):
        law[sequence] += probability
    return dict(law)


def distance(one: SequenceLaw, other: SequenceLaw) -> float:
    """Total variation of two laws."""
    return sum(abs(one.get(s, 0.0) - other.get(s, 0.0)) for s in {*one, *other}) / 2
