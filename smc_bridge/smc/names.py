"""Parts of a sampler by name: the one table that samplers, presets and the command line read.

Only names that say all there is to say: what needs a number of its own (an intermediate's w) is given as an object.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smc_bridge.kernels.block_verification import BlockVerification
from smc_bridge.kernels.gumbel import GumbelCoupling
from smc_bridge.kernels.importance import AcceptAll, BalanceHeuristic, OwnWeights
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.smc.resampling import RESAMPLERS
from smc_bridge.smc.weights import EssBelow, Trigger, always, never

KERNELS: dict[str, type[Kernel]] = {
    "rejection": Rejection, "block": BlockVerification, "gumbel": GumbelCoupling, "tree": TreeWalk,
    "accept-all": AcceptAll,
}

TRIGGERS: dict[str, Trigger] = {"ess": EssBelow(), "always": always, "never": never}

#: Names of each kind of part: a class of which one is made, or the part itself.
NAMED: dict[str, Mapping[str, Any]] = {
    "kernel": KERNELS, "resampler": RESAMPLERS, "trigger": TRIGGERS,
    "weight": {"own": OwnWeights, "balance": BalanceHeuristic},
}


def named(kind: str, value: Any) -> Any:
    """The part of that kind that a name stands for; anything but a name is passed through.

    Raises:
        ValueError: no part of that kind has the name; the message lists those there are.
    """
    if not isinstance(value, str) or kind not in NAMED:
        return value
    table = NAMED[kind]
    if value not in table:
        raise ValueError(f"{kind} = {value!r}: give one of {', '.join(table)}, or an object")
    part = table[value]
    return part() if isinstance(part, type) else part
