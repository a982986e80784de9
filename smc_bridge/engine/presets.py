"""`smc`: a program from a pair of models and options, parts by name; every method that is a program is made by it.

It is a method itself, and stands here because the others read it.

`temperature` is the target's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from smc_bridge.distributions.intermediate import Intermediate, check_w
from smc_bridge.distributions.shaping import COLDEST, HOTTEST, check_temperature
from smc_bridge.distributions.target import ARTarget, Potential, TokenPotential
from smc_bridge.engine.pace import Pace
from smc_bridge.engine.resampling import Resampler
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import Trigger
from smc_bridge.facts import UnsuitedError
from smc_bridge.kernels.importance import AcceptAll, WeightRule
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.models.arguments import is_list, real_between, said, whole_number
from smc_bridge.models.costs import Costs
from smc_bridge.models.learned.store import load
from smc_bridge.models.protocols import CausalLM, ModelPair
from smc_bridge.names import ASK_AR, DEFAULT_BETA, DEFAULT_W, LEARNED, PROPOSALS, check_fit, named
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.registry import method

#: V, M and B unless they are given, and at most where they are chosen.
WINDOW, LOOKAHEAD, NODES = 32, 256, 128
#: The probability above which marginals outlive a refusal, unless it is given: 0, never.
REUSE = 0.0
#: A size that is chosen in each step.
AUTO = "auto"


def lane_temperatures(lanes: int) -> list[float]:
    """The paper's lane temperatures, evenly spaced from 0.2 to 0.7; 0.2 for a single lane."""
    return [float(x) for x in torch.linspace(0.2, 0.7, whole_number("lanes", lanes), dtype=torch.float64)]


def lane_exponents(w: float, temperature: float, own: Sequence[float]) -> torch.Tensor:
    """Exponents of the target under which a lane's temperature is that of the whole product, `[K]`.

    Of a target at temperature 0 every power is the same point mass: there they are `1 - w`.
    """
    lanes = torch.tensor(own, dtype=torch.float64)
    return (1 - check_w(w)) * (check_temperature(temperature) / lanes if temperature else torch.ones_like(lanes))


def check_pair(pair: ModelPair) -> None:
    """Raise ValueError unless this is a pair of models, and not the name of one."""
    if not (hasattr(pair, "dlm") and hasattr(pair, "ar")):
        raise ValueError(f"pair = {said(pair)}: give a pair of models, as load_pair('arithmetic') does")


def part_of(pair: ModelPair, name: str, given: Any = None) -> Any:
    """A learned part: the network that is given, that of a file, or the pair's own (`Pair.part`).

    Raises:
        UnsuitedError: the pair has none. ValueError: what is given is none.
    """
    if given is not None and not isinstance(given, str | os.PathLike):
        return given
    part = getattr(pair, "part", None)
    if given is not None:
        return load(given, kind=name).to(pair.dlm.device) if part is None else part(name, given)
    if part is None:
        raise UnsuitedError(f"{name} needs a trained network, which this pair does not have: give one")
    try:
        return part(name)
    except ValueError as error:
        raise UnsuitedError(str(error)) from error


def codec(pair: ModelPair) -> dict[str, Any]:
    """The pair's name and its functions between text and ids, as far as it has them."""
    return {
        "tokenize": getattr(pair, "encode", None), "detokenize": getattr(pair, "decode", None),
        "pair": getattr(pair, "name", None),
    }


def as_experts(experts: Sequence[ARTarget | CausalLM], temperature: float) -> tuple[ARTarget, ...]:
    """Further experts with their laws; a model alone has one at that temperature.

    Raises:
        ValueError: they are no list, or one is no causal model.
    """
    if not is_list(experts):
        raise ValueError(f"experts = {said(experts)}: give a list of causal models, or of ARTarget with their laws")
    return tuple(
        each if isinstance(each, ARTarget) else ARTarget(each, temperature=temperature) for each in experts
    )


def tree_kernel(
    nodes: int = NODES, *, proposal_temperature: float = 1.0, min_probability: float = 0.05,
    ranking_temperature: float = 0.65,
) -> TreeWalk:
    """A tree walk whose tree ranks continuations by the DLM at one temperature, whatever that of the proposal.

    What makes a draft varied makes a ranking flat: the ranking has a temperature of its own, and a node that is hardly
    ever met is left out. Both change speed alone, never a law.

    Args:
        nodes, min_probability: see `TreeWalk`.
        proposal_temperature: of the marginals that the kernel will be given; at 0 those at temperature 1 are ranked.
        ranking_temperature: of the DLM in the ranking.
    """
    exponent = (check_temperature(proposal_temperature) or 1.0) / real_between(
        "ranking_temperature", ranking_temperature, COLDEST, HOTTEST,
        remedy=f"give a positive number between {COLDEST:g} and {HOTTEST:g}",
    )
    return TreeWalk(nodes, min_probability=min_probability, exponent=exponent)


def _paced(
    window: Any, lookahead: Any, nodes: Any, at_once: Any, costs: Any
) -> tuple[int, int, int | None, Pace | None]:
    """V, M and B, at most, and what chooses those of them that are `auto`."""
    chosen = [isinstance(size, str) and size == AUTO for size in (window, lookahead, nodes)]
    v, m = (
        most if auto else whole_number(name, size, remedy="give a whole number of at least 1, or 'auto'")
        for name, size, most, auto in zip(
            ("window", "lookahead"), (window, lookahead), (WINDOW, LOOKAHEAD), chosen, strict=False
        )
    )
    b = nodes if nodes is None else NODES if chosen[2] else whole_number(
        "nodes", nodes, remedy="give a budget of at least 1 node, or 'auto'"
    )
    if any(chosen):
        return v, m, b, Pace(chosen[0], chosen[1], chosen[2], at_once, costs)
    for name, value, plain in (("at_once", at_once, 1), ("costs", costs, None)):
        if value is not plain and value != plain:
            raise ValueError(
                f"{name} = {said(value)} where no size is chosen: leave it out, or give window, lookahead or nodes = "
                "'auto'"
            )
    return v, m, b, None


def _kernel(
    kernel: Kernel | str | None, nodes: int | None, temperature: float | Sequence[float], *, bonus: Any
) -> Kernel:
    """The kernel that is given or named; a tree ranks as `tree_kernel` where all lanes have one temperature."""
    if kernel == "accept-all" and bonus:
        return AcceptAll(bonus=True)
    if kernel != "tree":
        found: Kernel = named("kernel", "rejection" if kernel is None else kernel)
        return found
    count = NODES if nodes is None else nodes
    if isinstance(temperature, Sequence) or is_list(temperature):
        return TreeWalk(count)
    return tree_kernel(count, proposal_temperature=temperature)


@method(
    "smc", role="weighted", targets="AR", proper=True, reference="arXiv 2606.08048; Chen et al. 2005",
    aliases=("smc-<particles>", "smc-<particles>x<lanes>"), examples=("smc-1", "smc-4", "smc-8"),
)
def smc(
    pair: ModelPair, particles: int = 4, *, lanes: int = 1, w: float | None = None, beta: float | None = None,
    window: int | Literal["auto"] = WINDOW, lookahead: int | Literal["auto"] = LOOKAHEAD, temperature: float = 1.0,
    proposal_temperature: float | Sequence[float] | None = None,
    intermediate: Intermediate | str | None = None, kernel: Kernel | str | None = "rejection",
    nodes: int | Literal["auto"] | None = None, weight: WeightRule | str | None = "own",
    resampler: Resampler | str | None = None,
    trigger: Trigger | str | None = "ess", potential: Potential | TokenPotential | None = None,
    proposal: str = "marginals",
    reuse: float = REUSE,
    proposal_top_p: float = 1.0, top_p: float = 1.0, top_k: int | None = None, name: str | None = None,
    max_logit_bytes: int | None = None, compile: bool = False, at_once: int = 1,
    costs: Costs | Mapping[str, Any] | None = None, experts: Sequence[ARTarget | CausalLM] = (),
    bonus: bool = False, places: int | None = None, entropy: float | None = None,
    head: nn.Module | str | os.PathLike[str] | None = None, slot: int | None = None,
) -> Sampler:
    """N particles that survive over blocks, resampled when their ESS falls below half.

    Parts are given by name, from Python also as objects, all but the proposal: one of your own makes a program of its
    own (docs/guides/own_proposal.md).

    Args:
        pair: the models.
        particles: N, that survive a step.
        lanes: K, drafts of each particle.
        w: exponent (or share) of the DLM in the intermediate, 0.3 unless it is given.
        beta: greatest factor between the target and the intermediate clamp at a token, 8 unless it is given.
        window: V, tokens verified at once; auto: in each step what pays, up to 32.
        lookahead: M, masked positions per forward of the DLM; auto: in each step what pays, up to 256.
        temperature: of the target, and of the proposal unless that has its own; 0 is greedy.
        proposal_temperature: of the proposal, one or one per lane; 0 needs the intermediate defensive to stay proper.
        intermediate: law between proposal and target, poe unless it is given.
        kernel: how a draft becomes a block of the intermediate.
        nodes: budget of the kernel tree, 128 unless it is given; auto: as many as pay, up to 128.
        weight: how lanes are weighed.
        resampler: how survivors are drawn, systematic unless it is given.
        trigger: when particles are resampled, ess is an ESS below half.
        potential: of the target, an object.
        proposal: what the DLM drafts by: its marginals, those chained by a learned head, decoded by a small network or
            begun slots filled by the AR model, its own chain rule in one of three ways, or one path of them.
        reuse: probability of the next likeliest tokens above which marginals outlive a refusal, once; 0 for never.
        proposal_top_p: truncation of the proposal; needs the intermediate defensive to stay proper.
        top_p: truncation of the target.
        top_k: truncation of the target.
        max_logit_bytes: cap of the AR model's logits of one call, bytes; more calls are made instead.
        compile: run the arithmetic of laws through `torch.compile`.
        at_once: prompts that share a forward, for which auto reckons; draws depend on it, never on the batch.
        costs: of the pair's forwards, for auto; measured when a run begins unless they are given.
        experts: further causal models that the intermediate reads, objects, as with `Experts([0.2])`; one without a law
            of its own has the target's temperature.
        bonus: whether a draft accepted whole, with no marginals left, is followed by one more token of the target.
        places: that a forward of the proposal chain fills, 1 unless it is given.
        entropy: budget of a forward of the proposal entropy-chain, nats, 0.1 unless it is given.
        head: network of a proposal with a learned part, or a file of it, the pair's own unless it is given.
        slot: tokens of a slot of the proposal that fills slots by the AR model, 4 unless it is given.
    Raises:
        ValueError: options contradict each other, or are out of range for the pair.
    Example:
        >>> from smc_bridge.testing import tabular_pair
        >>> sampler = smc(tabular_pair(), particles=4, w=0.5)
        >>> result = sampler.run([[]], seed=1, max_new_tokens=3)[0]
        >>> len(result.sequences), sampler.proper
        (4, True)
    """
    check_pair(pair)
    own = temperature if proposal_temperature is None else proposal_temperature
    v, m, budget, pace = _paced(window, lookahead, nodes, at_once, costs)
    # A tree walk that is given has a budget of its own: nodes = auto is then what of it is used.
    told = None if isinstance(kernel, TreeWalk) and nodes == AUTO else budget
    check_fit(
        lanes=lanes, w=w, beta=beta, kernel=kernel, intermediate=intermediate, nodes=told, weight=weight,
        resampler=resampler, trigger=trigger, proposal=proposal, reuse=reuse, places=places, entropy=entropy,
        head=head, slot=slot,
    )
    if is_list(own) and hasattr(own, "__len__") and len(own) != lanes:
        raise ValueError(
            f"proposal_temperature = {said(own)} has {len(own)} entries for lanes = {lanes}: give one per lane"
        )
    if intermediate is None:
        intermediate = "proposal" if kernel == "accept-all" else "poe"
    target = ARTarget(pair.ar, temperature=temperature, top_p=top_p, top_k=top_k, potential=potential)
    if not isinstance(proposal, str):
        raise ValueError(
            f"proposal = {said(proposal)}: give one of {', '.join(PROPOSALS)}; one of your own has options of its own, "
            "make Sampler(proposal, target, ...)"
        )
    base = DLMProposal(pair.dlm, temperature=own, top_p=proposal_top_p, lookahead=m, reuse=reuse)
    return Sampler(
        proposal=named(
            "proposal", proposal, base=base, places=places, entropy=entropy, slot=slot,
            head=part_of(pair, proposal, head) if proposal in LEARNED else None,
            causal=pair.ar if proposal in ASK_AR else None,
        ),
        target=target,
        intermediate=named(
            "intermediate", intermediate, w=DEFAULT_W if w is None else w, beta=DEFAULT_BETA if beta is None else beta
        ),
        kernel=_kernel(kernel, budget, own, bonus=bonus),
        weight=named("weight", "own" if weight is None else weight),
        resampler=named("resampler", "systematic" if resampler is None else resampler),
        trigger=named("trigger", "ess" if trigger is None else trigger),
        particles=particles, lanes=lanes, window=v, name=f"smc({particles})" if name is None else name,
        max_logit_bytes=max_logit_bytes, compile=compile, pace=pace, experts=as_experts(experts, temperature),
        bonus=bonus, **codec(pair),
    )
