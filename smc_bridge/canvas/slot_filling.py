"""Slots that the diffusion model plans and the AR model fills (ReFusion, arXiv 2512.13586).

    plan   one forward of the diffusion model drafts every masked slot; chosen are those whose first drafted token has a
           probability above tau_slot, or else the slot where it is greatest
    fill   one forward of the AR model over the chosen drafts, in order of their places: the longest prefix of tokens
           with a probability above tau_token, the first of each slot in any case, decides which slots are whole in it;
           behind an end of sequence in it all are, since that is the end of the text

Whole slots are kept and the next step plans anew. If none is, the chosen slots are filled one by one: each is a row of
its own, in each pass of the AR model the tokens above tau_token are accepted, as many in all rows of a prompt, the next
one is drawn from the AR law, and the rest is drafted from the laws of that pass. Probabilities are those at temperature
1. The AR model reads what is finished, and the drafts before a token, in order of their places; masked slots are left
out of its text (`smc_bridge.canvas.slots`).

Shapes: P seats, R rows of a step, T places of a canvas, C columns of a text, n slots, k places of a slot, A alphabet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from smc_bridge.canvas.slots import Rests, Text, first_of, of_slots, planned
from smc_bridge.canvas.state import CanvasState, extent, open_places, with_prompts
from smc_bridge.describe import name_of
from smc_bridge.distributions.shaping import Shaping
from smc_bridge.models.arguments import check_text, real_between, whole_number
from smc_bridge.models.ends import ends_of, is_end
from smc_bridge.models.protocols import MASKED, CausalLM, CausalSession, LanguageModel
from smc_bridge.models.rows import reseat
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.randomness import PromptSource
from smc_bridge.requests import Request, prompts_of
from smc_bridge.result import Forwards, Result
from smc_bridge.sampling import inverse_cdf
from smc_bridge.streams import Role

#: Why no result is proper.
WHY = "slots are kept by thresholds on what was drafted: they have no law that is known"


class SlotState(NamedTuple):
    """P seats of one row each.

    Attributes:
        canvas: the canvases, and the diffusion model's session on the prompts.
        causal: the AR model's session on the prompts.
        asked: forwards of the AR model for each seat.
    """

    canvas: CanvasState
    causal: CausalSession
    asked: tuple[Forwards, ...]


@dataclass
class SlotFilling:
    """The decoder of slots by thresholds (module docstring), as a `Decoder`.

    Attributes:
        proposal: its first lane's law drafts the slots; `lookahead` masks stand behind what is filled without a gap.
        causal: the AR model, whose tokens are drawn at the same temperature.
        slot: k, places of a slot.
        tau_slot: probability of its first token above which a slot is chosen.
        tau_token: probability above which a drafted token is accepted.
        span: consecutive places whose slots are open at a time; None for all that are shown.
        name: for tables.
        detokenize: from a continuation's ids to its text.
    Raises:
        ValueError: one of them is out of range.
    """

    proposal: DLMProposal
    causal: CausalLM
    slot: int = 4
    tau_slot: float = 0.6
    tau_token: float = 0.3
    span: int | None = 32
    name: str = "slots"
    detokenize: Callable[[list[int]], str] | None = None

    def __post_init__(self) -> None:
        check_text("name", self.name)
        self.slot = whole_number("slot", self.slot, remedy="give a whole number of places, at least 1")
        if self.span is not None:
            self.span = whole_number("span", self.span, remedy="open at least 1 place, a whole number, or None for all")
        for name in ("tau_slot", "tau_token"):
            value = real_between(name, getattr(self, name), 0.0, 1.0, remedy="give a probability")
            setattr(self, name, float(value))

    @property
    def stream(self) -> Role:
        """The stream of random numbers of the diffusion model's own decoders."""
        return Role.DLM

    @property
    def models(self) -> dict[str, LanguageModel]:
        """Both models read the prompts."""
        return {"diffusion": self.proposal.model, "autoregressive": self.causal}

    def open(self, requests: Sequence[Request | None], limit: int) -> SlotState:
        """P seats with their prompts and empty canvases (`Decoder.open`)."""
        device, empty = self.proposal.model.device, (None,) * len(requests)
        prefix = prompts_of(requests, device=device)
        dlm = self.proposal.model.session(prefix.tokens.clamp_min(0), prefix.length)
        ar = self.causal.session(prefix.tokens.clamp_min(0), prefix.length)
        blank = torch.full((len(requests), limit), MASKED, device=device)
        canvas = CanvasState(empty, empty, dlm, blank, torch.zeros_like(prefix.length))
        return SlotState(with_prompts(canvas, range(len(requests)), requests), ar, (Forwards(),) * len(requests))

    def step(self, state: SlotState) -> SlotState:
        """One plan, and the slots that are filled (`Decoder.step`)."""
        seated = [(place, seat) for place, seat in enumerate(state.canvas.seats) if seat and not seat.complete]
        device, limit = self.proposal.model.device, state.canvas.canvas.shape[1]
        rows = torch.tensor([place for place, _ in seated], device=device)
        before = state.canvas.canvas[rows]
        prompt = torch.tensor([len(seat.request.prompt) for _, seat in seated], device=device)
        shown, masked = open_places(
            before, self.proposal.lookahead, self.span, model=self.proposal.model, prompt=prompt
        )
        logits = state.canvas.session.score(rows, shown)
        generators = [own for place, _ in seated if (own := state.canvas.generators[place]) is not None]
        uniform = PromptSource(generators, device=device).uniform((self.slot, limit))
        law = self.proposal.log_probs(logits, self.proposal.lanes)[:, 0]
        drafted = inverse_cdf(law, uniform[:, 0, : shown.shape[1]])
        chosen = planned(self.plain(logits), drafted, masked, self.slot, self.tau_slot)
        drafted, chosen = (torch.nn.functional.pad(x, (0, limit - shown.shape[1])) for x in (drafted, chosen))
        tokens, finished = torch.where(chosen, drafted, before), before >= 0
        kept, read = self.fill(state.causal, rows, tokens, finished, chosen)
        asked = [Forwards(0, 0, 1, 1, count) for count in read.tolist()]
        alone = (~kept.any(1)).nonzero().flatten()
        if alone.numel():
            tokens[alone], passes = self.one_by_one(
                state.causal, rows[alone], tokens[alone], finished[alone], chosen[alone], uniform[alone, 1:]
            )
            kept[alone] = chosen[alone]
            for row, more in zip(alone.tolist(), passes, strict=True):
                asked[row] = Forwards.total([asked[row], more])
        after = torch.where(kept, tokens, before)
        end, whole = extent(after, ends_of(self.proposal.model.eos_id))
        seats, costs = list(state.canvas.seats), list(state.asked)
        found = zip(after.tolist(), end.tolist(), whole.tolist(), asked, strict=True)
        for (place, seat), (row, count, complete, cost) in zip(seated, found, strict=True):
            seats[place] = seat.after(row[:count], complete=complete)
            costs[place] = Forwards.total([costs[place], cost])
        canvas = state.canvas._replace(seats=tuple(seats), canvas=state.canvas.canvas.index_copy(0, rows, after))
        return state._replace(canvas=canvas, asked=tuple(costs))

    def plain(self, logits: Tensor) -> Tensor:
        """Log-probabilities of logits at temperature 1 and without truncation."""
        return Shaping(banned_ids=self.proposal.banned_ids).log_probs(logits)

    def fill(
        self, session: CausalSession, rows: Tensor, tokens: Tensor, finished: Tensor, chosen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Places of the slots that are whole in the accepted prefix, bool `[R, T]`, and tokens read, `[R]`.

        Args:
            session: of the AR model.
            rows: of it, `[R]`.
            tokens: those that are finished, and the drafts, `[R, T]`.
            finished, chosen: which these are, bool `[R, T]` each.
        """
        text = Text.of(tokens, finished, chosen)
        log_p = self.plain(session.score(rows, text.tokens))
        stands = log_p.gather(2, text.tokens[..., None])[..., 0].exp() > self.tau_token
        stands |= (~chosen | first_of(chosen, self.slot)).gather(1, text.place)
        stands &= torch.arange(text.place.shape[1], device=rows.device) < text.length[:, None]
        prefix = stands.to(torch.uint8).cumprod(1).bool()
        prefix |= (prefix & is_end(text.tokens, ends_of(self.proposal.model.eos_id))).cumsum(1) > 0
        accepted = torch.zeros_like(chosen).scatter(1, text.place, prefix)
        return chosen & ~of_slots(chosen & ~accepted, self.slot), text.length

    def one_by_one(
        self, session: CausalSession, rows: Tensor, tokens: Tensor, finished: Tensor, chosen: Tensor, uniform: Tensor
    ) -> tuple[Tensor, list[Forwards]]:
        """Fill chosen slots by passes with a row for each (module docstring).

        Args:
            session, rows, tokens, finished, chosen: see `fill`.
            uniform: for the draws of each pass at each place, `[R, k - 1, T]`.
        Returns:
            the tokens, `[R, T]`; what each of the R took of the AR model.
        """
        rests, nth = Rests.of(chosen, self.slot), torch.arange(self.slot, device=rows.device)
        whole, cost = tokens.clone(), [Forwards()] * len(tokens)
        settled = torch.ones(len(tokens), dtype=torch.long, device=rows.device)  # of every slot of a prompt
        for turn in range(self.slot - 1):
            going = (settled[rests.row] < rests.size).nonzero().flatten()
            if not going.numel():
                break
            own, place, size = (each[going] for each in rests)
            mine = torch.zeros_like(chosen[own]).scatter(1, place, True)
            text = Text.of(whole[own], finished[own], mine)
            column = (text.length - size)[:, None] + nth  # a slot is the end of its text
            log_p = self.plain(session.score(rows[own], text.tokens))
            log_p = log_p[torch.arange(len(own), device=rows.device)[:, None], column.clamp_max(log_p.shape[1] - 1)]
            drafts = whole[own].gather(1, place)
            stands = (log_p.gather(2, drafts[..., None])[..., 0].exp() > self.tau_token) & (nth < size[:, None])
            stands |= nth < settled[own, None]
            count = stands.to(torch.uint8).cumprod(1).sum(1)
            settled = settled.scatter_reduce(0, own, count, "amin", include_self=False)
            slot, again = ((nth >= settled[own, None]) & (nth < size[:, None])).nonzero(as_tuple=True)
            at = place[slot, again]
            whole[own[slot], at] = inverse_cdf(self.drawn(log_p[slot, again]), uniform[own[slot], turn, at])
            settled = settled + torch.zeros_like(settled).index_fill(0, own, 1)
            for each in set(own.tolist()):
                ours = text.length[own == each]
                cost[each] = Forwards.total([cost[each], Forwards(0, 0, 1, ours.numel(), int(ours.sum()))])
        return whole, cost

    def drawn(self, log_p: Tensor) -> Tensor:
        """The law that tokens of the AR model are drawn from, of its own law, `[m, A]`."""
        return self.proposal.log_probs(log_p[:, None], self.proposal.lanes)[:, 0, 0]

    def finished(self, state: SlotState) -> list[int]:
        """Seats whose continuation is complete (`Decoder.finished`)."""
        return [place for place, seat in enumerate(state.canvas.seats) if seat is not None and seat.complete]

    def result(self, state: SlotState, seat: int) -> Result:
        """See `Decoder.result`: one continuation, up to the first gap if it is not finished."""
        own, limit = state.canvas.seats[seat], state.canvas.canvas.shape[1]
        assert own is not None, f"nobody sits in seat {seat}"
        settings = {
            "method": self.name, "slot": self.slot, "tau_slot": self.tau_slot, "tau_token": self.tau_token,
            "span": self.span, "lookahead": min(self.proposal.lookahead, limit),
            "proposal": self.proposal.shaping.settings(),
            "models": {"dlm": name_of(self.proposal.model), "ar": name_of(self.causal)}, "max_new_tokens": limit,
        }
        forwards = Forwards.total([Forwards(own.forwards, own.forwards), state.asked[seat]])
        return own.result(settings, forwards=forwards, detokenize=self.detokenize, reasons=[WHY])

    def reseat(self, state: SlotState, seats: Sequence[int], requests: Sequence[Request | None]) -> SlotState:
        """The state with other prompts in some seats (`Decoder.reseat`)."""
        device = state.canvas.canvas.device
        held = [0 if seat is None else len(seat.request.prompt) for seat in state.canvas.seats]
        rows, length = torch.tensor(seats, device=device), torch.tensor(held, device=device)
        fresh = prompts_of(requests, device=device)
        for session in (state.canvas.session, state.causal):
            reseat(session, length, rows, fresh.tokens, fresh.length)
        canvas = state.canvas._replace(canvas=state.canvas.canvas.index_fill(0, rows, MASKED))
        asked = tuple(Forwards() if place in seats else cost for place, cost in enumerate(state.asked))
        return SlotState(with_prompts(canvas, seats, requests), state.causal, asked)
