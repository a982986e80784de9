"""Parts of a sampler by name: the one table that samplers, methods and the command line read.

A name stands for a class, or for the part itself, which is imported when it is asked for, so that the names can be
shown without it. An intermediate by name is made with w and beta, which not every one reads.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from pkgutil import resolve_name
from typing import Any

from smc_bridge.models.arguments import called, said

#: Where each part stands.
KERNELS = {
    "rejection": "smc_bridge.kernels.rejection:Rejection",
    "block": "smc_bridge.kernels.block_verification:BlockVerification",
    "gumbel": "smc_bridge.kernels.gumbel:GumbelCoupling",
    "tree": "smc_bridge.kernels.tree:TreeWalk",
    "accept-all": "smc_bridge.kernels.importance:AcceptAll",
}
RESAMPLERS = {
    name: f"smc_bridge.engine.resampling:{part}" for name, part in (
        ("multinomial", "Multinomial"), ("stratified", "Stratified"), ("systematic", "Systematic"),
        ("residual", "Residual"), ("ssp", "SSP"),
    )
}
TRIGGERS = {
    name: f"smc_bridge.engine.weights:{part}" for name, part in (
        ("ess", "EssBelow"), ("always", "always"), ("never", "never"),
    )
}
WEIGHTS = {
    "own": "smc_bridge.kernels.importance:OwnWeights", "balance": "smc_bridge.kernels.importance:BalanceHeuristic",
}


def _law(name: str) -> Any:
    """A class of intermediates."""
    return resolve_name(f"smc_bridge.distributions.intermediate:{name}")


#: What drafts, made of the diffusion model's marginals.
PROPOSALS = {
    "marginals": "smc_bridge.proposals.mean_field:as_it_is", "chain": "smc_bridge.proposals.chain:PrefixFilled",
    "entropy-chain": "smc_bridge.proposals.entropy_chain:EntropyChain",
    "speculated-chain": "smc_bridge.proposals.self_speculation:SelfSpeculated",
    "markov": "smc_bridge.proposals.markov:MarkovChain", "selector": "smc_bridge.proposals.markov:MarkovChain",
    "adjust": "smc_bridge.proposals.adjust:Adjusted",
    "codila": "smc_bridge.proposals.soft_blocks:SoftBlocks", "refusion": "smc_bridge.proposals.slots:Slots",
    "path": "smc_bridge.proposals.path:MostLikelyPath", "search": "smc_bridge.proposals.search:PathSearch",
}
#: Proposals whose laws depend on what they drafted, those whose laws depend on the token before alone, and kernels that
#: ask for laws off the draft.
CHAINS = ("chain", "entropy-chain", "speculated-chain", "adjust", "codila", "refusion")
FIRST_ORDER = ("markov", "selector")
#: Proposals with a learned part: that of the pair which has their name, unless one is given.
LEARNED = ("markov", "selector", "adjust", "codila")
#: Proposals that ask the AR model as they draft.
ASK_AR = ("refusion",)
#: Options that one proposal has for itself, by what makes it.
OF_PROPOSALS = {"places": "chain", "entropy": "entropy-chain", "slot": "refusion"}
NEED_MARGINALS = ("tree",)
#: From w and beta to the intermediate.
INTERMEDIATES: dict[str, Callable[[float, float], Any]] = {
    "poe": lambda w, beta: _law("ProductOfExperts")(w),
    "mixture": lambda w, beta: _law("Mixture")(w),
    "power-mean": lambda w, beta: _law("PowerMean")(w=w),
    "chernoff": lambda w, beta: _law("Chernoff")(),
    "clamp": lambda w, beta: _law("Clamp")(beta),
    "defensive": lambda w, beta: _law("Defensive")(_law("ProductOfExperts")(w)),
    "proposal": lambda w, beta: _law("Proposal")(),
    "target": lambda w, beta: _law("Target")(),
}
#: Intermediates that do not read w, and those that do not read beta.
WITHOUT_W = ("chernoff", "clamp", "proposal", "target")
WITHOUT_BETA = tuple(name for name in INTERMEDIATES if name != "clamp")
#: The paper's w, and the greatest factor between the target and the intermediate clamp at a token.
DEFAULT_W, DEFAULT_BETA = 0.3, 8.0

#: Names of each kind of part.
NAMED: dict[str, Collection[str]] = {
    "proposal": PROPOSALS, "kernel": KERNELS, "intermediate": INTERMEDIATES, "resampler": RESAMPLERS,
    "trigger": TRIGGERS, "weight": WEIGHTS,
}
_HOMES = {"kernel": KERNELS, "resampler": RESAMPLERS, "trigger": TRIGGERS, "weight": WEIGHTS}


def nearest(text: str, names: Collection[str]) -> str | None:
    """The name that a misspelled one may stand for, if there is one."""
    return next(iter(difflib.get_close_matches(text, names, n=1)), None)


def meant(text: str, names: Collection[str]) -> str:
    """For a message about an unknown name: `did you mean X? ` with the nearest of `names`, empty where none is near."""
    close = nearest(text, names)
    return "" if close is None else f"did you mean {close}? "


def named(
    kind: str, value: Any, *, w: float = DEFAULT_W, beta: float = DEFAULT_BETA, base: Any = None, **options: Any
) -> Any:
    """The part of that kind that a name stands for; anything but a name is passed through.

    Args:
        w, beta: of an intermediate.
        base: marginals that a proposal is made of.
        options: of the proposal (`OF_PROPOSALS`); None is not given.
    Raises:
        ValueError: no part of that kind has the name; the message names the nearest, and all.
    """
    if not isinstance(value, str) or kind not in NAMED:
        return value
    if value not in NAMED[kind]:
        hint = meant(value, NAMED[kind])
        raise ValueError(f"{kind} = {value!r}: {hint}give one of {', '.join(NAMED[kind])}, or an object")
    if kind == "intermediate":
        return INTERMEDIATES[value](w, beta)
    if kind == "proposal":
        return resolve_name(PROPOSALS[value])(base, **{k: v for k, v in options.items() if v is not None})
    part = resolve_name(_HOMES[kind][value])
    return part() if isinstance(part, type) else part


def idle(kernel: Any = None, intermediate: Any = None) -> tuple[str, ...]:
    """Options that parts by name leave unread: w and beta, where the intermediate (poe unless it is given) has none,
    nodes, where there is no tree."""
    law = "proposal" if kernel == "accept-all" else "poe" if intermediate is None else intermediate
    unread = (("w", law in WITHOUT_W), ("beta", law in WITHOUT_BETA), ("nodes", kernel != "tree"))
    return tuple(name for name, idles in unread if idles)


def check_fit(
    *, lanes: int, w: float | None = None, kernel: Any = None, intermediate: Any = None, nodes: int | None = None,
    weight: Any = None, resampler: Any = None, trigger: Any = None, proposal: Any = None, beta: float | None = None,
    reuse: float = 0.0, places: int | None = None, entropy: float | None = None, head: Any = None,
    slot: int | None = None,
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
    for name, value, remedy in (("w", w, "poe"), ("beta", beta, "clamp")):
        if value is not None and not (intermediate is None or isinstance(intermediate, str)):
            raise ValueError(f"{name} = {said(value)} with intermediate = {said(intermediate)}: give one of them")
        if value is not None and name in idle(kernel, intermediate):
            if kernel == "accept-all":
                other, remedy = f"kernel = {kernel}", f"kernel = rejection and intermediate = {remedy}"
            else:
                other = f"intermediate = {'poe' if intermediate is None else intermediate}"
                remedy = f"intermediate = {remedy}"
            raise ValueError(f"{name} = {said(value)} with {other}, which has none: leave it out, or give {remedy}")
    if nodes is not None and kernel != "tree":
        one = "rejection" if kernel is None else kernel if isinstance(kernel, str) else said(kernel)
        raise ValueError(f"nodes = {said(nodes)} with kernel = {one}, which has none: leave it out, or give tree")
    if proposal in CHAINS and (kernel in NEED_MARGINALS or getattr(kernel, "reads_marginals", False)):
        tree = kernel if isinstance(kernel, str) else called(kernel)
        raise ValueError(
            f"proposal = {proposal} with kernel = {tree}: it asks for laws off the draft, and a chain's depend on the "
            "draft; give kernel = rejection, or proposal = marginals"
        )
    for name, value in (("places", places), ("entropy", entropy), ("slot", slot)):
        if value is not None and proposal != OF_PROPOSALS[name]:
            raise ValueError(
                f"{name} = {said(value)} with proposal = {said(proposal)}, which has none: leave it out, or give "
                f"proposal = {OF_PROPOSALS[name]}"
            )
    if head is not None and proposal not in LEARNED:
        raise ValueError(
            f"head = {said(head)} with proposal = {said(proposal)}, which has no learned part: leave it out, or give "
            f"proposal = {' or '.join(LEARNED)}"
        )
    if proposal in (*CHAINS, *FIRST_ORDER) and weight == "balance":
        raise ValueError(
            f"proposal = {proposal} with weight = {weight}: it asks for laws along other lanes' drafts, and a chain's "
            "depend on the draft; give weight = own, or proposal = marginals"
        )
    if reuse and proposal in CHAINS:
        raise ValueError(
            f"reuse = {said(reuse)} with proposal = {proposal}, whose laws do not outlive a draft: leave it out, or "
            "give proposal = marginals"
        )
    if weight == "balance" and lanes == 1:
        raise ValueError("weight = balance with one lane has nothing to balance: leave it out, or give 2 lanes or more")
    if isinstance(resampler, str) and trigger == "never":
        raise ValueError(f"resampler = {resampler} with trigger = never is not used: leave one of them out")
