"""The parts of a sampler on a small tabular pair, and trusted parts in their places."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from typing import Any, NamedTuple

from smc_bridge.distributions.intermediate import ProductOfExperts, Proposal
from smc_bridge.engine.resampling import Multinomial
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import EssBelow, always
from smc_bridge.kernels.importance import AcceptAll, OwnWeights
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.models.arguments import called, said
from smc_bridge.models.ends import ends_of
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.proposals.protocol import Proposal as Proposes
from smc_bridge.testing.tabular import TabularPair, tabular_pair


class Seated(NamedTuple):
    """A sampler that was put on a tabular pair.

    Attributes:
        sampler: with the parts in question.
        limit: greatest length of its sequences, tokens.
    """

    sampler: Sampler
    limit: int


class World(NamedTuple):
    """The size of a table on which samplers are tried.

    Attributes:
        size: alphabet size A.
        window: V, tokens verified at once.
        limit: length limit, tokens.
        outcomes: greatest number of outcomes that are enumerated on it.
    """

    size: int
    window: int
    limit: int
    outcomes: int


#: From the most telling to the smallest. A window of more than one position shows what looks ahead in it.
WORLDS = (World(3, 3, 3, 10**5), World(2, 2, 3, 10**5), World(2, 2, 2, 10**6))


def own_pair(sampler: Sampler) -> TabularPair | None:
    """The sampler's own models as a pair, if they are tables; else None. Where a causal model drafts, the pair has the
    target's own marginals, which it does not read."""
    dlm, ar = sampler.proposal.model, sampler.target.model
    if not isinstance(ar, TabularAR) or not isinstance(dlm, TabularDLM | TabularAR):
        return None
    return TabularPair(dlm if isinstance(dlm, TabularDLM) else TabularDLM(ar), ar)


def seat(sampler: Sampler, world: World, *, particles: int, lanes: int) -> Seated:
    """The sampler's parts on a table; laws keep their temperatures and truncation.

    Args:
        sampler: with any models; its own ones are kept if they are tables.
        particles, lanes: instead of its own; with fewer lanes than before, the first temperature serves.
    Raises:
        ValueError: its models are no tables, and its proposal is one that nobody but its author can put on others.
    """
    own = own_pair(sampler)
    if own is None and sampler.experts:
        raise ValueError(
            f"experts[0] is on {said(sampler.experts[0].model)}: tables cannot stand for it; give a sampler on a "
            "tabular pair, smc_bridge.testing.tabular_pair(size)"
        )
    pair = own or tabular_pair(world.size, world.limit, eos=bool(ends_of(sampler.target.model.eos_id)))
    limit = min(world.limit, pair.ar.depth)
    target = copy.copy(sampler.target)
    target.model = pair.ar
    if own is None:
        top_k = target.shaping.top_k
        top_k = None if top_k is None else min(top_k, pair.ar.vocab_size)
        target.shaping = replace(target.shaping, banned_ids=(), top_k=top_k)
    proposal: Any = sampler.proposal
    if _movable(proposal):
        proposal = _on_table(proposal, pair.dlm, limit, lanes, banned=own is not None)
    elif own is None:
        raise ValueError(
            f"proposal {called(proposal)} is on {said(proposal.model)}, which is no table: give a sampler on a tabular "
            "pair, smc_bridge.testing.tabular_pair(size)"
        )
    return Seated(
        replace(
            sampler, proposal=proposal, target=target, particles=particles, lanes=lanes,
            window=min(sampler.window, world.window), tokenize=None, detokenize=None, max_logit_bytes=None,
            compile=False,
        ),
        limit,
    )


def _movable(proposal: Any) -> bool:
    """Whether it is known how to put a proposal on other models: marginals, and what is made of them (`base`)."""
    if isinstance(proposal, DLMProposal):
        return True
    return is_dataclass(proposal) and hasattr(proposal, "base") and _movable(proposal.base)


def takes(proposal: Proposes, lanes: int) -> bool:
    """Whether a proposal can draft that many lanes as it is."""
    try:
        proposal.check(lanes)
    except ValueError:
        return False
    return True


def _on_table(proposal: Any, model: TabularDLM, limit: int, lanes: int, *, banned: bool) -> Any:
    """A proposal that reads a table; one that is made of another (`base`) is made of that on the table."""
    if hasattr(proposal, "base"):
        return replace(proposal, base=_on_table(proposal.base, model, limit, lanes, banned=banned))
    found = copy.copy(proposal)
    found.model, found.lookahead = model, min(proposal.lookahead, limit)
    if not banned:
        found.shaping = replace(proposal.shaping, banned_ids=())
    if proposal.lane_temperatures is not None and len(proposal.lane_temperatures) != lanes:
        found.lane_temperatures = None
    return found


def crowds(sampler: Sampler) -> list[tuple[int, int]]:
    """Numbers (particles, lanes) that together show how all of them meet: lanes of one particle, and two particles."""
    n, k = min(2, sampler.particles), sampler.lanes
    if k == 1:
        return [(n, 1)]
    # Equal lanes can be fewer; the released decoder's kernel knows their number.
    free, proposal = not _knows_lanes(sampler), sampler.proposal
    alike = free and proposal.identical_lanes and (_movable(proposal) or takes(proposal, 2))
    alone = free and n > 1 and (_movable(proposal) or takes(proposal, 1))
    return [(1, min(k, 2) if alike else k), *([(n, 1)] if alone else [])]


def _knows_lanes(sampler: Sampler) -> bool:
    return getattr(sampler.intermediate, "per_lane", False) or hasattr(sampler.kernel, "lanes")


def rules(sampler: Sampler) -> list[Sampler]:
    """The sampler, and again resampling after every step where the ESS of two particles may never fall so low."""
    often = isinstance(sampler.trigger, EssBelow) and sampler.particles > 1
    return [replace(sampler, trigger=always)] if often else [sampler]


def trusted(seated: Seated) -> Iterator[tuple[str, Seated]]:
    """The same program with a trusted part in the place of one, for each part that is not the trusted one already."""
    sampler = seated.sampler
    plain = isinstance(sampler.kernel, AcceptAll)
    parts: dict[str, Any] = {
        "intermediate": Proposal() if plain else ProductOfExperts(0.5), "kernel": AcceptAll() if plain else Rejection(),
        "weight": OwnWeights(), "resampler": Multinomial(), "trigger": EssBelow(0.5),
    }
    for name, part in parts.items():
        if type(getattr(sampler, name)) is not type(part):
            changed = {name: part, **({"experts": ()} if name == "intermediate" else {})}  # the trusted one reads none
            yield name, Seated(replace(sampler, **changed), seated.limit)
    known = isinstance(sampler.proposal.model, TabularDLM)
    if known and (not sampler.proposal.covers or type(sampler.proposal) is not DLMProposal):
        yield "proposal", Seated(replace(sampler, proposal=_marginals(sampler.proposal)), seated.limit)
    if sampler.target.potential is not None:
        target = copy.copy(sampler.target)
        target.potential = None
        yield "potential", Seated(replace(sampler, target=target), seated.limit)


def _marginals(proposal: Any) -> DLMProposal:
    """All of the marginals of a proposal's model, at its temperatures as far as they are known and positive."""
    base = proposal
    while hasattr(base, "base"):
        base = base.base
    if not isinstance(base, DLMProposal):
        return DLMProposal(proposal.model, banned_ids=proposal.banned_ids, lookahead=proposal.lookahead)
    own = base.lane_temperatures
    return DLMProposal(
        base.model, temperature=base.shaping.temperature or 1.0 if own is None else [one or 1.0 for one in own],
        banned_ids=base.banned_ids, lookahead=base.lookahead,
    )


__all__ = ["WORLDS", "Seated", "World", "crowds", "own_pair", "rules", "seat", "takes", "trusted"]
