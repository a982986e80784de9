"""Tests for parts of a program: exact laws by enumeration of all randomness, and Monte Carlo where that cannot be.

    check(smc(tabular_pair(), particles=2, intermediate=MyIntermediate()))

`enumeration` runs any code on every outcome of its draws, `branches` many outcomes at a time, and `program` the sampler
itself, step by step; `check` compares what they find with the exact target and says which part is to blame.
"""


from smc_bridge.testing.check import Check, check
from smc_bridge.testing.enumeration import EnumeratingSource, NotEnumerableError, outcomes
from smc_bridge.testing.frontier import Enumeration
from smc_bridge.testing.program import enumerate_sampler
from smc_bridge.testing.tabular import TabularPair, exact_law, tabular_pair

__all__ = [
    "Check", "EnumeratingSource", "Enumeration", "NotEnumerableError", "TabularPair", "check", "enumerate_sampler",
    "exact_law", "outcomes", "tabular_pair",
]
