"""Parts that are wrong in known ways: what a test of properness must catch.

Each class says which condition of docs/theory.md (section 6) it breaks. They claim to be proper, as a mistake does, and
each changes one thing in a part that is right. A test with power refuses all of them:

    for mutant in (*KERNELS, *WEIGHTS, *RESAMPLERS, *INTERMEDIATES, *PROPOSALS):
        assert_biased(mutant())

What is wrong in the loop itself, not in a part, is in `smc_bridge.testing.engine_mutants`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from smc_bridge.blocks import Horizon, Move, prefix_sum, truncate
from smc_bridge.distributions.intermediate import Intermediate
from smc_bridge.distributions.law import Law
from smc_bridge.distributions.table import Dense
from smc_bridge.engine.weights import normalised
from smc_bridge.kernels.importance import Lanes, OwnWeights
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.models.ends import is_end
from smc_bridge.models.host import known, sent
from smc_bridge.proposals.chain import ChainState, PrefixFilled
from smc_bridge.proposals.mean_field import DLMProposal, MeanFieldState
from smc_bridge.proposals.path import MostLikelyPath
from smc_bridge.proposals.protocol import Asked, Draft
from smc_bridge.randomness import Randomness, Source, as_source
from smc_bridge.testing.tabular import tabular_pair


class EditedRejection(Rejection):
    """Token-level rejection with its choices exposed. With nothing edited it is the kernel itself, and proper."""

    def scored(self, q: Tensor) -> Tensor:
        """The law of the draft, as acceptance and correction see it, `[R, V, A]`."""
        return q

    def accept(self, log_ratio: Tensor) -> Tensor:
        """Probability of accepting a token, `[...]`, from `log pi - log q` at it, `[...]`."""
        return log_ratio.clamp_max(0.0).exp()

    def correction(self, q: Tensor, pi: Tensor) -> Tensor:
        """Log-law of the token at the first refusal, not normalised, `[R, A]`."""
        residual = (pi.exp() - q.exp()).clamp_min(0.0)
        return torch.where(residual.sum(-1, keepdim=True) > 0, residual.log(), pi)

    def forced(self, draft: Tensor, horizon: Horizon) -> Tensor:
        """Rows whose first token is accepted whatever its trial, `[R]`."""
        return torch.zeros_like(draft[:, 0], dtype=torch.bool)

    def cut(self, move: Move) -> Tensor:
        """Length at which each row's block is cut, `[R]`."""
        return move.length

    def __call__(self, draft: Draft, pi: Law, *, source: Randomness, horizon: Horizon) -> Move:
        """See `Kernel.__call__`."""
        tokens = draft.tokens
        source = as_source(source, tokens.shape[0], device=tokens.device)
        q, log_pi, end = self.scored(draft.q.dense()), pi.dense(), horizon.end(tokens)
        trial = source.bernoulli_stream(tokens.shape[1])
        probability = self.accept(pi.at(tokens) - Dense(q).at(tokens))
        # What follows the end of a block has no law.
        inside = torch.arange(tokens.shape[1], device=tokens.device) < end[:, None]
        accept = trial(torch.where(inside, probability, 0.0))
        accept[:, 0] |= self.forced(tokens, horizon)
        accepted = accept.long().cumprod(-1).sum(-1)
        refused = accepted < end
        place = accepted.clamp_max(tokens.shape[1] - 1)
        row = torch.arange(tokens.shape[0], device=tokens.device)
        token = source.categorical(self.correction(q[row, place], log_pi[row, place]))
        block = tokens.clone()
        block[row, place] = torch.where(refused, token, tokens[row, place])
        move = Move(block, accepted + refused, accepted)
        length = self.cut(move)
        return Move(truncate(block, length), length, torch.minimum(accepted, length))


class SharpenedDraft(EditedRejection):
    """The draft comes from a law sharper than the one that scores it: its temperature is forgotten (C4)."""

    def scored(self, q: Tensor) -> Tensor:
        """The law of the draft without the sharpening it was drawn with, `[R, V, A]` (the fault)."""
        return torch.log_softmax(q / 2, -1)


class CorrectionFromTarget(EditedRejection):
    """A refusal is corrected by a draw from pi in place of the residual `(pi - q)_+` (C4)."""

    def correction(self, q: Tensor, pi: Tensor) -> Tensor:
        """`log pi` at the refused position in place of the residual, `[R, A]` (the fault)."""
        return pi


class LenientAcceptance(EditedRejection):
    """Accepts with `min(1, pi / q) ** 0.9`, a little more often than it may (C4)."""

    def accept(self, log_ratio: Tensor) -> Tensor:
        """`min(1, pi / q) ** 0.9` from `log pi - log q`, same shape (the fault)."""
        return (0.9 * log_ratio.clamp_max(0.0)).exp()


class StopsByTheFuture(EditedRejection):
    """Stops after the first token if the second one is token 0: the decision looks ahead (C1)."""

    def cut(self, move: Move) -> Tensor:
        """Length 1 where the second token is token 0, else as it was, `[R]` (the fault)."""
        second = move.block[:, min(1, move.block.shape[1] - 1)]
        return torch.where((move.length > 1) & (second == 0), 1, move.length)


class NothingOnRefusal(EditedRejection):
    """Commits the accepted tokens alone, which may be none (C7), and so leaves out what the draft seldom holds (C4)."""

    def cut(self, move: Move) -> Tensor:
        """Length of the accepted tokens alone, `[R]`, which may be 0 (the fault)."""
        return move.accepted


class EndInAnyLane(EditedRejection):
    """If any row drafted an end of sequence, all rows accept their first token (C8), a rule of the released decoder."""

    def forced(self, draft: Tensor, horizon: Horizon) -> Tensor:
        """All rows, if any drafted an end of sequence, BoolTensor `[R]` (the fault)."""
        return is_end(draft, horizon.ends).any().expand(draft.shape[0])


class LengthNormalised(OwnWeights):
    """The mean over the block's tokens in place of the sum of `log p - log pi` (C2: no ratio of densities)."""

    def __call__(self, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate) -> Tensor:
        """See `WeightRule.__call__`."""
        return super().__call__(lanes, kernel=kernel, intermediate=intermediate) / lanes.move.length


class AgainstProposal(OwnWeights):
    """Weight `p / q` for a block whose law is pi (C4)."""

    def __call__(self, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate) -> Tensor:
        """See `WeightRule.__call__`."""
        return super().__call__(lanes._replace(pi=lanes.q), kernel=kernel, intermediate=intermediate)


class WithoutLastToken(OwnWeights):
    """The last token, often a correction, is taken for an exact draw from p (C4)."""

    def __call__(self, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate) -> Tensor:
        """See `WeightRule.__call__`."""
        ratio = lanes.p.at(lanes.move.block) - lanes.pi.at(lanes.move.block)
        return prefix_sum(ratio, lanes.move.length - 1)


class AgainstFirstLane(OwnWeights):
    """Every lane weighs with the product of experts (w = 1/2) of lane 0's temperature, not of its own (C4)."""

    def __call__(self, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate) -> Tensor:
        """See `WeightRule.__call__`."""
        log_pi = torch.log_softmax(0.5 * lanes.q.dense()[:, :1] + 0.5 * lanes.p.dense(), -1)
        ratio = lanes.p.at(lanes.move.block) - Dense(log_pi).at(lanes.move.block)
        return prefix_sum(ratio, lanes.move.length)


class BalanceWithoutStops(OwnWeights):
    """The balance heuristic of a product of experts (w = 1/2) on tokens alone, as if lanes stopped alike (C2)."""

    def __call__(self, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate) -> Tensor:
        """See `WeightRule.__call__`."""
        block, length = lanes.move.block, lanes.move.length
        terms = [
            prefix_sum(Dense(torch.log_softmax(0.5 * log_q[:, None] + 0.5 * lanes.p.dense(), -1)).at(block), length)
            for log_q in lanes.q.dense().unbind(1)
        ]
        log_p = prefix_sum(lanes.p.at(block), length)
        return log_p + math.log(len(terms)) - torch.stack(terms, -1).logsumexp(-1)


class KeepsTheBest:
    """All survivors are copies of the best candidate (C6). `E[Z_hat] = 1` holds nevertheless, to round-off."""

    proper = True

    def __call__(self, log_weights: Tensor, count: int, *, source: Randomness) -> Tensor:
        """See `Resampler.__call__`."""
        return log_weights.argmax(-1, keepdim=True).expand(*log_weights.shape[:-1], count)


class Sharpened:
    """Offspring in proportion to a power of the weights (C6).

    Args:
        power: above 1, the heavy ones get too many.
    """

    proper = True

    def __init__(self, power: float = 2.0) -> None:
        self.power = power

    def __call__(self, log_weights: Tensor, count: int, *, source: Randomness) -> Tensor:
        """See `Resampler.__call__`."""
        source = as_source(source, log_weights.shape[0], device=log_weights.device)
        law = torch.log_softmax(self.power * normalised(log_weights).log(), -1)
        return torch.stack([source.categorical(law) for _ in range(count)], -1)


class LeavesOut:
    """A product of experts without its least likely token: pi is 0 where p is not (C3)."""

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """The product of experts without its least likely token, `[..., A]` (the fault)."""
        pi = (log_q + log_p) / 2
        return torch.log_softmax(pi.masked_fill(pi == pi.amin(-1, keepdim=True), -math.inf), -1)


class LooksAhead:
    """Trusts the proposal where the target will be sure of what follows the draft (C1)."""

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """A product of experts whose w is 0.9 where the target is sure of the next position, else 0, `[..., A]` (the
        fault)."""
        sure = 0.9 * (log_p.amax(-1, keepdim=True) > math.log(0.7)).to(log_p.dtype)
        w = torch.cat([sure[..., 1:, :], torch.zeros_like(sure[..., :1, :])], -2)
        return torch.log_softmax(w * log_q + (1 - w) * log_p, -1)


def _small() -> DLMProposal:
    """Marginals of a small table: what the proposals here are made of."""
    return DLMProposal(tabular_pair(2, 3, eos=False, noise=1.5, seed=4).dlm, lookahead=3)


@dataclass(frozen=True)
class FlattenedChain(PrefixFilled):
    """A chain that hands on flatter conditionals than those its tokens were drawn from (C4).

    Attributes:
        base: gives the marginals, those of a small table by default.
    """

    base: DLMProposal = field(default_factory=_small)

    def draft(self, state: ChainState, asked: Asked, *, source: Source | None) -> Draft:
        """The draft of the chain with `q` at twice its temperature (the fault)."""
        found = super().draft(state, asked, source=source)
        return found._replace(q=Dense(torch.log_softmax(found.q.dense() / 2, -1)))


@dataclass(frozen=True)
class DrawnPath(MostLikelyPath):
    """A path that hands on the marginals it was read from, as if it had been drawn from them (C4).

    Attributes:
        base: gives the marginals, those of a small table by default.
    """

    base: DLMProposal = field(default_factory=_small)

    def draft(self, state: MeanFieldState, asked: Asked, *, source: Source | None) -> Draft:
        """The draft of the path with the base's marginals as `q` (the fault)."""
        found = super().draft(state, asked, source=source)
        return found._replace(q=self.base.draft(state, asked, source=None).q)


@dataclass(frozen=True)
class WidthOfTheDraft(PrefixFilled):
    """A chain whose block ends before the last token if that is token 0: its width looks at the draft (C1).

    Attributes:
        base: gives the marginals, those of a small table by default.
    """

    base: DLMProposal = field(default_factory=_small)

    def draft(self, state: ChainState, asked: Asked, *, source: Source | None) -> Draft:
        """The draft of the chain, a place shorter where its last token is token 0 (the fault)."""
        found = super().draft(state, asked, source=source)
        last = found.tokens.gather(1, found.width[:, None] - 1)[:, 0]
        return found._replace(width=torch.where((found.width > 1) & (last == 0), found.width - 1, found.width))


class ReusesByTheDraft(DLMProposal):
    """Goes on with stale marginals only where their draft begins with token 0: the decision looks ahead (C1)."""

    def __init__(self) -> None:
        super().__init__(_small().model, lookahead=3, reuse=1e-9)

    def draft(self, state: MeanFieldState, asked: Asked, *, source: Source | None) -> Draft:
        """The draft, and another by a forward of its own for a particle that did not like the first (the fault)."""
        stale = known(asked.rows)[state.marginals.refusals[known(asked.rows)] > 0]
        found = super().draft(state, asked, source=source)
        first = known(found.tokens).reshape(-1, asked.lanes, asked.window)[:, 0, 0]
        disliked = np.isin(known(asked.rows), stale) & (first != 0)
        if not disliked.any():
            return found
        state.marginals.forget(known(asked.rows)[disliked])
        again = super().draft(state, asked, source=source)
        other = sent(disliked.repeat(asked.lanes), found.tokens.device)
        return again._replace(tokens=torch.where(other[:, None], again.tokens, found.tokens))


#: Without arguments each; `EndInAnyLane` couples rows only where a sequence can end.
KERNELS = (
    SharpenedDraft, CorrectionFromTarget, LenientAcceptance, StopsByTheFuture, NothingOnRefusal, EndInAnyLane,
)
WEIGHTS = (LengthNormalised, AgainstProposal, WithoutLastToken, AgainstFirstLane, BalanceWithoutStops)
RESAMPLERS = (KeepsTheBest, Sharpened)
INTERMEDIATES = (LeavesOut, LooksAhead)
PROPOSALS = (FlattenedChain, DrawnPath, WidthOfTheDraft, ReusesByTheDraft)
