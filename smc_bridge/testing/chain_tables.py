"""The exact chain-rule joint of a diffusion model that is a table: what its left-to-right decoder draws from.

    p(x) = prod_i p(x_i | x_<i),   p(x_i | x_<i) = the marginal of place i of the canvas with x_<i filled in
"""

from __future__ import annotations

import itertools

import torch

from smc_bridge.canvas.state import open_places
from smc_bridge.distributions.target import ARTarget
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.testing.frontier import SequenceLaw
from smc_bridge.testing.tabular import TabularPair, exact_law


@torch.inference_mode()
def chain_table(proposal: DLMProposal | TabularPair, limit: int) -> TabularAR:
    """The chain rule of a tabular diffusion model as a table: a target whose law is the model's own joint.

    Args:
        proposal: gives model, temperature, truncation and lookahead; or a pair, of whose model at temperature 1.
        limit: places of the canvas after the empty prompt.
    """
    own = DLMProposal(proposal.dlm) if isinstance(proposal, TabularPair) else proposal
    model = own.model
    assert isinstance(model, TabularDLM)
    nobody = torch.zeros(1, 0, dtype=torch.long)
    session, tables = model.session(nobody, nobody.sum(1)), []
    for filled in range(limit):
        every = list(itertools.product(range(model.vocab_size), repeat=filled))
        canvas = torch.tensor([[*tokens, *[MASKED] * (limit - filled)] for tokens in every])
        rows = torch.zeros(len(every), dtype=torch.long)
        shown, _ = open_places(canvas, own.lookahead, None, model=model, prompt=rows)
        tables.append(own.log_probs(session.score(rows, shown)[:, filled : filled + 1], own.lanes)[:, 0, 0].exp())
    return TabularAR(tables, eos_id=model.eos_id)


def chain_law(proposal: DLMProposal | TabularPair, limit: int) -> SequenceLaw:
    """Probability of every complete sequence of at most `limit` tokens after the empty prompt under the chain rule of a
    tabular diffusion model; arguments as `chain_table`.

    Example:
        >>> from smc_bridge.testing import tabular_pair
        >>> round(sum(chain_law(tabular_pair(), 3).values()), 12)
        1.0
    """
    return exact_law(ARTarget(chain_table(proposal, limit)), limit)
