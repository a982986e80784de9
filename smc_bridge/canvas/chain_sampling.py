"""Exact draws from a masked diffusion model's own joint law, by self-speculation (FeF-DLLM, arXiv 2605.14305).

    p(x | c) = prod_i p(x_i | c, x_<i),   p(x_i | c, x_<i) = the marginal of place i of the canvas with x_<i filled in

This is what the decoder draws from that fills one place per forward from left to right. Here a forward drafts v places
from its marginals, and one forward of a row for each number of drafted tokens filled in accepts or corrects them
(`smc_bridge.proposals.self_speculation`): the same law, by fewer forwards one after the other and more rows. The law is
of the canvas, whose end the length limit and the lookahead set, and not of where drafts begin. So what is drawn is not
given to the session, unless its model is block-causal: one that caches holds the prompt alone, as it was beside the
empty canvas, and the law is that of the model with that cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from smc_bridge.canvas.decoder import Canvas
from smc_bridge.canvas.rules import Ordered
from smc_bridge.canvas.state import CanvasState, extent, keep, open_places, score
from smc_bridge.decode import Seat
from smc_bridge.distributions.law import Law
from smc_bridge.distributions.table import Dense
from smc_bridge.models.arguments import check_text, said, true_or_false, whole_number
from smc_bridge.models.ends import ends_of
from smc_bridge.models.protocols import LanguageModel, within_block
from smc_bridge.proposals.chain import following
from smc_bridge.proposals.self_speculation import WINDOW, Round, needed, speculate
from smc_bridge.randomness import Stream, UniformStream
from smc_bridge.requests import Request
from smc_bridge.result import Forwards, Result
from smc_bridge.streams import Role

#: Why no result is proper for the AR law.
WHY = "an exact draw of the diffusion model's own law, not of the AR law"


class ChainedState(NamedTuple):
    """P seats of one row each.

    Attributes:
        canvas: as of the decoder with one place per forward.
        uniforms: two draws for each place of each prompt, `[P, 2, T]` float64 on the CPU.
        ahead: logits of the next places of rows that need no forward to draft, `[P, v, A]`.
        ready: which these are, bool `[P]`.
        rows: of the model that were run for each seat.
    """

    canvas: CanvasState
    uniforms: Tensor
    ahead: Tensor
    ready: Tensor
    rows: tuple[int, ...]

    @property
    def seats(self) -> tuple[Seat | None, ...]:
        """Who sits where, those of the canvas."""
        return self.canvas.seats


@dataclass
class ChainSampling:
    """Exact draws from the law of a decoder with one place per forward (module docstring), as a `Decoder`.

    Attributes:
        plain: that decoder, from left to right; its first lane's law is drawn from.
        window: v, places that are drafted at once; 1 is that decoder itself.
        bonus: whether the verification has a row with the whole draft filled in, by which the next one is drafted.
        name: for tables.
        detokenize: from a continuation's ids to its text.
    Raises:
        ValueError: one of them is something else.
    """

    plain: Canvas
    window: int = WINDOW
    bonus: bool = True
    name: str = "DLM chain"
    detokenize: Callable[[list[int]], str] | None = None

    def __post_init__(self) -> None:
        self.window = whole_number("window", self.window)
        self.bonus = true_or_false("bonus", self.bonus)
        check_text("name", self.name)
        if self.plain.rule != Ordered() or self.plain.anchors or self.plain.credit is not None:
            raise ValueError(
                f"plain = {said(self.plain.rule)}: give a canvas with Ordered('left_to_right'), one token per forward, "
                "without anchors or credit"
            )

    @property
    def stream(self) -> Role:
        """The stream of random numbers of the diffusion model's own decoders."""
        return self.plain.stream

    @property
    def models(self) -> dict[str, LanguageModel]:
        """The one model that reads the prompts, by its kind."""
        return self.plain.models

    def open(self, requests: Sequence[Request | None], limit: int) -> ChainedState:
        """P seats with their prompts, empty canvases and all their draws (`Decoder.open`)."""
        canvas = self.plain.open(requests, limit)
        device, count = canvas.canvas.device, len(requests)
        state = ChainedState(
            canvas, torch.zeros(count, 2, limit, dtype=torch.float64), torch.empty(count, 0, 0, device=device),
            torch.zeros(count, dtype=torch.bool, device=device), (0,) * count,
        )
        return _drawn(state, range(count))

    def step(self, state: ChainedState) -> ChainedState:
        """One draft and its verification: two forwards, or one where a draft was ready (`Decoder.step`)."""
        rows = [place for place, seat in enumerate(state.seats) if seat is not None and not seat.complete]
        own = torch.tensor(rows)
        draft, decide = (UniformStream(part.to(state.ready.device)) for part in state.uniforms[own].unbind(1))
        return self.advance(state, rows, draft=draft, decide=decide)

    def advance(self, state: ChainedState, seats: Sequence[int], *, draft: Stream, decide: Stream) -> ChainedState:
        """The state after a round of some seats, with the draws of these seats, one for each place of a canvas."""
        canvas, model, device = state.canvas, self.plain.proposal.model, state.ready.device
        rows, every = torch.tensor(seats, device=device), torch.arange(len(seats), device=device)
        own = [seat for place in seats if (seat := canvas.seats[place]) is not None]
        before, ends, limit = canvas.canvas[rows], ends_of(model.eos_id), canvas.canvas.shape[1]
        prompt = torch.tensor([len(seat.request.prompt) for seat in own], device=device)
        at = torch.tensor([len(seat.tokens) for seat in own], device=device)
        end = at + within_block(model, prompt + at, limit - at)  # of all that may be filled before others are shown
        window = min(self.window, self.plain.proposal.lookahead, limit)
        width = (end - at).clamp_max(window)
        used, calls = torch.zeros_like(at), torch.zeros_like(at)
        ahead, ready = state.ahead, torch.zeros_like(state.ready)

        def scored(which: Tensor, tokens: Tensor, shown: Tensor) -> Tensor:
            """Logits of the next places of canvases `tokens: [U, T]` of which the first are filled, by one forward."""
            used.index_add_(0, which, torch.ones_like(which))
            calls[torch.unique(which)] += 1
            filled = torch.where(torch.arange(limit, device=device) < shown[:, None], tokens, before[which])
            seen, _ = open_places(filled, self.plain.proposal.lookahead, None, model=model, prompt=prompt[which])
            return following(score(canvas, rows[which], seen), shown, window)

        def verify(drafted: Tensor) -> Tensor:
            """See `speculate`; what stands behind whole drafts is kept."""
            beyond = (at + width < end) & self.bonus
            which, more = needed(drafted, width, ends, beyond=beyond).nonzero(as_tuple=True)
            drafts = drafted.shape[1]
            laws = ahead[rows, :drafts].clone()
            if not which.numel():
                return laws
            place = at[:, None] + torch.arange(drafts, device=device)
            tokens = torch.nn.functional.pad(before, (0, drafts)).scatter(1, place, drafted)[:, :limit]
            found = scored(which, tokens[which], at[which] + more + 1)
            inside = more + 1 < width[which]
            laws[which[inside], more[inside] + 1] = found[inside, 0]
            ahead[rows[which[~inside]]] = found[~inside]
            ready[rows[which[~inside]]] = True
            return laws

        needy = every[~state.ready[rows]]
        if needy.numel():
            found = scored(needy, before[needy], at[needy])
            if not ahead.numel():
                ahead = found.new_zeros(len(state.seats), *found.shape[1:])
            ahead[rows[needy]] = found
        done = speculate(
            ahead[rows], width, verify, self._law, draft=draft, decide=decide, rows=every, at=at, ends=ends
        )
        ready[rows] &= done.whole
        after = self._committed(canvas, rows, at, done, calls)
        spent = list(state.rows)
        for place, count in zip(seats, used.tolist(), strict=True):
            spent[place] += count
        if getattr(model, "block_size", None) is not None:
            after = keep(after, rows)
        return ChainedState(after, state.uniforms, ahead, ready, tuple(spent))

    def _law(self, logits: Tensor, rows: Tensor) -> Law:
        """The law of logits `[n, w, A]`, that of the first lane."""
        return Dense(self.plain.proposal.log_probs(logits, self.plain.proposal.lanes)[:, 0])

    def _committed(
        self, canvas: CanvasState, rows: Tensor, at: Tensor, done: Round, calls: Tensor
    ) -> CanvasState:
        """The canvases with what a round has committed, and seats that know of it and of their forwards."""
        limit, drafted = canvas.canvas.shape[1], done.tokens.shape[1]
        place = at[:, None] + torch.arange(drafted, device=at.device)
        whole = torch.nn.functional.pad(canvas.canvas[rows], (0, drafted))
        inside = torch.arange(drafted, device=at.device) < done.length[:, None]
        after = whole.scatter(1, place, torch.where(inside, done.tokens, whole.gather(1, place)))[:, :limit]
        end, complete = extent(after, ends_of(self.plain.proposal.model.eos_id))
        seats = list(canvas.seats)
        found = zip(rows.tolist(), after.tolist(), end.tolist(), complete.tolist(), calls.tolist(), strict=True)
        for row, tokens, count, finished, forwards in found:
            seat = seats[row]
            assert seat is not None
            seats[row] = seat._replace(
                tokens=tuple(tokens[:count]), complete=finished, forwards=seat.forwards + forwards
            )
        return canvas._replace(seats=tuple(seats), canvas=canvas.canvas.index_copy(0, rows, after))

    def finished(self, state: ChainedState) -> list[int]:
        """Seats whose continuation is complete (`Decoder.finished`)."""
        return self.plain.finished(state.canvas)

    def result(self, state: ChainedState, seat: int) -> Result:
        """See `Decoder.result`: one continuation."""
        own = state.seats[seat]
        assert own is not None, f"nobody sits in seat {seat}"
        settings = {
            **self.plain.result(state.canvas, seat).settings, "method": self.name, "window": self.window,
            "bonus": self.bonus, "law": "the diffusion model's chain rule, from left to right",
        }
        forwards = Forwards(own.forwards, state.rows[seat])
        return own.result(settings, forwards=forwards, detokenize=self.detokenize, reasons=[WHY])

    def reseat(self, state: ChainedState, seats: Sequence[int], requests: Sequence[Request | None]) -> ChainedState:
        """The state with other prompts in some seats (`Decoder.reseat`)."""
        canvas = self.plain.reseat(state.canvas, seats, requests)
        rows = torch.tensor(seats, device=state.ready.device)
        used = tuple(0 if place in seats else count for place, count in enumerate(state.rows))
        fresh = state._replace(canvas=canvas, ready=state.ready.index_fill(0, rows, False), rows=used)
        return _drawn(fresh, seats)


def _drawn(state: ChainedState, seats: Sequence[int]) -> ChainedState:
    """The state with all draws of the prompts that have just taken some seats."""
    uniforms = state.uniforms.clone()
    for place in seats:
        if (generator := state.canvas.generators[place]) is not None:
            uniforms[place].uniform_(generator=generator)
    return state._replace(uniforms=uniforms)
