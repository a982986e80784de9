"""PoE-Bridge (arXiv 2606.08048) as a program: the paper's setting, particles over blocks, and the ends of the bridge.

Every preset makes a `Sampler` from a pair of models with one alphabet, and options that override its numbers.
`temperature` is the target's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smc_bridge.distributions.intermediate import Intermediate, ProductOfExperts
from smc_bridge.engine.presets import lane_exponents, lane_temperatures, smc
from smc_bridge.engine.sampler import Sampler
from smc_bridge.models.arguments import said
from smc_bridge.models.protocols import ModelPair
from smc_bridge.names import DEFAULT_W
from smc_bridge.registry import method


@method(
    "paper", role="weighted", targets="AR", proper=True, reference="arXiv 2606.08048", rest=smc,
    without=("proposal_temperature",),
)
def paper(
    pair: ModelPair, *, particles: int = 1, lanes: int = 4, w: float | None = None, temperature: float = 1.0,
    intermediate: Intermediate | str | None = None, name: str = "paper", **options: Any,
) -> Sampler:
    """The paper's setting, weights as in its text: N = 1, K = 4, V = 32, M = 256, w = 0.3, lanes at 0.2 to 0.7.

    A lane's temperature applies to the whole product, `pi^(k) ∝ q_k^w p^((1 - w) tau_p / tau_k)`, and
    each lane weighs by its own `pi^(k)`. All else is as in `smc`.
    """
    own = lane_temperatures(lanes)
    plain = intermediate is None or intermediate == "poe"
    if plain and options.get("kernel") != "accept-all" and options.get("beta") is None:
        w = DEFAULT_W if w is None else w
        intermediate, w = ProductOfExperts(w, lane_exponents(w, temperature, own)), None
    return smc(
        pair, particles, lanes=lanes, w=w, temperature=temperature, intermediate=intermediate, name=name,
        **{"proposal_temperature": own, **options},
    )


def _none_of(names: Sequence[str], options: Mapping[str, Any], name: str) -> None:
    """Raise ValueError if a preset is given options that it does not have."""
    for option in names:
        if (value := options.get(option)) is not None:
            raise ValueError(f"{option} = {said(value)} with {name}, which has none: leave it out, or use smc")


@method(
    "speculative", role="exact", targets="AR", proper=True, reference="arXiv 2211.17192, 2302.01318", rest=smc,
    without=("w", "beta", "intermediate"),
)
def speculative(pair: ModelPair, *, particles: int = 1, name: str = "speculative", **options: Any) -> Sampler:
    """`w = 0`: speculative decoding with a mean-field draft; every sample is an exact draw and every weight is one."""
    _none_of(("w", "beta"), options, "speculative")
    return smc(pair, particles, name=name, **{"intermediate": "target", **options})


@method(
    "plain-is", role="weighted", targets="AR", proper=True, reference="arXiv 2606.08048, w = 1", rest=smc,
    without=("w", "beta", "intermediate", "kernel", "nodes", "reuse"),
)
def plain_is(
    pair: ModelPair, *, particles: int = 1, lanes: int = 4, name: str = "plain-is", **options: Any
) -> Sampler:
    """`w = 1`: plain importance sampling, K whole drafts of V tokens weighed by `p / q`, one survives."""
    _none_of(("w", "beta"), options, "plain_is")
    return smc(
        pair, particles, lanes=lanes, name=name, **{"intermediate": "proposal", "kernel": "accept-all", **options}
    )
