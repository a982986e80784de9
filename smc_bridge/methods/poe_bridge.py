"""Named programs: the paper's setting, its released code, and the ends of the bridge, as `Sampler` objects.

Every preset takes a pair of models with one alphabet, and options that override its numbers. `temperature` is the
target's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from smc_bridge.distributions.intermediate import Intermediate, ProductOfExperts, Proposal, Target, check_weight
from smc_bridge.distributions.law import check_temperature
from smc_bridge.distributions.target import ARTarget, Potential
from smc_bridge.engine.names import named
from smc_bridge.engine.resampling import Resampler
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import Trigger, always
from smc_bridge.kernels.baselines import Argmax, ReleasedRejection, ReleasedScore
from smc_bridge.kernels.importance import AcceptAll, WeightRule
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.models.arguments import is_list, said, whole_number
from smc_bridge.models.protocols import ModelPair
from smc_bridge.proposals.mean_field import DLMProposal


def lane_temperatures(lanes: int) -> list[float]:
    """The paper's lane temperatures, evenly spaced from 0.2 to 0.7; 0.2 for a single lane."""
    return [float(x) for x in torch.linspace(0.2, 0.7, whole_number("lanes", lanes), dtype=torch.float64)]


def _lane_exponents(w: float, temperature: float, own: Sequence[float]) -> torch.Tensor:
    """Exponents of the target under which a lane's temperature is that of the whole product, `[K]`."""
    return (1 - check_weight(w)) * check_temperature(temperature) / torch.tensor(own, dtype=torch.float64)


def check_pair(pair: ModelPair) -> None:
    """Raise ValueError unless this is a pair of models, and not the name of one."""
    if not (hasattr(pair, "dlm") and hasattr(pair, "ar")):
        raise ValueError(f"pair = {said(pair)}: give a pair of models, as load_pair('arithmetic') does")


def _codec(pair: ModelPair) -> dict[str, Any]:
    """The pair's name and text functions, where it has them."""
    return {
        "tokenize": getattr(pair, "encode", None), "detokenize": getattr(pair, "decode", None),
        "pair": getattr(pair, "name", None),
    }


def smc(
    pair: ModelPair, particles: int = 4, *, lanes: int = 1, w: float | None = None, window: int = 32,
    lookahead: int = 256, temperature: float = 1.0, proposal_temperature: float | Sequence[float] | None = None,
    intermediate: Intermediate | None = None, kernel: Kernel | str | None = None,
    weight: WeightRule | str | None = None, resampler: Resampler | str | None = None,
    trigger: Trigger | str | None = None, potential: Potential | None = None, proposal_top_p: float = 1.0,
    top_p: float = 1.0, top_k: int | None = None, name: str | None = None, max_logit_bytes: int | None = None,
    compile: bool = False,
) -> Sampler:
    """N particles that survive over blocks, resampled when their ESS falls below half.

    Args:
        pair: the models.
        particles, lanes, window: N, K, V.
        w: exponent of the DLM in the product of experts, 0.3 by default; contradicts an `intermediate`.
        lookahead: M.
        temperature, top_p, top_k: of the target.
        proposal_temperature: of the proposal, one or one per lane; by default the target's.
        proposal_top_p: truncation of the proposal (needs `Defensive` to stay proper).
        intermediate, kernel, weight, resampler, trigger, potential: plug-ins; all but the first and the last also by
            name (`smc_bridge.engine.names`). By default product of experts, token-level rejection, own weights,
            systematic, ESS below half, none.
        max_logit_bytes, compile: of the sampler, see `Sampler`.
    Example:
        >>> from smc_bridge.testing import tabular_pair
        >>> sampler = smc(tabular_pair(), particles=4, w=0.5)
        >>> result = sampler.run([[]], seed=1, max_new_tokens=3)[0]
        >>> len(result.sequences), sampler.proper
        (4, True)
    """
    check_pair(pair)
    if w is not None and intermediate is not None:
        raise ValueError(f"w = {said(w)} with intermediate = {said(intermediate)}: give one of them")
    target = ARTarget(pair.ar, temperature=temperature, top_p=top_p, top_k=top_k, potential=potential)
    return Sampler(
        proposal=DLMProposal(
            pair.dlm, temperature=temperature if proposal_temperature is None else proposal_temperature,
            top_p=proposal_top_p, lookahead=lookahead,
        ),
        target=target,
        intermediate=ProductOfExperts(0.3 if w is None else w) if intermediate is None else intermediate,
        kernel=named("kernel", "rejection" if kernel is None else kernel),
        weight=named("weight", "own" if weight is None else weight),
        resampler=named("resampler", "systematic" if resampler is None else resampler),
        trigger=named("trigger", "ess" if trigger is None else trigger),
        particles=particles, lanes=lanes, window=window, name=f"smc({particles})" if name is None else name,
        max_logit_bytes=max_logit_bytes, compile=compile, **_codec(pair),
    )


def paper(
    pair: ModelPair, *, lanes: int = 4, w: float = 0.3, temperature: float = 1.0, name: str = "paper", **options: Any
) -> Sampler:
    """The paper's setting, weights as in its text: N = 1, K = 4, V = 32, M = 256, w = 0.3, lanes at 0.2 to 0.7.

    A lane's temperature applies to the whole product, `pi^(k) ∝ q_k^w p^((1 - w) tau_p / tau_k)`, and
    each lane weighs by its own `pi^(k)`. `options` go to `smc`.
    """
    own = lane_temperatures(lanes)
    exponent = _lane_exponents(w, temperature, own)
    defaults: dict[str, Any] = {
        "particles": 1, "proposal_temperature": own, "intermediate": ProductOfExperts(w, exponent),
    }
    return smc(pair, lanes=lanes, temperature=temperature, name=name, **{**defaults, **options})


def released(
    pair: ModelPair, *, lanes: int = 4, w: float = 0.3, window: int = 32, lookahead: int = 256,
    temperature: float = 1.0, top_p: float = 0.95, name: str = "released", max_logit_bytes: int | None = None,
    compile: bool = False,
) -> Sampler:
    """The behaviour of the paper's released code. Not proper: a labelled baseline.

    Args:
        top_p: of the drafts only.
        temperature: of the target that it is compared with; it enters the product through the lanes' temperatures.
        max_logit_bytes, compile: of the sampler, see `Sampler`.
    """
    check_pair(pair)
    own = lane_temperatures(lanes)
    exponent = _lane_exponents(w, temperature, own)
    return Sampler(
        proposal=DLMProposal(pair.dlm, temperature=own, lookahead=lookahead),
        target=ARTarget(pair.ar, temperature=temperature), intermediate=ProductOfExperts(w, exponent),
        kernel=ReleasedRejection(lanes, top_p=top_p), weight=ReleasedScore(), resampler=Argmax(), trigger=always,
        particles=1, lanes=lanes, window=window, name=name, max_logit_bytes=max_logit_bytes, compile=compile,
        **_codec(pair),
    )


def speculative(pair: ModelPair, *, name: str = "speculative", **options: Any) -> Sampler:
    """`w = 0`: speculative decoding with a mean-field draft; every sample is an exact draw and every weight is one."""
    return smc(pair, **{"particles": 1, "intermediate": Target(), "name": name, **options})


def plain_is(pair: ModelPair, *, lanes: int = 4, name: str = "plain IS", **options: Any) -> Sampler:
    """`w = 1`: plain importance sampling, K whole drafts of V tokens weighed by `p / q`, one survives."""
    return smc(
        pair, lanes=lanes,
        **{"particles": 1, "intermediate": Proposal(), "kernel": AcceptAll(), "name": name, **options},
    )


def tree_kernel(
    nodes: int = 128, *, proposal_temperature: float = 1.0, min_probability: float = 0.05,
    ranking_temperature: float = 0.65,
) -> TreeWalk:
    """A tree walk whose tree ranks continuations by the DLM at one temperature, whatever that of the proposal.

    On 40 problems of the embedded pair a ranking at 0.65 finds the tokens that are committed better than one at the
    proposal's own temperature, for a target at temperature 1 (7.9 tokens with 23 nodes against 7.7 with 32) and more so
    at 0.2 (8.7 with 21 against 8.3 with 32). A node that is met with probability 0.05 costs about what it brings where
    a step without nodes costs as much as 120 of them.

    Args:
        nodes, min_probability: see `TreeWalk`.
        proposal_temperature: of the marginals that the kernel will be given.
        ranking_temperature: of the DLM in the ranking.
    """
    exponent = check_temperature(proposal_temperature) / check_temperature(ranking_temperature)
    return TreeWalk(nodes, min_probability=min_probability, exponent=exponent)


def tree_walk(
    pair: ModelPair, *, nodes: int = 128, min_probability: float = 0.05, name: str = "tree walk", **options: Any
) -> Sampler:
    """One particle that walks on a tree of at most B nodes, w = 0.3 unless an intermediate is given.

    The tree is that of `tree_kernel`; with a temperature for each lane it ranks by each lane's own marginals. `options`
    go to `smc`.
    """
    temperature = options.get("proposal_temperature")
    temperature = options.get("temperature", 1.0) if temperature is None else temperature
    kernel = (
        TreeWalk(nodes, min_probability=min_probability) if is_list(temperature)
        else tree_kernel(nodes, proposal_temperature=temperature, min_probability=min_probability)
    )
    return smc(pair, **{"particles": 1, "kernel": kernel, "name": name, **options})
