"""Pairs of models that are tables: everything about them is known exactly."""

from __future__ import annotations

from typing import NamedTuple

import torch

from smc_bridge.distributions.target import ARTarget
from smc_bridge.models.ends import ends_of
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.models.tabular_blocks import TabularBlockDLM
from smc_bridge.prefix import Prefix
from smc_bridge.testing.frontier import SequenceLaw


class TabularPair(NamedTuple):
    """A diffusion and an autoregressive model over one small alphabet, both tables.

    Attributes:
        dlm: the diffusion model, perturbed marginals of `ar`.
        ar: the autoregressive model.
    """

    dlm: TabularDLM
    ar: TabularAR


def tabular_pair(
    size: int = 2, depth: int = 3, *, seed: int = 0, noise: float = 0.9, eos: bool = True,
    block_size: int | None = None,
) -> TabularPair:
    """Random asymmetric tables, with a proposal that is blurred (mean field) and perturbed.

    Args:
        size: alphabet size A, at least 2.
        depth: tokens for which the model has tables.
        seed: of the tables.
        noise: of the proposal's log-probabilities, nats.
        eos: whether the last token ends a sequence.
        block_size: tokens of a block of a block-causal diffusion model, None for one that sees everything.
    """
    ar = TabularAR.random(size, depth, seed=seed, concentration=1.5, eos_id=size - 1 if eos else None)
    if block_size is not None:
        return TabularPair(TabularBlockDLM(ar, block_size=block_size, noise=noise, seed=seed + 1), ar)
    return TabularPair(TabularDLM(ar, noise=noise, seed=seed + 1), ar)


@torch.inference_mode()
def exact_law(target: ARTarget, limit: int) -> SequenceLaw:
    """`p(s) phi(s)` of every complete sequence of at most `limit` tokens after the empty prompt.

    Args:
        target: with a tabular model.
        limit: greatest length of a sequence.
    Example:
        >>> law = exact_law(ARTarget(tabular_pair(eos=False).ar), 2)
        >>> sorted(law), round(sum(law.values()), 12)
        ([(0, 0), (0, 1), (1, 0), (1, 1)], 1.0)
    """
    model = target.model
    assert isinstance(model, TabularAR)
    ends = ends_of(model.eos_id)
    whole: SequenceLaw = {}
    growing: SequenceLaw = {(): 1.0}
    while growing:
        prefix = Prefix.of(list(growing))
        conditionals = target.log_probs(model.log_conditional(prefix.tokens.clamp_min(0), prefix.length)).exp().tolist()
        after: SequenceLaw = {}
        for (sequence, mass), row in zip(growing.items(), conditionals, strict=True):
            for token, share in enumerate(row):
                ended = token in ends or len(sequence) + 1 == limit
                (whole if ended else after)[(*sequence, token)] = mass * share
        growing = {s: mass for s, mass in after.items() if mass > 0.0}
    if target.potential is None:
        return whole
    prefix = Prefix.of(list(whole))
    whole_rows, start = prefix._replace(done=torch.ones_like(prefix.done)), torch.zeros_like(prefix.length)
    phi = target.log_potential(whole_rows, start=start).exp().tolist()
    return {s: mass * f for (s, mass), f in zip(whole.items(), phi, strict=True)}
