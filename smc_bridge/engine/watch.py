"""Condition C3 at run time: an intermediate that has probability zero where the target has not.

`E[Z_hat sum W f] = E_p[f]` needs `pi > 0` wherever `p > 0`. That cannot be read off an intermediate: it depends on the
laws that it meets (a logit of -inf, a token that a user's intermediate drops). But the rows of pi and p along a
committed block were read whole anyway, for their normalisers, so that they can be compared there.

Compared are cells where pi may be zero; which these are is known from what was kept when they were read
(`Law.lower_bound`), and for most programs there is none. A row that no run meets is not seen: that a run says nothing
is no proof (`smc_bridge.check` is one, on tables). It is told once, as a warning; results of the prompts where it was
seen are not proper and say so.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from smc_bridge.blocks import prefix_sum
from smc_bridge.distributions.intermediate import Defensive, log_ratio_bound, of_package
from smc_bridge.distributions.law import LOG_RARE, LOG_ZERO, Law, along, leaves_out
from smc_bridge.engine.program import Program
from smc_bridge.engine.state import SMCState
from smc_bridge.kernels.importance import Lanes
from smc_bridge.models.checks import ask
from smc_bridge.models.host import places
from smc_bridge.warn import warn_caller


def suspected(pi: Law, length: Tensor) -> Tensor:
    """Committed places where pi may be zero, for all that is known of it without another look, `[R, V]`.

    Args:
        pi: along blocks, `[..., V, A]`, R of them.
        length: committed tokens, `[...]`.
    """
    own, place = places(pi.rows, pi.device)[:, None], places(pi.shape[-2], pi.device)
    return (place < length.reshape(-1)[:, None]) & (pi.lower_bound(own, place) < LOG_ZERO)


def first_uncovered(pi: Law, p: Law, block: Tensor, length: Tensor) -> Tensor | None:
    """First place of each block where pi leaves out a token that p may draw.

    Places that p itself cannot reach do not count. Which places are looked at depends on the block alone.

    Args:
        pi, p: laws along the blocks, `[..., V, A]`.
        block: `[..., V]`.
        length: committed tokens, `[...]`.
    Returns:
        `[...]`, V where there is none; None if there is none in all blocks.
    """
    width = block.shape[-1]
    flat = block.reshape(-1, width)
    committed = places(width, block.device) < length.reshape(-1)[:, None]
    rows, columns = suspected(pi, length).nonzero(as_tuple=True)
    missed = torch.zeros_like(committed)
    for span in pi.spans(rows.numel()):
        r, i = rows[span], columns[span]
        missed[r, i] = leaves_out(pi.log_probs(r, i), p.log_probs(r, i))
    reached = p.at(torch.where(committed, flat, -1).view(block.shape)).view(flat.shape) > -math.inf
    reached = torch.nn.functional.pad(reached[:, :-1], (1, 0), value=True).long().cumprod(-1).bool()
    missed &= reached
    if not bool(missed.any()):
        return None
    first = torch.where(missed.any(-1), missed.to(torch.uint8).argmax(-1), width)
    return first.reshape(length.shape)


def uncovered_reason(program: Program, place: int) -> str:
    """Why results are not proper, in one line: the intermediate leaves out a token, first at `place`."""
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
    bounded = program.keeps_target or log_ratio_bound(program.intermediate) < LOG_RARE - LOG_ZERO
    return not (known and bounded) and program.proper


def tell(program: Program, place: int) -> None:
    """Warn of a token that the intermediate leaves out, at `place` of the continuation."""
    warn_caller(f"{uncovered_reason(program, place)}; results are marked as not proper")


def watch(program: Program, state: SMCState, rows: Tensor, lanes: Lanes) -> None:
    """Note seats whose blocks went past a place where pi leaves out a token of p; a question, if there is one.

    Args:
        rows: particles `[B]`.
        lanes: their lanes, with the laws along the blocks.
    Raises:
        ValueError: a retained sequence goes through such a place, so that its weight is infinite.
    """
    if state.watched:
        ask(suspected(lanes.pi, lanes.move.length), lambda _: _look(program, state, rows, lanes))


def _look(program: Program, state: SMCState, rows: Tensor, lanes: Lanes) -> None:
    """See `watch`."""
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
