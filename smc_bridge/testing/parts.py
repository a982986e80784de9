"""Single parts against what they promise: a kernel's law (`smc_bridge.testing.kernel_laws`), a resampler's offspring.

A wrong `log_continue` changes no ordinary weight, because `kappa` cancels; conditional runs, the balance heuristic and
the Pyro program rest on it. A resampler that is a little off changes the whole program too little for a few runs to
see, and its offspring numbers at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smc_bridge.blocks import Horizon
from smc_bridge.distributions.chunks import Chunks
from smc_bridge.engine.resampling import Resampler
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.models.arguments import called
from smc_bridge.models.ends import ends_of
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.protocol import Asked, Proposal
from smc_bridge.randomness import PromptSource
from smc_bridge.testing.branches import BranchingResampler
from smc_bridge.testing.enumeration import NotEnumerableError, outcomes
from smc_bridge.testing.finding import ROUND_OFF, Finding, worst_of
from smc_bridge.testing.kernel_laws import kernel_findings
from smc_bridge.testing.kernel_tables import kernel_table
from smc_bridge.testing.statistics import detectable, mean_test

#: Prompts whose drafts are held against the laws along them, and the greatest difference of equal laws.
ALONG, SAME = 64, 1e-6
#: Draws where nothing can be enumerated.
DRAWS = 10_000
#: Weights with and without zeros, ties and a whole number of copies; for two survivors, and for as many as there are.
WEIGHTS = ([0.05, 0.4, 0.0, 0.55], [0.13, 0.46, 0.41], [0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0])
#: Where `check` tries a kernel: few laws, for the whole program is enumerated as well.
FEW = tuple(kernel_table(3, 2, seed=seed, eos_id=2) for seed in range(3))


def kernel_fault(kernel: Kernel, *, level: float) -> str | None:
    """What is wrong with a kernel's own law, in one line, or None."""
    return _said(kernel_findings(kernel, tables=FEW, level=level))


def proposal_fault(proposal: Proposal, *, lanes: int, limit: int) -> str | None:
    """What is wrong with the laws along given blocks of a proposal on a table, in one line, or None.

    Ordinary runs do not ask for them, so that a wrong `along` biases none of these; retained sequences of conditional
    runs do. A proposal that factorises is never asked.

    Args:
        proposal: on a tabular model.
        lanes: K, drafts of each prompt.
        limit: tokens that a sequence may grow by.
    """
    if proposal.factorised:
        return None
    prefix = Prefix.of([[]] * ALONG)
    state, rows = proposal.open(prefix, particles=1), torch.arange(ALONG)
    asked = Asked(rows, prefix, torch.full((ALONG,), limit), lanes, min(limit, 3), Chunks())
    source = PromptSource([torch.Generator().manual_seed(i) for i in range(ALONG)], lanes)
    draft = proposal.draft(state, asked, source=source)
    along = proposal.along(state, asked, torch.arange(ALONG * lanes), draft.tokens)
    # What follows the end of a sequence has no law.
    end = Horizon(draft.width, ends_of(proposal.model.eos_id)).end(draft.tokens)
    inside = torch.arange(draft.tokens.shape[1]) < end[:, None]
    difference = (draft.q.dense().exp() - along.dense().exp()).abs().amax(-1)
    gap = float(torch.where(inside, difference, 0.0).max())
    text = f"proposal {called(proposal)}: along differs from the laws of its drafts by {gap:.3g}"
    return None if gap < SAME else text


def resampler_fault(resampler: Resampler, *, level: float) -> str | None:
    """What is wrong with a resampler's offspring numbers, in one line, or None."""
    return _said(resampler_findings(resampler, level=level))


def _said(findings: list[Finding]) -> str | None:
    """What is wrong, the worst of each claim."""
    return "; ".join(finding.text for finding in worst_of(findings) if finding.wrong) or None


def resampler_findings(
    resampler: Resampler, *, tolerance: float = ROUND_OFF, level: float = 1e-4
) -> list[Finding]:
    """`E[offspring_i] = N W_i` for several weights and numbers of survivors (condition C6).

    Args:
        resampler: the schemes of this package, and any that draws through `categorical` or `bernoulli`, are
            enumerated; for others `DRAWS` draws are compared (Hotelling's chi-square).
        tolerance: greatest gap of an enumeration that is put down to round-off.
        level: probability with which a right resampler is refused by a comparison of draws.
    """
    share, found = level / (2 * len(WEIGHTS)), []
    for row in WEIGHTS:
        weights = torch.tensor(row, dtype=torch.float64)
        for count in (2, len(row)):
            try:
                found.append(_offspring(resampler, weights, count, tolerance, share))
            except ValueError:  # some schemes keep the number of particles
                if count == len(row):
                    raise
    return found


def _offspring(resampler: Resampler, weights: Tensor, count: int, tolerance: float, level: float) -> Finding:
    branching, log_weights = BranchingResampler(resampler), weights.log()[None]
    mean = torch.zeros_like(weights)
    try:
        for probability, drawn in outcomes(lambda source: branching(log_weights, count, source=source)):
            mean += probability * torch.bincount(drawn[0], minlength=weights.numel()).double() / count
        gap = float((mean - weights).abs().max())
        return _shares(resampler, weights, mean, count, gap > tolerance, "")
    except NotEnumerableError:
        source = PromptSource([torch.Generator().manual_seed(3)], DRAWS)
        drawn = resampler(weights.log().expand(DRAWS, -1), count, source=source)
        found = torch.nn.functional.one_hot(drawn, weights.numel()).sum(1).double() / count
        p_value = mean_test(found.numpy(), weights.numpy())
        least = detectable(float(found.std(0).max()), DRAWS, max(1, int((weights > 0).sum()) - 1), level)
        how = (
            f", {DRAWS:,} draws: p = {p_value:.2g} at level {level:.2g}; "
            f"a gap of {least:.2g} is found with probability 0.99"
        )
        return _shares(resampler, weights, found.mean(0), count, p_value < level, how)


def _shares(resampler: Resampler, weights: Tensor, mean: Tensor, count: int, wrong: bool, how: str) -> Finding:
    worst = int((mean - weights).abs().argmax())
    return Finding(
        "offspring",
        f"resampler {type(resampler).__name__}: {count} survivors have mean shares "
        f"{[round(share, 3) for share in mean.tolist()]} for weights {weights.tolist()}; candidate {worst} has "
        f"{float(mean[worst]):.9g}, must have {float(weights[worst]):.9g} (C6){how}",
        float((mean - weights).abs().max()), wrong,
    )
