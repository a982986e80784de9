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
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smc_bridge.analysis.genealogy import ancestral_lines
from smc_bridge.distributions.intermediate import checked_log_prob
from smc_bridge.engine.sampler import Sampler
from smc_bridge.kernels.importance import OwnWeights
from smc_bridge.models.protocols import MASKED, within_block
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
    """Blocks that a final particle is made of, in order; elastic windows share the forward of the block before.

    Raises:
        ValueError: a particle that does not exist.
    """
    count = len(result.log_weights)
    if not 0 <= particle < count:
        raise ValueError(f"particle = {particle}: the run has particles 0 to {count - 1}")
    lines = ancestral_lines(result)
    out: list[Block] = []
    start, forward, fresh = 0, 0, True
    for step, record in enumerate(result.trace):
        survivor = int(lines[step + 1, particle]) if step + 1 < len(lines) else particle
        parent, lane = record.ancestors[survivor], record.lanes[survivor]
        length, accepted = record.length[parent][lane], record.accepted[parent][lane]
        if length == 0:
            continue
        if fresh if record.fresh is None else record.fresh[parent]:
            forward = start
        out.append(Block(lane, length, start, forward, record.log_increments[parent][lane]))
        start += length
        # Marginals outlive a block that was accepted to the end of its window, while some are left.
        drafted = _drafted(sampler.proposal, len(result.prompt) + forward, sampler.proposal.lookahead)
        offered = min(sampler.window, drafted - (out[-1].start - forward))
        fresh = not (accepted == length == offered) or start - forward >= drafted
    return out


@torch.inference_mode()
def local_divergences(
    sampler: Sampler, result: Result, *, particle: int = 0, max_new_tokens: int | None = None, foreign: bool = False
) -> LocalDivergences:
    """Exact local divergences along a final particle of a run of `sampler`.

    Args:
        sampler: the program that made `result`, or with `foreign` the one whose laws are read along its sequence.
        result: with its trace.
        particle: which of the final ones.
        max_new_tokens: the run's length limit, which bounds what the diffusion model saw; by default what the longest
            sequence shows.
        foreign: whether another program made the run; then its weights are not held against the sampler's laws.
    Raises:
        ValueError: a particle that does not exist, a trace that does not fit the sequence, or blocks that earned other
            weights than the sampler's laws give (compared where lanes have their own weights, without a potential).
    """
    tokens = result.sequences[particle] if 0 <= particle < len(result.sequences) else []
    blocks = blocks_of(sampler, result, particle)
    if sum(b.length for b in blocks) != len(tokens):
        raise ValueError("result's trace does not make up its sequence: give the result of this very sampler's run")
    limit = max(map(len, result.sequences)) if max_new_tokens is None else check_limit(max_new_tokens)
    pieces = [_block(sampler, [*result.prompt, *tokens], len(result.prompt), b, limit) for b in blocks]
    if not foreign and sampler.target.potential is None and isinstance(sampler.weight, OwnWeights):
        _require_earned(blocks, [float(piece[-1].sum()) for piece in pieces])
    columns = [np.concatenate([piece[i] for piece in pieces]) for i in range(6)] if pieces else [np.zeros(0)] * 6
    numbers = np.concatenate([np.full(b.length, i) for i, b in enumerate(blocks)]) if blocks else np.zeros(0)
    offsets = np.concatenate([b.start - b.forward + np.arange(b.length) for b in blocks]) if blocks else np.zeros(0)
    return LocalDivergences(numbers.astype(np.int64), offsets.astype(np.int64), *columns)


def _require_earned(blocks: Sequence[Block], given: Sequence[float]) -> None:
    """Raise unless the recorded weight of every block is the one that the laws give."""
    for number, (block, found) in enumerate(zip(blocks, given, strict=True)):
        if not np.isclose(block.earned, found, rtol=0.01, atol=TOLERANCE * block.length):
            raise ValueError(
                f"result's block {number} earned {block.earned:.4g} nats, the sampler's laws give {found:.4g}: give "
                "the sampler and max_new_tokens of this very run, or foreign=True to read another program's sequence"
            )


def _block(sampler: Sampler, whole: Sequence[int], prompt: int, block: Block, limit: int) -> tuple[Array, ...]:
    """The six columns of one block, `[L]` each."""
    log_q, log_p, draft = block_laws(sampler, whole, prompt, block, limit)
    log_pi = checked_log_prob(sampler.intermediate, log_q, log_p)
    q, pi, p = (law[0, block.lane] for law in (log_q, log_pi, log_p))
    ratio = (p - pi).gather(-1, draft[:, None])[:, 0]
    columns = (kl(pi, q), kl(p, pi), torch.minimum(pi, q).exp().sum(-1), chi2(p, pi), log_variance(p, pi), ratio)
    return tuple(column.cpu().numpy() for column in columns)


def block_laws(
    sampler: Sampler, whole: Sequence[int], prompt: int, block: Block, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The laws q and p at the tokens of one block of a run, read by a forward of each model.

    Args:
        whole: prompt and sequence.
        prompt: tokens of the prompt.
        limit: the run's length limit.
    Returns:
        `log_q` and `log_p`, `[1, K, L, A]` float64, and the block's tokens, `[L]`.
    Raises:
        ValueError: the sampler's proposal is no `DLMProposal`.
    """
    device, proposal = sampler.target.model.device, sampler.proposal
    if not isinstance(proposal, DLMProposal):
        raise ValueError(f"sampler has a {type(proposal).__name__}: local divergences are those of a DLMProposal")
    row = torch.zeros(1, dtype=torch.long, device=device)
    seen = prompt + block.forward
    prefix = torch.tensor([whole[:seen]], dtype=torch.long, device=device).reshape(1, seen)
    width = _drafted(proposal, seen, min(proposal.lookahead, limit - block.forward))
    canvas = torch.full((1, width), MASKED, dtype=torch.long, device=device)
    length = torch.tensor([seen], device=device)
    raw_q = proposal.model.session(prefix, length).score(row, canvas)
    at = block.start - block.forward
    raw_q = raw_q[:, at : at + block.length]
    begin = prompt + block.start
    before = torch.tensor([whole[:begin]], dtype=torch.long, device=device).reshape(1, begin)
    draft = torch.tensor([whole[begin : begin + block.length]], dtype=torch.long, device=device)
    raw_p = sampler.target.model.session(before, torch.tensor([begin], device=device)).score(row, draft)
    log_q = proposal.log_probs(raw_q, sampler.lanes).double()  # [1, K, L, A]
    log_p = sampler.target.log_probs(raw_p)[:, None].double().expand_as(log_q)
    return log_q, log_p, draft[0]


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
