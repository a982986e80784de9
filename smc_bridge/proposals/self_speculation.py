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
        tokens: `[n, v]`; those past `count` do not count.
        count: tokens committed, `[n]`, from 1 to the width of the draft.
        scores: logits of the laws that they were drawn from, `[n, v, A]`.
        whole: rows whose draft was accepted to its last place, without an end of sequence in it, `[n]`.
    """

    tokens: Tensor
    count: Tensor
    scores: Tensor
    whole: Tensor


def speculate(
    own: Tensor, width: Tensor, verify: Callable[[Tensor], Tensor], law: Callable[[Tensor, Tensor], Law], *,
    draft: Stream, decide: Stream, rows: Tensor, at: Tensor, ends: Ends,
) -> Round:
    """One round of self-speculation.

    Args:
        own: logits of the next places given what is filled in now, `[n, v, A]`.
        width: places that each row drafts, `[n]`, from 1 to v.
        verify: from drafts `[n, v]` to the logits of each place given the drafted tokens before it, `[n, v, A]`.
        law: from logits `[m, w, A]` and which of the n rows they are of, `[m]`, to their law.
        draft, decide: draws of each place, as many as places.
        rows, at: which rows of the streams these are, and the place of their first draw, `[n]` each.
    """
    place = at[:, None] + torch.arange(own.shape[1], device=at.device)
    last = (at + width - 1)[:, None]
    everyone = torch.arange(own.shape[0], device=at.device)
    q = law(own, everyone)
    drafted = draft(q, rows, torch.minimum(place, last))
    scores = verify(drafted)
    p, tokens, count, going = law(scores, everyone), drafted.clone(), torch.zeros_like(width), everyone
    for j in range(own.shape[1]):
        going = going[width[going] > j]
        if not going.numel():
            break
        cell, guess = torch.full_like(going, j), drafted[going, j]
        committed = log_committed(q.log_probs(going, cell), p.log_probs(going, cell), guess)
        token = decide(committed, rows[going], place[going, j])
        tokens[going, j], count[going] = token, j + 1
        stays = token == guess
        going = going[stays & ~is_end(token, ends)] if ends else going[stays]
        if j + 1 == own.shape[1]:
            break
    agreed = ((tokens == drafted) | (torch.arange(own.shape[1], device=at.device) >= count[:, None])).all(1)
    whole = agreed & (count == width)
    if ends:
        whole &= ~is_end(tokens[everyone, count - 1], ends)
    return Round(tokens, count, scores, whole)


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
        source, k, ends = with_source(source), asked.lanes, ends_of(self.model.eos_id)
        draft, decide = (source.categorical_stream(asked.window) for _ in range(2))
        total, canvas_width, width = self.widths(asked)
        step = min(self.window, asked.window)
        tokens = torch.zeros(total.numel(), asked.window, dtype=torch.long, device=total.device)
        at, ready = torch.zeros_like(width), torch.zeros_like(width, dtype=torch.bool)
        scored, going = list[Tensor](), torch.arange(total.numel(), device=total.device)
        ahead = scores = torch.empty(0, device=total.device)

        def score(lane: Tensor, block: Tensor, shown: Tensor) -> Tensor:
            """Logits of the places after the tokens that are shown of these lanes, `[U, step, A]`, by one forward."""
            scored.append(total[lane] // state.particles)
            columns = int(canvas_width[lane].max())
            found = state.session.score(total[lane], filled(block, shown, canvas_width[lane], columns))
            return following(found, shown, step)

        while going.numel():
            fresh = going[~ready[going]]
            if fresh.numel():
                rows = fresh if scored else fresh[::k]  # nothing is filled in at first: lanes share a row
                found = score(rows, tokens[rows], at[rows])
                if not ahead.numel():
                    ahead = found.new_zeros(total.numel(), step, found.shape[-1])
                    scores = found.new_zeros(total.numel(), asked.window, found.shape[-1])
                ahead[fresh] = found if rows is fresh else found.repeat_interleave(k, 0)
            begun, most = at[going], torch.minimum(width - at, torch.full_like(at, step))[going]
            after = torch.zeros_like(going, dtype=torch.bool)

            def verify(drafted: Tensor, going: Tensor = going, begun: Tensor = begun, most: Tensor = most,
                       after: Tensor = after) -> Tensor:
                """See `speculate`."""
                laws = ahead[going].clone()
                row, more = needed(drafted, most, ends, beyond=begun + most < width[going]).nonzero(as_tuple=True)
                if not row.numel():
                    return laws
                column = begun[:, None] + torch.arange(step, device=begun.device)
                block = torch.nn.functional.pad(tokens[going], (0, step)).scatter(1, column, drafted)
                found = score(going[row], block[row, : asked.window], begun[row] + more + 1)
                inside = more + 1 < most[row]
                laws[row[inside], more[inside] + 1] = found[inside, 0]
                ahead[going[row[~inside]]] = found[~inside]
                after[row[~inside]] = True
                return laws

            done = speculate(
                ahead[going], most, verify, lambda logits, own, going=going: self.law(logits, asked, going[own]),
                draft=draft, decide=decide, rows=going, at=begun, ends=ends,
            )
            for j in range(int(done.count.max())):
                own = (j < done.count).nonzero().flatten()
                tokens[going[own], begun[own] + j] = done.tokens[own, j]
                scores[going[own], begun[own] + j] = done.scores[own, j]
            at[going] += done.count
            ready[going] = done.whole & after
            stays = at[going] < width[going]
            if ends:
                stays &= ~is_end(tokens[going, at[going] - 1], ends)
            going = going[stays]
        everyone = torch.arange(total.numel(), device=total.device)
        return Draft(tokens, self.law(scores, asked, everyone), width, cost_of(scored))
