"""The law that a method claims (`Method.targets`), of every complete sequence after the empty prompt, on tables.

    AR        prod_i p(x_i | x_<i) at the target's temperature
    PoE       prod_i pi(x_i | x_<i),   pi ∝ q^w p^(1-w), normalised at each place
    DLM       prod_i q(x_i | x_<i): the diffusion model's chain rule from left to right, one place a forward
    AR^alpha  p(x)^alpha over whole sequences, up to its normaliser

where q of a place is that of the diffusion model with all places before it known and all after it masked. Tables tell
a token that is committed to the prefix from one that is filled on the canvas: their noise belongs to a prefix. Who
draws from the diffusion model alone fills a canvas; a product is drawn by programs, which commit.

A product's marginals are as old as their block, so that its law depends on where blocks end. The law here is that of
blocks of one token (V = M = 1), and a method that claims a product is to be compared with it at these sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from torch import Tensor

from smc_bridge.distributions.intermediate import ProductOfExperts
from smc_bridge.distributions.shaping import Shaping
from smc_bridge.models.ends import ends_of
from smc_bridge.models.protocols import MASKED, ModelPair
from smc_bridge.names import DEFAULT_W
from smc_bridge.prefix import Prefix
from smc_bridge.registry import Spelled

#: Measure of every complete sequence.
Measure = Mapping[Hashable, float]
#: Log-conditionals `[R, A]` after prefixes, all of one length.
Conditional = Callable[[Prefix], Tensor]

#: Claims that have a law here.
POE = "PoE"
KNOWN = ("AR", POE, "DLM", "AR^alpha")


def chain_rule(conditional: Conditional, ends: Sequence[int], limit: int) -> dict[Hashable, float]:
    """Probability of every complete sequence of at most `limit` tokens, those of probability 0 left out.

    Args:
        conditional: log-law of the next token.
        ends: tokens that end a sequence.
        limit: greatest length of a sequence.
    """
    whole: dict[Hashable, float] = {}
    growing: dict[tuple[int, ...], float] = {(): 1.0}
    while growing:
        rows = conditional(Prefix.of([list(each) for each in growing])).double().exp().tolist()
        after: dict[tuple[int, ...], float] = {}
        for (sequence, mass), row in zip(growing.items(), rows, strict=True):
            for token, share in enumerate(row):
                grown = (*sequence, token)
                if mass * share <= 0:
                    continue
                if token in ends or len(grown) == limit:
                    whole[grown] = mass * share
                else:
                    after[grown] = mass * share
        growing = after
    return whole


def ar_conditional(pair: ModelPair, temperature: float) -> Conditional:
    """The autoregressive model's law of the next token."""
    shaping = Shaping(temperature=temperature, banned_ids=tuple(pair.ar.banned_ids))

    def law(prefix: Prefix) -> Tensor:
        rows = torch.arange(prefix.length.numel())
        session = pair.ar.session(prefix.tokens.clamp_min(0), prefix.length)
        return shaping.log_probs(session.score(rows, torch.zeros_like(rows)[:, None])[:, 0])

    return law


def dlm_conditional(pair: ModelPair, temperature: float, limit: int, *, committed: bool) -> Conditional:
    """The diffusion model's law of the next place: after a prefix that is committed, or that stands on the canvas."""
    shaping = Shaping(temperature=temperature, banned_ids=tuple(pair.dlm.banned_ids))

    def law(prefix: Prefix) -> Tensor:
        rows = torch.arange(prefix.length.numel())
        if committed:
            session = pair.dlm.session(prefix.tokens.clamp_min(0), prefix.length)
            return shaping.log_probs(session.score(rows, torch.full((rows.numel(), 1), MASKED))[:, 0])
        length = prefix.tokens.shape[1]
        masked = torch.full((rows.numel(), limit - length), MASKED)
        session = pair.dlm.session(torch.zeros(rows.numel(), 0, dtype=torch.long), torch.zeros_like(rows))
        return shaping.log_probs(session.score(rows, torch.cat([prefix.tokens, masked], 1))[:, length])

    return law


@torch.inference_mode()
def claimed_law(
    method: Spelled, pair: ModelPair, limit: int, *, temperature: float = 1.0, w: float = DEFAULT_W
) -> Measure | None:
    """The measure that a method claims to be proportional to; None where it claims none that is known here.

    Args:
        method: with its options, of which w and alpha are read.
        pair: models with so few tokens that sequences can be listed.
        limit: greatest length of a sequence.
        temperature: of the laws.
        w: exponent of the diffusion model in a product, where the spelling does not say it.
    Returns:
        probabilities; of `AR^alpha` without its normaliser, which is their sum.
    """
    ends, p = ends_of(pair.ar.eos_id), ar_conditional(pair, temperature)
    match method.method.targets:
        case "AR":
            return chain_rule(p, ends, limit)
        case "DLM":
            return chain_rule(
                dlm_conditional(pair, temperature, limit, committed=False), ends_of(pair.dlm.eos_id), limit
            )
        case "PoE":
            product = ProductOfExperts(float(method.options.get("w", w)))
            q = dlm_conditional(pair, temperature, limit, committed=True)
            return chain_rule(lambda prefix: product.log_prob(q(prefix), p(prefix)), ends, limit)
        case "AR^alpha":
            alpha = float(method.options.get("alpha", method.method.option("alpha").default))
            return {x: mass**alpha for x, mass in chain_rule(p, ends, limit).items()}
    return None
