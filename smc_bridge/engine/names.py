"""Parts of a sampler by name: the one table that samplers, presets and the command line read.

Only names that say all there is to say: what needs a number of its own (an intermediate's w) is given as an object.
A name stands for a public one of `smc_bridge`, which is imported when it is asked for (`smc_bridge.exports`).
"""

from __future__ import annotations

from typing import Any

import smc_bridge

#: Public name of each part.
KERNELS = {
    "rejection": "Rejection", "block": "BlockVerification", "gumbel": "GumbelCoupling", "tree": "TreeWalk",
    "accept-all": "AcceptAll",
}
RESAMPLERS = {
    "multinomial": "Multinomial", "stratified": "Stratified", "systematic": "Systematic", "residual": "Residual",
    "ssp": "SSP",
}
TRIGGERS = {"ess": "EssBelow", "always": "always", "never": "never"}
WEIGHTS = {"own": "OwnWeights", "balance": "BalanceHeuristic"}

#: Names of each kind of part: of a class of which one is made, or of the part itself.
NAMED = {"kernel": KERNELS, "resampler": RESAMPLERS, "trigger": TRIGGERS, "weight": WEIGHTS}


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
    part = getattr(smc_bridge, table[value])
    return part() if isinstance(part, type) else part
