"""Decoders of the diffusion model alone: a canvas of masked places that is filled a few places per forward.

    look    = the laws of all open places, one forward of the model on prompt and canvas
    commit  = rule(look): which places are filled now, and which filled ones are masked again
    tokens  ~ the law of each place that is filled, independently

A rule may also say where the canvas ends from now on (`smc_bridge.canvas.cut`).

A `CommitRule` is all that one such decoder has of its own. None of them targets the autoregressive law, so their
results are not proper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from smc_bridge.canvas.anchors import check_anchors, planted
from smc_bridge.canvas.credit import Credit
from smc_bridge.canvas.cut import uncut
from smc_bridge.canvas.rules import (
    Commit,
    CommitRule,
    Look,
    Ordered,
    Reconsider,
    check_limit,
    check_rule,
    checked,
    is_noisy,
    looks_back,
)
from smc_bridge.canvas.state import CanvasState, extent, keep, open_places, score, with_prompts
from smc_bridge.describe import describe, name_of
from smc_bridge.distributions.shaping import Shaping
from smc_bridge.models.arguments import check_callable, check_text, said, whole_number
from smc_bridge.models.ends import ends_of
from smc_bridge.models.protocols import ABSENT, MASKED, LanguageModel, ModelPair
from smc_bridge.models.rows import computed, reseat
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.randomness import PromptSource
from smc_bridge.requests import Request, prompts_of
from smc_bridge.result import Forwards, Result
from smc_bridge.sampling import inverse_cdf
from smc_bridge.streams import Role

#: Forwards that a rule may take for a canvas, as a multiple of its places.
PATIENCE = 8
#: Why no result is proper.
WHY = "the diffusion model's own decoder does not target the AR law"
#: What is said besides where a rule decides after sampling: at a temperature of 0 every draw is the likeliest token.
AFTER = "the drawn tokens decide which places are filled: each is off its own marginal"


@dataclass
class Canvas:
    """The diffusion model's decoder under a rule, as a `Decoder`.

    Attributes:
        proposal: its first lane's law is decoded; `lookahead` masks stand behind what is filled without a gap.
        rule: which places are filled after each forward.
        span: consecutive places that are open until all are filled, then the next so many; None for all `lookahead`.
        name: for tables.
        detokenize: from a continuation's ids to its text.
        anchors: tokens that stand in the canvas from the start and stay, by their places; a place from the length limit
            on is refused when a run begins.
        credit: added to the logits before anything reads them; None for none.
    Raises:
        ValueError: one of them is something else, or out of range.
    """

    proposal: DLMProposal
    rule: CommitRule = field(default_factory=Ordered)
    span: int | None = 32
    name: str = "DLM"
    detokenize: Callable[[list[int]], str] | None = None
    anchors: Mapping[int, int] = field(default_factory=dict)
    credit: Credit | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.proposal, DLMProposal):
            raise ValueError(f"proposal = {said(self.proposal)}: give a DLMProposal, whose marginals are drawn from")
        if self.proposal.reuse:
            raise ValueError(
                f"reuse = {self.proposal.reuse:g} of the proposal: a canvas refuses nothing; leave it out"
            )
        check_text("name", self.name)
        check_callable("detokenize", self.detokenize, "a function of a list of ids")
        if self.span is not None:
            self.span = whole_number("span", self.span, remedy="open at least 1 place, a whole number, or None for all")
        check_rule("rule", self.rule)
        self.anchors = check_anchors(self.anchors, self.proposal.model)
        if not (self.credit is None or isinstance(self.credit, Credit)):
            raise ValueError(f"credit = {said(self.credit)}: give a Credit, or None")
        order = uncut(self.rule)
        order = order.rule if isinstance(order, Reconsider) else order
        drawn = isinstance(order, Ordered) and order.tempered and order.order != "left_to_right"
        if drawn and self.proposal.shaping.temperature == 0:
            raise ValueError(
                "tempered = True with temperature = 0: point masses rank no places; leave tempered out, so that the "
                "model's own law ranks them"
            )

    @property
    def stream(self) -> Role:
        """The stream of random numbers of the diffusion model's own decoders."""
        return Role.DLM

    @property
    def models(self) -> dict[str, LanguageModel]:
        """The one model that reads the prompts, by its kind."""
        return {"diffusion": self.proposal.model}

    def open(self, requests: Sequence[Request | None], limit: int) -> CanvasState:
        """P seats with their prompts and empty canvases (`Decoder.open`)."""
        check_limit(self.rule, limit)
        device, empty = self.proposal.model.device, (None,) * len(requests)
        prefix = prompts_of(requests, device=device)
        session = self.proposal.model.session(prefix.tokens.clamp_min(0), prefix.length)
        canvas = planted(self.anchors, limit, device=device).repeat(len(requests), 1)
        kept = torch.zeros_like(prefix.length)
        return with_prompts(CanvasState(empty, empty, session, canvas, kept), range(len(requests)), requests)

    def step(self, state: CanvasState) -> CanvasState:
        """One forward, and the places filled that the rule chooses (`Decoder.step`)."""
        seated = [(place, seat) for place, seat in enumerate(state.seats) if seat is not None and not seat.complete]
        device, limit = self.proposal.model.device, state.canvas.shape[1]
        if max(seat.forwards for _, seat in seated) >= PATIENCE * limit:
            raise ValueError(
                f"rule {type(self.rule).__name__} has not filled {limit} places in {PATIENCE * limit} forwards: mask "
                "fewer again as look.step grows"
            )
        rows = torch.tensor([place for place, _ in seated], device=device)
        before = state.canvas[rows]
        model, prompt = self.proposal.model, [len(seat.request.prompt) for _, seat in seated]
        shown, eligible = open_places(
            before, self.proposal.lookahead, self.span, model=model, prompt=torch.tensor(prompt, device=device)
        )
        # A session that caches, or may do so exactly, is given what is filled without a gap, unless the rule looks at
        # it again.
        keeps = not looks_back(self.rule) and (
            state.session.has_history or getattr(model, "block_size", None) is not None
        )
        logits = score(state, rows, shown) if keeps else state.session.score(rows, shown)
        ran = computed(state.session, len(seated)).tolist()
        if self.credit is not None:
            logits, state = self.credit.lend(logits, state, rows)
        log_q = self.proposal.log_probs(logits, self.proposal.lanes)[:, 0]
        generators = [own for place, _ in seated if (own := state.generators[place]) is not None]
        source = PromptSource(generators, device=device)
        uniform = source.uniform((limit,))[:, : shown.shape[1]]
        noise = source.uniform((limit,))[:, : shown.shape[1]] if is_noisy(self.rule) else None
        tokens = None if self.rule.before_sampling else inverse_cdf(log_q, uniform)
        step = torch.tensor([seat.forwards for _, seat in seated], device=device)
        plain = partial(_untempered, self.proposal.shaping, log_q, logits)
        look = self.look(log_q, plain, shown, eligible, step, limit=limit, tokens=tokens, noise=noise)
        commit = checked(self.rule, look)
        drawn = self.drawn(look, commit, uniform)
        after = before.clone()
        part = after[:, : shown.shape[1]]
        if commit.remask is not None:
            part[commit.remask] = MASKED
        part[commit.places] = drawn
        likeliest = commit.edit
        if commit.finish is not None:
            rest = (shown == MASKED) & commit.finish[:, None]
            likeliest = rest if likeliest is None else likeliest | rest
        if likeliest is not None:
            part[likeliest] = look.log_q_plain[likeliest].argmax(-1)
        if commit.cut is not None:
            cut = torch.where(commit.cut < shown.shape[1], commit.cut, limit)
            after[torch.arange(limit, device=device) >= cut[:, None]] = ABSENT
        end, whole = extent(after, ends_of(self.proposal.model.eos_id))
        seats = list(state.seats)
        found = zip(after.tolist(), end.tolist(), whole.tolist(), ran, strict=True)
        for (place, seat), (row, count, complete, cost) in zip(seated, found, strict=True):
            seats[place] = seat.after(row[:count], complete=complete, forwards=int(cost))
        state = state._replace(seats=tuple(seats), canvas=state.canvas.index_copy(0, rows, after))
        return keep(state, rows) if keeps else state

    def look(
        self, log_q: Tensor, plain: Callable[[], Tensor], shown: Tensor, eligible: Tensor, step: Tensor, *, limit: int,
        **drawn: Tensor | None,
    ) -> Look:
        """What a rule sees of canvases `shown: [R, T]` of `limit` places; the others as of `Look`."""
        held = None
        if self.anchors:
            empty = planted(self.anchors, limit, device=shown.device)
            held = (empty[: shown.shape[1]] != MASKED).expand_as(shown)
        return Look(log_q, plain, shown, eligible, step, held=held, limit=limit, anchors=len(self.anchors), **drawn)

    def drawn(self, look: Look, commit: Commit, uniform: Tensor) -> Tensor:
        """Tokens of the places that are filled, `[n]`: of each place's own law, or as the rule fills them."""
        fill = getattr(self.rule, "fill", None)
        if fill is not None:
            found: Tensor = fill(look, commit, uniform, self.law)
            return found[commit.places]
        if look.tokens is not None:
            return look.tokens[commit.places]
        return inverse_cdf(look.log_q[commit.places], uniform[commit.places])

    def law(self, logits: Tensor) -> Tensor:
        """Log-probabilities of logits `[n, A]` at the decoder's temperature and truncation, `[n, A]`."""
        return self.proposal.log_probs(logits[:, None], self.proposal.lanes)[:, 0, 0]

    def finished(self, state: CanvasState) -> list[int]:
        """Seats whose continuation is complete (`Decoder.finished`)."""
        return [place for place, seat in enumerate(state.seats) if seat is not None and seat.complete]

    def result(self, state: CanvasState, seat: int) -> Result:
        """See `Decoder.result`: one continuation, up to the first gap if it is not finished."""
        own, model, limit = state.seats[seat], self.proposal.model, state.canvas.shape[1]
        assert own is not None, f"nobody sits in seat {seat}"
        settings = {
            "method": self.name, "rule": describe(self.rule), "span": self.span,
            "lookahead": min(self.proposal.lookahead, limit), "proposal": self.proposal.shaping.settings(),
            **({"anchors": {str(place): token for place, token in self.anchors.items()}} if self.anchors else {}),
            **({} if self.credit is None else {"credit": describe(self.credit)}),
            "models": {"dlm": name_of(model)}, "max_new_tokens": limit,
        }
        return own.result(
            settings, forwards=Forwards(own.forwards, own.forwards), detokenize=self.detokenize,
            reasons=[WHY] if self.rule.before_sampling or not self.proposal.shaping.temperature else [WHY, AFTER],
        )

    def reseat(self, state: CanvasState, seats: Sequence[int], requests: Sequence[Request | None]) -> CanvasState:
        """The state with other prompts in some seats (`Decoder.reseat`)."""
        device = state.canvas.device
        held = torch.tensor([0 if seat is None else len(seat.request.prompt) for seat in state.seats], device=device)
        held += state.kept
        rows = torch.tensor(seats, device=device)
        fresh = prompts_of(requests, device=device)
        reseat(state.session, held, rows, fresh.tokens, fresh.length)
        empty = planted(self.anchors, state.canvas.shape[1], device=device)
        memory = None if state.memory is None else state.memory.index_fill(0, rows, 0.0)
        state = state._replace(
            canvas=state.canvas.index_copy(0, rows, empty.repeat(len(rows), 1)),
            kept=state.kept.index_fill(0, rows, 0), memory=memory,
        )
        return with_prompts(state, seats, requests)


def _untempered(law: Shaping, log_q: Tensor, logits: Tensor) -> Tensor:
    """The law of the model's logits at temperature 1 and without truncation; `log_q` is that under `law`."""
    plain = Shaping(banned_ids=law.banned_ids)
    return log_q if law == plain else plain.log_probs(logits)


def as_proposal(proposal: DLMProposal | ModelPair) -> DLMProposal:
    """The proposal itself, or, of a pair of models, that of its diffusion model at temperature 1.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(proposal, DLMProposal):
        return proposal
    if hasattr(proposal, "dlm"):
        return DLMProposal(proposal.dlm)
    raise ValueError(f"proposal = {said(proposal)}: give a DLMProposal, or a pair of models")
