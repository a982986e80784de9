"""The exact law of a sampler: the real engine, kernel and resampler run on every outcome of every step.

From each state of the frontier a step is run on all outcomes of its draws, a batch of them at a time
(`smc_bridge.testing.branches`); equal states are merged, and the next step starts from them.
"""

from __future__ import annotations

import copy

import torch

from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import EssBelow, always, never
from smc_bridge.names import RESAMPLERS, named
from smc_bridge.testing.branches import Branches, BranchingResampler
from smc_bridge.testing.enumeration import NotEnumerableError
from smc_bridge.testing.frontier import PROBABILITY, Enumeration, Frontier, finish, joined, relative, step

#: Runs of one batch.
BATCH = 10_000


@torch.inference_mode()
def enumerate_sampler(sampler: Sampler, limit: int, *, most: int = 10**6) -> Enumeration:
    """Run every outcome of the sampler on the empty prompt with at most `limit` new tokens.

    Args:
        sampler: with tabular models on the CPU.
        limit: greatest length of a sequence.
        most: outcomes that are executed at most.
    Raises:
        NotEnumerableError: a part draws a continuous variable, there are more than `most` outcomes, or their
            probabilities do not sum to one, because a part draws otherwise than through its `source`; or the proposal
            is adaptive, for states are known by their prefixes here.
    """
    real = sampler
    if getattr(real.proposal, "adaptive", False):
        raise NotEnumerableError("the proposal's drafts follow those before: prefixes alone are no state")
    sampler = copy.copy(real)
    sampler.resampler = BranchingResampler(real.resampler)
    known = type(real.resampler) in [type(named("resampler", name)) for name in RESAMPLERS] and (
        real.trigger in (always, never) or isinstance(real.trigger, EssBelow)
    )
    total = Enumeration()
    frontier = Frontier.start(
        sampler.particles, limit, sampler.target.model.vocab_size, places=0 if real.pace is None else real.window
    )
    while frontier.states:
        after = _advance(sampler, frontier, limit, total, most)
        whole = joined([relative(part, total, rescale=known) for part in after])
        frontier = finish(whole.merged() if whole.states else whole, total, limit)
    if abs(total.probability - 1.0) > 1e-9:
        raise NotEnumerableError(f"probabilities sum to {total.probability}: draw through `source` alone")
    return total


def _advance(sampler: Sampler, states: Frontier, limit: int, total: Enumeration, most: int) -> list[Frontier]:
    """All states that one step can lead to; their measure is not merged."""
    origin = torch.arange(states.states)
    path, known = torch.zeros(states.states, 0, dtype=torch.long), torch.zeros(states.states, dtype=torch.long)
    waiting, after = [(origin, path, known)], []
    while waiting:
        origin, path, known = waiting.pop()
        if origin.numel() > BATCH:
            waiting.append((origin[BATCH:], path[BATCH:], known[BATCH:]))
            origin, path, known = origin[:BATCH], path[:BATCH], known[:BATCH]
        total.outcomes += origin.numel()
        if total.outcomes > most:
            raise NotEnumerableError(f"there are more than {most} outcomes")
        branches = Branches(path.clone(), known)
        reached = step(sampler, states.select(origin), limit, branches.source)
        after.append(reached.scaled(branches.log_probability.exp()))
        run, more, prescribed = branches.others()
        if run.numel():
            waiting.append((origin[run], more, prescribed))
    total.kept += sum(float(part.measure[:, PROBABILITY].sum()) for part in after)
    return after
