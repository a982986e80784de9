"""Self-speculation of a masked diffusion model: the one-token-per-step greedy decoder, in fewer forwards (SSD, arXiv
2510.04147; verification that rides on the next draft: FreeDave, 2510.00294).

A forward ranks all open places by confidence; the surest j of them, with their likeliest tokens, are a guess of what
the greedy decoder would fill in its next j steps. One batched forward reads the states with 0, 1, .. N of the guesses
filled, one row for each. The state after j fills has a greedy choice (place, token) of its own, and

    guess j + 1 stands  iff  it is the choice of the state after j fills, and guesses 1 .. j stand

so that what is filled are the greedy decoder's own steps, token by token: the guesses that stand, and the choice of the
last state that is reached. That state's row is also the next draft. One row with *all* guesses filled cannot replace
them: its laws are those of a state that the greedy decoder may never come to.

Where the canvas is cut at a foreseen end (`smc_bridge.canvas.cut`), no guess stands behind a state that cuts it: the
rows of the states after it were of a longer canvas.

A state's laws must be a function of the state: under an approximate cache of the diffusion model the greedy decoder's
depend on its earlier forwards, and the two may part. What is filled is never given to a session's cache here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from smc_bridge.canvas.cut import CutAtEnd, uncut
from smc_bridge.canvas.decoder import Canvas
from smc_bridge.canvas.ranked import Ranked
from smc_bridge.canvas.state import CanvasState, extent, open_places
from smc_bridge.decode import Seat
from smc_bridge.distributions.shaping import Shaping
from smc_bridge.models.arguments import check_text, said, whole_number
from smc_bridge.models.ends import ends_of
from smc_bridge.models.protocols import ABSENT, MASKED, LanguageModel
from smc_bridge.requests import Request
from smc_bridge.result import Forwards, Result
from smc_bridge.streams import Role

#: Why no result is proper.
WHY = "the diffusion model's greedy decoder has no law of its own"


class Guesses(NamedTuple):
    """What the greedy decoder may fill next, in this order.

    Attributes:
        place: in the canvas, `[R, N]`; -1 behind the last guess.
        token: the likeliest one of the place, `[R, N]`; -1 behind the last guess.
    """

    place: Tensor
    token: Tensor


class Choices(NamedTuple):
    """What one forward says of B canvases.

    Attributes:
        place, token: as of `Guesses`, the canvas's own choice first, `[B, N + 1]`.
        cut: first place that is cut off, `[B]`; T for none.
    """

    place: Tensor
    token: Tensor
    cut: Tensor


class SpeculativeState(NamedTuple):
    """P seats of one row each.

    Attributes:
        canvas: as of the greedy decoder.
        guesses: of what is filled next, `[P, N]`.
        rows: of the model that were run for each seat.
    """

    canvas: CanvasState
    guesses: Guesses
    rows: tuple[int, ...]

    @property
    def seats(self) -> tuple[Seat | None, ...]:
        """Who sits in which seat."""
        return self.canvas.seats


@dataclass
class SelfSpeculation:
    """The greedy decoder's own steps, several per forward (module docstring), as a `Decoder`.

    Attributes:
        greedy: the decoder that it equals: one place per forward in the order of confidence, at temperature 0.
        draft: N, guesses that are verified per forward, each by a row, at most as many as a canvas has places; 0 is the
            greedy decoder itself.
        name: for tables.
        detokenize: from a continuation's ids to its text.
    Raises:
        ValueError: one of them is something else.
    """

    greedy: Canvas
    draft: int = 4
    name: str = "SSD"
    detokenize: Callable[[list[int]], str] | None = None

    def __post_init__(self) -> None:
        self.draft = whole_number("draft", self.draft, least=0, remedy="guess a whole number of fills, 0 for none")
        check_text("name", self.name)
        rule, law = uncut(self.greedy.rule), self.greedy.proposal.shaping
        if rule != Ranked() or law.temperature != 0 or self.greedy.credit is not None:
            raise ValueError(
                f"greedy = {said(rule)} at temperature {law.temperature:g}: give a canvas with Ranked(), one "
                "token per forward, at temperature 0"
            )

    @property
    def stream(self) -> Role:
        """The stream of random numbers of the diffusion model's own decoders; none is drawn."""
        return self.greedy.stream

    @property
    def models(self) -> dict[str, LanguageModel]:
        """The one model that reads the prompts, by its kind."""
        return self.greedy.models

    def open(self, requests: Sequence[Request | None], limit: int) -> SpeculativeState:
        """P seats with their prompts and empty canvases, and no guesses yet (`Decoder.open`)."""
        canvas = self.greedy.open(requests, limit)
        nothing = torch.full((len(requests), min(self.draft, limit)), -1, dtype=torch.long, device=canvas.canvas.device)
        return SpeculativeState(canvas, Guesses(nothing, nothing), (0,) * len(requests))

    def step(self, state: SpeculativeState) -> SpeculativeState:
        """One forward of up to N + 1 rows per prompt, and the greedy steps that it settles (`Decoder.step`)."""
        seated = [(place, seat) for place, seat in enumerate(state.seats) if seat is not None and not seat.complete]
        model, device = self.greedy.proposal.model, state.canvas.canvas.device
        rows = torch.tensor([place for place, _ in seated], device=device)
        prompt = torch.tensor([len(seat.request.prompt) for _, seat in seated], device=device)
        guesses = Guesses(state.guesses.place[rows], state.guesses.token[rows])
        states = self.filled(state.canvas.canvas[rows], guesses)  # [R, N + 1, T]
        count = (guesses.place >= 0).sum(1)
        verified = torch.arange(guesses.place.shape[1] + 1, device=device) <= count[:, None]
        owner = verified.nonzero()[:, 0]
        choice, token, cut = self.verified(state.canvas, rows[owner], states[verified], prompt[owner])
        # Guesses of every state, [R, N + 1, N + 1]: first its own choice, behind it the draft if it is the one reached.
        every = torch.full((*verified.shape, verified.shape[1]), -1, dtype=torch.long, device=device)
        places, tokens = every.clone(), every
        places[verified], tokens[verified] = choice, token
        size = (states[:, 0] != ABSENT).sum(1, keepdim=True)
        left = size.repeat(1, verified.shape[1])  # places of every state, once it is cut
        left[verified] = torch.minimum(left[verified], cut)
        stands = (guesses.place >= 0) & (left[:, :-1] == size)
        stands &= (guesses.place == places[:, :-1, 0]) & (guesses.token == tokens[:, :-1, 0])
        reached = stands.to(torch.uint8).cumprod(1).sum(1)
        own = torch.arange(len(rows), device=device)
        places, tokens = places[own, reached], tokens[own, reached]
        after = self.filled(states[own, reached], Guesses(places[:, :1], tokens[:, :1]))[:, 1]
        after[torch.arange(after.shape[1], device=device) >= left[own, reached][:, None]] = ABSENT
        canvas = state.canvas.canvas.index_copy(0, rows, after)
        fresh = Guesses(
            state.guesses.place.index_copy(0, rows, places[:, 1:]),
            state.guesses.token.index_copy(0, rows, tokens[:, 1:]),
        )
        end, whole = extent(after, ends_of(model.eos_id))
        seats, used = list(state.seats), list(state.rows)
        found = zip(after.tolist(), end.tolist(), whole.tolist(), (count + 1).tolist(), strict=True)
        for (place, seat), (row, length, complete, more) in zip(seated, found, strict=True):
            seats[place] = seat.after(row[:length], complete=complete)
            used[place] += more
        return SpeculativeState(state.canvas._replace(seats=tuple(seats), canvas=canvas), fresh, tuple(used))

    @staticmethod
    def filled(canvas: Tensor, guesses: Guesses) -> Tensor:
        """The canvases `[R, T]` with the first 0, 1, .. N guesses filled in, `[R, N + 1, T]`."""
        states = [canvas]
        for place, token in zip(guesses.place.unbind(1), guesses.token.unbind(1), strict=True):
            at = place.clamp_min(0)[:, None]
            kept = states[-1].gather(1, at)
            states.append(states[-1].scatter(1, at, torch.where(place[:, None] < 0, kept, token[:, None])))
        return torch.stack(states, 1)

    def verified(
        self, state: CanvasState, rows: Tensor, canvas: Tensor, prompt: Tensor
    ) -> Choices:
        """The greedy choice of each canvas, and what may come behind it, by one forward.

        Args:
            rows: of the session, which prompt stands before each canvas, `[B]`.
            canvas: `[B, T]`.
            prompt: tokens of the prompts, `[B]`.
        """
        proposal, span = self.greedy.proposal, self.greedy.span
        most = min(self.draft, canvas.shape[1]) + 1
        shown, _ = open_places(canvas, proposal.lookahead, span, model=proposal.model, prompt=prompt)
        logits = state.session.score(rows, shown)
        law = Shaping(banned_ids=proposal.shaping.banned_ids).log_probs(logits)
        cut = torch.full_like(prompt, shown.shape[1])
        if isinstance(self.greedy.rule, CutAtEnd):
            masked, step = shown == MASKED, torch.zeros_like(prompt)
            look = self.greedy.look(law, lambda: law, shown, masked, step, limit=canvas.shape[1])
            cut = self.greedy.rule.cut(look)
            shown = torch.where(torch.arange(shown.shape[1], device=cut.device) < cut[:, None], shown, ABSENT)
        value, token = law.max(-1)
        # By span, then by confidence, the earlier of equal ones first: the next span opens when one is full.
        order = value.exp().masked_fill(shown != MASKED, -torch.inf).argsort(dim=1, descending=True, stable=True)
        group = torch.where(shown == MASKED, self._span_of(shown), shown.shape[1]).gather(1, order)
        order = order.gather(1, group.argsort(dim=1, stable=True))[:, :most]
        open_still = shown.gather(1, order) == MASKED
        found = (torch.where(open_still, each, -1) for each in (order, token.gather(1, order)))
        pad = (0, most - order.shape[1])
        place, token = (torch.nn.functional.pad(each, pad, value=-1) for each in found)
        return Choices(place, token, torch.where(cut < shown.shape[1], cut, canvas.shape[1]))

    def _span_of(self, shown: Tensor) -> Tensor:
        """Which span each place is of, `[B, T]`."""
        place = torch.arange(shown.shape[1], device=shown.device).expand(shown.shape)
        return place // self.greedy.span if self.greedy.span is not None else torch.zeros_like(place)

    def finished(self, state: SpeculativeState) -> list[int]:
        """Seats whose continuation is complete (`Decoder.finished`)."""
        return self.greedy.finished(state.canvas)

    def result(self, state: SpeculativeState, seat: int) -> Result:
        """See `Decoder.result`: one continuation, up to the first gap if it is not finished."""
        own = state.seats[seat]
        assert own is not None, f"nobody sits in seat {seat}"
        plain = self.greedy.result(state.canvas, seat).settings
        settings = {**plain, "method": self.name, "draft": self.draft}
        forwards = Forwards(own.forwards, state.rows[seat])
        return own.result(settings, forwards=forwards, detokenize=self.detokenize, reasons=[WHY])

    def reseat(
        self, state: SpeculativeState, seats: Sequence[int], requests: Sequence[Request | None]
    ) -> SpeculativeState:
        """The state with other prompts in some seats (`Decoder.reseat`)."""
        rows = torch.tensor(seats, device=state.canvas.canvas.device)
        guesses = Guesses(*(each.index_fill(0, rows, -1) for each in state.guesses))
        used = tuple(0 if place in seats else count for place, count in enumerate(state.rows))
        return SpeculativeState(self.greedy.reseat(state.canvas, seats, requests), guesses, used)
