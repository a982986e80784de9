"""Denoising steps of a canvas: ancestral sampling from a masked diffusion model, which fills random places.

    x_t -> x_s:  each masked place is filled with probability (alpha_s - alpha_t) / (1 - alpha_t) = (t - s) / t,
                 independently, by a draw from its own law given x_t; what is filled stays
    t = 1, 1 - 1/T, .., 1/T,  s = t - 1/T,  alpha_t = 1 - t (log-linear noise)

after MDLM (Sahoo et al. 2024, arXiv 2406.07524). Which places are filled does not depend on what stands in them, so a
forward is run for the rows alone in which a step fills something: in the others nothing changes. The next M places are
filled by T steps, then the M behind them; places behind a committed end of sequence are left masked.

What asks the autoregressive model, or weighs several canvases of a prompt, is a subclass: it chooses tokens
(`chosen`), or looks at what a step has done (`settled`).

Shapes: P seats, N canvases of each, R = P * N rows (seat-major), T_max places of a canvas (the length limit), W places
that the model is shown, A alphabet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from smc_bridge.canvas.denoising_state import DenoisingState, Masked, Tilt, Wide
from smc_bridge.canvas.judged import Judged, judge
from smc_bridge.canvas.state import extent
from smc_bridge.decode import Seat
from smc_bridge.describe import name_of
from smc_bridge.distributions.shaping import Shaping
from smc_bridge.distributions.target import ARTarget
from smc_bridge.models.arguments import check_callable, check_text, said, whole_number
from smc_bridge.models.ends import ends_of, is_end
from smc_bridge.models.protocols import ABSENT, MASKED, LanguageModel, within_block
from smc_bridge.models.rows import reseat
from smc_bridge.plugins import texts_of
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.randomness import PromptSource, Source
from smc_bridge.requests import Request, prompts_of
from smc_bridge.result import Forwards, Result
from smc_bridge.streams import Role


@dataclass
class Denoiser:
    """Ancestral sampling from the diffusion model, as a `Decoder` (module docstring).

    Attributes:
        proposal: its first lane's law is drawn from; `lookahead` places are denoised together.
        target: the law of the AR model that is asked, None if it is not.
        steps: T, for the places that are denoised together.
        particles: N, canvases of each prompt.
        name: for tables.
        detokenize: from a continuation's ids to its text.
    Raises:
        ValueError: one of them is something else, or out of range.
    """

    proposal: DLMProposal
    target: ARTarget | None = None
    steps: int = 32
    particles: int = 1
    name: str = "denoising"
    detokenize: Callable[[list[int]], str] | None = None

    #: Why results are not properly weighted for the AR law.
    why: ClassVar[str] = "the diffusion model's own law is not the AR law"

    def __post_init__(self) -> None:
        if not isinstance(self.proposal, DLMProposal):
            raise ValueError(f"proposal = {said(self.proposal)}: give a DLMProposal, whose marginals are drawn from")
        if self.target is not None:
            self._check_target(self.target)
        check_text("name", self.name)
        check_callable("detokenize", self.detokenize, "a function of a list of ids")
        self.steps = whole_number("steps", self.steps, remedy="denoise in at least 1 step, a whole number")
        self.particles = whole_number("particles", self.particles)

    def _check_target(self, target: Any) -> None:
        """Raise ValueError unless this is a target over the alphabet of the proposal."""
        if not isinstance(target, ARTarget):
            raise ValueError(f"target = {said(target)}: give an ARTarget")
        q, p = self.proposal.model, target.model
        if q.vocab_size != p.vocab_size or ends_of(q.eos_id) != ends_of(p.eos_id):
            raise ValueError(
                f"the models' alphabets differ: {q.vocab_size} tokens ending with {q.eos_id} against {p.vocab_size} "
                f"ending with {p.eos_id}; use a pair that shares its tokenizer"
            )

    @property
    def stream(self) -> Role:
        """The stream of random numbers of the diffusion model's own decoders."""
        return Role.DLM

    @property
    def models(self) -> dict[str, LanguageModel]:
        """The models that read the prompts, by kind."""
        asked: dict[str, LanguageModel] = {} if self.target is None else {"autoregressive": self.target.model}
        return {"diffusion": self.proposal.model, **asked}

    def open(self, requests: Sequence[Request | None], limit: int) -> DenoisingState:
        """P seats with their prompts and empty canvases (`Decoder.open`)."""
        count, device = len(requests), self.proposal.model.device
        prefix = prompts_of(requests, device=device)
        held = prefix.tokens.clamp_min(0), prefix.length
        nobody = (None,) * count
        state = DenoisingState(
            nobody, nobody, self.proposal.model.session(*held),
            None if self.target is None else self.target.model.session(*held),
            torch.full((count * self.particles, limit), MASKED, dtype=torch.long, device=device),
            torch.zeros(count * self.particles, dtype=torch.long, device=device),
            (0,) * count, (Forwards(),) * count, Tilt.start(count, self.particles),
        )
        return self._with(state, range(count), requests)

    def source(self, state: DenoisingState, seats: Sequence[int], each: int, *, of_places: bool = True) -> Source:
        """Draws of some seats, `each` rows of every one; for the places of a canvas, or else of any number a row."""
        own = [generator for seat in seats if (generator := state.generators[seat]) is not None]
        draws = PromptSource(own, each, device=state.canvas.device)
        return Wide(draws, state.canvas.shape[1]) if of_places else draws

    def step(self, state: DenoisingState) -> DenoisingState:
        """One denoising step of every prompt that is not finished (`Decoder.step`)."""
        seated = [place for place, seat in enumerate(state.seats) if seat is not None and not seat.complete]
        rows, device = self.rows(state, seated), state.canvas.device
        canvas, place = state.canvas[rows], torch.arange(state.canvas.shape[1], device=device)
        at = torch.tensor([state.clock[seat] % self.steps for seat in seated], device=device)
        at = at.repeat_interleave(self.particles)
        reach = torch.where(at == 0, self._reach(state, rows, canvas), state.reach[rows])
        ends = ends_of(self.proposal.model.eos_id)
        behind = (is_end(canvas, ends).long().cumsum(1) - is_end(canvas, ends).long()) > 0
        free = (canvas == MASKED) & (place < reach[:, None]) & ~behind
        left = (self.steps - at).double()
        fill = self.source(state, seated, self.particles).bernoulli(torch.where(free, 1.0 / left[:, None], 0.0))
        state = state._replace(reach=state.reach.index_copy(0, rows, reach))
        asked = (fill.any(1) | self.wanted(state, rows)) & free.any(1)
        seen = None
        if bool(asked.any()):
            state, seen = self._forward(state, rows, asked, free, fill, left / self.steps)
            state, tokens = self.chosen(state, seen)
            filled = torch.where(seen.fill, tokens, seen.shown)
            part = state.canvas[seen.rows]
            part[:, : filled.shape[1]] = torch.where(filled >= 0, filled, part[:, : filled.shape[1]])
            state = state._replace(canvas=state.canvas.index_copy(0, seen.rows, part))
        clock = list(state.clock)
        for seat in seated:
            clock[seat] += 1
        return self._ended(self.settled(state._replace(clock=tuple(clock)), seated, seen), seated)

    def rows(self, state: DenoisingState, seats: Sequence[int]) -> Tensor:
        """Rows of some seats, `[len(seats) * N]`."""
        first = torch.tensor(seats, dtype=torch.long, device=state.canvas.device) * self.particles
        return (first[:, None] + torch.arange(self.particles, device=first.device)).flatten()

    def complete(self, state: DenoisingState, seats: Sequence[int]) -> Tensor:
        """Which canvases of some seats are filled as far as they go, BoolTensor `[len(seats), N]` on the host."""
        _, whole = extent(state.canvas[self.rows(state, seats)], ends_of(self.proposal.model.eos_id))
        return whole.reshape(len(seats), self.particles).cpu()

    def wanted(self, state: DenoisingState, rows: Tensor) -> Tensor:
        """Rows that a forward is run for even if the step fills nothing in them, BoolTensor like `rows`."""
        return torch.zeros_like(rows, dtype=torch.bool)

    def chosen(self, state: DenoisingState, seen: Masked) -> tuple[DenoisingState, Tensor]:
        """Tokens for the places that are filled, `[B, W]`: fresh draws."""
        return state, seen.drawn(self.of_rows(state, seen.rows), seen.fill)

    def settled(self, state: DenoisingState, seats: Sequence[int], seen: Masked | None) -> DenoisingState:
        """What becomes of the seats' canvases once a step has filled them; `seen` is None if none was shown."""
        return state

    def of_rows(self, state: DenoisingState, rows: Tensor) -> Source:
        """Draws of rows; all rows of their seats draw, so that which of them are asked changes no other's draws."""
        seats, local = torch.unique(rows // self.particles, return_inverse=True)
        return self.source(state, seats.tolist(), self.particles).select(
            local * self.particles + rows % self.particles
        )

    def asked(
        self, state: DenoisingState, rows: Tensor, candidates: Tensor, known: Tensor
    ) -> tuple[DenoisingState, Judged]:
        """What the AR model says of candidates of rows `[B]` (increasing), by one forward, which is counted; arguments
        as `judge`."""
        assert self.target is not None, "no target is asked"
        assert state.ar is not None, "no target is asked"
        owner = rows // self.particles
        judged = judge(state.ar, self.target, owner, candidates, known)
        seats, count = torch.unique_consecutive(owner, return_counts=True)
        first = (count.cumsum(0) - count).tolist()
        costs = [(s, judged.cost(r, n)) for s, r, n in zip(seats.tolist(), first, count.tolist(), strict=True)]
        return state.charged(costs), judged

    def _reach(self, state: DenoisingState, rows: Tensor, canvas: Tensor) -> Tensor:
        """End of the next places that are denoised together, `[R']`."""
        first, _ = extent(canvas, ())
        prompts = [0 if seat is None else len(seat.request.prompt) for seat in state.seats]
        prompt = torch.tensor(prompts, device=rows.device)[rows // self.particles]
        ahead = (canvas.shape[1] - first).clamp_max(self.proposal.lookahead)
        return first + within_block(self.proposal.model, prompt + first, ahead)

    def _forward(
        self, state: DenoisingState, every: Tensor, asked: Tensor, free: Tensor, fill: Tensor, t: Tensor
    ) -> tuple[DenoisingState, Masked]:
        """One forward of the diffusion model on those of the rows that are `asked`, which is counted."""
        rows = every[asked]
        reach, owner, canvas = state.reach[rows], rows // self.particles, state.canvas[rows]
        width = int(reach.max())
        inside = torch.arange(width, device=rows.device) < reach[:, None]
        shown = torch.where(inside, canvas[:, :width], ABSENT)
        logits, shaping = state.dlm.score(owner, shown), self.proposal.shaping
        log_q = self.proposal.log_probs(logits, self.proposal.lanes)[:, 0]
        plain = Shaping(banned_ids=shaping.banned_ids)
        seats, count = torch.unique(owner, return_counts=True)
        costs = [(s, Forwards(1, n)) for s, n in zip(seats.tolist(), count.tolist(), strict=True)]
        return state.charged(costs), Masked(
            rows, log_q, lambda: plain.log_probs(logits), shown, free[asked, :width], fill[asked, :width], t[asked]
        )

    def _ended(self, state: DenoisingState, seats: Sequence[int]) -> DenoisingState:
        """Note whose canvases are all complete."""
        after = list(state.seats)
        for place, done in zip(seats, self.complete(state, seats).all(1).tolist(), strict=True):
            seat = after[place]
            assert seat is not None
            after[place] = seat._replace(complete=done, forwards=state.costs[place].dlm_forwards)
        return state._replace(seats=tuple(after))

    def finished(self, state: DenoisingState) -> list[int]:
        """Seats whose canvases are all complete (`Decoder.finished`)."""
        return [place for place, seat in enumerate(state.seats) if seat is not None and seat.complete]

    def settings(self) -> dict[str, Any]:
        """What shapes the draws besides models and laws, as plain data."""
        return {"steps": self.steps, "particles": self.particles}

    def result(self, state: DenoisingState, seat: int) -> Result:
        """See `Decoder.result`: N continuations with their weights, each up to its first gap if it is not finished."""
        own = state.seats[seat]
        assert own is not None, f"nobody sits in seat {seat}"
        canvas = state.canvas[self.rows(state, [seat])]
        count, _ = extent(canvas, ends_of(self.proposal.model.eos_id))
        sequences = [row[:n] for row, n in zip(canvas.tolist(), count.tolist(), strict=True)]
        target = {} if self.target is None else {"target": self.target.shaping.settings()}
        settings = {
            "method": self.name, **self.settings(), "lookahead": min(self.proposal.lookahead, canvas.shape[1]),
            "proposal": self.proposal.shaping.settings(), **target,
            "models": {
                "dlm": name_of(self.proposal.model),
                **({} if self.target is None else {"ar": name_of(self.target.model)}),
            },
            "max_new_tokens": canvas.shape[1], **own.request.settings(),
        }
        return Result(
            prompt=own.request.prompt, sequences=sequences, log_weights=state.tilt.log_weights[seat].tolist(),
            texts=texts_of(self.detokenize, sequences, own.request.prompt), method=self.name, proper=False,
            reasons=[self.why], forwards=state.costs[seat], seconds=time.perf_counter() - own.entered,
            complete=own.complete, settings=settings,
        )

    def reseat(
        self, state: DenoisingState, seats: Sequence[int], requests: Sequence[Request | None]
    ) -> DenoisingState:
        """The state with other prompts in some seats (`Decoder.reseat`)."""
        device = state.canvas.device
        held = torch.tensor([0 if seat is None else len(seat.request.prompt) for seat in state.seats], device=device)
        rows, fresh = torch.tensor(seats, device=device), prompts_of(requests, device=device)
        for session in (state.dlm, state.ar):
            if session is not None:
                reseat(session, held, rows, fresh.tokens, fresh.length)
        return self._with(state, seats, requests)

    def _with(
        self, state: DenoisingState, seats: Iterable[int], requests: Sequence[Request | None]
    ) -> DenoisingState:
        """The state with prompts before their first step in some seats; the sessions are left as they are."""
        places = list(seats)
        who, draws, clock, costs = list(state.seats), list(state.generators), list(state.clock), list(state.costs)
        for place, request in zip(places, requests, strict=True):
            who[place], draws[place] = Seat.of(request), None if request is None else request.generator()
            clock[place], costs[place] = 0, Forwards()
        return state._replace(
            seats=tuple(who), generators=tuple(draws), clock=tuple(clock), costs=tuple(costs),
            canvas=state.canvas.index_fill(0, self.rows(state, places), MASKED),
            tilt=state.tilt.put(places, Tilt.start(len(places), self.particles)),
        )
