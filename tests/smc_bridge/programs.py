"""Small asymmetric programs on tabular models, shared by the tests of the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from smc_bridge.distributions.intermediate import Intermediate, ProductOfExperts, Proposal
from smc_bridge.distributions.target import ARTarget, Potential
from smc_bridge.engine.sampler import Sampler
from smc_bridge.kernels.block_verification import BlockVerification
from smc_bridge.kernels.gumbel import GumbelCoupling
from smc_bridge.kernels.importance import AcceptAll
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.models.ends import EosId
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.mean_field import DLMProposal
from tests.oracle import smc as oracle

#: Temperature of the target: part of the law, and different from one so that it cannot be forgotten.
TEMPERATURE = 0.8
#: Conditionals of two tokens; no two rows alike, and the best token changes from place to place.
TABLES = [
    np.array([[0.58, 0.42]]),
    np.array([[0.3, 0.7], [0.85, 0.15]]),
    np.array([[0.25, 0.75], [0.9, 0.1], [0.55, 0.45], [0.2, 0.8]]),
]

KERNELS: dict[str, Kernel] = {
    "rejection": Rejection(), "block-verification": BlockVerification(), "gumbel": GumbelCoupling(),
    "accept-all": AcceptAll(), "tree-walk": TreeWalk(1),
}


class TablePotential:
    """`phi` of every sequence, finished or not, from a table: incremental, and zero for one complete sequence.

    Implements `Potential` for up to `limit` tokens after an empty prompt.
    """

    def __init__(self, size: int, limit: int, *, seed: int = 0, dead: oracle.Sequence | None = None) -> None:
        self.size, self.limit = size, limit
        log_phi = torch.randn((size + 1) ** limit, generator=torch.Generator().manual_seed(seed)).double()
        if dead is not None:
            log_phi[self._code(Prefix.of([dead]))] = -torch.inf
        self.log_phi = 0.7 * log_phi

    def _code(self, prefix: Prefix) -> Tensor:
        code = torch.zeros_like(prefix.length)
        for i in range(min(self.limit, prefix.tokens.shape[1])):
            code = code + (prefix.tokens[:, i] + 1) * (self.size + 1) ** i
        return code

    def __call__(self, prefix: Prefix) -> Tensor:
        return self.log_phi[self._code(prefix)]

    def phi(self, sequence: oracle.Sequence) -> float:
        """The potential of one sequence."""
        return float(self.log_phi[self._code(Prefix.of([sequence]))].exp())


def table_model(eos: EosId, *, tables: list[np.ndarray] | None = None) -> TabularAR:
    """The tables as a model."""
    return TabularAR([torch.from_numpy(t) for t in tables or TABLES], eos_id=eos)


def program(
    kernel: Kernel, *, eos: EosId = 1, lanes: int = 1, particles: int = 2, potential: Potential | None = None,
    lookahead: int = 3, noise: float = 0.9, intermediate: Intermediate | None = None, window: int = 2,
    ar: TabularAR | None = None, noise_seed: int = 2, w: float = 0.5,
    temperature: float | list[float] | None = None, reuse: float = 0.0,
    **parts: Any,
) -> Sampler:
    """A sampler with a blurred and perturbed proposal; two lanes have different temperatures."""
    ar = ar or table_model(eos)
    temperature = temperature or ([0.7, 1.4, 1.0, 0.5][:lanes] if lanes > 1 else 1.2)
    plain = isinstance(kernel, AcceptAll)
    return Sampler(
        DLMProposal(
            TabularDLM(ar, noise=noise, seed=noise_seed), temperature=temperature, lookahead=lookahead, reuse=reuse
        ),
        ARTarget(ar, temperature=TEMPERATURE, potential=potential),
        intermediate or (Proposal() if plain else ProductOfExperts(w)), kernel, particles=particles, lanes=lanes,
        window=window, **parts,
    )


def target_law(sampler: Sampler, limit: int) -> oracle.Law:
    """`p(s) phi(s)` of every complete sequence of at most `limit` tokens, by the oracle."""
    ar, potential = sampler.target.model, sampler.target.potential
    assert isinstance(ar, TabularAR)
    law = oracle.sequence_law(
        [t.numpy() for t in ar.tables], limit, ar.eos_id, temperature=sampler.target.temperature)
    if potential is None:
        return law
    assert isinstance(potential, TablePotential)
    return {s: p * potential.phi(s) for s, p in law.items()}


def worst(found: oracle.Law, expected: oracle.Law) -> tuple[float, str]:
    """Largest difference over all sequences, and a line that prints the two numbers."""
    gaps = {s: abs(found.get(s, 0.0) - expected.get(s, 0.0)) for s in {*found, *expected}}
    s = max(gaps, key=lambda s: gaps[s])
    return gaps[s], f"sequence {s}: {found.get(s, 0.0)!r}, expected {expected.get(s, 0.0)!r} (gap {gaps[s]:.3g})"
