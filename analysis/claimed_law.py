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

import itertools
from collections.abc import Hashable, Mapping

import torch

from smc_bridge.distributions.intermediate import ProductOfExperts
from smc_bridge.distributions.target import ARTarget
from smc_bridge.models.protocols import MASKED, ModelPair
from smc_bridge.models.tabular import TabularAR
from smc_bridge.names import DEFAULT_W
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.registry import Spelled
from smc_bridge.testing import chain_law, exact_law

#: Measure of every complete sequence.
Measure = Mapping[Hashable, float]

#: What a method claims whose law is a product of experts.
POE = "PoE"


def claimed_law(
    method: Spelled, pair: ModelPair, limit: int, *, temperature: float = 1.0, w: float = DEFAULT_W
) -> Measure | None:
    """The measure that a method claims to be proportional to; None where it claims none that is known here.

    Args:
        method: with its options, of which w and alpha are read.
        pair: tables of so few tokens that sequences can be listed.
        limit: greatest length of a sequence.
        temperature: of the laws.
        w: exponent of the diffusion model in a product, where the spelling does not say it.
    Returns:
        probabilities, those of 0 left out; of `AR^alpha` without its normaliser, which is their sum.
    """
    match method.method.targets:
        case "AR":
            return ar_law(pair, limit, temperature)
        case "DLM":
            return possible(chain_law(DLMProposal(pair.dlm, temperature=temperature), limit))
        case "PoE":
            table = product_table(pair, limit, temperature, float(method.options.get("w", w)))
            return possible(exact_law(ARTarget(table), limit))
        case "AR^alpha":
            alpha = float(method.options.get("alpha", method.method.option("alpha").default))
            return {x: mass**alpha for x, mass in ar_law(pair, limit, temperature).items()}
    return None


def ar_law(pair: ModelPair, limit: int, temperature: float) -> Measure:
    """Probability of every complete sequence of at most `limit` tokens under the AR model, those of 0 left out."""
    return possible(exact_law(ARTarget(pair.ar, temperature=temperature), limit))


def possible(law: Mapping[tuple[int, ...], float]) -> dict[Hashable, float]:
    """What has a probability above 0."""
    return {x: mass for x, mass in law.items() if mass > 0}


@torch.inference_mode()
def product_table(pair: ModelPair, limit: int, temperature: float, w: float) -> TabularAR:
    """The product of experts of blocks of one token, `pi ∝ q^w p^(1-w)`, as a table of conditionals."""
    proposal, target = DLMProposal(pair.dlm, temperature=temperature), ARTarget(pair.ar, temperature=temperature)
    size, tables = pair.ar.vocab_size, []
    for depth in range(limit):
        tokens = torch.tensor([*itertools.product(range(size), repeat=depth)], dtype=torch.long)
        rows, length = torch.arange(len(tokens)), torch.full((len(tokens),), depth)
        masks, blank = torch.full((len(tokens), 1), MASKED), torch.zeros(len(tokens), 1, dtype=torch.long)
        log_q = proposal.log_probs(pair.dlm.session(tokens, length).score(rows, masks), 1)[:, 0, 0]
        log_p = target.log_probs(pair.ar.session(tokens, length).score(rows, blank)[:, 0])
        tables.append(ProductOfExperts(w).log_prob(log_q, log_p).exp())
    return TabularAR(tables, eos_id=pair.ar.eos_id)
