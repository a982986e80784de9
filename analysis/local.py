"""Divergences between the three laws at the positions that a run visited, exact from the full conditionals.

At a position with laws q (proposal), pi (intermediate) and p (target):

    KL(pi || q)                   what the rejection step has to bridge
    KL(p || pi)                   what the importance step has to bridge
    1 - TV(pi, q)                 probability that token-level rejection accepts there
    chi2(p || pi) = E_pi[(p/pi)^2] - 1        relative variance that one token adds to the weight

    Var_pi(log p - log pi)        variance that one token adds to the log weight

If these did not depend on the path, `1 + Var(w) = prod_i (1 + chi2_i)` and `Var(log w) = sum_i Var_pi(log p - log pi)`.
That is the *predicted* growth, to be held against the observed one (`smc_bridge.analysis.variance`). For nearly
log-normal weights both agree, `log(1 + Var(w)) = Var(log w)`; where a token that pi likes is all but impossible under
p, the second is far
larger: a few almost dead particles inflate the variance of the log weight and hardly matter for that of the weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smc_bridge.analysis.genealogy import ancestral_lines
from smc_bridge.distributions.intermediate import checked_log_prob
from smc_bridge.engine.sampler import Sampler
from smc_bridge.kernels.importance import OwnWeights
from smc_bridge.models.protocols import MASKED, within_block
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.proposals.protocol import Proposal
from smc_bridge.requests import check_limit
from smc_bridge.result import Result

Array = npt.NDArray[np.float64]

#: Nats a token by which a recorded weight may differ from the laws read again: batches of half precision round apart.
TOLERANCE = 0.02


@dataclass(frozen=True)
class LocalDivergences:
    """Divergences along one sequence of T tokens; every array is `[T]`.

    Attributes:
        block: number of the block that each token belongs to, from 0.
        offset: positions between the diffusion model's prefix and the token, from 0.
        kl_pi_q, kl_p_pi: nats.
        acceptance: `1 - TV(pi, q)`.
        chi2: `chi2(p || pi)`; inf where p has mass and pi has none.
        log_variance: `Var_pi(log p - log pi)` at the position, nats squared; inf where pi has mass and p has none.
        log_ratio: `log p - log pi` at the token, nats. Over a block it sums to the log weight that its lane earned
            where lanes have their own weights and the target has no potential; over the sequence to the log weight of
            a particle with one lane that was never resampled.
    """

    block: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    kl_pi_q: Array
    kl_p_pi: Array
    acceptance: Array
    chi2: Array
    log_variance: Array
    log_ratio: Array

    @property
    def predicted_log_variance(self) -> Array:
        """Predicted `log(1 + Var(w))` after each token, w scaled to mean one: `sum log(1 + chi2)`, `[T]`.

        Observed, it is `log(N / ESS)` of N particles that never interacted.
        """
        return np.asarray(np.cumsum(np.log1p(self.chi2)))

    @property
    def predicted_variance_of_log_weight(self) -> Array:
        """Predicted `Var(log w)` after each token, `sum Var_pi(log p - log pi)`, nats squared, `[T]`."""
        return np.asarray(np.cumsum(self.log_variance))


@dataclass(frozen=True)
class Block:
    """One committed block of a particle: the lane it took, its length, and where its marginals came from.

    Attributes:
        lane: from 0.
        length: tokens.
        start: tokens of the continuation before it.
        forward: tokens of the continuation before the diffusion model's forward that it was drafted from.
        earned: log weight that the lane earned, nats.
    """

    lane: int
    length: int
    start: int
    forward: int
    earned: float


def blocks_of(sampler: Sampler, result: Result, particle: int = 0) -> list[Block]:
    """Blocks that a final particle is made of, in order; those that share a forward name the same one.

    Raises:
        ValueError: a particle that does not exist, or a trace of marginals that does not say which drafts had a forward
            of their own.
    """
    count = len(result.log_weights)
    if not 0 <= particle < count:
        raise ValueError(f"particle = {particle}: the run has particles 0 to {count - 1}")
    lines = ancestral_lines(result)
    out: list[Block] = []
    start, forward = 0, 0
    for step, record in enumerate(result.trace):
        survivor = int(lines[step + 1, particle]) if step + 1 < len(lines) else particle
        parent, lane = record.ancestors[survivor], record.lanes[survivor]
        length = record.length[parent][lane]
        if length == 0:
            continue
        if record.fresh is None and isinstance(sampler.proposal, DLMProposal):
            raise ValueError(
                f"result's step {step} does not say which drafts had a forward of their own (fresh): run it again"
            )
        if record.fresh is None or record.fresh[parent]:
            forward = start
        out.append(Block(lane, length, start, forward, record.log_increments[parent][lane]))
        start += length
    return out


class BlockLaws(NamedTuple):
    """The laws that one block of L tokens was drafted, accepted and weighed by, those of its lane.

    Attributes:
        block: where it stands.
        log_q, log_pi, log_p: `[L, A]` float64.
        log_ratio: `log p - log pi` at its tokens, nats, `[L]`.
    """

    block: Block
    log_q: Tensor
    log_pi: Tensor
    log_p: Tensor
    log_ratio: Tensor


@torch.inference_mode()
def local_divergences(
    sampler: Sampler, result: Result, *, particle: int = 0, max_new_tokens: int | None = None, foreign: bool = False
) -> LocalDivergences:
    """Exact local divergences along a final particle of a run of `sampler`.

    Args:
        sampler, result, particle, max_new_tokens, foreign: see `laws_along`.
    Raises:
        ValueError: see `laws_along`.
    """
    found = list(laws_along(sampler, result, particle=particle, max_new_tokens=max_new_tokens, foreign=foreign))
    pieces = [_columns(each) for each in found]
    columns = [np.concatenate([piece[i] for piece in pieces]) for i in range(6)] if pieces else [np.zeros(0)] * 6
    blocks = [each.block for each in found]
    numbers = np.concatenate([np.full(b.length, i) for i, b in enumerate(blocks)]) if blocks else np.zeros(0)
    offsets = np.concatenate([b.start - b.forward + np.arange(b.length) for b in blocks]) if blocks else np.zeros(0)
    return LocalDivergences(numbers.astype(np.int64), offsets.astype(np.int64), *columns)


def laws_along(
    sampler: Sampler, result: Result, *, particle: int = 0, max_new_tokens: int | None = None, foreign: bool = False
) -> Iterator[BlockLaws]:
    """The laws along a final particle of a run of `sampler`, block by block, read by forwards of both models.

    The run's own commits and forwards are made again, in a session of one row: where scores depend on the forwards
    before, as those of an approximate prefix cache do, they are then those that the run drew from. This holds for one
    particle. Several share forwards, so that a particle's marginals may come from the cache of another, of equal tokens
    and another past, and what the others held is not recorded: such runs are refused.

    Args:
        sampler: the program that made `result`, or with `foreign` the one whose laws are read along its sequence.
        result: with its trace.
        particle: which of the final ones.
        max_new_tokens: the run's length limit, which bounds what the diffusion model saw; by default what the longest
            sequence shows.
        foreign: whether another program made the run; then its weights are not held against the sampler's laws, which
            are those of one particle that commits these blocks.
    Raises:
        ValueError: a particle that does not exist, a trace that does not fit the sequence, a proposal that is no
            `DLMProposal`, scores that cannot be had again, or blocks that earned other weights than the sampler's laws
            give (compared where lanes have their own weights, without a potential).
    """
    tokens = result.sequences[particle] if 0 <= particle < len(result.sequences) else []
    blocks = blocks_of(sampler, result, particle)
    if sum(b.length for b in blocks) != len(tokens):
        raise ValueError("result's trace does not make up its sequence: give the result of this very sampler's run")
    proposal = sampler.proposal
    if not isinstance(proposal, DLMProposal):
        raise ValueError(
            f"proposal = {type(proposal).__name__}: local divergences are of a DLMProposal; give a sampler with one"
        )
    limit = max(map(len, result.sequences)) if max_new_tokens is None else check_limit(max_new_tokens)
    prefix = Prefix.of([result.prompt], device=sampler.target.model.device)
    drafts = proposal.model.session(prefix.tokens, prefix.length)
    target = sampler.target.model.session(prefix.tokens, prefix.length)
    if drafts.has_history and len(result.log_weights) > 1 and not foreign:
        raise ValueError(
            f"result has {len(result.log_weights)} particles, which share forwards, and the diffusion model's scores "
            "depend on the forwards before (its prefix cache), so that they cannot be had again: load the pair with "
            'dlm_cache="none", or run one particle'
        )
    held = not foreign and sampler.target.potential is None and isinstance(sampler.weight, OwnWeights)
    row = torch.zeros_like(prefix.length)
    raw_q = torch.empty(1, 0, proposal.model.vocab_size, device=row.device)
    for number, block in enumerate(blocks):
        draft = torch.tensor([tokens[block.start : block.start + block.length]], device=row.device)
        if block.forward == block.start:
            width = _drafted(proposal, len(result.prompt) + block.start, min(proposal.lookahead, limit - block.start))
            raw_q = drafts.score(row, torch.full((1, width), MASKED, device=row.device))
        at = block.start - block.forward
        log_q = proposal.log_probs(raw_q[:, at : at + block.length], sampler.lanes).double()  # [1, K, L, A]
        log_p = sampler.target.log_probs(target.score(row, draft))[:, None].double().expand_as(log_q)
        log_pi = checked_log_prob(sampler.intermediate, log_q, log_p)
        drafts.commit(draft, row + block.length)
        target.commit(draft, row + block.length)
        q, pi, p = (law[0, block.lane] for law in (log_q, log_pi, log_p))
        ratio = (p - pi).gather(-1, draft[0, :, None])[:, 0]
        if held:
            _require_earned(sampler, number, block, float(ratio.sum()))
        yield BlockLaws(block, q, pi, p, ratio)


def _require_earned(sampler: Sampler, number: int, block: Block, found: float) -> None:
    """Raise unless the recorded weight of a block is the one that the laws give."""
    if np.isclose(block.earned, found, rtol=0.01, atol=TOLERANCE * block.length):
        return
    chosen = sampler.pace is not None and sampler.pace.lookahead
    told = " (how far ahead lookahead = auto looked is not recorded: give a number)" if chosen else ""
    raise ValueError(
        f"result's block {number} earned {block.earned:.4g} nats, the sampler's laws give {found:.4g}{told}: give "
        "the sampler and max_new_tokens of this very run, or foreign=True to read another program's sequence"
    )


def _columns(laws: BlockLaws) -> tuple[Array, ...]:
    """The six columns of one block, `[L]` each."""
    _, q, pi, p, ratio = laws
    columns = (kl(pi, q), kl(p, pi), torch.minimum(pi, q).exp().sum(-1), chi2(p, pi), log_variance(p, pi), ratio)
    return tuple(column.cpu().numpy() for column in columns)


def _drafted(proposal: Proposal, length: int, places: int) -> int:
    """How many of the places after a prefix of `length` tokens the proposal's model drafts by one forward."""
    return int(within_block(proposal.model, np.array(length), np.array(places)))


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """`KL(a || b)`, nats, `[..., A]` -> `[...]`; inf where a has mass and b has none."""
    return torch.where(log_a == -math.inf, 0.0, log_a.exp() * (log_a - log_b)).sum(-1).clamp_min(0.0)


def chi2(log_p: Tensor, log_pi: Tensor) -> Tensor:
    """`chi2(p || pi) = sum p^2 / pi - 1`, `[..., A]` -> `[...]`; inf where p has mass and pi has none."""
    terms = torch.where(log_p == -math.inf, -math.inf, 2 * log_p - log_pi)
    return torch.expm1(terms.logsumexp(-1)).clamp_min(0.0)


def log_variance(log_p: Tensor, log_pi: Tensor) -> Tensor:
    """`Var_pi(log p - log pi)`, nats squared, `[..., A]` -> `[...]`; inf where pi has mass and p has none."""
    pi = log_pi.exp()
    ratio = torch.where(log_pi == -math.inf, 0.0, log_p - log_pi)
    lost = ((log_p == -math.inf) & (log_pi > -math.inf)).any(-1)
    finite = torch.where(ratio == -math.inf, 0.0, ratio)
    mean = (pi * finite).sum(-1, keepdim=True)
    return torch.where(lost, math.inf, (pi * (finite - mean).square()).sum(-1))
