"""Several places of a canvas per forward, each drawn with those before it known, by one layer (ADJUST, arXiv
2509.22738).

    (h, l) <- the diffusion model on the canvas                              one forward
    for j in 1 .. K:
        i <- the first open place in the order of l;   x_i ~ softmax(l_i / tau)
        if j < K:  h <- layer(x, h),   l <- head(h)                          the model's own head

A forward is followed by K - 1 passes of the layer (`smc_bridge.models.learned.adjust`) over the places from the first
gap on, as many as it sees, and one of these is filled each time: the tokens of a forward agree with each other, which
independent draws do not. The order is a function of the laws before a place is drawn: a continuation has the density
`prod softmax(l^(j)_{i_j})[x_{i_j}]`, which is neither the diffusion model's joint nor the AR law.

Shapes: R rows, T places that the model was shown, W of them that the layer sees, D hidden size, A alphabet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smc_bridge.canvas.decoder import Canvas
from smc_bridge.canvas.rules import Ordered
from smc_bridge.canvas.state import CanvasState, extent, open_places
from smc_bridge.decode import Seat
from smc_bridge.describe import describe
from smc_bridge.distributions.shaping import Shaping
from smc_bridge.models.arguments import check_text, said
from smc_bridge.models.ends import ends_of
from smc_bridge.models.learned.adjust import Refiner
from smc_bridge.models.protocols import ABSENT, MASKED, LanguageModel, Scored
from smc_bridge.proposals.adjust import as_refiner, refreshed
from smc_bridge.randomness import PromptSource
from smc_bridge.requests import Request
from smc_bridge.result import Forwards, Result
from smc_bridge.sampling import inverse_cdf
from smc_bridge.streams import Role

#: Why no result is proper.
WHY = "the adjusted marginals of the diffusion model, not the AR law"


@dataclass
class AdjustedCanvas:
    """The decoder of a canvas whose laws one layer refreshes after every token (module docstring), as a `Decoder`.

    Attributes:
        plain: the decoder that fills as many places of a forward from independent marginals.
        head: the layer.
        name: for tables.
        detokenize: from a continuation's ids to its text.
    Raises:
        ValueError: one of them is something else, or the layer is for another model.
    """

    plain: Canvas
    head: Refiner
    name: str = "adjust"
    detokenize: Callable[[list[int]], str] | None = None

    def __post_init__(self) -> None:
        check_text("name", self.name)
        if not isinstance(self.plain.rule, Ordered) or self.plain.anchors or self.plain.credit is not None:
            raise ValueError(
                f"plain = {said(self.plain.rule)}: give a canvas with Ordered(...), without anchors or credit"
            )
        self.order = Ordered(self.plain.rule.order, 1, self.plain.rule.tempered)
        as_refiner(self.head, self.plain.proposal.model)

    @property
    def stream(self) -> Role:
        """The stream of random numbers of the diffusion model's own decoders."""
        return self.plain.stream

    @property
    def models(self) -> dict[str, LanguageModel]:
        """The one model that reads the prompts, by its kind."""
        return self.plain.models

    def open(self, requests: Sequence[Request | None], limit: int) -> CanvasState:
        """P seats with their prompts and empty canvases (`Decoder.open`)."""
        return self.plain.open(requests, limit)

    def step(self, state: CanvasState) -> CanvasState:
        """One forward, and K places filled (`Decoder.step`)."""
        seated = [(place, seat) for place, seat in enumerate(state.seats) if seat is not None and not seat.complete]
        proposal, device, limit = self.plain.proposal, self.plain.proposal.model.device, state.canvas.shape[1]
        rows = torch.tensor([place for place, _ in seated], device=device)
        before = state.canvas[rows]
        prompt = torch.tensor([len(seat.request.prompt) for _, seat in seated], device=device)
        shown, eligible = open_places(
            before, proposal.lookahead, self.plain.span, model=proposal.model, prompt=prompt
        )
        scored = state.session.score(rows, shown, hidden=True)
        source = PromptSource([g for place, _ in seated if (g := state.generators[place]) is not None], device=device)
        uniform = source.uniform((limit,))[:, : shown.shape[1]]
        after = before.clone()
        prompts = torch.tensor([(MASKED, *seat.request.prompt)[-1] for _, seat in seated], device=device)
        after[:, : shown.shape[1]] = self._filled(shown, eligible, prompts, scored, uniform)
        after = torch.where(after == ABSENT, before, after)
        end, whole = extent(after, ends_of(proposal.model.eos_id))
        seats = list[Seat | None](state.seats)
        found = zip(after.tolist(), end.tolist(), whole.tolist(), strict=True)
        for (place, seat), (row, count, complete) in zip(seated, found, strict=True):
            seats[place] = seat.after(row[:count], complete=complete)
        return state._replace(seats=tuple(seats), canvas=state.canvas.index_copy(0, rows, after))

    def _filled(self, shown: Tensor, eligible: Tensor, last: Tensor, scored: Scored, uniform: Tensor) -> Tensor:
        """Canvases with K more tokens, or as many as have room, `[R, T]`.

        Args:
            shown: what stands there, `[R, T]`.
            eligible: places that may be filled, `[R, T]`.
            last: token before each, of the prompt, `[R]`; `MASKED` where there is none.
            scored: of the forward.
            uniform: a draw for each place, `[R, T]`.
        """
        assert isinstance(self.plain.rule, Ordered)
        start = (shown == MASKED).to(torch.uint8).argmax(1, keepdim=True)
        place = start + torch.arange(int((shown.shape[1] - start).max()), device=shown.device)  # [R, W]
        before = torch.cat([last[:, None], shown], 1).gather(1, start)[:, 0]
        there = place < shown.shape[1]
        place = place.clamp_max(shown.shape[1] - 1)
        canvas = torch.where(there, shown.gather(1, place), ABSENT)
        there = canvas != ABSENT
        left, logits, hidden = eligible.gather(1, place) & there, *(
            x.take_along_dim(place[..., None], 1) for x in scored
        )
        left &= torch.arange(left.shape[1], device=left.device) < self.head.places
        going = torch.arange(len(shown), device=shown.device)
        for j in range(self.plain.rule.tokens):
            if j:
                hidden[going], logits = refreshed(
                    self.head, self.plain.proposal.model, canvas[going], hidden[going], there[going],
                    before=before[going],
                )
            at = self._next(logits, left[going])
            law = self._law(logits.take_along_dim(at[:, None, None], 1)[:, 0])
            canvas[going, at] = inverse_cdf(law, uniform[going, place[going, at]])
            left[going, at] = False
            going = going[left[going].any(1)]
            if not going.numel():
                break
        # A row's places past its last one repeat that: what is written there is written once.
        wide = torch.nn.functional.pad(shown, (0, 1))
        to = torch.where(there, place, shown.shape[1])
        return wide.scatter(1, to, canvas)[:, :-1]

    def _next(self, logits: Tensor, left: Tensor) -> Tensor:
        """The place that is filled next, `[n]`, among `left: [n, W]`."""
        shaping = self.plain.proposal.shaping
        own = shaping if self.order.tempered else Shaping(banned_ids=shaping.banned_ids)
        eager = self.order.eagerness(own.log_probs(logits).double())
        return eager.masked_fill(~left, -torch.inf).argmax(1)

    def _law(self, logits: Tensor) -> Tensor:
        """The law of the first lane, `[n, A]` -> `[n, A]`."""
        proposal = self.plain.proposal
        return proposal.log_probs(logits[:, None], proposal.lanes)[:, 0, 0]

    def finished(self, state: CanvasState) -> list[int]:
        """Seats whose continuation is complete (`Decoder.finished`)."""
        return self.plain.finished(state)

    def result(self, state: CanvasState, seat: int) -> Result:
        """See `Decoder.result`: one continuation; the layer's passes are no forwards."""
        own = state.seats[seat]
        assert own is not None, f"nobody sits in seat {seat}"
        settings = {
            **self.plain.result(state, seat).settings, "method": self.name, "head": dict(self.head.config),
            "rule": describe(self.plain.rule), "law": "adjusted marginals in the order of the rule",
        }
        forwards = Forwards(own.forwards, own.forwards)
        return own.result(settings, forwards=forwards, detokenize=self.detokenize, reasons=[WHY])

    def reseat(self, state: CanvasState, seats: Sequence[int], requests: Sequence[Request | None]) -> CanvasState:
        """The state with other prompts in some seats (`Decoder.reseat`)."""
        return self.plain.reseat(state, seats, requests)
