"""Pairs of models that are tables: everything about them is known exactly."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import nn

from smc_bridge.distributions.target import ARTarget
from smc_bridge.models.arguments import said
from smc_bridge.models.ends import ends_of
from smc_bridge.models.learned import untrained
from smc_bridge.models.tabular import TabularAR, TabularDLM, generator_of
from smc_bridge.models.tabular_blocks import TabularBlockDLM
from smc_bridge.models.training import TRAININGS
from smc_bridge.prefix import Prefix
from smc_bridge.testing.frontier import SequenceLaw

#: Standard deviation of what a layer of random weights adds up, of inputs of size 1.
GAIN = 1.5


class TabularPair(NamedTuple):
    """A diffusion and an autoregressive model over one small alphabet, both tables.

    Attributes:
        dlm: the diffusion model, perturbed marginals of `ar`.
        ar: the autoregressive model.
    """

    dlm: TabularDLM
    ar: TabularAR

    def part(self, name: str, given: str | os.PathLike[str] | nn.Module | None = None) -> nn.Module:
        """A learned part in float64 (as `Pair.part`): the pair's own is untrained, with random weights.

        No weight is zero or nearly so: a head moves every law, whether it is of use or not, and what reads it is judged
        with something to read. The weights are the same in every call.

        Args:
            name: of the part, one of a pair of language models (`smc_bridge.models.training.TRAININGS`).
            given: a network, or a file of one.
        Raises:
            ValueError: tables have no such part, or the file is of another one. FileNotFoundError: no such file.
        Example:
            >>> tabular_pair(3).part("markov").table().shape
            torch.Size([4, 3])
        """
        from smc_bridge.models.learned.store import load

        if isinstance(given, nn.Module):
            return given
        if given is not None:
            return load(given, kind=name).double()
        if name not in TRAININGS:
            raise ValueError(f"part = {said(name)}: tables have {', '.join(sorted(TRAININGS))}; give one, or a network")
        with torch.random.fork_rng(devices=[]):  # all that its class draws is drawn anew
            module: nn.Module = untrained(name, self.dlm).double()
        generator = generator_of(0)
        with torch.no_grad():
            for weight in module.parameters():
                drawn = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
                weight.copy_(drawn * (GAIN * weight.shape[-1] ** -0.5 if weight.dim() > 1 else 1.0))
        return module.to(self.dlm.device).eval().requires_grad_(False)


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
