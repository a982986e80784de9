"""Parts of a sampler by name: the one table that samplers, methods and the command line read.

A name stands for a public one of `smc_bridge`, which is imported when it is asked for (`smc_bridge.exports`), so that
the names can be shown without it. An intermediate by name is made with w, which not every one reads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import smc_bridge
from smc_bridge.models.arguments import said

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
#: From w to the intermediate.
INTERMEDIATES: dict[str, Callable[[float], smc_bridge.Intermediate]] = {
    "poe": lambda w: smc_bridge.ProductOfExperts(w),
    "mixture": lambda w: smc_bridge.Mixture(w),
    "power-mean": lambda w: smc_bridge.PowerMean(w=w),
    "chernoff": lambda w: smc_bridge.Chernoff(),
    "defensive": lambda w: smc_bridge.Defensive(smc_bridge.ProductOfExperts(w)),
    "proposal": lambda w: smc_bridge.Proposal(),
    "target": lambda w: smc_bridge.Target(),
}
#: Intermediates that do not read w.
WITHOUT_W = ("chernoff", "proposal", "target")
#: The paper's w.
DEFAULT_W = 0.3

#: Names of each kind of part.
NAMED: dict[str, Collection[str]] = {
    "kernel": KERNELS, "intermediate": INTERMEDIATES, "resampler": RESAMPLERS, "trigger": TRIGGERS, "weight": WEIGHTS,
}
_PUBLIC = {"kernel": KERNELS, "resampler": RESAMPLERS, "trigger": TRIGGERS, "weight": WEIGHTS}


def named(kind: str, value: Any, *, w: float = DEFAULT_W) -> Any:
    """The part of that kind that a name stands for; anything but a name is passed through.

    Args:
        w: of an intermediate.
    Raises:
        ValueError: no part of that kind has the name; the message lists those there are.
    """
    if not isinstance(value, str) or kind not in NAMED:
        return value
    if value not in NAMED[kind]:
        raise ValueError(f"{kind} = {value!r}: give one of {', '.join(NAMED[kind])}, or an object")
    if kind == "intermediate":
        return INTERMEDIATES[value](w)
    part = getattr(smc_bridge, _PUBLIC[kind][value])
    return part() if isinstance(part, type) else part


def idle(kernel: Any = None, intermediate: Any = None) -> tuple[str, ...]:
    """Options that parts by name leave unread: w, where the intermediate has none, nodes, where there is no tree."""
    w = () if intermediate not in WITHOUT_W and kernel != "accept-all" else ("w",)
    return w if kernel == "tree" else (*w, "nodes")


def check_fit(
    *, lanes: int, w: float | None = None, kernel: Any = None, intermediate: Any = None, nodes: int | None = None,
    weight: Any = None, resampler: Any = None, trigger: Any = None,
) -> None:
    """Refuse options that contradict each other, as far as they are given by name; None is not given.

    Raises:
        ValueError: naming both sides and the remedy.
    """
    if kernel == "accept-all" and isinstance(intermediate, str) and intermediate != "proposal":
        raise ValueError(
            f"kernel = {kernel} with intermediate = {intermediate}: it commits the proposal's own draft; give "
            "intermediate = proposal, or kernel = rejection"
        )
    if w is not None and not (intermediate is None or isinstance(intermediate, str)):
        raise ValueError(f"w = {said(w)} with intermediate = {said(intermediate)}: give one of them")
    if w is not None and "w" in idle(kernel, intermediate):
        other = f"kernel = {kernel}" if intermediate is None else f"intermediate = {intermediate}"
        raise ValueError(f"w = {said(w)} with {other}, which has none: leave it out, or give intermediate = poe")
    if nodes is not None and kernel != "tree":
        one = "rejection" if kernel is None else kernel if isinstance(kernel, str) else said(kernel)
        raise ValueError(f"nodes = {said(nodes)} with kernel = {one}, which has none: leave it out, or give tree")
    if weight == "balance" and lanes == 1:
        raise ValueError("weight = balance with one lane has nothing to balance: leave it out, or give 2 lanes or more")
    if isinstance(resampler, str) and trigger == "never":
        raise ValueError(f"resampler = {resampler} with trigger = never is not used: leave one of them out")
