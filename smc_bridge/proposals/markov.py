"""`MarkovChain`: marginals of one forward, chained by what the token before says of the next one.

    q_i(a | y_{i-1}) ∝ exp((U_i(a) + s_i(y_{i-1}, a)) / tau),      y_0 the last token that is committed

with U_i the diffusion model's logits of place i and s a cheap head's: of the token before alone
(`smc_bridge.models.learned.markov`; the form of DSpark, deepseek-ai/DeepSpec), or with the model's features of the
place, by the same forward (`smc_bridge.models.learned.selector`; DFlash 2). A draft is drawn left to right, a place at
a time, without another forward; the law that a token is drawn from is its conditional given the draft before it, so
every kernel takes it. Logits and features do not depend on the draft: they outlive a block as marginals do (elastic
window), and a refusal with `reuse`. And the law is known after *any* token: a tree walk asks for it at nodes that no
draft led to (`first_order`; `FirstOrder`), so that a node's children are ranked by what follows it, and the bridge
there is made of the same conditional.

Shapes: R = B * K lanes of B particles, V window, W places that are left of it, A alphabet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from smc_bridge.distributions.first_order import FirstOrder, Gated, Shift, ShiftedLaw, cells
from smc_bridge.distributions.law import Law
from smc_bridge.distributions.logits import ban
from smc_bridge.distributions.shaping import inverse_temperature
from smc_bridge.models.arguments import said
from smc_bridge.models.host import known, sent
from smc_bridge.models.protocols import MaskedDiffusionLM
from smc_bridge.prefix import PAD, Prefix
from smc_bridge.proposals.form import Form
from smc_bridge.proposals.lanes import lane_law
from smc_bridge.proposals.mean_field import MeanFieldState
from smc_bridge.proposals.protocol import Asked, Draft
from smc_bridge.randomness import Source
from smc_bridge.sampling import is_one, search, segment_width

#: Probabilities of one place, all lanes together, up to which a draw looks through each alphabet in one go.
FEW = 1 << 16


@dataclass(frozen=True)
class MarkovChain(Form):
    """Marginals chained by the token before (module docstring; implements `Proposal`).

    Attributes:
        base: gives the marginals, temperatures and truncation.
        head: what the token before adds to logits, at every place or with the features of each.
    Raises:
        ValueError: the head is none, or for another model.
    Example:
        >>> from smc_bridge import ARTarget, DLMProposal, Sampler
        >>> from smc_bridge.models.learned.markov import MarkovHead
        >>> from smc_bridge.testing import check, tabular_pair
        >>> pair = tabular_pair()
        >>> proposal = MarkovChain(DLMProposal(pair.dlm), MarkovHead(vocabulary=pair.dlm.vocab_size, rank=2))
        >>> check(Sampler(proposal, ARTarget(pair.ar))).proper
        True
    """

    head: Shift | Gated

    form = "Markov chain"
    factorised = False
    #: Its law is known after any token (`smc_bridge.distributions.first_order.FirstOrder`).
    first_order = True

    def __post_init__(self) -> None:
        none, shift = torch.zeros(1, dtype=torch.long, device=self.model.device), self.head
        if self.gated is not None:
            shift = self.gated.at(self.gated.features(_blank(self.gated, self.model)))
        elif not (callable(getattr(shift, "rows", None)) and callable(getattr(shift, "entries", None))):
            raise ValueError(f"head = {said(self.head)}: give a MarkovHead, or another with rows and entries")
        size = cast("Shift", shift).rows(none, none).shape[-1]
        if size != self.model.vocab_size:
            raise ValueError(
                f"head has {size} tokens and the diffusion model {self.model.vocab_size}: give one trained for it"
            )

    @cached_property
    def gated(self) -> Gated | None:
        """The head, if it reads the features of places."""
        head: Any = self.head
        return head if callable(getattr(head, "features", None)) and callable(getattr(head, "at", None)) else None

    @cached_property
    def temperatures(self) -> tuple[float, ...] | None:
        """One per lane, None where all have that of the shaping."""
        return None if self.identical_lanes else self.base.lane_temperatures

    def open(self, prefix: Prefix, *, particles: int) -> MeanFieldState:
        """The state of R = P * N particles, that of the base (`Proposal.open`)."""
        return self.base.open(prefix, particles=particles)

    def draft(self, state: MeanFieldState, asked: Asked, *, source: Source | None) -> Draft:
        """K drafts for each of B particles, `[B * K, V]` (`Proposal.draft`), by the forward that the base's would take.

        Without a source the law along no draft is that of the first place alone; ask it after tokens.
        """
        cost = self.base.propose(state, asked, keep=None if self.gated is None else self.gated.features)
        laws = _Laws(self, state, asked)
        left = (state.marginals.remaining()[known(asked.rows)] > laws.room).repeat(asked.lanes)
        tokens = torch.full((laws.last.numel(), asked.window), PAD, device=laws.last.device)
        if source is not None:
            tokens = laws.drawn(source)
        return Draft(tokens, laws.along(tokens, lazy=source is None), laws.width, cost, left)

    def along(self, state: MeanFieldState, asked: Asked, lane: Tensor, block: Tensor) -> Law:
        """q along given blocks of lanes `[Q]`, `[Q, V, A]` (`Proposal.along`)."""
        return _Laws(self, state, asked).along(block, lane)

    def commit(
        self, state: MeanFieldState, ancestors: Tensor | None, block: Tensor, length: Tensor, whole: Tensor
    ) -> None:
        """Let the base's state follow the survivors (`Proposal.commit`)."""
        self.base.commit(state, ancestors, block, length, whole)

    def reseat(self, state: MeanFieldState, length: Tensor, rows: Tensor, fresh: Prefix) -> None:
        """Let particles `rows: [B]` hold other prefixes (`Proposal.reseat`)."""
        self.base.reseat(state, length, rows, fresh)


def _blank(head: Gated, model: MaskedDiffusionLM) -> Tensor:
    """Features of one place, `[1, 1, D]` zeros; ValueError unless the head reads so many."""
    size = model.hidden_size
    reads = getattr(head, "config", {}).get("hidden", size)
    if reads != size:
        raise ValueError(f"head reads {reads} features and the diffusion model gives {size}: give one trained for it")
    return torch.zeros(1, 1, size, device=model.device)


class _Laws:
    """The laws of the R lanes of one draft.

    Attributes:
        shift: what the token before adds.
        place: which of the places of the logits each position reads, `[R, W]`; the last one stands for those after it.
        last: last token that each holds, `[R]`, negative for none.
        width: places of each draft, `[R]`; `room` that of each particle, on the host.
    """

    def __init__(self, chain: MarkovChain, state: MeanFieldState, asked: Asked) -> None:
        self.chain, self.asked, self.logits = chain, asked, state.marginals.logits
        self.shift: Any = chain.head
        if chain.gated is not None:
            assert state.marginals.features is not None  # kept since the first draft
            self.shift = chain.gated.at(state.marginals.features)
        place, owner, self.room = chain.base.windows(state.marginals, asked)
        rows, device = known(asked.rows), asked.rows.device
        length = known(asked.prefix.length)[rows]
        held = known(asked.prefix.tokens)
        last = np.where(length > 0, held[rows, np.maximum(length, 1) - 1] if held.shape[1] else PAD, PAD)
        self.place = sent(place[owner.repeat(asked.lanes)], device)
        self.last = sent(last.repeat(asked.lanes), device)
        self.width = sent(self.room.repeat(asked.lanes), device)

    def along(self, tokens: Tensor, lane: Tensor | None = None, *, lazy: bool = False) -> Law:
        """The law along drafts of all lanes, or of lanes `[Q]`: `[R, V, A]`."""
        place, last = (self.place, self.last) if lane is None else (self.place[lane], self.last[lane])
        before = torch.cat([last[:, None], tokens[:, : place.shape[1] - 1]], dim=1)
        return FirstOrder(self.law(cells(place, before, self.size), lane, lazy=lazy), self.given, self.ranked)

    def given(self, rows: Tensor, positions: Tensor, before: Tensor) -> Law:
        """The law of cells after given tokens (`smc_bridge.distributions.first_order.Given`)."""
        place = self.place[rows[:, None], positions.clamp_max(self.place.shape[1] - 1)]
        before = torch.where(positions == 0, self.last[rows][:, None], before)
        return self.law(cells(place, before, self.size), rows, width=positions.shape[1])

    def ranked(self, rows: Tensor, position: int, before: Tensor) -> tuple[Tensor, float | Tensor]:
        """What a place is ranked by after given tokens (`smc_bridge.distributions.first_order.Ranked`)."""
        place = self.place[:, min(position, self.place.shape[1] - 1)][rows]
        scores = self.logits_at(place)
        scores += self.shift.rows(before if position else self.last[rows], place)
        return scores, self.factor[rows] if isinstance(self.factor, Tensor) else self.factor

    @property
    def size(self) -> int:
        """A."""
        return self.logits.shape[-1]

    def law(self, cell: Tensor, lane: Tensor | None, *, width: int | None = None, lazy: bool = False) -> Law:
        """The law of cells `[Q, W]` of lanes `[Q]` (None: all, in order), `[Q, V, A]`."""
        chain, chunks = self.chain, self.asked.chunks
        lane = torch.arange(cell.shape[0], device=cell.device) if lane is None else lane
        return lane_law(
            self.logits, lane, self.asked.lanes, chain.base.shaping, chain.temperatures,
            replace(chunks, whole=0) if lazy else chunks, source=cell,
            width=self.asked.window if width is None else width, kind=partial(ShiftedLaw, shift=self.shift),
        )

    def drawn(self, source: Source) -> Tensor:
        """Drafts of all lanes, `[R, V]`, left to right; 0 past the places that are left."""
        draw, before, tokens = source.categorical_stream(self.asked.window), self.last, list[Tensor]()
        lanes, places = self.place.shape
        if not self.chain.covers:  # what is cut off, and what wins at temperature 0, is the law's own business
            for i in range(places):
                cell = cells(self.place[:, i : i + 1], before[:, None], self.size)
                before = draw(self.law(cell, None, width=1)).flatten()
                tokens.append(before)
        step = max(1, self.asked.chunks.whole // (lanes * self.size * self.logits.dtype.itemsize))
        for first in range(len(tokens), places, step):
            place = self.place[:, first : first + step].T
            for each, scores in zip(place, self.logits_at(place.flatten()).view(*place.shape, -1), strict=True):
                scores += self.shift.rows(before, each)
                scores -= scores.amax(-1, keepdim=True)  # before it is scaled (`smc_bridge.sampling`)
                before = draw(_Place(torch.softmax(scores if is_one(self.factor) else scores.mul_(self.factor), -1)))
                tokens.append(before)
        drafts = torch.stack(tokens, 1)
        return torch.nn.functional.pad(drafts, (0, self.asked.window - places))

    def logits_at(self, place: Tensor) -> Tensor:
        """The model's logits of places `[n]`, float32 or better, -inf where banned: `[n, A]` of their own."""
        width, precise = self.logits.shape[1], torch.promote_types(self.logits.dtype, torch.float32)
        if self.logits.is_contiguous():
            found = self.logits.view(-1, self.size).index_select(0, place).to(precise)
        else:
            found = self.logits[place // width, place % width].to(precise)
        if self.chain.banned_ids:
            found += ban(self.chain.banned_ids, self.size, precise, found.device)[1]
        return found

    @cached_property
    def factor(self) -> float | Tensor:
        """Inverse temperatures, a number or `[R, 1]`; 1 for 0."""
        own = self.chain.temperatures
        if own is None:
            return 1.0 / (self.chain.base.shaping.temperature or 1.0)
        each = np.tile(np.array([t or 1.0 for t in own]), self.last.numel() // self.asked.lanes)
        precise = torch.promote_types(self.logits.dtype, torch.float32)
        return inverse_temperature(sent(each, self.logits.device), precise)[:, None]


class _Place:
    """Laws of one place, which invert their own cumulative distributions (`smc_bridge.sampling.Drawable`)."""

    def __init__(self, probs: Tensor) -> None:
        self.probs, self.shape = probs, probs.shape

    def dense(self) -> Tensor:
        """Log-probabilities, `[R, A]`."""
        return self.probs.log()

    def inverse_cdf(self, uniform: Tensor) -> Tensor:
        """First token whose cumulative probability passes `uniform: [R]`, `[R]`; any where there is no law, which is
        found out when it is read."""
        size = self.probs.shape[-1]
        if self.probs.numel() > FEW:
            return search(self.probs, segment_width(size), None, uniform)[0]
        cdf = self.probs.cumsum(-1, dtype=torch.float64)
        return torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True)[:, 0].clamp_max_(size - 1)
