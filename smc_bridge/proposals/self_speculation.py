"""Self-speculation: the diffusion model's own chain rule, drawn by few forwards of many rows.

    p(x_i | c, x_<i) = the model's marginal of place i, given c, x_<i filled in, and masks behind

To draw from it takes a forward per token (`smc_bridge.proposals.chain`). But one forward also gives independent
marginals q of the next v places: they are drafted from, and *one* forward of a row for each number of drafted tokens
filled in gives p at every place along the draft. Then the usual rule: accept `y_i` with probability
`min(1, p_i(y_i) / q_i(y_i))`, at the first refusal draw from `(p_i - q_i)_+` and stop. What is committed has law p,
whatever was drafted (FeF-DLLM, arXiv 2605.14305). At the first place of a draft p and q are one law, so at least one
token is accepted as it is and a second one committed. Where all were accepted, the row with the whole draft filled in
is the next draft's forward: its first token is then a draw from p, the bonus token, and costs no forward of its own.

Draws: each place has two numbers, one to draft and one to decide. A place that is drafted again reads the same ones,
which have decided nothing before. So they do not depend on how many rounds it takes, nor on the batch.

Shapes: n rows, v places drafted at once, V places, M lookahead, A alphabet, K lanes, B particles, U rows of a forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smc_bridge.distributions.law import Law
from smc_bridge.distributions.residual import log_committed
from smc_bridge.models.arguments import said, whole_number
from smc_bridge.models.ends import Ends, ends_of, is_end
from smc_bridge.proposals.chain import ChainState, PrefixFilled, cost_of, filled, following, with_source
from smc_bridge.proposals.protocol import Asked, Draft
from smc_bridge.randomness import Source, Stream

#: Places that are drafted at once unless it is said.
WINDOW = 16


class Round(NamedTuple):
    """What one draft and its verification give to n rows.

    Attributes:
        tokens: `[n, v]`; those past `length` do not count.
        length: tokens committed, `[n]`, from 1 to the width of the draft.
        scores: logits of the laws that they were drawn from, `[n, v, A]`.
        whole: rows whose draft was accepted to its last place, without an end of sequence in it, `[n]`.
    """

    tokens: Tensor
    length: Tensor
    scores: Tensor
    whole: Tensor


def speculate(
    own: Tensor, width: Tensor, verify: Callable[[Tensor], Tensor], law: Callable[[Tensor, Tensor], Law], *,
    draft: Stream, decide: Stream, rows: Tensor, at: Tensor, ends: Ends,
) -> Round:
    """One round of self-speculation.

    Args:
        own: logits of the next places given what is filled in now, `[n, V, A]`.
        width: places that each row drafts, `[n]`, from 1 to V; v is the most of them.
        verify: from drafts `[n, v]` to the logits of each place given the drafted tokens before it, `[n, v, A]`.
        law: from logits `[m, w, A]` and which of the n rows they are of, `[m]`, to their law.
        draft, decide: draws of each place, as many as places.
        rows, at: which rows of the streams these are, and the place of their first draw, `[n]` each.
    """
    own = own[:, : int(width.max())]
    place = at[:, None] + torch.arange(own.shape[1], device=at.device)
    last = (at + width - 1)[:, None]
    everyone = torch.arange(own.shape[0], device=at.device)
    q = law(own, everyone)
    drafted = draft(q, rows, torch.minimum(place, last))
    scores = verify(drafted)
    p, tokens, length, going = law(scores, everyone), drafted.clone(), torch.zeros_like(width), everyone
    whole = torch.zeros_like(width, dtype=torch.bool)
    for j in range(own.shape[1]):
        cell, guess = torch.full_like(going, j), drafted[going, j]
        committed = log_committed(q.log_probs(going, cell), p.log_probs(going, cell), guess)
        token = decide(committed, rows[going], place[going, j])
        tokens[going, j], length[going] = token, j + 1
        stays = (token == guess) & ~is_end(token, ends) if ends else token == guess
        going = going[stays]
        last_one = width[going] == j + 1
        whole[going[last_one]] = True
        going = going[~last_one]
        if not going.numel():
            break
    return Round(tokens, length, scores, whole)


def needed(drafted: Tensor, width: Tensor, ends: Ends, *, beyond: Tensor) -> Tensor:
    """Which numbers of drafted tokens are worth a row of the verification, BoolTensor `[n, v]`: entry j - 1 for j.

    From 1 to `width - 1`, and `width` itself where `beyond: [n]`; none that fills in an end of sequence.
    """
    shown = torch.arange(1, drafted.shape[1] + 1, device=drafted.device)
    inside = (shown < width[:, None]) | ((shown == width[:, None]) & beyond[:, None])
    return inside & (is_end(drafted, ends).long().cumsum(1) == 0) if ends else inside


@dataclass(frozen=True)
class SelfSpeculated(PrefixFilled):
    """The chain with one place per forward, drawn by self-speculation: its law, by fewer forwards one after the other.

    Attributes:
        base: gives model, temperatures, truncation and lookahead.
        window: v, places that are drafted at once.
    Raises:
        ValueError: the base reuses marginals, window is no whole number of at least 1, or places is not 1.
    """

    window: int = WINDOW

    form = "self-speculated chain"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "window", whole_number("window", self.window))  # the class is frozen
        if self.places != 1:
            raise ValueError(f"places = {said(self.places)} of a self-speculated chain, which has one: leave it out")

    def settings(self) -> dict[str, Any]:
        """What shapes its drafts, as plain data."""
        return {**super().settings(), "window": self.window}

    def draft(self, state: ChainState, asked: Asked, *, source: Source | None) -> Draft:
        """K drafts for each of B particles, `[B * K, V]`, by two forwards or one per round (`Proposal.draft`).

        Raises:
            ValueError: no source; the law is that of a draft.
        """
        source = with_source(source)
        draft, decide = (source.categorical_stream(asked.window) for _ in range(2))
        work = _Drafting(self, state, asked)
        while work.going.numel():
            work.round(draft, decide)
        everyone = torch.arange(work.at.numel(), device=work.at.device)
        cost = cost_of(state.session, work.scored, state.particles)
        return Draft(work.tokens, self.law(work.scores, asked, everyone), work.width, cost)


class _Drafting:
    """The lanes of one draft on their way, R = B * K of them.

    Attributes:
        tokens, scores: drawn so far, and the logits that they were drawn from, `[R, V]` and `[R, V, A]`.
        at, width: places that are drawn, and that there are, `[R]`.
        ahead: logits of the next places of each, `[R, v, A]`.
        ready: whose are known, bool `[R]`.
        going: lanes that go on.
        scored: rows of the session in each call.
    """

    def __init__(self, chain: SelfSpeculated, state: ChainState, asked: Asked) -> None:
        self.chain, self.state, self.asked = chain, state, asked
        self.total, self.canvas_width, self.width = chain.widths(asked)
        self.step, self.ends = min(chain.window, asked.window), ends_of(chain.model.eos_id)
        self.at = torch.zeros_like(self.width)
        self.ready = torch.zeros_like(self.width, dtype=torch.bool)
        self.tokens = self.at[:, None].repeat(1, asked.window)
        self.going, self.scored = torch.arange(self.at.numel(), device=self.at.device), list[Tensor]()
        first = self.going[:: asked.lanes]  # nothing is filled in yet: the lanes of a particle share a row
        self.ahead = self.score(first, self.tokens[first], self.at[first]).repeat_interleave(asked.lanes, 0)
        self.scores = self.ahead.new_zeros(*self.tokens.shape, self.ahead.shape[-1])
        self.ready[:] = True

    def score(self, lane: Tensor, block: Tensor, shown: Tensor) -> Tensor:
        """Logits of the places after the tokens that are shown of these lanes, `[U, v, A]`, by one forward."""
        self.scored.append(self.total[lane])
        width = self.canvas_width[lane]
        canvas = filled(block, shown, width, int(width.max()))
        return following(self.state.session.score(self.total[lane], canvas), shown, self.step)

    def round(self, draft: Stream, decide: Stream) -> None:
        """One draft of all lanes that go on, and its verification."""
        going = self.going
        fresh = going[~self.ready[going]]
        if fresh.numel():
            self.ahead[fresh] = self.score(fresh, self.tokens[fresh], self.at[fresh])
        self.ready[going] = False
        begun, width = self.at[going], (self.width - self.at)[going].clamp_max(self.step)
        done = speculate(
            self.ahead[going], width, self.verified, lambda logits, own: self.chain.law(logits, self.asked, going[own]),
            draft=draft, decide=decide, rows=going, at=begun, ends=self.ends,
        )
        for j in range(int(done.length.max())):
            own = (j < done.length).nonzero().flatten()
            self.tokens[going[own], begun[own] + j] = done.tokens[own, j]
            self.scores[going[own], begun[own] + j] = done.scores[own, j]
        self.at[going] += done.length
        self.ready[going] &= done.whole
        stays = self.at[going] < self.width[going]
        if self.ends:
            stays &= ~is_end(self.tokens[going, self.at[going] - 1], self.ends)
        self.going = going[stays]

    def verified(self, drafted: Tensor) -> Tensor:
        """See `speculate`; what stands behind whole drafts is kept."""
        going, drafts = self.going, drafted.shape[1]
        laws = self.ahead[going, :drafts].clone()
        begun, left = self.at[going], (self.width - self.at)[going]
        width = left.clamp_max(self.step)
        row, more = needed(drafted, width, self.ends, beyond=width < left).nonzero(as_tuple=True)
        if not row.numel():
            return laws
        column = begun[:, None] + torch.arange(drafts, device=begun.device)
        block = torch.nn.functional.pad(self.tokens[going], (0, drafts)).scatter(1, column, drafted)
        found = self.score(going[row], block[row, : self.asked.window], begun[row] + more + 1)
        inside = more + 1 < width[row]
        laws[row[inside], more[inside] + 1] = found[inside, 0]
        whole = going[row[~inside]]
        self.ahead[whole], self.ready[whole] = found[~inside], True
        return laws
