"""The exact law of the Pyro program under its filter: every outcome of every sample site and of the resampler.

A messenger answers each site of N particles with prescribed values, one per particle, and multiplies their
probabilities; the resampler sees the uniforms of one cell of its cube. The filter itself runs untouched.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from smc_bridge.blocks import Horizon
from smc_bridge.engine.resampling import UniformResampler
from smc_bridge.engine.sampler import Sampler
from smc_bridge.pyro_program.filter import EvidenceSMCFilter
from smc_bridge.pyro_program.inference import filter_of
from smc_bridge.pyro_program.program import BridgeProgram
from smc_bridge.pyro_program.stopped import StoppedPrefix
from smc_bridge.testing import EnumeratingSource, outcomes
from tests.oracle import smc as oracle
from tests.smc_bridge.smc_enumeration import resampling_outcomes


class Prescribe(Messenger):  # type: ignore[misc]
    """Answer the program's sites, particle by particle."""

    def __init__(self, source: EnumeratingSource) -> None:
        super().__init__()
        self.source = source

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or not msg["name"].startswith(("block_", "accepted_")):
            return
        law = msg["fn"]
        if isinstance(law, StoppedPrefix):
            rows = [self._stopped(law, n) for n in range(law.batch_shape[0])]
        else:
            rows = [torch.tensor(self.source.choose(p.tolist())) for p in law.probs]
        msg["value"], msg["done"] = torch.stack(rows), True

    def _stopped(self, law: StoppedPrefix, n: int) -> Tensor:
        place = torch.tensor([n])
        single = StoppedPrefix(
            law.base.select(place), law.kernel, law.proposal.select(place), law.intermediate.select(place),
            Horizon(law.horizon.window[place], law.horizon.ends),
        )
        every = single.enumerate_support()
        chosen: Tensor = every[self.source.choose(single.log_prob(every)[:, 0].exp().tolist()), 0]
        return chosen


@dataclass
class PrescribedResampler:
    """The real scheme, at the uniforms of one cell."""

    real: UniformResampler
    source: EnumeratingSource
    proper: bool = True

    def __call__(self, log_weights: Tensor, count: int, *, source: object) -> Tensor:
        _, uniforms, volume = resampling_outcomes(self.real, log_weights[None], count)
        cell = self.source.choose(volume.tolist())
        return self.real(log_weights, count, source=_Fixed(uniforms[cell]))  # type: ignore[arg-type]


@dataclass
class _Fixed:
    """A source of given uniforms."""

    uniforms: Tensor

    def uniform(self, size: tuple[int, ...]) -> Tensor:
        assert size == self.uniforms.shape
        return self.uniforms[None]


@dataclass
class PyroEnumeration:
    """Exact expectations; names as in `tests.smc_bridge.smc_enumeration.Enumeration`."""

    proper: oracle.Law = field(default_factory=lambda: defaultdict(float))
    output: oracle.Law = field(default_factory=lambda: defaultdict(float))
    evidence: float = 0.0
    log_evidence: float = 0.0
    probability: float = 0.0
    resampled: float = 0.0


def enumerate_filter(sampler: Sampler, limit: int) -> PyroEnumeration:
    """Run `filter_of` a sampler on the empty prompt through all of its randomness."""
    real = sampler.resampler
    assert isinstance(real, UniformResampler)

    def run(source: EnumeratingSource) -> EvidenceSMCFilter:
        smc = filter_of(BridgeProgram(sampler, [], max_new_tokens=limit))
        smc.resampler = PrescribedResampler(real, source)
        # The filter hides its sites from messengers around it, so the guide is wrapped.
        smc.guide = SimpleNamespace(init=smc.guide.init, step=Prescribe(source)(smc.guide.step))
        smc.init()
        step = 0
        while bool((~smc.state["done"] & (smc.log_weights > -torch.inf)).any()):
            smc.step(step)
            step += 1
        return smc

    total = PyroEnumeration()
    with torch.inference_mode():
        for probability, smc in outcomes(run):
            total.probability += probability
            total.resampled += probability * any(step.resampled for step in smc.history[1:])
            z = math.exp(smc.log_evidence)
            total.evidence += probability * z
            if z == 0:
                continue
            total.log_evidence += probability * smc.log_evidence
            tokens, length = smc.state["tokens"].tolist(), smc.state["length"].tolist()
            for row, n, w in zip(tokens, length, torch.softmax(smc.log_weights, 0).tolist(), strict=True):
                total.proper[tuple(row[:n])] += probability * z * w
                total.output[tuple(row[:n])] += probability * w
    return total
