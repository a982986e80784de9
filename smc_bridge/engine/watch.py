"""What a run finds out about its own properness: the intermediate leaves out a token of the target (condition C3).

It is told once, as a warning; results of the prompts where it was seen are not proper and say so.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from smc_bridge.blocks import prefix_sum
from smc_bridge.distributions.coverage import LOG_RARE, LOG_ZERO, first_uncovered
from smc_bridge.distributions.intermediate import Defensive, log_ratio_bound, of_package
from smc_bridge.distributions.law import along
from smc_bridge.engine.program import Program
from smc_bridge.engine.state import SMCState
from smc_bridge.kernels.importance import Lanes
from smc_bridge.warn import warn_caller


def uncovered_reason(program: Program, place: int) -> str:
    """Why results are not proper, in one line."""
    name = type(program.intermediate).__name__
    return (
        f"intermediate {name} has probability 0 where the target has not, first at token {place} of the continuation: "
        "wrap it in Defensive"
    )


def may_leave_out(program: Program) -> bool:
    """Whether there is something to watch: not where weights are improper anyway, or the ratio is bounded.

    Where it is bounded, a token that counts cannot come down to zero. A user's own bound may be wrong.
    """
    known = isinstance(program.intermediate, Defensive) or of_package(program.intermediate)
    return not (known and log_ratio_bound(program.intermediate) < LOG_RARE - LOG_ZERO) and program.proper


def tell(program: Program, place: int) -> None:
    """Warn of it."""
    warn_caller(f"{uncovered_reason(program, place)}; results are marked as not proper")


def watch(program: Program, state: SMCState, rows: Tensor, lanes: Lanes) -> None:
    """Note seats whose blocks went past a place where pi leaves out a token of p.

    Args:
        rows: particles `[B]`.
        lanes: their lanes, with the laws along the blocks.
    Raises:
        ValueError: a retained sequence goes through such a place, so that its weight is infinite.
    """
    if not may_leave_out(program):
        return
    first = first_uncovered(lanes.pi, lanes.p, lanes.move.block, lanes.move.length)
    if first is None:
        return
    width = lanes.move.block.shape[-1]
    place = first.amin(-1)  # [B]
    seat = rows // state.particles
    start = state.prefix.length[rows] - state.prompt_length[seat]
    for s, at, begun in zip(seat.tolist(), place.tolist(), start.tolist(), strict=True):
        if at < width:
            state.uncovered[s] = min(begun + at, state.uncovered.get(s, begun + at))
    log_p, log_pi = along([lanes.p, lanes.pi], lanes.move.block)
    ratio = torch.where(log_p == -math.inf, -math.inf, log_p - log_pi)
    if bool((prefix_sum(ratio, lanes.move.length) == math.inf).any()):
        raise ValueError(f"retained has weight infinity: {uncovered_reason(program, min(state.uncovered.values()))}")
    if not state.told:
        state.told = True
        tell(program, min(state.uncovered.values()))
