"""Tests for parts of a program: exact laws by enumeration of all randomness, and Monte Carlo where that cannot be.

    assert_proper(MyKernel())    # or a resampler, a weight rule, an intermediate, a proposal, a sampler
    assert_biased(mutants.KeepsTheBest())    # the reverse, for what a test must catch
    print(check(smc(tabular_pair(), intermediate=MyIntermediate())))    # a program, and the part that breaks it

A kernel of one's own, tested in ten lines:

    >>> import torch
    >>> from smc_bridge import Move, Rejection
    >>> class OneToken(Rejection):
    ...     '''Commits the first token alone.'''
    ...     def log_continue(self, q, pi, block, *, horizon):
    ...         return torch.full(block.shape, -torch.inf)
    ...     def __call__(self, *laws, **draws):
    ...         move = super().__call__(*laws, **draws)
    ...         alone = torch.nn.functional.pad(move.block[:, :1], (0, move.block.shape[1] - 1), value=-1)
    ...         return Move(alone, torch.ones_like(move.length), move.accepted.clamp_max(1))
    >>> assert_proper(OneToken())

`enumeration` runs any code on every outcome of its draws, `branches` many outcomes at a time, `kernel_laws` a kernel on
tables of laws, and `program` the sampler itself, step by step; `check` compares what they find with the exact target
and says which part is to blame. `mutants` and `engine_mutants` are wrong on purpose, each in one way.
"""

from smc_bridge.testing import mutants
from smc_bridge.testing.asserts import assert_biased, assert_proper
from smc_bridge.testing.chain_tables import chain_law, chain_table
from smc_bridge.testing.checking import Check, check
from smc_bridge.testing.engine_mutants import ENGINE_MUTANTS, mutated
from smc_bridge.testing.enumeration import EnumeratingSource, NotEnumerableError, outcomes
from smc_bridge.testing.frontier import Enumeration
from smc_bridge.testing.kernel_laws import block_law, kernel_density, kernel_law, kernel_outcomes, stopping_gap
from smc_bridge.testing.kernel_tables import KernelTable, kernel_table
from smc_bridge.testing.program import enumerate_sampler
from smc_bridge.testing.tabular import TabularPair, exact_law, tabular_pair

__all__ = [
    "ENGINE_MUTANTS", "Check", "EnumeratingSource", "Enumeration", "KernelTable", "NotEnumerableError", "TabularPair",
    "assert_biased", "assert_proper", "block_law", "chain_law", "chain_table", "check", "enumerate_sampler",
    "exact_law", "kernel_density", "kernel_law", "kernel_outcomes", "kernel_table", "mutants", "mutated", "outcomes",
    "stopping_gap", "tabular_pair",
]
