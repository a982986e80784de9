"""The oracle's toys as tables of `smc_bridge.testing`, on which it runs the kernels' own code."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from smc_bridge.blocks import Horizon
from smc_bridge.distributions.law import Law as TokenLaw
from smc_bridge.distributions.table import as_law
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.proposals.protocol import Draft
from smc_bridge.randomness import Source
from smc_bridge.testing import KernelTable, kernel_law
from tests.oracle.laws import Law, Toy


def log(probabilities: np.ndarray) -> Tensor:
    """Log-probabilities as a float64 tensor, log 0 = -inf."""
    return torch.from_numpy(np.array(probabilities, dtype=float)).log()


def table_of(toy: Toy) -> KernelTable:
    """The same laws for the library."""
    prefixes = [itertools.product(range(toy.size), repeat=n) for n in range(len(toy.q))]
    pi = [log(np.stack([toy.pi[prefix] for prefix in every])) for every in prefixes]
    return KernelTable(toy.name, log(toy.q), pi, toy.window, toy.eos)


def horizon_of(toy: Toy, rows: int = 1) -> Horizon:
    """Where blocks of the toy must end."""
    return table_of(toy).horizon(rows)


def log_q_of(toy: Toy, rows: int = 1) -> Tensor:
    """`[R, V, A]`."""
    return log(toy.q).expand(rows, -1, -1)


def log_pi_along(toy: Toy, draft: Tensor) -> Tensor:
    """The intermediate along `draft: [R, V]`, `[R, V, A]`."""
    return table_of(toy).along(draft)


def drafted(q: Tensor | TokenLaw, source: Source, window: Tensor | None = None) -> Draft:
    """A draft from `q: [R, V, A]` as a factorised proposal makes it, by default of all V places."""
    law = as_law(q)
    width = torch.full((law.rows,), law.shape[-2], device=law.device) if window is None else window
    return Draft(source.categorical(law), law, width)


def enumerated_law(kernel: Kernel, toy: Toy) -> Law:
    """The exact law of (block, accepted) of the kernel's code."""
    return kernel_law(kernel, table_of(toy))
